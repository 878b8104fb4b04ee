"""MobileFaceNet (Chen et al. 2018) with the module names of TreB1eN's PyTorch version.

A depth-wise bottleneck is 1x1 conv, 3x3 depth-wise conv, linear 1x1 conv; the repeated ones are residual
units.
Source: sheets/common.md section 6.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn

from fa_utils.models.iresnet import Activation, SumUnit, halved
from fa_utils.models.prelu import PReLU


@dataclass(frozen=True)
class MobileWidths:
    """Channels of MobileFaceNet; ``expand`` are the channels inside each bottleneck, in forward order."""

    stem: int = 64
    stages: tuple[int, int, int] = (64, 128, 128)
    repeats: tuple[int, int, int] = (4, 6, 2)
    down_expand: tuple[int, int, int] = (128, 256, 512)
    repeat_expand: tuple[int, int, int] = (128, 256, 256)
    last: int = 512


def conv_block(
    channels_in: int,
    channels_out: int,
    activation: Activation | None,
    *,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Convolution, batch normalisation and, unless linear (None), the activation."""
    layers = OrderedDict(
        conv=nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        bn=nn.BatchNorm2d(channels_out),
    )
    if activation:
        layers["prelu"] = activation(channels_out)
    return nn.Sequential(layers)


def bottleneck(
    channels_in: int, channels_out: int, expand: int, stride: int, activation: Activation
) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=conv_block(channels_in, expand, activation),
            conv_dw=conv_block(expand, expand, activation, kernel=3, stride=stride, groups=expand),
            project=conv_block(expand, channels_out, None),
        )
    )


def residual_stage(channels: int, expand: int, count: int, activation: Activation) -> nn.Sequential:
    branches = [bottleneck(channels, channels, expand, 1, activation) for _ in range(count)]
    units = [SumUnit(branch, nn.Identity()) for branch in branches]
    return nn.Sequential(OrderedDict(model=nn.Sequential(*units)))


class MobileFaceNet(nn.Module):
    """MobileFaceNet; sides 112, 56, 28, 14, 7 at full size.

    Parameters
    ----------
    widths : channels and repetitions.
    depthwise_stem : keep the full-resolution depth-wise convolution after the stem (as in the source).
    activation : builds the activation for a number of channels.
    input_size : side of the square input in pixels; the global depth-wise convolution depends on it.
    """

    public_names = ((r"^(conv_\d\.model\.\d+)\.(conv|conv_dw|project)\.", r"\1.residual.\2."),)

    def __init__(
        self,
        *,
        widths: MobileWidths = MobileWidths(),
        depthwise_stem: bool = True,
        activation: Activation = PReLU,
        input_size: int = 112,
        embedding: int = 512,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        stem, (first, second, third) = widths.stem, widths.stages
        self.conv1 = conv_block(3, stem, activation, kernel=3, stride=2)
        self.conv2_dw = nn.Identity()
        if depthwise_stem:
            self.conv2_dw = conv_block(stem, stem, activation, kernel=3, groups=stem)
        self.conv_23 = bottleneck(stem, first, widths.down_expand[0], 2, activation)
        self.conv_3 = residual_stage(first, widths.repeat_expand[0], widths.repeats[0], activation)
        self.conv_34 = bottleneck(first, second, widths.down_expand[1], 2, activation)
        self.conv_4 = residual_stage(second, widths.repeat_expand[1], widths.repeats[1], activation)
        self.conv_45 = bottleneck(second, third, widths.down_expand[2], 2, activation)
        self.conv_5 = residual_stage(third, widths.repeat_expand[2], widths.repeats[2], activation)
        self.conv_6_sep = conv_block(third, widths.last, activation)
        self.conv_6_dw = global_depthwise(widths.last, halved(input_size, 4))
        self.linear = nn.Linear(widths.last, embedding, bias=False)
        self.bn = nn.BatchNorm1d(embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_23(self.conv2_dw(self.conv1(x)))
        x = self.conv_45(self.conv_4(self.conv_34(self.conv_3(x))))
        x = self.conv_6_dw(self.conv_6_sep(self.conv_5(x)))
        return self.bn(self.linear(x.flatten(1)))


def global_depthwise(channels: int, side: int) -> nn.Sequential:
    """A learned weighted mean over all positions, one weight map a channel."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, channels, side, groups=channels, bias=False), bn=nn.BatchNorm2d(channels)
        )
    )
