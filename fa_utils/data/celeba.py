"""CelebA (Liu et al. 2015) and CelebA-HQ (Karras et al. 2018), read from the reader's own copy in their original layouts."""

import re
from pathlib import Path

import pandas as pd

from fa_utils.data.lists import (
    attribute_columns,
    first_of,
    inside,
    numbered_lines,
    picture_labels,
    picture_values,
)
from fa_utils.data.pictures import Crop, Listing

__all__ = ["list_celeba", "list_celebahq", "looks_like_celeba", "looks_like_celebahq"]

# Least squares from the aligned CelebA's mean landmarks, eyes (69.5, 111.5) and (107.5, 111.5) and mouth corners at a height
# of 151, to the template's (38.3, 51.7), (73.5, 51.5) and 92.3: within 2.5 pixels of 112. Unverified on the pictures themselves.
CELEBA = Crop(box=(30, 57, 147, 174), size=(178, 218))

# A CelebA-HQ picture is laid out about eyes and mouth: half its side is twice the distance of the eyes. The template shows
# the central 77.5% of it (least squares from that rule, not from the pictures).
CELEBAHQ = Crop(box=(115.2, 115.2, 908.8, 908.8), size=(1024, 1024))

_PICTURES = ("img_align_celeba", "Img/img_align_celeba")
_IDENTITY, _ATTRIBUTES, _PARTITION = "identity_CelebA.txt", "list_attr_celeba.txt", "list_eval_partition.txt"
_MAPPING, _HQ_ATTRIBUTES = "CelebA-HQ-to-CelebA-mapping.txt", "CelebAMask-HQ-attribute-anno.txt"
_SPLITS = {"0": "train", "1": "val", "2": "test"}
_HQ_PICTURE = re.compile(r"\d+\.(?:jpg|jpeg|png)", re.IGNORECASE)


def looks_like_celeba(folder: Path) -> bool:
    """Whether the folder of aligned pictures is there."""
    return any((folder / name).is_dir() for name in _PICTURES)


def looks_like_celebahq(folder: Path) -> bool:
    """Whether the list that leads back to CelebA is there."""
    return (folder / _MAPPING).is_file()


def list_celeba(folder: Path) -> Listing:
    """The pictures that CelebA's list of identities names, cropped to about the ArcFace template (``CELEBA``).

    Attributes: ``person`` (CelebA's number, as text), ``split`` (train, val or test), ``gender`` and the other 39 of
    list_attr_celeba.txt as 0/1, ``glasses`` for ``eyeglasses``.

    Raises
    ------
    FileNotFoundError
        One of the four parts is missing: names it and where it was looked for.
    ValueError
        A malformed line; a picture on the disk that has no identity; lists that do not name the same pictures.
    """
    base = next((folder / name for name in _PICTURES if (folder / name).is_dir()), None)
    if base is None:
        raise FileNotFoundError(f"no pictures of CelebA in {folder}: expected {folder / _PICTURES[0]}/000001.jpg")
    identity = _identities(folder)
    pictures = sorted(identity)
    splits = picture_values(_required(folder, _PARTITION), _SPLITS)
    names, labels = picture_labels(_required(folder, _ATTRIBUTES))
    for other, known in ((_PARTITION, splits), (_ATTRIBUTES, labels)):
        unlike = sorted(identity.keys() ^ known.keys())
        if unlike:
            raise ValueError(f"{other} and {_IDENTITY} do not name the same pictures: {unlike[0]} is in one of them only, "
                             f"{len(unlike)} such pictures")
    files = _on_disk(base, pictures)
    return Listing("celeba", folder, [f"{base.relative_to(folder).as_posix()}/{file}" for file in files], pd.concat([
        pd.DataFrame({"person": [identity[p] for p in pictures], "split": [splits[p] for p in pictures]}),
        attribute_columns(names, labels, pictures),
    ], axis=1), CELEBA)


