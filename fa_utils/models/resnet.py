"""ResNet-50 with torchvision's module names (He et al. 2016, stride in the 3x3 convolution)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from fa_utils.models.iresnet import halved, projection


class BottleneckUnit(nn.Module):
    """``relu(shortcut(x) + residual(x))`` with the residual 1x1, 3x3 (stride), 1x1."""

    def __init__(self, channels_in: int, width: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels_in, width, 1, bias=False),
                bn1=nn.BatchNorm2d(width),
                relu1=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(width, width, 3, stride, 1, bias=False),
                bn2=nn.BatchNorm2d(width),
                relu2=nn.ReLU(inplace=True),
                conv3=nn.Conv2d(width, channels_out, 1, bias=False),
                bn3=nn.BatchNorm2d(channels_out),
            )
        )
        same_shape = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same_shape else projection(channels_in, channels_out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.shortcut(x) + self.residual(x)).relu_()


class ResNet50(nn.Module):
    """ResNet-50; ``fc`` maps the 2048 pooled features to the embedding.

    Parameters
    ----------
    units : bottleneck units in each stage; the first stage keeps the size, the others halve it.
    widths : channels inside the bottlenecks of each stage.
    expansion : output channels of a unit over ``width``.
    stem_width, stem_kernel : channels and side of the first convolution (stride 2, then maximum of stride 2).
    dropout : on the pooled features.
    input_size : side of the input in pixels that the weights expect; any side from 32 works.
    """

    public_names = (
        (r"^(layer\d+\.\d+)\.downsample\.", r"\1.shortcut."),
        (r"^(layer\d+\.\d+)\.(bn\d|conv\d)\.", r"\1.residual.\2."),
    )

    def __init__(
        self,
        *,
        units: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        expansion: int = 4,
        stem_width: int = 64,
        stem_kernel: int = 7,
        dropout: float = 0.0,
        input_size: int = 224,
        embedding: int = 512,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.conv1 = nn.Conv2d(3, stem_width, stem_kernel, 2, stem_kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stages = [f"layer{i + 1}" for i in range(len(units))]
        channels = stem_width
        for index, (stage, count, width) in enumerate(zip(self.stages, units, widths, strict=True)):
            blocks = []
            for i in range(count):
                stride = 2 if i == 0 and index > 0 else 1
                blocks.append(BottleneckUnit(channels, width, width * expansion, stride))
                channels = width * expansion
            self.add_module(stage, nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, embedding)

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, H, W) of the last stage."""
        x = self.maxpool(self.bn1(self.conv1(x)).relu_())
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.maps(x).mean((2, 3))))


class FaceResNet50(ResNet50):
    """ResNet-50 with the head of face networks, which keeps positions: a 1x1 neck, all positions, batch normalization.

    Parameters
    ----------
    neck : channels of the 1x1 convolution.
    **options : of `ResNet50`.
    """

    public_names = ()

    def __init__(self, *, neck: int = 96, input_size: int = 112, embedding: int = 512, **options) -> None:
        super().__init__(input_size=input_size, embedding=embedding, **options)
        channels, side = self.fc.in_features, halved(input_size, 1 + len(self.stages))
        self.neck = nn.Sequential(nn.Conv2d(channels, neck, 1, bias=False), nn.BatchNorm2d(neck))
        self.fc = nn.Linear(neck * side * side, embedding, bias=False)
        self.bn = nn.BatchNorm1d(embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.fc(self.dropout(self.neck(self.maps(x)).flatten(1))))
