"""ShuffleNet (Zhang et al. 2018): grouped 1x1 convolutions, and a channel shuffle that lets the groups talk.

Units of stride 1 are residual sums; units of stride 2 put a pooled copy of the input beside the branch.
"""

from collections.abc import Sequence

import torch
from torch import nn

from fa_utils.models.iresnet import halved


class ChannelShuffle(nn.Module):
    """Interleave the channels of the groups: channel (group, i) becomes channel (i, group)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        grouped = x.view(batch, self.groups, channels // self.groups, height, width)
        return grouped.transpose(1, 2).reshape(batch, channels, height, width)


def shuffle_branch(channels_in: int, hidden: int, channels_out: int, *, stride: int, groups: int) -> nn.Sequential:
    """Grouped 1x1 convolution, shuffle, 3x3 depth-wise convolution, linear grouped 1x1 convolution."""
    return nn.Sequential(
        nn.Conv2d(channels_in, hidden, 1, groups=groups, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        ChannelShuffle(groups),
        nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, channels_out, 1, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class ShuffleUnit(nn.Module):
    """``relu(shortcut(x) + residual(x))``."""

    def __init__(self, channels: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.residual = shuffle_branch(channels, hidden, channels, stride=1, groups=groups)
        self.shortcut = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.shortcut(x) + self.residual(x)).relu_()


class ShuffleReduction(nn.Module):
    """``relu`` of the branch of stride 2 beside the input averaged over 3 x 3: no residual sum."""

    def __init__(self, channels_in: int, hidden: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.branch = shuffle_branch(channels_in, hidden, channels_out - channels_in, stride=2, groups=groups)
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.pool(x), self.branch(x)], 1).relu_()


class ShuffleNet(nn.Module):
    """ShuffleNet with a face head: batch normalization and a fully connected layer on all positions.

    Parameters
    ----------
    widths : output channels of each stage; every stage starts with stride 2.
    units : units in each stage, the one of stride 2 included.
    groups : groups of the 1x1 convolutions; must divide all widths, their differences and a quarter of the widths.
    stem_width, stem_stride : channels and stride of the first convolution.
    bottleneck : output channels of a unit over its hidden channels.
    input_size : side of the square input in pixels; the fully connected layer depends on it.
    """

    public_names = ()

    def __init__(
        self,
        *,
        widths: Sequence[int],
        units: Sequence[int],
        groups: int = 2,
        stem_width: int = 24,
        stem_stride: int = 2,
        bottleneck: int = 2,
        input_size: int = 112,
        embedding: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem_width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(stem_width), nn.ReLU(inplace=True)
        )
        stages, channels = [], stem_width
        for width, count in zip(widths, units, strict=True):
            stages.append(ShuffleReduction(channels, width // bottleneck, width, groups))
            stages += [ShuffleUnit(width, width // bottleneck, groups) for _ in range(count - 1)]
            channels = width
        self.stages = nn.Sequential(*stages)
        side = halved(input_size, len(widths) + (stem_stride == 2))
        self.bn1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels * side * side, embedding, bias=False)
        self.bn2 = nn.BatchNorm1d(embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.stages(self.stem(x)))
        return self.bn2(self.fc(self.dropout(x.flatten(1))))
