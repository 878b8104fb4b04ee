"""IResNet in its two public dialects.

``IResNet`` is the network of insightface's arcface_torch: BN, conv 3x3, BN, PReLU, conv 3x3 (stride), BN,
plus the shortcut. ``IRNet`` is the network of TreB1eN / face.evoLVe, optionally with squeeze-and-excitation
(SE): no BN between the convolutions, and an identity shortcut that strides by taking every second pixel.
Neither has an activation after the sum. Sources: sheets/common.md section 6.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import nn

from fa_utils.models.prelu import PReLU

# Builds the activation for a number of channels.
Activation = Callable[[int], nn.Module]

FULL_WIDTHS = (64, 128, 256, 512)
ARCFACE_UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
EVOLVE_UNITS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 152: (3, 8, 36, 3)}


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)


def projection(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """The shortcut of a unit that changes shape: 1x1 convolution and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
    )


class SumUnit(nn.Module):
    """A residual unit whose output is ``shortcut(x) + residual(x)``, each branch a submodule for hooks."""

    def __init__(self, residual: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + self.residual(x)


class SqueezeExcite(nn.Module):
    """Rescale each channel by a gate computed from all channel means (two 1x1 convolutions)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)
        # `FaceEncoder.convolutions` skips these: they act on channel means, not on feature maps.
        self.fc1.squeeze_excite = self.fc2.squeeze_excite = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.fc1(x.mean((2, 3), keepdim=True)).relu()
        return x * self.fc2(hidden).sigmoid()


def fixed_slope(channels: int) -> nn.LeakyReLU:
    """PReLU with its slopes held at their initial 0.25, for the small networks.

    Learnt slopes per channel cost a third of the training time on a CPU: their backward does not vectorise.
    """
    return nn.LeakyReLU(0.25, inplace=True)


def arcface_unit(channels_in: int, channels_out: int, stride: int, activation: Activation) -> SumUnit:
    residual = nn.Sequential(
        OrderedDict(
            bn1=nn.BatchNorm2d(channels_in),
            conv1=conv3x3(channels_in, channels_out),
            bn2=nn.BatchNorm2d(channels_out),
            prelu=activation(channels_out),
            conv2=conv3x3(channels_out, channels_out, stride),
            bn3=nn.BatchNorm2d(channels_out),
        )
    )
    same_shape = channels_in == channels_out and stride == 1
    return SumUnit(residual, nn.Identity() if same_shape else projection(channels_in, channels_out, stride))


def evolve_unit(
    channels_in: int, channels_out: int, stride: int, activation: Activation, reduction: int | None
) -> SumUnit:
    residual = nn.Sequential(
        nn.BatchNorm2d(channels_in),
        conv3x3(channels_in, channels_out),
        activation(channels_out),
        conv3x3(channels_out, channels_out, stride),
        nn.BatchNorm2d(channels_out),
    )
    if reduction:
        residual.append(SqueezeExcite(channels_out, reduction))
    return SumUnit(residual, evolve_shortcut(channels_in, channels_out, stride))


def evolve_shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    if channels_in != channels_out:
        return projection(channels_in, channels_out, stride)
    return nn.Identity() if stride == 1 else nn.MaxPool2d(1, stride)


def halved(size: int, times: int) -> int:
    """Side length after ``times`` convolutions of stride 2 with padding: rounded up each time."""
    for _ in range(times):
        size = (size + 1) // 2
    return size


class IResNet(nn.Module):
    """arcface_torch's IResNet; every stage starts with stride 2.

    Parameters
    ----------
    units : number of residual units in each stage.
    widths : channels of each stage.
    stem_width, stem_stride : channels and stride of the first convolution.
    activation : builds the activation for a number of channels.
    input_size : side of the square input in pixels; the fully connected layer depends on it.
    """

    public_names = (
        (r"^(layer\d+\.\d+)\.downsample\.", r"\1.shortcut."),
        (r"^(layer\d+\.\d+)\.(bn\d|conv\d|prelu)\.", r"\1.residual.\2."),
    )

    def __init__(
        self,
        units: Sequence[int],
        *,
        widths: Sequence[int] = FULL_WIDTHS,
        stem_width: int = 64,
        stem_stride: int = 1,
        activation: Activation = PReLU,
        input_size: int = 112,
        embedding: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.conv1 = conv3x3(3, stem_width, stem_stride)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.prelu = activation(stem_width)
        self.stages = [f"layer{i + 1}" for i in range(len(units))]
        channels = stem_width
        for stage, count, width in zip(self.stages, units, widths, strict=True):
            blocks = []
            for i in range(count):
                blocks.append(arcface_unit(channels, width, 2 if i == 0 else 1, activation))
                channels = width
            self.add_module(stage, nn.Sequential(*blocks))
        side = halved(input_size, len(units) + (stem_stride == 2))
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels * side * side, embedding)
        self.features = nn.BatchNorm1d(embedding)
        # The gain would be undone by the normalisation of the embedding: it stays at one, as in the source.
        self.features.weight.requires_grad = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.features(self.fc(self.dropout(self.bn2(x).flatten(1))))


class IRNet(nn.Module):
    """TreB1eN / face.evoLVe IR and IR-SE network.

    Parameters
    ----------
    units, widths, stem_width, stem_stride, activation, input_size : as in `IResNet`.
    reduction : channels per hidden unit of squeeze-and-excitation; None for a network without it.
    """

    public_names = (
        (r"^(body\.\d+)\.res_layer\.", r"\1.residual."),
        (r"^(body\.\d+)\.shortcut_layer\.", r"\1.shortcut."),
    )

    def __init__(
        self,
        units: Sequence[int],
        *,
        widths: Sequence[int] = FULL_WIDTHS,
        stem_width: int = 64,
        stem_stride: int = 1,
        activation: Activation = PReLU,
        reduction: int | None = None,
        input_size: int = 112,
        embedding: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.input_layer = nn.Sequential(
            conv3x3(3, stem_width, stem_stride), nn.BatchNorm2d(stem_width), activation(stem_width)
        )
        blocks, channels = [], stem_width
        for count, width in zip(units, widths, strict=True):
            for i in range(count):
                blocks.append(evolve_unit(channels, width, 2 if i == 0 else 1, activation, reduction))
                channels = width
        self.body = nn.Sequential(*blocks)
        side = halved(input_size, len(units) + (stem_stride == 2))
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(channels * side * side, embedding),
            nn.BatchNorm1d(embedding),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_layer(self.body(self.input_layer(x)))