def list_celebahq(folder: Path) -> Listing:
    """The pictures that the mapping names, in ``CelebA-HQ-img/`` or in the folder itself, cropped to the template (``CELEBAHQ``).

    Identities come from CelebA by way of the mapping; attributes ``person``, ``original`` (CelebA's file), ``split`` where
    list_eval_partition.txt is there, and those of CelebAMask-HQ-attribute-anno.txt where that is.

    Raises
    ------
    FileNotFoundError
        The pictures, the mapping or identity_CelebA.txt are missing.
    ValueError
        A malformed line, or a picture that the mapping or the list of identities does not name.
    """
    base = folder / "CelebA-HQ-img" if (folder / "CelebA-HQ-img").is_dir() else folder
    there = _numbered(base)
    if not there:
        raise FileNotFoundError(f"no pictures of CelebA-HQ in {folder}: expected {folder / 'CelebA-HQ-img' / '0.jpg'} or {folder / '0.jpg'}")
    originals = _originals(_required(folder, _MAPPING))
    unnamed = [name for number, name in there.items() if number not in originals]
    if unnamed:
        raise ValueError(f"{_MAPPING} does not name {unnamed[0]}, which lies in {base}; {len(unnamed)} such pictures")
    numbers = sorted(originals)
    original = [originals[number] for number in numbers]
    identity = _identities(folder)
    unknown = [name for name in original if name not in identity]
    if unknown:
        raise ValueError(f"{_IDENTITY} does not name {unknown[0]}, of which CelebA-HQ has a copy; {len(unknown)} such pictures")
    attributes = pd.DataFrame({"person": [identity[name] for name in original], "original": original})
    partition = _find(folder, _PARTITION)
    if partition:
        splits = picture_values(partition, _SPLITS)
        attributes["split"] = [splits.get(name, "") for name in original]
    path = _find(folder, _HQ_ATTRIBUTES)
    if path:
        names, labels = picture_labels(path)
        labels = {Path(name).stem: values for name, values in labels.items()}
        attributes = pd.concat([attributes, attribute_columns(names, labels, [str(number) for number in numbers])], axis=1)
    files = [(base / there.get(number, f"{number}.jpg")).relative_to(folder).as_posix() for number in numbers]
    return Listing("celebahq", folder, files, attributes, CELEBAHQ)


def _find(folder: Path, name: str) -> Path | None:
    return first_of(folder / part / name for part in (".", "Anno", "Eval"))


def _required(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise FileNotFoundError(f"{name} is missing: looked for it in {folder}, {folder / 'Anno'} and {folder / 'Eval'}")
    return path


def _identities(folder: Path) -> dict[str, str]:
    """From the name of a picture of CelebA to its person's number."""
    return picture_values(_required(folder, _IDENTITY))


def _on_disk(base: Path, pictures: list[str]) -> list[str]:
    """The file of each picture: as the lists name it, or the same as .png, which CelebA comes in too.

    A picture that is not there keeps its name; decoding reports it.
    """
    there = {path.name for path in base.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")}
    files = [name if name in there else _png_of(name, there) for name in pictures]
    unnamed = sorted(there - set(files))
    if unnamed:
        raise ValueError(f"{_IDENTITY} does not name {unnamed[0]}, which lies in {base}; {len(unnamed)} such pictures")
    return files


def _png_of(name: str, there: set[str]) -> str:
    png = str(Path(name).with_suffix(".png"))
    return png if png in there else name


def _numbered(base: Path) -> dict[int, str]:
    """CelebA-HQ's pictures by number."""
    there: dict[int, str] = {}
    for path in sorted(base.iterdir()):
        if not _HQ_PICTURE.fullmatch(path.name):
            continue
        if int(path.stem) in there:
            raise ValueError(f"two files for one picture: {base / there[int(path.stem)]} and {path}; keep one of them")
        there[int(path.stem)] = path.name
    return there


def _originals(path: Path) -> dict[int, str]:
    """From a number of CelebA-HQ to CelebA's file."""
    lines = numbered_lines(path)
    header = next(lines, (0, []))[1]
    if not {"idx", "orig_file"} <= set(header):
        raise ValueError(f"{path} line 1 must name the columns idx, orig_idx and orig_file; got {' '.join(header)!r}")
    idx, orig = header.index("idx"), header.index("orig_file")
    original: dict[int, str] = {}
    for number, words in lines:
        if len(words) != len(header) or not words[idx].isdecimal():
            raise ValueError(f"{path} line {number} must give {' '.join(header)}; got {' '.join(words)!r}")
        if int(words[idx]) in original:
            raise ValueError(f"{path} line {number} names {words[idx]} a second time")
        original[int(words[idx])] = inside(words[orig], f"{path} line {number}")
    return original
