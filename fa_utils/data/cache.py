"""Arrays that are costly to make: made once, memory-mapped ever after.

Two processes that ask for the same array make it once: the second waits for the first's lock. A process that is killed
leaves a ``.part`` file, which the next maker of that array overwrites; a finished file appears whole or not at all.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fa_utils.locks import locked

__all__ = ["cached_array"]


def cached_array(path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """Return the uint8 array of ``path`` as a read-only memory map; make it first where it is missing.

    Parameters
    ----------
    path : Path ending in ``.npy``
    shape : the array's shape
    fill : callable
        Writes every element of the writable memory map that it is given.

    Raises
    ------
    OSError
        The cache cannot be written (full disk, no permission): names the folder and how to move it. Nothing half-written
        is left under ``path``.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                _make(path, shape, fill)
    except OSError as error:
        need = int(np.prod(shape)) / 2**20
        raise OSError(
            f"cannot write the cache {path.parent} ({error}); {need:.0f} MiB are needed there. "
            "Free some space, or set FA_CACHE to a folder on another disk"
        ) from error
    array = np.load(path, mmap_mode="r")
    if array.shape != tuple(shape) or array.dtype != np.uint8:
        raise OSError(f"{path} holds {array.dtype} {array.shape}, not uint8 {tuple(shape)}: delete it, it is made again")
    return array


def _make(path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> None:
    part = path.with_suffix(".part")
    try:
        array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=tuple(shape))
        with open(part, "r+b") as handle:  # reserve the space now: a full disk is an error here, not a bus error later
            os.posix_fallocate(handle.fileno(), 0, part.stat().st_size)
        fill(array)
        array.flush()
        del array
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
