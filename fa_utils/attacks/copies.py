"""Several copies of the picture, whose gradients are averaged: at other scales, under noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fa_utils.attacks.engine import Scope


@dataclass(frozen=True)
class ScaleCopies:
    """Copies S_j(x) = origin + (x - origin) / base^j for j = 0 ... count - 1, each under fresh Gaussian noise if asked for.

    Parameters
    ----------
    count : int
        Copies, at least 1; one copy without noise is the plain attack, bit for bit.
    base : float
        At least 1; 2 halves the contrast from copy to copy.
    origin : float
        The brightness in [0, 1] that copies shrink to: 0 is black, 0.5 the middle gray that networks map to zero.
    sigma : float
        Standard deviation of the noise on the scale of the images, at least 0; ``15 / 255`` is fifteen gray levels.
    noise : {"before", "after"}
        Whether the noise is added before the copy is scaled, or after.

    Notes
    -----
    Without noise this is the scale-invariant method (SI) of Lin et al. (2020); with it, the copies of the corrasion
    attack of Zhou H. et al. (2023), algorithm 1 (``before``) or eq. 16 (``after``); sheet 4-gradient-eroding, items 2
    and 3h to 3j. Copies are averaged where SI sums them: a factor that the sign does not see.
    """

    count: int = 5
    base: float = 2.0
    origin: float = 0.0
    sigma: float = 0.0
    noise: str = "before"

    def __post_init__(self) -> None:
        check_count(self.count)
        check_sigma(self.sigma)
        if not (math.isfinite(self.base) and self.base >= 1):
            raise ValueError(f"base must be finite and at least 1, got {self.base!r}")
        if not 0 <= self.origin <= 1:
            raise ValueError(f"origin must lie in [0, 1], got {self.origin!r}")
        if self.noise not in ("before", "after"):
            raise ValueError(f"noise must be 'before' or 'after', got {self.noise!r}")

    def bind(self, scope: Scope):
        return _Copies(self, scope)


@dataclass(frozen=True)
class NoiseCopies:
    """Copies x + noise, the noise Gaussian and fresh for each copy and step: the variance-reduced gradient (Vr).

    Parameters
    ----------
    count : int
        Copies, at least 1.
    sigma : float
        Standard deviation on the scale of the images, at least 0; with one copy and 0 the plain attack, bit for bit.

    Notes
    -----
    Wu L. et al. (2018), arXiv 1802.09707. Zhou H. et al. (2023) do not give sigma; fifteen gray levels is what a public
    code defaults to (sheet 4-gradient-eroding, section 2).
    """

    count: int = 3
    sigma: float = 15 / 255

    def __post_init__(self) -> None:
        check_count(self.count)
        check_sigma(self.sigma)

    def bind(self, scope: Scope):
        return _Copies(ScaleCopies(self.count, base=1.0, sigma=self.sigma), scope)


class _Copies:
    def __init__(self, part: ScaleCopies, scope: Scope):
        self.part = part
        device = scope.source.device
        self.generators = scope.generators(device=device) if part.sigma else []

    def __call__(self, images: Tensor, step: int) -> list[tuple[Tensor, float]]:
        return [(self._copy(images, j), 1 / self.part.count) for j in range(self.part.count)]

    def _copy(self, images: Tensor, j: int) -> Tensor:
        part, noise = self.part, self._noise(images)
        if noise is not None and part.noise == "before":
            images = images + noise
        if j > 0 and part.base > 1:
            images = part.origin + (images - part.origin) / part.base**j
        if noise is not None and part.noise == "after":
            images = images + noise
        return images

    def _noise(self, images: Tensor) -> Tensor | None:
        if not self.part.sigma:
            return None
        noise = torch.empty_like(images, memory_format=torch.contiguous_format)
        for row, generator in zip(noise, self.generators, strict=True):
            row.normal_(0, self.part.sigma, generator=generator)
        return noise


def check_count(count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count, the number of copies, must be a whole number of at least 1, got {count!r}")


def check_sigma(sigma: float) -> None:
    if not (math.isfinite(sigma) and 0 <= sigma <= 1):
        hint = "; gray levels are written 15 / 255" if sigma > 1 else ""
        raise ValueError(f"sigma must lie in [0, 1], on the scale of the images, got {sigma!r}{hint}")
