"""Any folder of people: ``identity/image``, with a table of attributes beside it or without; CASIA-WebFace is one."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from fa_utils.data.lists import binary, genders, inside
from fa_utils.data.pictures import SUFFIXES, Listing

__all__ = ["list_casia", "list_folder", "looks_like_casia", "looks_like_folder"]

TABLE = "attributes.csv"
_CASIA = re.compile(r"\d{7}/\d{3,}\.(?:jpg|jpeg|png)", re.IGNORECASE)


def looks_like_folder(folder: Path) -> bool:
    """Whether a folder in ``folder`` holds a picture."""
    return any(_is_picture(path) for path in folder.glob("*/*"))


def looks_like_casia(folder: Path) -> bool:
    """Whether the first picture lies in a folder of seven digits and is named by digits."""
    if (folder / TABLE).exists():
        return False
    first = next((path for path in folder.glob("*/*") if _is_picture(path)), None)
    return bool(first and _CASIA.fullmatch(first.relative_to(folder).as_posix()))


def list_casia(folder: Path) -> Listing:
    """CASIA-WebFace (Yi et al. 2014): ``0000045/001.jpg``, a folder of digits for each identity; no labels."""
    return _list(folder, "casia", re.compile(r"\d+"))


def list_folder(folder: Path) -> Listing:
    """``identity/image``, named after the folder, in order of path; attributes from ``attributes.csv`` where that lies there.

    Raises
    ------
    ValueError
        Pictures beside the identities' folders; a table that is malformed, names an absent picture, leaves the folder,
        or gives a gender in another coding than :func:`fa_utils.data.lists.genders` reads.
    """
    listing = _list(folder, folder_name(folder))
    table = folder / TABLE
    if not table.is_file():
        return listing
    labels = _read_table(table, listing.files)
    return Listing(listing.name, folder, listing.files, pd.concat([listing.attributes, labels], axis=1))


def folder_name(folder: Path) -> str:
    """The folder's own name in lower case, fit for the name of a results file."""
    name = re.sub(r"[^\w.-]+", "-", folder.resolve().name.lower()).strip("-.") or "folder"
    if name == "procedural":
        raise ValueError(f"{folder}: results of real faces would carry the name of the procedural ones; rename the folder")
    return name


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _list(folder: Path, name: str, form: re.Pattern | None = None) -> Listing:
    people = [path.name for path in folder.iterdir() if path.is_dir()]
    paths = sorted(f"{person}/{path.name}" for person in people for path in (folder / person).iterdir() if _is_picture(path))
    loose = sorted(path.name for path in folder.iterdir() if _is_picture(path))
    if loose:
        raise ValueError(f"{folder} holds {len(loose)} pictures beside the folders of identities, first {loose[0]}; expected "
                         "is identity/image: put each into the folder of its person, or elsewhere")
    odd = [path for path in paths if form and not form.fullmatch(path.split("/")[0])]
    if odd:
        raise ValueError(f"{folder / odd[0]} does not lie in a folder of digits, as CASIA-WebFace has them (0000045/001.jpg); "
                         f"{len(odd)} such pictures. Name the folder 'folder:{folder}' if it is another dataset")
    if not paths:
        raise FileNotFoundError(f"no pictures in {folder}: expected {folder / 'identity' / 'image'} with one of {SUFFIXES}")
    return Listing(name, folder, paths, pd.DataFrame({"person": [path.split("/")[0] for path in paths]}))


def _read_table(path: Path, files: list[str]) -> pd.DataFrame:
    """A row for each of ``files``; -1, NaN or '' where the table has none."""
    header, rows, where = _read_csv(path)
    image = header.index("image")
    matched = {file: row for row, file in enumerate(_match([row[image] for row in rows], where, files))}
    order = np.array([matched.get(file, -1) for file in files])
    columns: dict[str, np.ndarray] = {}
    for i, column in enumerate(header):
        name = "gender" if column.lower() in ("male", "gender") else column.lower()
        if name in columns:
            raise ValueError(f"{path} has both 'Male' and 'gender'; keep one of them")
        if name not in ("image", "person", "file"):
            columns[name] = _column(name, [row[i] for row in rows], where, order)
    if "eyeglasses" in columns and "glasses" not in columns:
        columns["glasses"] = columns["eyeglasses"]
    return pd.DataFrame(columns)


def _read_csv(path: Path) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, rows, and for messages the place of each row."""
    rows, where = [], []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if row:
                    rows.append(row)
                    where.append(f"{path} line {reader.line_num}")
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table that can be read ({error})") from error
    header = [column.strip() for column in rows[0]] if rows else []
    if "image" not in header or len(set(map(str.lower, header))) != len(header):
        raise ValueError(f"{path} must have a column 'image' (a file name, or a path relative to {path.parent}) and no name "
                         f"twice; it has {header}")
    for row, place in zip(rows, where):
        if len(row) != len(header):
            raise ValueError(f"{place} has {len(row)} fields; the header names {len(header)} columns")
    return header, rows[1:], where[1:]


def _match(images: list[str], where: list[str], files: list[str]) -> list[str]:
    """The file that each row of the table means."""
    bare = Counter(file.split("/")[1] for file in files)
    known = {**{file.split("/")[1]: file for file in files}, **{file: file for file in files}}
    matched, absent = {}, []
    for image, place in zip(images, where):
        image = inside(image.strip(), place)
        if bare[image] > 1:
            raise ValueError(f"{place} names {image}, which {bare[image]} identities have; write identity/{image}")
        if image not in known:
            absent.append((place, image))
        elif known[image] in matched:
            raise ValueError(f"{place} names {image} a second time")
        else:
            matched[known[image]] = place
    if absent:
        place, image = absent[0]
        raise ValueError(f"{place} names {image}, which is not in the folder; {len(absent)} such lines")
    return list(matched)


def _column(name: str, values: list[str], where: list[str], order: np.ndarray) -> np.ndarray:
    """Values of the pictures: 0/1 and -1, or numbers and NaN, or words and ''."""
    codes = genders(values, where) if name == "gender" else None if name == "age" else binary(values)
    if codes is not None:
        return np.append(codes, np.int8(-1))[order]  # the last stands for pictures without a row
    try:
        return np.array([float(value) if value.strip() else np.nan for value in values] + [np.nan])[order]
    except ValueError:
        if name == "age":
            odd = next(i for i, value in enumerate(values) if not _is_number(value))
            raise ValueError(f"{where[odd]} gives the age {values[odd]!r}; expected is a number of years, or nothing") from None
    return np.array([*values, ""], dtype=object)[order]


def _is_number(value: str) -> bool:
    try:
        float(value or "nan")
    except ValueError:
        return False
    return True
