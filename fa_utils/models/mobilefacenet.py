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

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """(B, last, 1, 1): what the global depth-wise convolution leaves."""
        x = self.conv_23(self.conv2_dw(self.conv1(x)))
        x = self.conv_45(self.conv_4(self.conv_34(self.conv_3(x))))
        return self.conv_6_dw(self.conv_6_sep(self.conv_5(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.linear(self.pooled(x).flatten(1)))


def xiaoccer_prefixes() -> dict[str, str]:
    """Beginnings of Xiaoccer's key names, and of ours: all bottlenecks in one list, and their layers in another."""
    units = ["conv_23", *(f"conv_3.model.{i}.residual" for i in range(4))]
    units += ["conv_34", *(f"conv_4.model.{i}.residual" for i in range(6))]
    units += ["conv_45", *(f"conv_5.model.{i}.residual" for i in range(2))]
    layers = [f"{part}.{layer}" for part in ("conv", "conv_dw", "project") for layer in ("conv", "bn", "prelu")][:-1]
    prefixes = {f"blocks.{i}.conv.{k}.": f"{u}.{layer}." for i, u in enumerate(units) for k, layer in enumerate(layers)}
    stem_and_end = {"dw_conv1.": "conv2_dw.", "conv2.": "conv_6_sep.", "linear7.": "conv_6_dw."}
    return prefixes | stem_and_end | {"linear1.conv.": "linear.", "linear1.bn.": "bn."}


class NarrowMobileFaceNet(MobileFaceNet):
    """MobileFaceNet for faces of 112 x 96, with the key names of Xiaoccer's PyTorch version.

    SphereFace's alignment template (112 x 96) is ArcFace's (112 x 112) less eight columns at either side, so the
    network takes the usual square pictures and crops them. Its head is a 1x1 convolution.
    """

    public_names = ()
    public_prefixes = xiaoccer_prefixes()
    margin = 8

    def __init__(self, *, embedding: int = 128) -> None:
        super().__init__(embedding=embedding)
        last = self.linear.in_features
        self.conv_6_dw = global_depthwise(last, (7, 6))
        self.linear = nn.Conv2d(last, embedding, 1, bias=False)
        self.bn = nn.BatchNorm2d(embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.linear(self.pooled(x[..., self.margin : -self.margin]))).flatten(1)


def global_depthwise(channels: int, side: int | tuple[int, int]) -> nn.Sequential:
    """A learned weighted mean over all positions, one weight map a channel."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, channels, side, groups=channels, bias=False), bn=nn.BatchNorm2d(channels)
        )
    )
