"""Inception-ResNet-V1, the FaceNet body, with the module names of facenet-pytorch.

Each unit computes ``relu(shortcut(x) + residual(x))``; the residual branch concatenates its parallel
branches, projects them with a biased 1x1 convolution and multiplies by its scale (0.17, 0.10, 0.20, 1.0).
Source: sheets/common.md section 6.
"""

from collections.abc import Sequence

import torch
from torch import nn

Kernel = int | tuple[int, int]
Branch = Sequence[tuple[int, Kernel]]


class BasicConv(nn.Module):
    """Convolution without bias, batch normalisation (eps 1e-3, as TensorFlow's), ReLU."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu_()


def same_padding(kernel: Kernel) -> Kernel:
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


def make_branch(channels: int, layers: Branch) -> nn.Module:
    """A chain of convolutions that keep the size; a single one is not wrapped, as in the public names."""
    chain = []
    for width, kernel in layers:
        chain.append(BasicConv(channels, width, kernel, padding=same_padding(kernel)))
        channels = width
    return chain[0] if len(chain) == 1 else nn.Sequential(*chain)


class ScaledBranches(nn.Module):
    """The residual branch of an Inception unit: ``scale * conv2d(concatenated branches)``."""

    def __init__(self, channels: int, branches: Sequence[Branch], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.branches = [f"branch{i}" for i in range(len(branches))]
        for name, layers in zip(self.branches, branches, strict=True):
            self.add_module(name, make_branch(channels, layers))
        self.conv2d = nn.Conv2d(sum(layers[-1][0] for layers in branches), channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.get_submodule(name)(x) for name in self.branches], 1)
        return self.conv2d(joined) * self.scale


class InceptionUnit(nn.Module):
    """``shortcut(x) + residual(x)``, then ReLU unless it is the last unit of the network."""

    def __init__(self, channels: int, branches: Sequence[Branch], scale: float, *, relu: bool = True) -> None:
        super().__init__()
        self.residual = ScaledBranches(channels, branches, scale)
        self.shortcut = nn.Identity()
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.shortcut(x) + self.residual(x))


def block35(channels: int, width: int, scale: float = 0.17) -> InceptionUnit:
    branches = [[(width, 1)], [(width, 1), (width, 3)], [(width, 1), (width, 3), (width, 3)]]
    return InceptionUnit(channels, branches, scale)


def block17(channels: int, width: int, scale: float = 0.10) -> InceptionUnit:
    return InceptionUnit(channels, [[(width, 1)], [(width, 1), (width, (1, 7)), (width, (7, 1))]], scale)


def block8(channels: int, width: int, scale: float = 0.20, *, relu: bool = True) -> InceptionUnit:
    branches = [[(width, 1)], [(width, 1), (width, (1, 3)), (width, (3, 1))]]
    return InceptionUnit(channels, branches, scale, relu=relu)


class Reduction(nn.Module):
    """Parallel branches of stride 2 (the last one a maximum), concatenated: Mixed_6a and Mixed_7a."""

    def __init__(self, channels: int, branches: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.branches = [f"branch{i}" for i in range(len(branches) + 1)]
        for name, widths in zip(self.branches, branches, strict=False):
            self.add_module(name, self._branch(channels, widths))
        self.add_module(self.branches[-1], nn.MaxPool2d(3, 2))

    @staticmethod
    def _branch(channels: int, widths: Sequence[int]) -> nn.Module:
        """1x1, 3x3, ... convolutions, the last one 3x3 with stride 2 and no padding."""
        if len(widths) == 1:
            return BasicConv(channels, widths[0], 3, 2)
        chain = [BasicConv(channels, widths[0], 1)]
        for before, width in zip(widths, widths[1:-1], strict=False):
            chain.append(BasicConv(before, width, 3, padding=1))
        return nn.Sequential(*chain, BasicConv(widths[-2], widths[-1], 3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.get_submodule(name)(x) for name in self.branches], 1)


class InceptionResnetV1(nn.Module):
    """Inception-ResNet-V1 at full size (FaceNet; input 160 in the public checkpoints).

    The embedding is ``last_bn(last_linear(dropout(mean over positions)))``. The classification layer of a
    public checkpoint (``logits``) is not part of the body and is ignored on loading.
    """

    public_names = ((r"^((?:repeat_\d\.\d+)|block8)\.(branch\d|conv2d)\.", r"\1.residual.\2."),)
    public_ignored = ("logits.",)

    def __init__(self, *, input_size: int = 160, embedding: int = 512, dropout: float = 0.6) -> None:
        super().__init__()
        self.input_size = input_size
        self.conv2d_1a = BasicConv(3, 32, 3, 2)
        self.conv2d_2a = BasicConv(32, 32, 3)
        self.conv2d_2b = BasicConv(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, 2)
        self.conv2d_3b = BasicConv(64, 80, 1)
        self.conv2d_4a = BasicConv(80, 192, 3)
        self.conv2d_4b = BasicConv(192, 256, 3, 2)
        self.repeat_1 = nn.Sequential(*[block35(256, 32) for _ in range(5)])
        self.mixed_6a = Reduction(256, [[384], [192, 192, 256]])
        self.repeat_2 = nn.Sequential(*[block17(896, 128) for _ in range(10)])
        self.mixed_7a = Reduction(896, [[256, 384], [256, 256], [256, 256, 256]])
        self.repeat_3 = nn.Sequential(*[block8(1792, 192) for _ in range(5)])
        self.block8 = block8(1792, 192, 1.0, relu=False)
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(1792, embedding, bias=False)
        self.last_bn = nn.BatchNorm1d(embedding, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool_3a(self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x))))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(x)))
        x = self.repeat_2(self.mixed_6a(self.repeat_1(x)))
        x = self.block8(self.repeat_3(self.mixed_7a(x)))
        return self.last_bn(self.last_linear(self.dropout(x.mean((2, 3)))))


class SmallInceptionResnet(nn.Module):
    """Inception-ResNet for 56 x 56 inputs: the same three kinds of unit at sides 14, 7 and 4.

    The sum is scaled by 0.4 in each unit, as few units need less damping than twenty-one. Plain strided
    convolutions stand for the reductions, and the head keeps positions, as small networks need them.
    """

    public_names = ()

    def __init__(self, *, embedding: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.input_size = 56
        self.stem = nn.Sequential(BasicConv(3, 24, 3, 2, 1), BasicConv(24, 64, 3, 2, 1))
        self.repeat_1 = nn.Sequential(*[block35(64, 20, 0.4) for _ in range(2)])
        self.mixed_6a = BasicConv(64, 112, 3, 2, 1)
        self.repeat_2 = nn.Sequential(*[block17(112, 32, 0.4) for _ in range(2)])
        self.mixed_7a = BasicConv(112, 160, 3, 2, 1)
        self.repeat_3 = nn.Sequential(block8(160, 48, 0.4))
        self.neck = nn.Sequential(nn.Conv2d(160, 96, 1, bias=False), nn.BatchNorm2d(96))
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(96 * 4 * 4, embedding, bias=False)
        self.last_bn = nn.BatchNorm1d(embedding, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.repeat_1(self.stem(x))
        x = self.repeat_3(self.mixed_7a(self.repeat_2(self.mixed_6a(x))))
        return self.last_bn(self.last_linear(self.dropout(self.neck(x).flatten(1))))
