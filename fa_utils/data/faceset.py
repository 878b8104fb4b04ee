"""The two types that everything downstream sees: pictures with identities, and pairs of them.

Pictures rest as ``uint8`` and are computed with as ``float32`` in [0, 1]; :func:`to_float` and
:func:`to_uint8` are the only two doors between the two, and a round trip is lossless.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch


@dataclass(frozen=True, eq=False)
class FaceSet:
    """Pictures of faces, with their identities and whatever else is known about them.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, 3, H, W)
        RGB pictures; may be a ``np.memmap``, which stays on disk until a part of it is asked for.
    identity : integer array, shape (N,)
        Who is in each picture; kept as int64.
    attributes : DataFrame with N rows, optional
        One column an attribute (``gender``, ``age``, ...), row i describes picture i.
    name : str
        Names the set in tables and in error messages.

    Raises
    ------
    TypeError, ValueError
        When a shape, a dtype or a length does not fit, or the set is empty.
    """

    images: np.ndarray
    identity: np.ndarray
    attributes: pd.DataFrame | None = None
    name: str = "faces"

    def __post_init__(self):
        _check_pictures(self.images, self.name)
        identity = _integers(self.identity, f"identity of {self.name!r}")
        attributes = pd.DataFrame(index=range(len(identity))) if self.attributes is None else self.attributes
        if not isinstance(attributes, pd.DataFrame):
            raise TypeError(f"attributes of {self.name!r} must be a pandas DataFrame, "
                            f"got {type(attributes).__name__}")
        for label, length in (("identity", len(identity)), ("attributes", len(attributes))):
            if length != len(self.images):
                raise ValueError(f"{label} of {self.name!r} has {length} entries for {len(self.images)} "
                                 "images; one entry an image is expected")
        object.__setattr__(self, "identity", identity)
        object.__setattr__(self, "attributes", attributes)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index) -> torch.Tensor:
        """Pictures as the networks take them.

        Parameters
        ----------
        index : int, slice, integer array or boolean mask
            Which pictures, in which order.

        Returns
        -------
        Tensor of float32, shape (n, 3, H, W), in [0, 1]
        """
        return to_float(np.ascontiguousarray(self.images[_index(index, len(self), self.name)]))

    def subset(self, index) -> "FaceSet":
        """The pictures at ``index`` (int, slice, integer array or boolean mask) as a FaceSet of their own."""
        rows = _index(index, len(self), self.name)
        attributes = self.attributes.iloc[rows].reset_index(drop=True)
        return FaceSet(self.images[rows], self.identity[rows], attributes, self.name)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of pictures of one FaceSet: who is compared with whom, and whether they are the same person.

    Parameters
    ----------
    a, b : integer array, shape (P,)
        Positions of the two pictures in the FaceSet. In an attack ``a`` is the source and ``b`` the target.
    same : boolean array, shape (P,)
        True for a mated pair (one person), False for an impostor pair (two persons).
    fold : integer array, shape (P,), optional
        Fold of a cross-validated protocol, counted from 0; all 0 when there is none.

    Raises
    ------
    TypeError, ValueError
        When a dtype or a length does not fit, a position is negative, or there is no pair.
    """

    a: np.ndarray
    b: np.ndarray
    same: np.ndarray
    fold: np.ndarray | None = None

    def __post_init__(self):
        fold = np.zeros(np.shape(self.a), dtype=np.int64) if self.fold is None else self.fold
        columns = {"a": _integers(self.a, "pairs.a"), "b": _integers(self.b, "pairs.b"),
                   "same": np.asarray(self.same), "fold": _integers(fold, "pairs.fold")}
        if columns["same"].dtype != bool or columns["same"].ndim != 1:
            raise TypeError("pairs.same must be a one-dimensional boolean array, got dtype "
                            f"{columns['same'].dtype} and shape {columns['same'].shape}")
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of pairs differ in length: {lengths}")
        if lengths["a"] == 0:
            raise ValueError("the list of pairs is empty; at least one pair is needed")
        for key in ("a", "b", "fold"):
            if columns[key].min() < 0:
                raise ValueError(f"pairs.{key} holds {columns[key].min()}; positions and folds count from 0")
        for key, column in columns.items():
            object.__setattr__(self, key, column)

    def __len__(self) -> int:
        return len(self.a)

    def take(self, index) -> "Pairs":
        """The pairs at ``index`` (int, slice, integer array or boolean mask)."""
        rows = _index(index, len(self), "pairs")
        return Pairs(self.a[rows], self.b[rows], self.same[rows], self.fold[rows])

    def positives(self) -> "Pairs":
        """The mated pairs; an error when there is none."""
        return self._only(self.same, "mated")

    def negatives(self) -> "Pairs":
        """The impostor pairs; an error when there is none."""
        return self._only(~self.same, "impostor")

    def check(self, faces: FaceSet) -> "Pairs":
        """These pairs, after making sure that they point into ``faces`` and agree with its identities.

        Raises
        ------
        ValueError
            Naming the first pair that points outside, or whose ``same`` contradicts the identities.
        """
        last = max(self.a.max(), self.b.max())
        if last >= len(faces):
            raise ValueError(f"pairs point at image {last}, but {faces.name!r} has {len(faces)} images "
                             f"(0 to {len(faces) - 1})")
        wrong = np.flatnonzero((faces.identity[self.a] == faces.identity[self.b]) != self.same)
        if len(wrong):
            i = wrong[0]
            raise ValueError(f"pair {i} (images {self.a[i]} and {self.b[i]}) says same={bool(self.same[i])}, "
                             f"but their identities in {faces.name!r} are {faces.identity[self.a[i]]} and "
                             f"{faces.identity[self.b[i]]}; {len(wrong)} such pairs")
        return self

    def _only(self, wanted: np.ndarray, kind: str) -> "Pairs":
        if not wanted.any():
            raise ValueError(f"none of the {len(self)} pairs is a {kind} pair")
        return self.take(wanted)


