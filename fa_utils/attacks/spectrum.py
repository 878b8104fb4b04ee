"""Copies of the picture whose spectrum is rescaled at random."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fa_utils.attacks.copies import check_count, check_sigma
from fa_utils.attacks.engine import Scope

GRADIENTS = ("copy", "input")


@dataclass(frozen=True)
class SpectrumCopies:
    """SSA: copies IDCT(DCT(x + noise) * m), the noise Gaussian, m uniform on [1 - rho, 1 + rho] for each frequency.

    Parameters
    ----------
    count : int
        Copies, at least 1; with one copy, rho 0 and sigma 0 the plain attack, bit for bit.
    rho : float
        In [0, 1]: how far the spectrum is rescaled; 0 leaves the transform out.
    sigma : float, optional
        Standard deviation of the noise on the scale of the images, in [0, 1]; the attack's eps by default.
    gradient : {"copy", "input"}
        Where the gradient is taken: at the copy, as in the authors' code, or at the picture, back through the
        transform, as the formula reads.

    Raises
    ------
    ValueError
        For a count below 1, or rho or sigma outside [0, 1].

    Notes
    -----
    Long et al. (2022), with the settings of their code: 20 copies, rho 0.5, noise of the size of eps (sheet 5-bpfa,
    section 2). The DCT is the orthonormal one of the whole picture, channel by channel, as two matrix products, so its
    inverse is its transpose. Noise and m are drawn for each image, channel, copy and step. Taken at the picture, the
    gradient is the copy's gradient under the same rescaling once more.
    """

    count: int = 20
    rho: float = 0.5
    sigma: float | None = None
    gradient: str = "copy"

    def __post_init__(self) -> None:
        check_count(self.count)
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho must lie in [0, 1], got {self.rho!r}")
        if self.sigma is not None:
            check_sigma(self.sigma)
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {GRADIENTS}, got {self.gradient!r}")

    def bind(self, scope: Scope):
        return _Spectrum(self, scope)


class _Spectrum:
    def __init__(self, part: SpectrumCopies, scope: Scope):
        self.part = part
        self.sigma = scope.eps if part.sigma is None else part.sigma
        self.generators = scope.generators(device=scope.source.device) if part.rho or self.sigma else []
        self.rows, self.columns = (dct_matrix(side).to(scope.source) for side in scope.source.shape[2:])

    def __call__(self, images: Tensor, step: int) -> list[tuple[Tensor, float]]:
        return [(self._copy(images), 1 / self.part.count) for _ in range(self.part.count)]

    def _copy(self, images: Tensor) -> Tensor:
        if not self.generators:
            return images
        noise, factors = self._draw(images)
        if self.part.gradient == "input":
            return self._rescaled(images + noise, factors)
        # The value is the copy's to the last bit, the derivative that of the picture itself.
        return (images - images.detach()) + self._rescaled(images.detach() + noise, factors)

    def _rescaled(self, images: Tensor, factors: Tensor) -> Tensor:
        if not self.part.rho:
            return images
        spectrum = self.rows @ images @ self.columns.T
        return self.rows.T @ (spectrum * factors) @ self.columns

    def _draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        noise, factors = (torch.empty_like(images, memory_format=torch.contiguous_format) for _ in range(2))
        for added, factor, generator in zip(noise, factors, self.generators, strict=True):
            added.normal_(0, self.sigma, generator=generator)
            factor.uniform_(1 - self.part.rho, 1 + self.part.rho, generator=generator)
        return noise, factors


@lru_cache
def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II as a matrix (size, size) in float64: row k is frequency k, the transpose the inverse."""
    position = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.pi / size * (position + 0.5) * position.unsqueeze(1)) * (2 / size) ** 0.5
    matrix[0] /= 2**0.5
    return matrix
