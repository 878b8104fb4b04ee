"""Named domains of procedural faces: what stands for the papers' training sets and benchmarks.

A domain is a pool of people and the conditions under which they are photographed. Each (domain, split) has its own pool,
so people of two domains, or of training and test, are never the same.
"""

import difflib
import hashlib
import inspect
import json
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from fa_utils.data import people as people_module
from fa_utils.data import renderer
from fa_utils.data.cache import cached_array
from fa_utils.data.faceset import FaceSet, Pairs
from fa_utils.data.people import CONDITIONS, Conditions, sample_pictures
from fa_utils.paths import CACHE

__all__ = ["DOMAINS", "Domain", "attack_pairs", "domain_table", "load_domain", "protocol_pairs", "render_pictures"]

_TASK = 160  # pictures a worker draws before it reports
SPLITS = ("train", "val", "test")
_SHOWN = ("yaw", "pitch", "smile", "mouth_open", "glasses", "age", "blur", "noise", "light_x", "light_y")


@dataclass(frozen=True)
class Domain:
    """People and conditions. ``identities`` and ``pictures`` are the sizes of each split: "train", "test", and for some "val"."""

    stands_for: str
    conditions: Conditions = field(default_factory=Conditions)
    identities: dict[str, int] = field(default_factory=lambda: {"train": 3200, "test": 200})
    pictures: dict[str, int] = field(default_factory=lambda: {"train": 10, "test": 4})


DOMAINS: dict[str, Domain] = {
    "webface": Domain("CASIA-WebFace: film stars, many pictures each", Conditions()),
    "imdb": Domain(
        "IMDB-Face: film stills, livelier and in stage light",
        Conditions(expression=0.7, light=0.6, blur=0.3),
        identities={"train": 3000, "test": 200},
        pictures={"train": 9, "test": 4},
    ),
    "vggface2": Domain(
        "VGGFace2: fewer people, wide in pose and age",
        Conditions(yaw=0.18, pitch=0.07, age_within=6.0, age_spread=12.0),
        identities={"train": 2400, "test": 200},
        pictures={"train": 11, "test": 4},
    ),
    "ms1m": Domain(
        "MS-Celeb-1M: most people, pictures from the web, compressed",
        Conditions(noise=0.014, jpeg=0.6, blur=0.3, jitter=1.2),
        identities={"train": 3500, "test": 200},
        pictures={"train": 8, "test": 4},
    ),
    "lfw": Domain(
        "LFW: the verification benchmark, press photographs",
        Conditions(light=0.5, age_within=4.0),
        identities={"test": 1500},
        pictures={"test": 4},
    ),
    "celeba": Domain(
        "CelebA: celebrities with attribute labels, in its official parts A (train), C (val) and B (test); glasses are common",
        Conditions(expression=0.6, jitter=0.8, light=0.4, glasses=0.2),
        identities={"train": 3000, "val": 800, "test": 1000},
        pictures={"train": 5, "val": 5, "test": 15},
    ),
    "agedb": Domain(
        "AgeDB: the same people from youth to old age",
        Conditions(age_mean=45.0, age_spread=9.0, age_within=15.0, light=0.5, noise=0.012),
        identities={"test": 570},
        pictures={"test": 12},
    ),
    "colorferet": Domain(
        "ColorFERET: photographs taken in a studio, one after the other",
        Conditions(yaw=0.10, pitch=0.03, jitter=0.4, light=0.12, expression=0.3, age_within=0.5, blur=0.05, noise=0.004, jpeg=0.1),
        identities={"test": 800},
        pictures={"test": 6},
    ),
    "celebahq": Domain(
        "CelebA-HQ: the second benchmark, celebrities in studio light, hardly compressed",
        Conditions(yaw=0.10, pitch=0.04, jitter=0.8, light=0.35, style=1.0, blur=0.05, noise=0.003, jpeg=0.04),
        identities={"test": 400},
        pictures={"test": 2},
    ),
}


