"""What happens to the gradient between the network and the sign step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

NORMS = ("mean_abs", "l1", "l2")
NO_NORM = "none"


@dataclass(frozen=True)
class Momentum:
    """Accumulate normalised gradients: g <- mu * g + grad / ||grad||.

    Parameters
    ----------
    mu : float
        Decay, at least 0; 0 is the plain gradient, bit for bit.
    norm : {"mean_abs", "l1", "l2", "none"}
        Per image. ``mean_abs``, what public codes use, and ``l1`` give the same signs; ``l2`` does not. ``none`` is for
        gradients that are normalized already, copy by copy.

    Notes
    -----
    A zero gradient adds nothing and never becomes 0/0. M-FIM of Zhong and Deng (2021), algorithm 1; the
    norm is left open there (sheet 3-dfanet, item 3g).
    """

    mu: float = 1.0
    norm: str = "mean_abs"

    def __post_init__(self) -> None:
        if not math.isfinite(self.mu) or self.mu < 0:
            raise ValueError(f"mu must be finite and at least 0, got {self.mu!r}")
        if self.norm not in (*NORMS, NO_NORM):
            raise ValueError(f"norm must be one of {(*NORMS, NO_NORM)}, got {self.norm!r}")

    def bind(self, scope) -> "_MomentumState":
        return _MomentumState(self)


class _MomentumState:
    def __init__(self, part: Momentum):
        self.part = part
        self.total: Tensor | None = None

    def __call__(self, gradient: Tensor, point) -> Tensor:
        if self.part.mu == 0:
            return gradient
        size = gradient.new_ones(1) if self.part.norm == NO_NORM else _norm(gradient, self.part.norm)
        if self.total is None:
            self.total = gradient / size
        else:
            total = self.total if self.part.mu == 1 else self.total.mul_(self.part.mu)
            total.addcdiv_(gradient, size)
        return self.total


def _norm(gradient: Tensor, kind: str) -> Tensor:
    """Per-image norm (B, 1, 1, 1), with 1 in place of 0."""
    if kind == "l2":
        size = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
    else:
        size = gradient.abs().sum((1, 2, 3), keepdim=True)
    if kind == "mean_abs":
        size = size / gradient[0].numel()
    return size.masked_fill(size == 0, 1.0)


@dataclass(frozen=True)
class CopyNorm:
    """Divide the gradient of each copy of the picture by its norm, before the copies are summed.

    Parameters
    ----------
    norm : {"mean_abs", "l1", "l2"}
        Per image and copy.

    Notes
    -----
    Line 9 of algorithm 1 of Zhou H. et al. (2023), where ``l1`` is meant; eq. 15 normalizes the average
    instead, which is what `Momentum` does by itself (sheet 4-gradient-eroding, item 3g). With it the factor
    that scaling a copy brings into its gradient is gone. A zero gradient stays zero.
    """

    norm: str = "l1"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {self.norm!r}")

    def bind(self, scope) -> "_CopyNormState":
        return _CopyNormState(self.norm)


class _CopyNormState:
    def __init__(self, norm: str):
        self.norm = norm

    def each(self, gradient: Tensor) -> Tensor:
        return gradient / _norm(gradient, self.norm)

    def __call__(self, gradient: Tensor, point) -> Tensor:
        return gradient


@dataclass(frozen=True)
class TranslationInvariant:
    """Smooth the gradient: the sum of the gradients at shifted pictures, by one convolution.

    Parameters
    ----------
    kernel : int
        Side in pixels of the Gaussian window, odd; 1 is the plain gradient, bit for bit. The window covers three
        standard deviations to either side, so sigma is (kernel - 1) / 6 pixels.

    Raises
    ------
    ValueError
        For an even kernel or one below 1; when the attack starts, for one larger than the pictures.

    Notes
    -----
    TI of Dong et al. (2019) with zero padding, before `Momentum`; in the corrasion attack of Zhou H. et al. (2023) it
    comes after (sheet 4-gradient-eroding, item 3m). A Gaussian window is a product, so rows and columns are
    smoothed one after the other.
    """

    kernel: int = 15

    def __post_init__(self) -> None:
        whole = isinstance(self.kernel, int) and not isinstance(self.kernel, bool)
        if not whole or self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number of at least 1, got {self.kernel!r}")

    def bind(self, scope):
        side = min(scope.source.shape[2:])
        if self.kernel > side:
            raise ValueError(f"kernel is {self.kernel}, larger than the pictures of {side} pixels")
        if self.kernel == 1:
            return lambda gradient, point: gradient
        window = gaussian_window(self.kernel).to(scope.source.device, scope.source.dtype)
        return lambda gradient, point: smooth(gradient, window)


def gaussian_window(kernel: int) -> Tensor:
    """Normal density at ``kernel`` points over three standard deviations to either side, (kernel,), summing to one."""
    points = torch.linspace(-3, 3, kernel, dtype=torch.float64)
    density = torch.exp(-points.square() / 2)
    return density / density.sum()


def smooth(gradient: Tensor, window: Tensor) -> Tensor:
    """Convolve each channel of (B, C, H, W) with the outer product of the window and itself, zeros beyond the edge."""
    batch, channels, height, width = gradient.shape
    planes, half = gradient.reshape(batch * channels, 1, height, width), len(window) // 2
    planes = functional.conv2d(planes, window.view(1, 1, -1, 1), padding=(half, 0))
    planes = functional.conv2d(planes, window.view(1, 1, 1, -1), padding=(0, half))
    return planes.view(batch, channels, height, width)
