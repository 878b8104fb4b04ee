"""Lists that lie beside pictures: text files and tables whose every line is checked before it is believed."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pandas as pd

__all__ = ["attribute_columns", "binary", "first_of", "genders", "inside", "numbered_lines", "picture_labels", "picture_values"]

_GENDERS = {"1": 1, "0": 0, "m": 1, "f": 0, "male": 1, "female": 0, "": -1}


def first_of(places: Iterable[Path]) -> Path | None:
    """The first of these files that there is."""
    return next((path for path in places if path.is_file()), None)


def numbered_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number (from 1) and words of every line that is not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error})") from error
    return ((number, words) for number, line in enumerate(text.splitlines(), 1) if (words := line.split()))


def inside(name: str, where: str) -> str:
    """A relative path that stays in its folder, in its plain form; anything else is refused.

    Raises
    ------
    ValueError
        Naming ``where`` the path stands.
    """
    if name not in ("", ".", "..") and not set(name) & set("/\\:"):  # a bare name, as nearly all are
        return name
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    if path.is_absolute() or windows.drive or windows.root or ".." in windows.parts or not path.parts:
        raise ValueError(f"{where} names {name!r}, which is no path inside the folder; expected is a file name "
                         "or a path relative to the folder, without '..'")
    return str(path)


def picture_values(path: Path, accepted: dict[str, str] | None = None) -> dict[str, str]:
    """A list of CelebA's kind with a picture and one value a line.

    Parameters
    ----------
    path : Path
    accepted : dict, optional
        Values that may occur, and what they mean.
    """
    values: dict[str, str] = {}
    for number, words in numbered_lines(path):
        where = f"{path} line {number}"
        if len(words) != 2:
            raise ValueError(f"{where} must give a picture and 1 value, it gives {len(words) - 1}: {' '.join(words)[:80]!r}")
        if accepted and words[1] not in accepted:
            raise ValueError(f"{where} gives {words[0]} the value {words[1]!r}; expected is one of "
                             + ", ".join(f"{code} ({meaning})" for code, meaning in accepted.items()))
        _add(values, inside(words[0], where), accepted[words[1]] if accepted else words[1], where)
    if not values:
        raise ValueError(f"{path} names no picture")
    return values


def picture_labels(path: Path) -> tuple[list[str], dict[str, bytes]]:
    """CelebA's list of attributes: the number of pictures, a line of names, then a picture and its -1 or 1 a line.

    Returns
    -------
    names : list of str
        Of the attributes.
    labels : dict
        From a picture to a byte, 0 or 1, for each attribute. Bytes, since there are eight million labels.
    """
    lines = numbered_lines(path)
    announced, names = (next(lines, (0, []))[1] for _ in range(2))
    if len(announced) != 1 or not announced[0].isdecimal() or not names:
        raise ValueError(f"{path} must begin with the number of pictures and a line that names the attributes")
    codes = {"-1": 0, "1": 1}
    labels: dict[str, bytes] = {}
    for number, (picture, *values) in lines:
        where = f"{path} line {number}"
        if len(values) != len(names):
            raise ValueError(f"{where} must give a picture and {len(names)} values, it gives {len(values)}")
        odd = next((value for value in values if value not in codes), None)
        if odd:
            raise ValueError(f"{where} gives {picture} the value {odd!r}; attributes are -1 or 1")
        _add(labels, inside(picture, where), bytes(map(codes.__getitem__, values)), where)
    if len(labels) != int(announced[0]):
        raise ValueError(f"{path} announces {announced[0]} pictures; it has {len(labels)} lines of them")
    return names, labels


def _add(table: dict, picture: str, value, where: str) -> None:
    if picture in table:
        raise ValueError(f"{where} names {picture} a second time")
    table[picture] = value


def genders(values: Iterable[str], where: Iterable[str]) -> np.ndarray:
    """1 male, 0 female, -1 unknown (int8), from -1/1, 0/1, m/f or male/female; empty is unknown.

    Raises
    ------
    ValueError
        Another value, or both -1 and 0, which leaves open what -1 means: names ``where`` it stands.
    """
    values = [str(value).strip().lower() for value in values]
    known = _GENDERS if "-1" not in values else {**_GENDERS, "-1": 0}
    for value, place in zip(values, where):
        if value not in known or (value == "0" and "-1" in values):
            raise ValueError(f"{place} gives the gender {value!r}; expected is one coding throughout: -1 and 1, 0 and 1, "
                             "m and f, or male and female (1 is male), empty where it is not known")
    return np.array([known[value] for value in values], dtype=np.int8)


def binary(values: Iterable[str]) -> np.ndarray | None:
    """0/1 (int8, -1 unknown) from -1/1 or 0/1, empty is unknown; None when the values are something else."""
    values = [str(value).strip() for value in values]
    used = set(values) - {""}
    for no in ("-1", "0"):
        if used and used <= {no, "1"}:
            known = {"1": 1, no: 0, "": -1}
            return np.array([known[value] for value in values], dtype=np.int8)
    return None


def attribute_columns(names: list[str], labels: dict[str, bytes], pictures: list[str]) -> pd.DataFrame:
    """A column (int8) for each attribute of :func:`picture_labels`: 0, 1, or -1 for pictures that it does not name.

    ``Male`` becomes ``gender`` (1 male); every other column has its name in lower case, and ``glasses`` repeats
    ``eyeglasses``.
    """
    unknown = b"\xff" * len(names)
    table = np.frombuffer(b"".join(labels.get(picture, unknown) for picture in pictures), dtype=np.int8)
    table = table.reshape(len(pictures), len(names))
    columns = {"gender" if name == "Male" else name.lower(): table[:, i].copy() for i, name in enumerate(names)}
    if "eyeglasses" in columns:
        columns["glasses"] = columns["eyeglasses"]
    return pd.DataFrame(columns)
