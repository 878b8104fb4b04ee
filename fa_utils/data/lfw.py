"""Labeled Faces in the Wild (Huang et al. 2007), read from the reader's own copy in its standard layout.

Pictures are taken as they are, neither cropped nor aligned: they should lie on the template that the
networks expect (usually the 112 x 112 ArcFace template). They are decoded once, into a memory-mapped cache.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from fa_utils.data.cache import cached_array
from fa_utils.data.faceset import FaceSet, Pairs
from fa_utils.paths import CACHE

__all__ = ["load_lfw"]

_FILE = re.compile(r"(?P<person>.+)_(?P<number>\d{4})\.(?:jpg|jpeg|png)", re.IGNORECASE)
_LAYOUT = "Name/Name_0001.jpg (or .png)"

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
        ``person`` and ``number``.
    Pairs
        10 folds of 300 mated and 300 impostor pairs.

    Raises
    ------
    FileNotFoundError
        When the persons' folders or pairs.txt are not there: says where they are looked for.
    ValueError
        When a line of pairs.txt is malformed or names a missing picture, or a picture cannot be decoded or
        has another size than the others.
    OSError
        When the cache cannot be written.
    """
    folder = _people_folder(Path(root))
    files = _find_pictures(folder)
    lines = _read_pairs(_pairs_file(folder), files)
    if subset:
        used = {picture for first, second, _ in lines for picture in (first, second)}
        files = {picture: path for picture, path in files.items() if picture in used}
    position = {picture: i for i, picture in enumerate(files)}
    people, identity = np.unique([person for person, _ in files], return_inverse=True)
    attributes = pd.DataFrame(list(files), columns=["person", "number"])
    faces = FaceSet(_decode(list(files.values()), Path(cache), progress), identity, attributes, "lfw")
    pairs = Pairs(a=[position[first] for first, _, _ in lines],
                  b=[position[second] for _, second, _ in lines],
                  same=np.array([first[0] == second[0] for first, second, _ in lines]),
                  fold=[fold for _, _, fold in lines])
    return faces, pairs.check(faces)


def _people_folder(root: Path) -> Path:
    for folder in (root / "lfw", root):
        if folder.is_dir() and next(folder.glob("*/*_[0-9][0-9][0-9][0-9].*"), None):
            return folder
    found = sorted(path.name for path in root.iterdir())[:5] if root.is_dir() else None
    state = f"it holds {found or 'nothing'}" if root.is_dir() else "there is no such folder"
    raise FileNotFoundError(f"no LFW pictures at {root}: expected {root / 'lfw' / _LAYOUT} or "
                            f"{root / _LAYOUT}; {state}")


def _find_pictures(folder: Path) -> dict[Picture, Path]:
    """All pictures, in order of name and number."""
    files: dict[Picture, Path] = {}
    for path in sorted(folder.glob("*/*")):
        match = _FILE.fullmatch(path.name)
        if not match or match["person"] != path.parent.name:
            continue
        picture = match["person"], int(match["number"])
        if picture in files:
            raise ValueError(f"two files for one picture: {files[picture]} and {path}; keep one of them")
        files[picture] = path
    if not files:
        raise FileNotFoundError(f"no LFW pictures in {folder}: expected {folder / _LAYOUT}, each file named "
                                "like its folder")
    return dict(sorted(files.items()))


def _pairs_file(folder: Path) -> Path:
    places = [folder / "pairs.txt", folder.parent / "pairs.txt"]
    for path in places:
        if path.is_file():
            return path
    raise FileNotFoundError(f"pairs.txt of LFW is missing: looked for {places[0]} and {places[1]}; expected "
                            "is the list of view 2, with 10 folds of 300 mated and 300 impostor pairs")


def _read_pairs(path: Path, files: dict[Picture, Path]) -> list[tuple[Picture, Picture, int]]:
    """Both pictures and the fold of every pair."""
    text = path.read_text(encoding="utf-8")
    header, *lines = [line.split() for line in text.splitlines() if line.strip()] or [[]]
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
        first, second = _parse(fields, mated, where)
        for picture in (first, second):
            if picture not in files:
                person, number = picture
                raise ValueError(f"{where} names picture {number} of {person}, which is missing: expected "
                                 f"{person}/{person}_{number:04d}.jpg (or .png) among the pictures")
        pairs.append((first, second, i // (2 * per_kind)))
    return pairs


def _parse(fields: list[str], mated: bool, where: str) -> tuple[Picture, Picture]:
    names, numbers = (fields[:1] * 2, fields[1:]) if mated else (fields[::2], fields[1::2])
    if len(fields) != (3 if mated else 4) or not all(number.isdecimal() for number in numbers):
        form = "a mated pair, 'Name 1 2'" if mated else "an impostor pair, 'Name 1 Other_Name 2'"
        raise ValueError(f"{where} must be {form}")
    if not mated and names[0] == names[1]:
        raise ValueError(f"{where} stands among the impostor pairs, but names one person twice")
    return (names[0], int(numbers[0])), (names[1], int(numbers[1]))


def _decode(files: list[Path], cache: Path, progress: bool) -> np.ndarray:
    """uint8 (N, 3, H, W) in the order of ``files``, from the cache when no file changed since."""
    size = _read_image(files[0]).shape
    key = hashlib.sha256()
    for path in files:
        state = path.stat()
        key.update(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode())

    def fill(array: np.ndarray) -> None:
        for i, path in enumerate(tqdm(files, desc="decoding LFW", unit="image", disable=not progress)):
            image = _read_image(path)
            if image.shape != size:
                raise ValueError(f"{path} is {image.shape[2]} x {image.shape[1]}, but {files[0].name} is "
                                 f"{size[2]} x {size[1]}; all pictures must be of one size")
            array[i] = image

    return cached_array(cache / f"{key.hexdigest()[:16]}.npy", (len(files), *size), fill)


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, SyntaxError) as error:  # Pillow raises either on a damaged file
        raise ValueError(f"{path} cannot be decoded ({error}); replace it with an intact copy") from error
