"""Color FERET (Phillips et al. 2000) as NIST distributes it: ``dvd1`` and ``dvd2``, pictures and ground truth a person."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from fa_utils.data.aging import made_pairs
from fa_utils.data.faceset import Pairs
from fa_utils.data.lists import genders
from fa_utils.data.pictures import Crop, Listing

__all__ = ["colorferet_pairs", "list_colorferet", "looks_like_colorferet"]

# In a frontal picture of 512 x 768 the eyes lie at a height of about 280, 120 pixels apart: an estimate, as heads differ in size
# and place and the box is the same for all, side views included.
CROP = Crop(box=(64, 104, 448, 488), size=(512, 768))

FRONTAL = ("fa", "fb")
_DVDS = (".", "dvd1", "dvd2", "colorferet/dvd1", "colorferet/dvd2")
_FILE = re.compile(r"(?P<person>\d{5})_(?P<date>\d{6})_(?P<pose>[a-z]{2})(?:_[a-z])?\.(?:ppm|ppm\.bz2|png|jpg)", re.IGNORECASE)


def looks_like_colorferet(folder: Path) -> bool:
    """Whether ``data/images`` of a DVD is there."""
    return any((folder / dvd / "data/images").is_dir() for dvd in _DVDS)


def list_colorferet(folder: Path) -> Listing:
    """Every picture, ``data/images/00001/00001_930831_fa_a.ppm`` (or .ppm.bz2, .png, .jpg), cropped (``CROP``) to 112 x 112.

    Attributes: ``person`` (the number), ``pose`` ("fa" and "fb" are frontal), ``age`` (year of the picture less year of birth)
    and ``gender``; the last two where ``data/ground_truths/name_value/00001/00001.txt`` gives ``yob`` and ``gender``.

    Raises
    ------
    FileNotFoundError
        No pictures.
    ValueError
        One picture in two files, or a ground truth that cannot be read.
    """
    fields: dict[str, tuple[str, re.Match, Path]] = {}
    for dvd in _DVDS:
        for path in sorted((folder / dvd / "data/images").glob("*/*")):
            match = _FILE.fullmatch(path.name)
            if not match or match["person"] != path.parent.name:
                continue
            name, file = path.name.split(".")[0], path.relative_to(folder).as_posix()
            if name in fields:
                raise ValueError(f"two files for one picture: {folder / fields[name][0]} and {path}; keep one of them")
            fields[name] = file, match, folder / dvd
    if not fields:
        raise FileNotFoundError(f"no pictures of Color FERET in {folder}: expected {folder}/dvd1/data/images/00001/00001_930831_fa_a.ppm "
                                "(or .ppm.bz2, .png, .jpg)")
    rows = [fields[name] for name in sorted(fields)]
    attributes = pd.DataFrame({"person": [match["person"] for _, match, _ in rows], "pose": [match["pose"].lower() for _, match, _ in rows]})
    truths = {match["person"]: dvd for _, match, dvd in rows}
    truths = {person: _read_truth(dvd / "data/ground_truths/name_value" / person / f"{person}.txt") for person, dvd in truths.items()}
    if any(truths.values()):
        attributes["gender"] = [truths[person].get("gender", -1) for person in attributes["person"]]
        attributes["gender"] = attributes["gender"].astype(np.int8)
        attributes["age"] = [1900.0 + int(match["date"][:2]) - truths[match["person"]].get("yob", np.nan) for _, match, _ in rows]
    return Listing("colorferet", folder, [file for file, _, _ in rows], attributes, CROP)


def colorferet_pairs(listing: Listing) -> Pairs:
    """Made pairs of frontal pictures: the paper's 6,000 are not published, and side views are no test of verification."""
    frontal = np.flatnonzero(listing.attributes["pose"].isin(FRONTAL))
    identity = np.unique(listing.attributes["person"].to_numpy(str), return_inverse=True)[1]
    pairs = made_pairs(identity[frontal])
    return Pairs(frontal[pairs.a], frontal[pairs.b], pairs.same, pairs.fold)


def _read_truth(path: Path) -> dict[str, float]:
    """Gender (1 male, 0 female) and year of birth, as far as the file gives them; empty without a file."""
    if not path.is_file():
        return {}
    values = dict(line.strip().split("=", 1) for line in path.read_text(encoding="latin-1").splitlines() if "=" in line)
    truth: dict[str, float] = {}
    if "gender" in values:
        truth["gender"] = int(genders([values["gender"]], [str(path)])[0])
    year = values.get("yob", "").strip()
    if year and not re.fullmatch(r"1[89]\d\d", year):
        raise ValueError(f"{path} gives yob = {year!r}; expected is a year such as 1943")
    if year:
        truth["yob"] = int(year)
    return truth
