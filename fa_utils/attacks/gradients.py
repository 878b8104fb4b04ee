"""What happens to the gradient between the network and the sign step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NORMS = ("mean_abs", "l1", "l2")


@dataclass(frozen=True)
class Momentum:
    """Accumulate normalised gradients: g <- mu * g + grad / ||grad||.

    Parameters
    ----------
    mu : float
        Decay, at least 0; 0 is the plain gradient, bit for bit.
    norm : {"mean_abs", "l1", "l2"}
        Per image. ``mean_abs``, what public codes use, and ``l1`` give the same signs; ``l2`` does not.

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
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {self.norm!r}")

    def bind(self, scope) -> "_MomentumState":
        return _MomentumState(self)


class _MomentumState:
    def __init__(self, part: Momentum):
        self.part = part
        self.total: Tensor | None = None

    def __call__(self, gradient: Tensor, point) -> Tensor:
        if self.part.mu == 0:
            return gradient
        size = _norm(gradient, self.part.norm)
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
