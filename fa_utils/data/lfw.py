"""Labeled Faces in the Wild (Huang et al. 2007), read from the reader's own copy in its standard layout.

Pictures should lie on the template that the networks expect (usually the 112 x 112 ArcFace template). :func:`load_lfw`
takes them as they are; ``load_faces`` crops the originals of 250 x 250, see ``ORIGINAL``.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fa_utils.data.faceset import FaceSet, Pairs
from fa_utils.data.lists import first_of, numbered_lines
from fa_utils.data.pictures import Crop, Listing, decode, face_set
from fa_utils.paths import CACHE

__all__ = ["fetch_with_sklearn", "list_lfw", "load_lfw", "looks_like_lfw", "official_pairs"]

_FILE = re.compile(r"(?P<person>.+)_(?P<number>\d{4})\.(?:jpg|jpeg|png)", re.IGNORECASE)
_LAYOUT = "Name/Name_0001.jpg (or .png)"

# Funneled pictures have their eyes near (105, 112) and (145, 112); this box brings them near the template's
# (38, 52) and (74, 52). An estimate: there was no aligned and original LFW side by side to check it on.
ORIGINAL = Crop(box=(60, 52, 190, 182), size=(250, 250))

Picture = tuple[str, int]  # a person's name and the number of the picture, counted from 1


def load_lfw(root: str | Path, *, subset: bool = False, cache: str | Path = CACHE / "lfw",
             progress: bool = True) -> tuple[FaceSet, Pairs]:
    """Pictures of LFW and the pairs of its verification protocol ("view 2").

    Parameters
    ----------
    root : path
        Folder with ``lfw/Name/Name_0001.jpg``, or the folder of the persons itself. ``pairs.txt`` lies in the
        folder of the persons or beside it.
    subset : bool
        True: only the pictures that pairs.txt names (7,701 of the 13,233).
    cache : path
        Where the decoded pictures are kept, for each state of the files.
    progress : bool
        Show a bar while decoding, which happens once.

    Returns
    -------
    FaceSet
        Pictures in order of name and number; ``identity`` counts the persons in order of name; attributes
        ``person``, ``number``, ``file`` and, where its lists are there, ``gender``.
    Pairs
        10 folds of 300 mated and 300 impostor pairs.

    Raises
    ------
    FileNotFoundError
        When the persons' folders or pairs.txt are not there: says where they are looked for.
    ValueError
        When a line of pairs.txt is malformed or names a missing picture, or pictures cannot be decoded or
        one has another size than the others.
    OSError
        When the cache cannot be written.
    """
    listing = _list(_people_folder(Path(root)))
    pairs = official_pairs(listing)
    if pairs is None:
        raise FileNotFoundError(
            f"pairs.txt of LFW is missing: looked for {' and '.join(map(str, _beside(listing.folder, 'pairs.txt')))}; "
            "expected is the list of view 2, with 10 folds of 300 mated and 300 impostor pairs"
        )
    if subset:
        used = np.union1d(pairs.a, pairs.b)
        listing = listing.take(used)
        pairs = Pairs(np.searchsorted(used, pairs.a), np.searchsorted(used, pairs.b), pairs.same, pairs.fold)
    faces = face_set(listing, decode(listing, Path(cache), progress=progress)[0])
    return faces, pairs.check(faces)


def looks_like_lfw(root: Path) -> bool:
    """Whether ``root`` or its folder ``lfw`` has pictures named like their folders, ``Name/Name_0001.jpg``."""
    return _find_people(root) is not None


def list_lfw(root: Path) -> Listing:
    """As :func:`load_lfw` reads it; pictures of 250 x 250, LFW's own size, are cropped (``ORIGINAL``).

    Attributes ``person``, ``number`` and ``gender`` (1 male, 0 female, -1 in both lists or in neither) where
    ``male_names.txt`` or ``female_names.txt`` lies beside pairs.txt.
    """
    listing = _list(_people_folder(root))
    crop = ORIGINAL if _size(listing.folder / listing.files[0]) == ORIGINAL.size else None
    return Listing(listing.name, listing.folder, listing.files, listing.attributes, crop)


def official_pairs(listing: Listing) -> Pairs | None:
    """The pairs of ``pairs.txt``; None where there is none."""
    path = first_of(_beside(listing.folder, "pairs.txt"))
    if path is None:
        return None
    lines = _read_pairs(path, _positions(listing.attributes))
    return Pairs(*(np.array(column) for column in zip(*lines, strict=True)))


def fetch_with_sklearn() -> Path:
    """The folder of funneled LFW that scikit-learn keeps; its fetcher downloads it (230 MB) where it is missing.

    The folder is scikit-learn's: ``SCIKIT_LEARN_DATA`` or ``~/scikit_learn_data``.

    Raises
    ------
    OSError
        The download failed: says where the files can be put by hand.
    """
    from sklearn.datasets import fetch_lfw_people, get_data_home

    home = Path(get_data_home()) / "lfw_home"
    if (home / "lfw_funneled").is_dir() and (home / "pairs.txt").is_file():
        return home / "lfw_funneled"
    try:  # of what it returns nothing is used, hence only the one person with 500 pictures, and small
        fetch_lfw_people(min_faces_per_person=500, resize=0.1)
    except OSError as error:
        raise OSError(f"scikit-learn cannot download LFW ({error}); put lfw_funneled/{_LAYOUT} and pairs.txt into {home}, "
                      "or name the folder of another copy") from error
    return home / "lfw_funneled"


def _find_people(root: Path) -> Path | None:
    for folder in (root / "lfw", root):
        for path in folder.glob("*/*_[0-9][0-9][0-9][0-9].*"):
            if _picture(path):
                return folder
    return None


def _people_folder(root: Path) -> Path:
    folder = _find_people(root)
    if folder:
        return folder
    found = sorted(path.name for path in root.iterdir())[:5] if root.is_dir() else None
    state = f"it holds {found or 'nothing'}" if root.is_dir() else "there is no such folder"
    raise FileNotFoundError(f"no LFW pictures at {root}: expected {root / 'lfw' / _LAYOUT} or "
                            f"{root / _LAYOUT}; {state}")


def _picture(path: Path) -> Picture | None:
    match = _FILE.fullmatch(path.name)
    return (match["person"], int(match["number"])) if match and match["person"] == path.parent.name else None


def _list(folder: Path) -> Listing:
    """All pictures, in order of name and number, with their genders."""
    files: dict[Picture, str] = {}
    for path in sorted(folder.glob("*/*")):
        picture = _picture(path)
        if picture is None:
            continue
        if picture in files:
            raise ValueError(f"two files for one picture: {folder / files[picture]} and {path}; keep one of them")
        files[picture] = path.relative_to(folder).as_posix()
    attributes = pd.DataFrame(sorted(files), columns=["person", "number"])
    gender = _read_genders(folder, attributes)
    if gender is not None:
        attributes["gender"] = gender
    return Listing("lfw", folder, [files[picture] for picture in sorted(files)], attributes)


def _positions(attributes: pd.DataFrame) -> dict[Picture, int]:
    return {picture: row for row, picture in enumerate(zip(attributes["person"], attributes["number"]))}


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError):
        return None  # decoding reports it


def _beside(folder: Path, name: str) -> list[Path]:
    return [folder / name, folder.parent / name]


def _read_genders(folder: Path, attributes: pd.DataFrame) -> np.ndarray | None:
    """1 where only the men's list names the picture, 0 where only the women's does, else -1; None without lists."""
    lists = {"male": first_of(_beside(folder, "male_names.txt")), "female": first_of(_beside(folder, "female_names.txt"))}
    if not any(lists.values()):
        return None
    position = _positions(attributes)
    named = {gender: np.zeros(len(attributes), dtype=bool) for gender in lists}
    for gender, path in lists.items():
        for number, words in numbered_lines(path) if path else []:
            match = _FILE.fullmatch(" ".join(words))
            if not match:
                raise ValueError(f"{path} line {number} must name a picture, as in 'Name_0001.jpg'; got {' '.join(words)!r}")
            row = position.get((match["person"], int(match["number"])))
            if row is None:
                raise ValueError(f"{path} line {number} names {' '.join(words)}, which is not among the pictures of {folder}")
            named[gender][row] = True
    return np.where(named["male"] == named["female"], -1, named["male"]).astype(np.int8)


def _read_pairs(path: Path, position: dict[Picture, int]) -> list[tuple[int, int, bool, int]]:
    """Positions of both pictures, whether they show one person, and the fold, of every pair."""
    header, *lines = [words for _, words in numbered_lines(path)] or [[]]
    if len(header) != 2 or not all(field.isdecimal() and int(field) > 0 for field in header):
        raise ValueError(f"{path} line 1 must give the folds and the pairs of each kind in a fold, "
                         f"as in '10 300'; got {' '.join(header)!r}")
    folds, per_kind = map(int, header)
    if len(lines) != folds * 2 * per_kind:
        raise ValueError(f"{path} announces {folds} folds of {per_kind} mated and {per_kind} impostor pairs, "
                         f"{folds * 2 * per_kind} lines; it has {len(lines)}")
    pairs = []
    for i, fields in enumerate(lines):
        where = f"{path} pair {i + 1} ({' '.join(fields)!r})"
        mated = i % (2 * per_kind) < per_kind
        pictures = _parse(fields, mated, where)
        for person, number in pictures:
            if (person, number) not in position:
                raise ValueError(f"{where} names picture {number} of {person}, which is missing: expected "
                                 f"{person}/{person}_{number:04d}.jpg (or .png) among the pictures")
        pairs.append((position[pictures[0]], position[pictures[1]], mated, i // (2 * per_kind)))
    return pairs


def _parse(fields: list[str], mated: bool, where: str) -> tuple[Picture, Picture]:
    names, numbers = (fields[:1] * 2, fields[1:]) if mated else (fields[::2], fields[1::2])
    if len(fields) != (3 if mated else 4) or not all(number.isdecimal() for number in numbers):
        form = "a mated pair, 'Name 1 2'" if mated else "an impostor pair, 'Name 1 Other_Name 2'"
        raise ValueError(f"{where} must be {form}")
    if not mated and names[0] == names[1]:
        raise ValueError(f"{where} stands among the impostor pairs, but names one person twice")
    return (names[0], int(numbers[0])), (names[1], int(numbers[1]))
