"""Partial whitening of embeddings.

Identities of a small training set fill few directions of the embedding, so that strangers agree often and
the threshold at a fixed false accept rate is high. Dividing the principal directions by a power of their
standard deviation spreads strangers out; dividing by the whole standard deviation amplifies noise.
"""

import torch
from torch import nn


class Whitening(nn.Module):
    """``(f / |f| - mean) U diag(lambda)^(-alpha / 2)``, a linear map on unit features.

    Parameters
    ----------
    dim : int
        Length of a feature.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Raw features (B, dim) to whitened ones (B, dim), not normalized."""
        return (nn.functional.normalize(features) - self.mean) @ self.matrix


def fit_whitening(features: torch.Tensor, *, alpha: float) -> Whitening:
    """Fit the whitening to raw features of training pictures.

    Parameters
    ----------
    features : torch.Tensor, (N, D)
        Raw backbone features, two pictures or more.
    alpha : float
        Share of the whitening in [0, 1]: 0 only centers and rotates, 1 makes the covariance the identity.

    Raises
    ------
    ValueError
        If the features are not a finite matrix of two rows or more, or alpha is out of range.
    """
    if features.ndim != 2 or len(features) < 2 or not torch.isfinite(features).all():
        raise ValueError(
            f"features of shape {tuple(features.shape)}: need a finite (N, D) matrix with N of 2 or more"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, must lie in [0, 1]")
    unit = nn.functional.normalize(features.double())
    mean = unit.mean(0)
    centered = unit - mean
    variance, axes = torch.linalg.eigh(centered.t() @ centered / len(unit))
    matrix = axes * variance.clamp_min(1e-6) ** (-alpha / 2)
    whitening = Whitening(features.shape[1])
    whitening.mean.copy_(mean)
    whitening.matrix.copy_(matrix)
    return whitening