def nearest(name: str, known) -> str:
    """``; did you mean ...?`` or nothing."""
    close = difflib.get_close_matches(str(name), list(known), 1, 0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


def get_domain(name: str) -> Domain:
    """The domain of that name; a :class:`KeyError` offers the nearest one."""
    if name not in DOMAINS:
        raise KeyError(f"unknown domain {name!r}{nearest(name, DOMAINS)} Known: {', '.join(DOMAINS)}")
    return DOMAINS[name]


def domain_table() -> pd.DataFrame:
    """The domains and their conditions, a row each."""
    rows = {
        name: {"stands for": d.stands_for, **{f"{s} people": d.identities.get(s, 0) for s in SPLITS}, **asdict(d.conditions)}
        for name, d in DOMAINS.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("domain")


def render_pictures(pool: str, identities: np.ndarray, samples: np.ndarray, conditions: Conditions, size: int = 112) -> np.ndarray:
    """Draw pictures (uint8 N x 3 x size x size) of these people, without the cache, in this process."""
    appearance, taken, _ = sample_pictures(pool, identities, samples, conditions)
    return renderer.render(torch.from_numpy(appearance), torch.from_numpy(taken), size).numpy()


def _render_task(pool, identities, samples, conditions, size):
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # Gaussians far from their center underflow: denormals cost half the speed
    return render_pictures(pool, identities, samples, conditions, size)


def _fill(out: np.ndarray, pool, identities, samples, conditions, size, workers: int, progress: bool, label: str) -> None:
    starts = range(0, len(identities), _TASK)
    inline = workers == 1 or len(identities) <= 2 * _TASK
    jobs = (
        delayed(_render_task)(pool, identities[i : i + _TASK], samples[i : i + _TASK], conditions, size) for i in starts
    )
    done = Parallel(n_jobs=1 if inline else workers, return_as="generator")(jobs)
    with tqdm(total=len(identities), desc=f"rendering {label}", unit="picture", disable=not progress) as bar:
        for start, pictures in zip(starts, done, strict=True):
            out[start : start + len(pictures)] = pictures
            bar.update(len(pictures))


def _digest(*parts) -> str:
    source = inspect.getsource(renderer) + inspect.getsource(people_module)
    return hashlib.sha256((json.dumps(parts, sort_keys=True) + source).encode()).hexdigest()[:16]


def load_domain(
    name: str,
    split: str = "train",
    *,
    identities: int | None = None,
    pictures: int | None = None,
    size: int = 112,
    workers: int = 2,
    progress: bool = True,
) -> FaceSet:
    """Pictures of a domain, rendered on first use and memory-mapped from the cache afterwards.

    Parameters
    ----------
    name : one of ``DOMAINS``
    split : "train", "val" or "test"
        Different people; not every domain has every split.
    identities, pictures : int, optional
        People, and pictures of each; the domain's own numbers where left out. A smaller set is a part of a larger one.
    size : int in [32, 256], pixels
    workers : int
        Processes that draw.
    progress : bool

    Returns
    -------
    FaceSet with attributes gender (0 or 1), age (years) and the conditions of each picture

    Raises
    ------
    KeyError
        Unknown domain; the nearest name is offered.
    ValueError
        A split that the domain lacks, or a count below 1.
    """
    domain = get_domain(name)
    if split not in domain.identities:
        raise ValueError(f"split = {split!r}: domain {name!r} has {', '.join(domain.identities)}")
    identities = domain.identities[split] if identities is None else identities
    pictures = domain.pictures[split] if pictures is None else pictures
    if identities < 1 or pictures < 1:
        raise ValueError(f"identities = {identities}, pictures = {pictures}: at least one of each")
    who = np.repeat(np.arange(identities), pictures)
    sample = np.tile(np.arange(pictures), identities)
    pool = f"{name}/{split}"
    path = CACHE / "faces" / f"{name}-{split}-{_digest(pool, identities, pictures, size, asdict(domain.conditions))}.npy"
    images = cached_array(
        path,
        (len(who), 3, size, size),
        lambda out: _fill(out, pool, who, sample, domain.conditions, size, workers, progress, f"{name} ({split})"),
    )
    _, taken, people = sample_pictures(pool, who, sample, domain.conditions)
    attributes = pd.DataFrame({c: taken[:, CONDITIONS.index(c)] for c in _SHOWN}).assign(gender=people.gender)
    return FaceSet(images=images, identity=who, attributes=attributes, name=pool)


def protocol_pairs(identity: np.ndarray, *, folds: int = 10, per_fold: int = 300, seed: int = 0) -> Pairs:
    """Verification pairs in the way of LFW: ``folds`` folds of people, in each ``per_fold`` mated and as many impostor pairs.

    Raises
    ------
    ValueError
        There are fewer people than folds, or a fold has no ``per_fold`` distinct pairs of either kind.
    """
    random = np.random.default_rng(seed)
    people = random.permutation(np.unique(identity))
    if len(people) < 2 * folds:
        raise ValueError(f"{len(people)} people cannot form {folds} folds of two or more: take fewer folds or more people")
    rows = []
    for fold, members in enumerate(np.array_split(people, folds)):
        index = np.flatnonzero(np.isin(identity, members))
        a, b = np.triu_indices(len(index), 1)
        a, b = index[a], index[b]
        same = identity[a] == identity[b]
        for kind in (True, False):
            candidates = np.flatnonzero(same == kind)
            if len(candidates) < per_fold:
                raise ValueError(f"fold {fold} has {len(candidates)} pairs with same = {kind}, fewer than per_fold = {per_fold}")
            chosen = np.sort(random.choice(candidates, per_fold, replace=False))
            rows.append(np.stack([a[chosen], b[chosen], same[chosen], np.full(per_fold, fold)], 1))
    table = np.concatenate(rows)
    return Pairs(a=table[:, 0], b=table[:, 1], same=table[:, 2].astype(bool), fold=table[:, 3])


def attack_pairs(
    n_pairs: int, *, domain: str | None = None, calibration: bool = False, progress: bool = True
) -> tuple[FaceSet, FaceSet, np.ndarray, np.ndarray]:
    """Sources and targets of an impersonation: people that no network was trained on.

    Up to 100 pairs, every source and every target occurs once; beyond, 100 sources meet 100 targets in Latin-square order
    (up to 10,000 pairs).

    Parameters
    ----------
    n_pairs : int from 1 to 10,000
    domain : str, optional
        Sources are the first 100 test people of this domain, targets the next 100. By default of two domains: sources
        MS-Celeb-1M-like and targets VGGFace2-like, as in paper 3, section V-A.
    calibration : bool
        Pairs of other people, to tune on: the 200 that follow in the domain, or 100 that follow in each of the two.
    progress : bool
        Show a bar while pictures are rendered for the first time.

    Returns
    -------
    sources, targets : FaceSet of one picture a person
    source_id, target_id : int arrays (n_pairs,), row indices

    Raises
    ------
    ValueError
        n_pairs out of range, or a domain of too few test people (400 are needed).
    KeyError
        Unknown domain; the nearest name is offered.
    """
    if not 1 <= n_pairs <= 10_000:
        raise ValueError(f"n_pairs = {n_pairs}: from 1 to 10000 (100 sources x 100 targets)")
    if domain is None:
        first = 100 if calibration else 0
        people = [("ms1m", first), ("vggface2", first)]
    else:
        _require_four_hundred(domain)
        first = 200 if calibration else 0
        people = [(domain, first), (domain, first + 100)]
    faces = []
    for name, start in people:
        everyone = load_domain(name, "test", pictures=1, progress=progress)
        faces.append(everyone.subset(np.arange(start, start + 100)))
    pair = np.arange(n_pairs)
    source = pair % 100
    return faces[0], faces[1], source, (source + pair // 100) % 100


def _require_four_hundred(domain: str) -> None:
    available = get_domain(domain).identities["test"]
    if available < 400:
        able = ", ".join(name for name, d in DOMAINS.items() if d.identities["test"] >= 400)
        raise ValueError(f"domain {domain!r} has {available} test people, pairs within it need 400: take one of {able}")
