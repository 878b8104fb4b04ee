"""Small encoders for the tests of the attacks: real `FaceEncoder`s, fast enough for float64."""

import torch
from torch import Tensor, nn

from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.iresnet import SumUnit, projection

SIZE = 16


class TinyBackbone(nn.Module):
    """Two convolutions and a linear layer; smooth, so that gradients change continuously with the image."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.linear = nn.Linear(width * (SIZE // 4) ** 2, 8)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.conv1(images)))
        return self.linear(torch.tanh(self.conv2(hidden)).flatten(1))


class TinyResidual(nn.Module):
    """Two residual units, one with an identity shortcut and one with a projection; smooth."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.units = nn.Sequential(
            SumUnit(self.branch(width, 1), nn.Identity()), SumUnit(self.branch(width, 2), projection(width, width, 2))
        )
        self.linear = nn.Linear(width * (SIZE // 4) ** 2, 8)

    @staticmethod
    def branch(width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(width, width, 3, stride, 1), nn.Tanh(), nn.Conv2d(width, width, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.units(torch.tanh(self.stem(images))).flatten(1))


def residual_encoder(seed: int = 0, *, dtype: torch.dtype = torch.float64) -> FaceEncoder:
    torch.manual_seed(seed)
    return FaceEncoder(TinyResidual(), name=f"residual-{seed}", input_size=SIZE, classifier=nn.Linear(8, 5)).to(dtype)


def tiny_encoder(seed: int = 0, *, dtype: torch.dtype = torch.float64) -> FaceEncoder:
    torch.manual_seed(seed)
    encoder = FaceEncoder(TinyBackbone(), name=f"tiny-{seed}", input_size=SIZE, classifier=nn.Linear(8, 5))
    return encoder.to(dtype)


def pictures(count: int, seed: int = 0, *, size: int = SIZE, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator).to(dtype) / 255
