"""The pictures of chapter 1: three parts of one dataset that share no person, rendered or photographed.

The letters are the paper's: A trains the gender classifier, C gives the denoisers what they learn from, and B is reported.
Rendered faces have these parts by construction. Of photographs, people are divided here.
"""

import functools
from collections.abc import Mapping

import numpy as np

from fa_utils.data import FaceSet, load_domain, load_faces

SPLITS = {"A": "train", "C": "val", "B": "test"}  # of the procedural domain
SHARE_B, SHARE_C = 0.25, 0.20  # of the people; the rest is A
EACH = 15  # pictures of a person in part B that the paper asks for
LEAST = 2  # pictures without which a person has no mated comparison
PEOPLE = 8  # of each gender: two in B, one in C, and five to learn from


def load_part(
    faces: str, part: str, *, identities: int | None = None, pictures: int | None = None, progress: bool = False
) -> FaceSet:
    """Pictures of part "A", "B" or "C" of the faces at an address.

    Parameters
    ----------
    faces : str
        "procedural", or an address of real faces as `fa_utils.data.load_faces` takes it; they need the attribute ``gender``.
    identities, pictures : int, optional
        People, and pictures of each, at most. In part B of photographs those with the most pictures come first.

    Returns
    -------
    FaceSet
        ``identity`` counts from 0 in the order in which people are taken; ``gender`` is one label a person. Attributes of
        photographs have ``glasses`` where the dataset has them.

    Raises
    ------
    ValueError
        Real faces without the attribute, or with too few people: says what is missing.
    """
    if faces == "procedural":
        return load_domain("celeba", SPLITS[part], identities=identities, pictures=pictures, progress=progress)
    everyone, rows, people = _parts(faces)
    kept = rows[part]
    if identities is not None:
        kept = kept[people[kept] < identities]
    if pictures is not None:
        kept = kept[_number_within(people[kept]) < pictures]
    chosen = everyone.subset(kept)
    attributes = chosen.attributes.assign(gender=_labels(faces)[kept])
    return FaceSet(chosen.images, people[kept], attributes, chosen.name)


def describe_parts(faces: str, *, pictures: int = EACH) -> list[dict]:
    """One line a part of photographs: people, pictures, the share of label 1, and how many pictures a person has."""
    _, rows, people = _parts(faces)
    labels, lines = _labels(faces), []
    for part, kept in rows.items():
        count = np.bincount(people[kept])
        lines.append({
            "part": part, "people": len(count), "pictures": len(kept), "of a person": f"{count.min()} to {count.max()}",
            f"people with {pictures} or more": int((count >= pictures).sum()), "label 1 (% of pictures)": 100 * labels[kept].mean(),
        })  # fmt: skip
    return lines


def shortcomings(faces: str, part_b: FaceSet, *, identities: int, pictures: int, glasses: bool) -> list[str]:
    """Sentences on what the chapter wants and these faces lack, none for rendered ones; ``glasses``: whether that control is there."""
    if faces == "procedural":
        return []
    count, found = np.bincount(part_b.identity), []
    if len(count) < identities:
        found.append(f"Part B of {part_b.name!r} has {len(count)} people; {identities} were asked for, and the paper has 1,000.")
    if (few := int((count < pictures).sum())) > 0:
        found.append(f"{few} of its {len(count)} people have fewer than {pictures} pictures, the least {count.min()}; the paper takes {EACH} of each.")
    if not glasses:
        found.append(f"{part_b.name!r} does not say who wears glasses, or nearly nobody does: the audit lacks that control.")
    return found


# ---------------------------------------------------------------- photographs


def gender_labels(faces: FaceSet) -> np.ndarray:
    """One label a person, int8 (N,): what most of that person's pictures say; -1 for a tie, or where no picture says anything.

    Raises
    ------
    ValueError
        The set has no attribute ``gender``; the ones that it has are named.
    """
    if "gender" not in faces.attributes:
        has = ", ".join(faces.attributes) or "none"
        raise ValueError(
            f"{faces.name!r} has no attribute 'gender', which chapter 1 attacks (its attributes: {has}); give a dataset with such "
            "labels, as CelebA, LFW with male_names.txt and female_names.txt, or a folder with an attributes file"
        )
    given = faces.attributes["gender"].to_numpy()
    people, person = np.unique(faces.identity, return_inverse=True)
    votes = np.stack([np.bincount(person[given == label], minlength=len(people)) for label in (0, 1)])
    label = np.where(votes[0] == votes[1], -1, votes.argmax(0))
    return label[person].astype(np.int8)


def split_people(faces: FaceSet, labels: np.ndarray, *, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Divide the people of a dataset into the parts A, C and B.

    For each gender: the quarter with the most pictures is B, since there every person is compared with herself; of the others a
    random fifth of all is C, and the rest is A. People without a label are in no part, people with one picture in A at most.

    Parameters
    ----------
    faces : FaceSet
    labels : int (N,)
        As `gender_labels` gives them.
    seed : int
        Of the division of the others.

    Returns
    -------
    rows : dict
        Part -> int64, pictures in the order of the people.
    people : int64 (N,)
        Number of the person within the part, -1 in none. In B both genders take turns, from the most pictures on.

    Raises
    ------
    ValueError
        Too few people: says how many there are, and how many are needed.
    """
    random = np.random.default_rng(seed)
    members: dict[str, list[np.ndarray]] = {part: [] for part in "ACB"}
    for label in (1, 0):
        known = faces.identity[labels == label]
        person, count = np.unique(known, return_counts=True)
        if len(person) < PEOPLE or (count >= LEAST).sum() < 2:
            raise ValueError(
                f"{faces.name!r} has {len(person)} people with the gender label {label}, {int((count >= LEAST).sum())} of them with "
                f"{LEAST} pictures or more; the three parts of chapter 1 need {PEOPLE} people of each label, two of them with "
                f"{LEAST} pictures (the paper: {EACH})"
            )
        ranked = person[np.argsort(-count, kind="stable")]
        reported = min(max(2, round(SHARE_B * len(ranked))), int((count >= LEAST).sum()))
        others = random.permutation(ranked[reported:])
        learned = max(1, round(SHARE_C * len(ranked)))
        for part, chosen in zip("BCA", (ranked[:reported], others[:learned], others[learned:]), strict=True):
            members[part].append(chosen)
    people, rows = np.full(len(faces), -1), {}
    for part, (ones, zeros) in members.items():
        for number, identity in enumerate(_in_turns(ones, zeros)):
            people[faces.identity == identity] = number
        inside = np.flatnonzero(np.isin(faces.identity, np.concatenate((ones, zeros))))
        rows[part] = inside[np.argsort(people[inside], kind="stable")]
    return rows, people


def _in_turns(ones: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """Both lists with their members evenly spread, the shorter one too."""
    place = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in (ones, zeros)])
    return np.concatenate((ones, zeros))[np.argsort(place, kind="stable")]


def _number_within(people: np.ndarray) -> np.ndarray:
    """How many earlier pictures each picture's person has; ``people`` come in order."""
    first = np.searchsorted(people, people)
    return np.arange(len(people)) - first


@functools.lru_cache(maxsize=2)
def _parts(faces: str) -> tuple[FaceSet, Mapping[str, np.ndarray], np.ndarray]:
    """The pictures at an address and their parts; once in a process."""
    everyone = load_faces(faces)
    return everyone, *split_people(everyone, gender_labels(everyone))


@functools.lru_cache(maxsize=2)
def _labels(faces: str) -> np.ndarray:
    return gender_labels(_parts(faces)[0])

