"""Pictures of a dataset: listed first, decoded in one pass into a memory-mapped cache, and never dropped in silence."""

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from fa_utils.data.cache import cached_array
from fa_utils.data.faceset import FaceSet

__all__ = ["SUFFIXES", "TEMPLATE", "Crop", "Listing", "decode", "face_set"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
TEMPLATE = 112  # height and width in pixels of the ArcFace template, which cropped pictures are resized to
_SHOWN = 10  # names that an error or a warning lists

# What Pillow and bz2 raise on damaged files; which one depends on the format.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class DamagedError(ValueError):
    """One picture that cannot be read; :func:`decode` gathers them."""


@dataclass(frozen=True)
class Crop:
    """A fixed box of every picture, resized to 112 x 112.

    Parameters
    ----------
    box : (left, top, right, bottom), pixels
        In a picture of ``size``; in one of another size but the same shape it is scaled.
    size : (width, height), pixels
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]

    def apply(self, image: Image.Image, path: Path) -> Image.Image:
        width, height = image.size
        scale = width / self.size[0]
        if abs(height - scale * self.size[1]) > 1:
            raise ValueError(f"{path} is {width} x {height}; the crop of this dataset is stated for pictures of "
                             f"{self.size[0]} x {self.size[1]}, or of that shape")
        box = tuple(edge * scale for edge in self.box)
        return image.resize((TEMPLATE, TEMPLATE), Image.Resampling.BICUBIC, box=box)


@dataclass(frozen=True, eq=False)
class Listing:
    """The pictures of a dataset, before any of them is opened.

    Parameters
    ----------
    name : str
        The FaceSet's.
    folder : Path
    files : list of str
        Pictures, in order, relative to ``folder``.
    attributes : DataFrame
        A row a picture; the column ``person`` (str) says who it shows.
    crop : Crop, optional
        None: pictures are taken as they are, and must all be of one size.
    """

    name: str
    folder: Path
    files: list[str]
    attributes: pd.DataFrame
    crop: Crop | None = None

    def take(self, rows) -> "Listing":
        """The pictures at ``rows``, in that order."""
        files = [self.files[row] for row in rows]
        return Listing(self.name, self.folder, files, self.attributes.iloc[rows].reset_index(drop=True), self.crop)


def face_set(listing: Listing, images: np.ndarray) -> FaceSet:
    """Decoded pictures with their people, in order of name, and attributes, among them ``file``."""
    identity = np.unique(listing.attributes["person"].to_numpy(str), return_inverse=True)[1]
    return FaceSet(images, identity, listing.attributes.assign(file=listing.files), listing.name)


def decode(listing: Listing, cache: Path, *, progress: bool = True, skip: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Decode every picture once; from the cache when no file has changed since.

    Parameters
    ----------
    listing : Listing
    cache : path
        Folder of the cached arrays, one for each state of the files.
    progress : bool
    skip : bool
        Leave out what cannot be read, rather than raise.

    Returns
    -------
    images : uint8 memory map (n, 3, H, W)
    kept : int array (n,)
        Their positions in the listing: all, unless some were skipped.

    Raises
    ------
    ValueError
        Pictures that are missing or cannot be decoded: the first ten are named and all counted, after a pass over
        all of them. Or two pictures of different sizes. Nothing is left in the cache then.
    OSError
        The cache cannot be written.
    """
    path = Path(cache) / f"{_state(listing)}.npy"
    report = path.with_suffix(".damaged.json")  # what a pass with skip left out

    def fill(array: np.ndarray) -> None:
        report.unlink(missing_ok=True)
        damaged = _decode_into(array, listing, progress)
        if damaged and not skip:
            raise _damage_error(listing, damaged)
        if damaged:
            part = report.with_suffix(".part")
            part.write_text(json.dumps(damaged))
            os.replace(part, report)

    images = cached_array(path, (len(listing.files), *_shape(listing)), fill)
    damaged = {int(row): why for row, why in json.loads(report.read_text()).items()} if report.exists() else {}
    if damaged and not skip:
        raise _damage_error(listing, damaged)
    kept = np.setdiff1d(np.arange(len(listing.files)), list(damaged))
    return images[: len(kept)], kept


def names(listing: Listing, rows) -> str:
    """The first ten of these pictures by name, and how many more there are."""
    shown = ", ".join(listing.files[row] for row in list(rows)[:_SHOWN])
    return shown + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")


def read_picture(path: Path, crop: Crop | None = None) -> np.ndarray:
    """One picture, uint8 (3, H, W), RGB; a :class:`DamagedError` when it is missing or cannot be decoded."""
    try:
        with open(path, "rb") as file, Image.open(_unpacked(file, path)) as image:
            picture = image.convert("RGB")
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except _DAMAGE as error:
        raise DamagedError(f"{path} cannot be decoded ({error})") from error
    if crop:
        picture = crop.apply(picture, path)
    return np.asarray(picture).transpose(2, 0, 1)


def _unpacked(file, path: Path):
    if path.suffix != ".bz2":
        return file
    import bz2  # only ColorFERET packs its pictures one by one

    return bz2.BZ2File(file)


def _decode_into(array: np.ndarray, listing: Listing, progress: bool) -> dict[int, str]:
    """Fill the rows of ``array`` from the front; what cannot be read, by position, leaves as many rows empty at the end."""
    damaged: dict[int, str] = {}
    first = None
    bar = tqdm(listing.files, desc=f"decoding {listing.name}", unit="picture", disable=not progress)
    for row, file in enumerate(bar):
        path = listing.folder / file
        try:
            picture = read_picture(path, listing.crop)
        except DamagedError as error:
            damaged[row] = str(error)
            continue
        first = first or path
        if picture.shape != array.shape[1:]:
            raise ValueError(f"{path} is {picture.shape[2]} x {picture.shape[1]}, but {first.name} is "
                             f"{array.shape[3]} x {array.shape[2]}; all pictures must be of one size: align them first")
        array[row - len(damaged)] = picture
    return damaged


def _damage_error(listing: Listing, damaged: dict[int, str]) -> ValueError:
    more = f"; and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
    return ValueError(
        f"{len(damaged)} of {len(listing.files)} pictures of {listing.name} cannot be read: "
        + "; ".join(list(damaged.values())[:_SHOWN]) + more
        + ". Replace them by intact copies, or leave them out: load_faces(..., damaged='skip')"
    )


def _shape(listing: Listing) -> tuple[int, int, int]:
    """Of every picture: that of the first which can be read."""
    if listing.crop:
        return 3, TEMPLATE, TEMPLATE
    damaged = {}
    for row, file in enumerate(listing.files):
        try:
            return read_picture(listing.folder / file).shape
        except DamagedError as error:
            damaged[row] = str(error)
    raise _damage_error(listing, damaged)


def _state(listing: Listing) -> str:
    """Changes when a file is replaced, added or removed, and with the crop."""
    root = listing.folder.resolve()
    key = hashlib.sha256()
    for file in listing.files:
        try:
            state = os.stat(f"{root}/{file}")
            key.update(f"{root}/{file} {state.st_size} {state.st_mtime_ns}\n".encode())
        except OSError:
            key.update(f"{root}/{file} missing\n".encode())
    if listing.crop:
        key.update(repr(listing.crop).encode())
    return key.hexdigest()[:16]
