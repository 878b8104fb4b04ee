"""Real faces by address: which dataset a folder holds, and its pictures.

An address is a folder, whose layout is recognized, or ``KIND:FOLDER``; ``lfw:sklearn`` has scikit-learn fetch LFW.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fa_utils.data import agedb, celeba, colorferet, folders, lfw
from fa_utils.data.domains import nearest
from fa_utils.data.faceset import FaceSet, Pairs
from fa_utils.data.pictures import Listing, decode, face_set, names
from fa_utils.paths import CACHE

__all__ = ["KINDS", "Kind", "dataset_name", "find_dataset", "load_faces"]


@dataclass(frozen=True)
class Kind:
    """How a dataset lies on the disk: its marks, its pictures and its official pairs, where it has some."""

    layout: str
    recognize: Callable[[Path], bool]
    read: Callable[[Path], Listing]
    pairs: Callable[[Listing], Pairs | None] = lambda listing: None


# In the order in which a folder is asked: layouts that could be taken for another's come first.
KINDS: dict[str, Kind] = {
    "celeba": Kind("img_align_celeba/000001.jpg and CelebA's lists", celeba.looks_like_celeba, celeba.list_celeba),
    "celebahq": Kind("[CelebA-HQ-img/]0.jpg, CelebA-HQ-to-CelebA-mapping.txt, identity_CelebA.txt",
                     celeba.looks_like_celebahq, celeba.list_celebahq),
    "colorferet": Kind("dvd1/data/images/00001/00001_930831_fa_a.ppm", colorferet.looks_like_colorferet,
                       colorferet.list_colorferet, colorferet.colorferet_pairs),
    "agedb": Kind("0_MariaCallas_35_f.jpg", agedb.looks_like_agedb, agedb.list_agedb, agedb.agedb_pairs),
    "casia": Kind("0000045/001.jpg", folders.looks_like_casia, folders.list_casia),
    "lfw": Kind("[lfw/]Name/Name_0001.jpg, pairs.txt", lfw.looks_like_lfw, lfw.list_lfw, lfw.official_pairs),
    "folder": Kind("identity/image.jpg, perhaps attributes.csv", folders.looks_like_folder, folders.list_folder),
}


def load_faces(faces: str | Path, *, progress: bool = True, damaged: str = "error", cache: Path | None = None) -> FaceSet:
    """All pictures of a dataset, decoded once and memory-mapped from the cache afterwards.

    Parameters
    ----------
    faces : str
        A folder, or "KIND:FOLDER" with one of ``KINDS``; "lfw:sklearn" for scikit-learn's copy of LFW.
    progress : bool
        Show a bar while decoding, which happens once for each state of the files.
    damaged : "error" or "skip"
        What becomes of pictures that are missing or cannot be decoded: an error, or a warning and a set without them.
        Both name the first ten and count them all.
    cache : path, optional
        Where the decoded pictures are kept; by default a folder of the project's cache for each dataset.

    Returns
    -------
    FaceSet
        ``name`` is the kind, or for a plain folder its own name. Attributes ``person``, ``file`` (relative to the folder)
        and, where the dataset has them, ``gender`` (1 male, 0 female, -1 unknown), ``age`` (years, NaN unknown) and its
        other labels in lower case.

    Raises
    ------
    FileNotFoundError
        No such folder, or none of the layouts: says what was expected and what is there.
    ValueError
        An unknown kind; damaged pictures, lists or tables; pictures of different sizes.
    OSError
        The cache cannot be written, or scikit-learn cannot download.
    """
    if damaged not in ("error", "skip"):
        raise ValueError(f"damaged = {damaged!r}: either 'error' or 'skip'")
    if str(faces) == "procedural":
        raise ValueError("faces = 'procedural': load_faces reads real faces; load_domain draws procedural ones")
    kind, folder = find_dataset(faces)
    return read_pictures(KINDS[kind].read(folder), kind, progress=progress, damaged=damaged, cache=cache)


def dataset_name(faces: str | Path) -> str:
    """The name that results carry: "procedural", the kind, or a plain folder's own name. Nothing is decoded or fetched.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`load_faces`, for an address that leads nowhere.
    """
    if str(faces) == "procedural":
        return "procedural"
    if str(faces) == "lfw:sklearn":
        return "lfw"
    kind, folder = find_dataset(faces)
    return folders.folder_name(folder) if kind == "folder" else kind


def find_dataset(faces: str | Path) -> tuple[str, Path]:
    """Kind and folder of an address."""
    prefix, colon, rest = str(faces).partition(":")
    if colon and prefix not in KINDS and not Path(faces).exists():
        raise ValueError(f"faces = {str(faces)!r}: there is no kind {prefix!r}{nearest(prefix, KINDS)} "
                         f"Known: procedural, a folder, or KIND:FOLDER with one of {', '.join(KINDS)}")
    if not colon or prefix not in KINDS:
        folder = Path(faces).expanduser()
        return _recognized(folder), folder
    if prefix == "lfw" and rest == "sklearn":
        return "lfw", lfw.fetch_with_sklearn()
    folder = Path(rest).expanduser()
    if not rest or not folder.is_dir():
        raise FileNotFoundError(f"faces = {str(faces)!r}: there is no folder {rest!r}; expected is one with {KINDS[prefix].layout}")
    return prefix, folder


def read_pictures(listing: Listing, kind: str, *, progress: bool, damaged: str = "error", cache: Path | None = None) -> FaceSet:
    """The FaceSet of a listing; see :func:`load_faces`."""
    images, kept = decode(listing, cache or CACHE / kind, progress=progress, skip=damaged == "skip")
    left_out = sorted(set(range(len(listing.files))) - set(kept.tolist()))
    if left_out:
        warnings.warn(f"{len(left_out)} of {len(listing.files)} pictures of {listing.name} are missing or damaged and were left "
                      f"out: {names(listing, left_out)}", stacklevel=3)
        listing = listing.take(kept)
    return face_set(listing, images)


def _recognized(folder: Path) -> str:
    if folder.is_dir():
        for name, kind in KINDS.items():
            if kind.recognize(folder):
                return name
    layouts = "; ".join(f"{name}: {kind.layout}" for name, kind in KINDS.items())
    found = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())[:5] if folder.is_dir() else []
    state = f"it holds {', '.join(found) or 'nothing'}" if folder.is_dir() else "there is no such folder"
    raise FileNotFoundError(f"faces = {str(folder)!r} is no dataset that can be read: {state}. Expected is 'procedural', or "
                            f"a folder with one of these layouts. {layouts}")
