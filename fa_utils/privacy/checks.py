"""What every function of this package asks of its input: finite features, two labels, lengths that agree."""

import numpy as np
import torch
from torch import Tensor


def check_features(features, name: str = "features") -> Tensor:
    """The features as a tensor (N, D), not copied where that can be avoided.

    Raises
    ------
    ValueError
        When they are not two-dimensional, there is no row, or a row holds NaN or infinity (the rows are named).
    """
    rows = torch.as_tensor(features)
    if rows.ndim != 2 or not rows.numel():
        raise ValueError(f"{name} must be (N, D) with at least one row and column, got the shape {tuple(rows.shape)}")
    bad = (~torch.isfinite(rows)).any(1).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(f"{name} hold NaN or infinity in {len(bad)} of {len(rows)} rows: {_first(bad)}")
    return rows


def check_labels(labels, n: int, name: str = "labels", *, both: bool = True) -> np.ndarray:
    """The labels as int64 (n,), each 0 or 1.

    Parameters
    ----------
    labels : integer or boolean array or Tensor, shape (n,)
    n : int
        Number of feature rows.
    both : bool
        Whether both labels have to occur.

    Raises
    ------
    ValueError
        When the length differs, or the values are not the two labels 0 and 1; what was found is named.
    """
    labels = _vector(labels, n, name)
    found, counts = np.unique(labels, return_counts=True)
    if not set(found.tolist()) <= {0, 1} or (both and len(found) < 2):
        values = ", ".join(f"{value} ({count} rows)" for value, count in zip(found[:10], counts))
        raise ValueError(f"{name} must be 0 and 1, {'both present' if both else 'nothing else'}: found {values}")
    return labels.astype(np.int64)


def check_identity(identity, n: int, name: str = "identity") -> np.ndarray:
    """Who is on each row, array (n,) of any type that can be sorted.

    Raises
    ------
    ValueError
        When the length differs.
    """
    return _vector(identity, n, name)


def _vector(values, n: int, name: str) -> np.ndarray:
    values = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if values.shape != (n,):
        raise ValueError(f"{name} must have the shape ({n},), one entry a row of features, got {values.shape}")
    return values


def _first(rows: list[int], size: int = 10) -> str:
    return ", ".join(map(str, rows[:size])) + (", ..." if len(rows) > size else "")
