"""VGG16 with batch normalization (Simonyan and Zisserman 2015; configuration D), as torchvision names its layers."""

from collections.abc import Sequence

import torch
from torch import nn

CONVOLUTIONS = (2, 2, 3, 3, 3)  # in each block


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five blocks, two fully connected layers; the embedding is the second one's output.

    The output is taken before its rectifier, which belongs to the classifier that follows (``rectified_head``): VGG-Face's
    descriptor is this layer, and a cosine needs both signs.

    Parameters
    ----------
    widths : channels of each block.
    hidden : length of the first fully connected layer.
    last_pool : whether the fifth block is halved too; a small input has nothing left to halve.
    dropout : after the rectifier of the first fully connected layer.
    input_size : side of the input in pixels.
    """

    public_names = ()
    rectified_head = True

    def __init__(
        self,
        *,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        hidden: int = 4096,
        last_pool: bool = True,
        dropout: float = 0.5,
        input_size: int = 224,
        embedding: int = 4096,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        layers: list[nn.Module] = []
        channels, side = 3, input_size
        for block, (count, width) in enumerate(zip(CONVOLUTIONS, widths, strict=True)):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            if last_pool or block < len(CONVOLUTIONS) - 1:
                layers.append(nn.MaxPool2d(2, 2))
                side //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * side * side, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(hidden, embedding)
        )

    @property
    def last_convolution(self) -> nn.Conv2d:
        """The thirteenth convolution: what the feature-guided denoiser compares."""
        return [module for module in self.features if isinstance(module, nn.Conv2d)][-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))
