"""AgeDB (Moschoglou et al. 2017): file names carry the person, the age and the gender."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from fa_utils.data.aging import fold_pairs
from fa_utils.data.faceset import Pairs
from fa_utils.data.lists import inside, numbered_lines
from fa_utils.data.pictures import SUFFIXES, Listing

__all__ = ["agedb_pairs", "list_agedb", "looks_like_agedb"]

PAIRS = "agedb_30_pairs.txt"
_GAP, _FOLDS = 30.0, 10  # AgeDB-30: years between the pictures of a pair, and folds
_FILE = re.compile(r"\d+_(?P<person>.+)_(?P<age>\d+)_(?P<gender>[fm])\.(?:jpg|jpeg|png)", re.IGNORECASE)


def looks_like_agedb(folder: Path) -> bool:
    """Whether a picture named as AgeDB names them lies in the folder itself."""
    return any(_FILE.fullmatch(path.name) for path in folder.iterdir())


def list_agedb(folder: Path) -> Listing:
    """Pictures ``ID_Name_Age_Gender.jpg``, in order of number, taken as they are: aligned copies of one size are expected.

    Attributes ``person`` (the name), ``age`` (years) and ``gender`` (1 male, 0 female).

    Raises
    ------
    ValueError
        A picture that is named otherwise.
    """
    files = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    odd = [name for name in files if not _FILE.fullmatch(name)]
    if odd or not files:
        raise ValueError(f"{folder / odd[0]} is not named as AgeDB names its pictures, 0_MariaCallas_35_f.jpg; {len(odd)} such "
                         "pictures" if odd else f"no pictures of AgeDB in {folder}: expected {folder / '0_MariaCallas_35_f.jpg'}")
    files.sort(key=lambda name: int(name.split("_")[0]))
    fields = [_FILE.fullmatch(name) for name in files]
    return Listing("agedb", folder, files, pd.DataFrame({
        "person": [field["person"] for field in fields],
        "age": [float(field["age"]) for field in fields],
        "gender": np.array([field["gender"].lower() == "m" for field in fields], dtype=np.int8),
    }))


def agedb_pairs(listing: Listing) -> Pairs:
    """The pairs of ``agedb_30_pairs.txt``; without it pairs made by AgeDB-30's rule, both pictures 30 years apart.

    A line of the list is ``file_a file_b same``, with same 1 or 0; the lines are ten folds of equal length, one after the other.

    Raises
    ------
    ValueError
        A malformed line, an absent picture, a pair that contradicts the names; or too few pictures 30 years apart.
    """
    path = listing.folder / PAIRS
    person = listing.attributes["person"].to_numpy(str)
    if not path.is_file():
        identity = np.unique(person, return_inverse=True)[1]
        return fold_pairs(identity, age=listing.attributes["age"].to_numpy(), gap=_GAP, folds=_FOLDS)
    position = {file: row for row, file in enumerate(listing.files)}
    lines = list(numbered_lines(path))
    if not lines or len(lines) % _FOLDS:
        raise ValueError(f"{path} must have {_FOLDS} folds of equal length; it has {len(lines)} pairs")
    pairs = []
    for number, words in lines:
        where = f"{path} line {number}"
        if len(words) != 3 or words[2] not in ("0", "1"):
            raise ValueError(f"{where} must be 'file_a file_b same' with same 0 or 1; got {' '.join(words)!r}")
        a, b = (inside(word, where) for word in words[:2])
        for file in (a, b):
            if file not in position:
                raise ValueError(f"{where} names {file}, which is not among the pictures of {listing.folder}")
        a, b, same = position[a], position[b], words[2] == "1"
        if (person[a] == person[b]) != same:
            raise ValueError(f"{where} says same = {words[2]}, but shows {person[a]} and {person[b]}")
        pairs.append((a, b, same))
    a, b, same = (np.array(column) for column in zip(*pairs))
    return Pairs(a, b, same, np.repeat(np.arange(_FOLDS), len(lines) // _FOLDS))
