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


@dataclass(frozen=True)
class Nesterov:
    """NI: momentum whose gradient is taken where the momentum would lead, at x - step_size * mu * g.

    Parameters
    ----------
    mu : float
        Decay, at least 0; 0 is the plain gradient, bit for bit.
    norm : {"mean_abs", "l1", "l2", "none"}
        As in `Momentum`. The length of the look ahead depends on it, so no two give the same attack.
    clip : bool
        Keep the look ahead within eps of the picture and within [0, 1]; without, it is the authors'.

    Notes
    -----
    Lin et al. (2020). With ``mean_abs`` and mu = 1 the momentum grows by about one at each step, and so does the look
    ahead, by a step size: harmless in ten steps, far outside the ball in a thousand (sheet 5-bpfa, section 2;
    common.md, section 4, item 4). It takes the place of `Momentum`.
    """

    mu: float = 1.0
    norm: str = "mean_abs"
    clip: bool = True

    def __post_init__(self) -> None:
        Momentum(self.mu, self.norm)

    def bind(self, scope) -> "_NesterovState":
        return _NesterovState(self, scope)


class _NesterovState(_MomentumState):
    def __init__(self, part: Nesterov, scope):
        super().__init__(Momentum(part.mu, part.norm))
        self.length = part.mu * scope.step_size
        self.box: tuple[Tensor, ...] = ()
        if part.clip:
            self.box = (scope.source - scope.eps).clamp_(min=0), (scope.source + scope.eps).clamp_(max=1)

    def look(self, images: Tensor) -> Tensor:
        if self.total is None or self.length == 0:
            return images
        ahead = images.sub(self.total, alpha=self.length)
        return ahead.clamp_(*self.box) if self.box else ahead


@dataclass(frozen=True)
class VarianceTuning:
    """VT: add how much the gradient around the picture of the step before differed from the gradient there.

    Parameters
    ----------
    count : int
        Neighbors of the picture, at least 0, each at the cost of one more gradient; 0 is the plain attack, bit for bit.
    beta : float
        Neighbors lie uniformly within beta * eps of the picture, pixel by pixel; finite and above 0.

    Notes
    -----
    Wang and He (2021), with the settings of their code: v = mean of the neighbors' gradients - gradient, added at the
    next step, before `Momentum` normalizes (sheet 5-bpfa, section 2). Neighbors may leave the ball and [0, 1], as
    theirs do; they are new at each step, for each image.
    """

    count: int = 20
    beta: float = 1.5

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 0:
            raise ValueError(f"count, of neighbors, must be a whole number of at least 0, got {self.count!r}")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta must be finite and above 0, got {self.beta!r}")

    def bind(self, scope) -> "_VarianceState":
        return _VarianceState(self, scope)


class _VarianceState:
    def __init__(self, part: VarianceTuning, scope):
        self.count, self.radius = part.count, part.beta * scope.eps
        self.generators = scope.generators(device=scope.source.device) if part.count else []
        self.variance: Tensor | None = None

    def __call__(self, gradient: Tensor, point) -> Tensor:
        if not self.count:
            return gradient
        tuned = gradient if self.variance is None else gradient + self.variance
        around = sum(point.gradient_at(self._neighbor(point.images)) for _ in range(self.count))
        self.variance = around / self.count - gradient
        return tuned

    def _neighbor(self, images: Tensor) -> Tensor:
        noise = torch.empty_like(images, memory_format=torch.contiguous_format)
        for row, generator in zip(noise, self.generators, strict=True):
            row.uniform_(-self.radius, self.radius, generator=generator)
        return images + noise


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