def to_float(images) -> torch.Tensor:
    """``uint8`` pictures (array or tensor, any shape) as a float32 tensor in [0, 1]: v / 255."""
    images = torch.as_tensor(_writable(images))
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 (0..255), got {images.dtype}; "
                        "floats in [0, 1] need no conversion")
    return images.float() / 255


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float pictures in [0, 1] as uint8, rounded to the nearest grey level (never truncated).

    Raises
    ------
    TypeError, ValueError
        When ``images`` is not floating, holds NaN or infinity, or leaves [0, 1].
    """
    check_range(images)
    return (images * 255).round().to(torch.uint8)


def check_images(images: torch.Tensor, *, name: str = "images") -> torch.Tensor:
    """``images``, after making sure that it is a batch that a network can take.

    Parameters
    ----------
    images : Tensor of float, shape (B, 3, H, W), in [0, 1], B at least 1
    name : str
        How the error messages call it.

    Raises
    ------
    TypeError
        When it is no floating tensor.
    ValueError
        When the shape is another one, the batch is empty, or a value is not finite or outside [0, 1].
    """
    check_range(images, name=name)
    _check_batch_shape(images, name)
    return images


def check_batch(images: torch.Tensor, *, name: str = "images") -> torch.Tensor:
    """As :func:`check_images`, and uint8 is welcome too: what a filter of pictures can take."""
    if isinstance(images, torch.Tensor) and images.dtype == torch.uint8:
        _check_batch_shape(images, name)
        return images
    return check_images(images, name=name)


def check_range(images: torch.Tensor, *, name: str = "images") -> None:
    """Raise unless ``images`` is a floating tensor (any shape) whose values are finite and in [0, 1]."""
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(f"{name} must be floats in [0, 1], got {images.dtype}; "
                        "fa_utils.data.to_float converts uint8")
    if images.numel() == 0:
        return
    low, high = (bound.item() for bound in torch.aminmax(images.detach()))
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{name} holds NaN or infinity; every value must lie in [0, 1]")
    if low < 0 or high > 1:
        hint = "; this looks like 0..255, divide by 255" if low >= 0 and high > 2 else ""
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:.4g} to {high:.4g}{hint}")


def _check_batch_shape(images: torch.Tensor, name: str) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ValueError(f"{name} must have the shape (B, 3, H, W) with at least one image, "
                         f"got {tuple(images.shape)}")


def _check_pictures(images, name: str) -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"images of {name!r} must be a numpy array of uint8 (0..255), got {got}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images of {name!r} must have the shape (N, 3, H, W) with at least one image, "
                         f"got {images.shape}")


def _integers(values, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):
        raise TypeError(f"{name} must be a one-dimensional integer array, got dtype {values.dtype} "
                        f"and shape {values.shape}")
    return values.astype(np.int64)


def _index(index, length: int, name: str) -> np.ndarray:
    """Any index as positions; negative ones are refused, as they are more often a mistake than meant."""
    if isinstance(index, slice):
        return np.arange(length)[index]
    index = np.atleast_1d(np.asarray(index))
    if index.dtype == bool:
        if index.shape != (length,):
            raise IndexError(f"a mask over {name!r} must have the shape ({length},), got {index.shape}")
        return np.flatnonzero(index)
    index = _integers(index, f"index into {name!r}")
    outside = index[(index < 0) | (index >= length)]
    if len(outside):
        raise IndexError(f"index {outside[0]} is outside {name!r}, which has {length} entries "
                         f"(0 to {length - 1})")
    return index


def _writable(images):
    """A copy of a read-only array (a memory map): torch warns about sharing memory that it may not write."""
    if isinstance(images, np.ndarray) and not images.flags.writeable:
        return np.array(images)
    return images
