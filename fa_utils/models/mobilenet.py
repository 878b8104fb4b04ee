"""MobileNetV2 (Sandler et al. 2018): inverted bottlenecks, ReLU6, no activation after the sum.

Unlike MobileFaceNet it has no PReLU, no global depth-wise convolution, and its units widen by a fixed factor.
"""

from collections.abc import Sequence

import torch
from torch import nn

from fa_utils.models.iresnet import SumUnit, halved


def conv_relu6(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU6(inplace=True)]


def inverted_bottleneck(channels_in: int, channels_out: int, *, expansion: int, stride: int) -> nn.Module:
    """1x1 convolution to ``expansion`` times the channels, 3x3 depth-wise, linear 1x1; a residual unit where shapes allow."""
    hidden = expansion * channels_in
    branch = nn.Sequential(
        *conv_relu6(channels_in, hidden, 1),
        *conv_relu6(hidden, hidden, 3, stride, groups=hidden),
        nn.Conv2d(hidden, channels_out, 1, bias=False),
        nn.BatchNorm2d(channels_out),
    )
    same_shape = channels_in == channels_out and stride == 1
    return SumUnit(branch, nn.Identity()) if same_shape else branch


class MobileNetV2(nn.Module):
    """MobileNetV2 with a face head: batch normalization and a fully connected layer on all positions.

    Parameters
    ----------
    stages : (channels, units, stride) of each stage.
    stem_width : channels of the first convolution (stride 2).
    expansion : hidden channels of a unit over its input channels.
    neck : channels of the 1x1 convolution before the fully connected layer.
    input_size : side of the square input in pixels; the fully connected layer depends on it.
    """

    public_names = ()

    def __init__(
        self,
        *,
        stages: Sequence[tuple[int, int, int]],
        stem_width: int = 32,
        expansion: int = 6,
        neck: int = 128,
        input_size: int = 112,
        embedding: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.stem = nn.Sequential(*conv_relu6(3, stem_width, 3, 2))
        units, channels, halvings = [], stem_width, 1
        for width, count, stride in stages:
            for i in range(count):
                units.append(inverted_bottleneck(channels, width, expansion=expansion, stride=stride if i == 0 else 1))
                channels = width
            halvings += stride == 2
        self.units = nn.Sequential(*units)
        self.neck = nn.Sequential(nn.Conv2d(channels, neck, 1, bias=False), nn.BatchNorm2d(neck))
        side = halved(input_size, halvings)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(neck * side * side, embedding, bias=False)
        self.bn = nn.BatchNorm1d(embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.neck(self.units(self.stem(x)))
        return self.bn(self.fc(self.dropout(x.flatten(1))))
