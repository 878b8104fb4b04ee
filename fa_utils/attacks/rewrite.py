"""A verification benchmark rewritten by an attack, as TALFW is LFW rewritten (Zhong and Deng 2021, section V).

Three steps: choose the pictures (a greedy cover of the pairs), attack each of them away from its mated and towards its
impostor partners, and put the attacked pictures in the place of the originals.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fa_utils.attacks.craft import craft, run_grid
from fa_utils.attacks.engine import Attack
from fa_utils.attacks.objectives import embedding_distance
from fa_utils.attacks.transfer import open_network
from fa_utils.data import FaceSet, Pairs, to_float
from fa_utils.paths import CACHE


def greedy_cover(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pictures of which every pair holds at least one, chosen greedily.

    Again and again the picture that occurs in the most uncovered pairs is taken, the one with the lowest number among
    equals.

    Parameters
    ----------
    a, b : integer array, (P,)
        The two pictures of each pair, numbers from 0 on.

    Returns
    -------
    ndarray of int64
        Chosen pictures, ascending.

    Raises
    ------
    ValueError
        If the two differ in length or are empty.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(
            f"a and b must be two columns of pairs of one length, got shapes {a.shape} and {b.shape}"
        )
    size = int(max(a.max(), b.max())) + 1
    uncovered, chosen = np.ones(len(a), bool), []
    count = np.bincount(a, minlength=size) + np.bincount(np.where(a == b, size, b), minlength=size + 1)[:size]
    while uncovered.any():
        picture = int(count.argmax())
        covered = uncovered & ((a == picture) | (b == picture))
        chosen.append(picture)
        uncovered &= ~covered
        count -= np.bincount(a[covered], minlength=size)
        count -= np.bincount(np.where(a[covered] == b[covered], size, b[covered]), minlength=size + 1)[:size]
    return np.sort(np.asarray(chosen, np.int64))


@dataclass(frozen=True)
class Partners:
    """Objective: away from mated partners, towards impostor partners, all at once.

    Parameters
    ----------
    digest : str
        Name of the partners; a checkpoint hangs on the objective's repr.
    pictures : Tensor
        (K, B, 3, H, W) in [0, 1]: up to K partners of each of B pictures.
    sign : Tensor
        (K, B): 1 for an impostor partner, -1 for a mated one, 0 where there is none.
    """

    digest: str
    pictures: Tensor = field(repr=False, compare=False)
    sign: Tensor = field(repr=False, compare=False)

    def anchor(self, source: Tensor, target: Tensor | None) -> Tensor:
        return self.pictures.to(source)

    def reference(self, encoder: nn.Module, pictures: Tensor) -> Tensor:
        return torch.stack([encoder(partner) for partner in pictures])

    def predict(self, encoder: nn.Module, images: Tensor) -> Tensor:
        return encoder(images)

    def loss(self, prediction: Tensor, reference: Tensor) -> Tensor:
        distances = torch.stack([embedding_distance(prediction, partner, kind="l2") for partner in reference])
        return (self.sign.to(distances) * distances).sum(dim=0)


def partners_of(pictures: np.ndarray, pairs: Pairs) -> list[list[tuple[int, int]]]:
    """For each picture its partners as (picture, sign): 1 for impostors, -1 for mates."""
    sign = np.where(pairs.same, -1, 1)
    rows = []
    for picture in pictures:
        ahead, behind = pairs.a == picture, pairs.b == picture
        found = [*zip(pairs.b[ahead], sign[ahead]), *zip(pairs.a[behind], sign[behind])]
        rows.append([(int(other), int(s)) for other, s in found if other != picture])
    return rows


def rewrite_benchmark(
    faces: FaceSet,
    pairs: Pairs,
    attack: Attack,
    surrogates: Sequence[str],
    *,
    unit: int = 20,
    workers: int = 1,
    device: str = "cpu",
    cache: str | Path | None = CACHE / "attacks",
    progress: bool = True,
) -> tuple[FaceSet, np.ndarray]:
    """The benchmark with a cover of its pairs attacked.

    Parameters
    ----------
    faces, pairs : FaceSet, Pairs
        As `fa_utils.data.load_benchmark` gives them.
    attack : Attack
        Its objective is replaced by `Partners`; where it masks features, the partners pass through the same masks, so
        ``target="clean"`` saves passes.
    surrogates : sequence of str
        Addresses of the networks (`fa_utils.attacks.transfer.open_network`).
    unit, workers, device, progress
        As in `fa_utils.attacks.transfer.run_trials`.
    cache : path or None
        Where finished units are kept, so that a killed run goes on.

    Returns
    -------
    FaceSet
        All pictures, the chosen ones attacked.
    ndarray of int64
        The chosen pictures.
    """
    chosen = greedy_cover(pairs.a, pairs.b)
    partners = partners_of(chosen, pairs)
    # Pictures with as many partners share a unit, so that few places stay empty; the order is fixed.
    order = sorted(range(len(chosen)), key=lambda row: (len(partners[row]), row))
    units = [order[start : start + unit] for start in range(0, len(order), unit)]
    run_one = functools.partial(
        _attack_unit,
        faces=faces,
        chosen=chosen,
        partners=partners,
        attack=attack,
        surrogates=tuple(surrogates),
        device=device,
        cache=cache and Path(cache) / "rewritten",
    )
    records = run_grid(units, run_one, workers=workers, progress=progress)
    images = np.array(faces.images)
    for rows, record in zip(units, records, strict=True):
        images[chosen[rows]] = record["images"]
    return FaceSet(images, faces.identity, faces.attributes, f"{faces.name}, attacked"), chosen


def _attack_unit(rows, *, faces, chosen, partners, attack, surrogates, device, cache) -> dict:
    longest = max(len(partners[row]) for row in rows)
    index = np.zeros((longest, len(rows)), np.int64)
    sign = np.zeros((longest, len(rows)), np.float32)
    for column, row in enumerate(rows):
        for place, (other, s) in enumerate(partners[row]):
            index[place, column], sign[place, column] = other, s
    pictures = faces.images[index.reshape(-1)].reshape(*index.shape, *faces.images.shape[1:])
    digest = hashlib.sha256(np.ascontiguousarray(pictures).tobytes() + sign.tobytes()).hexdigest()
    objective = Partners(digest, to_float(pictures), torch.from_numpy(sign))
    crafted = craft(
        dataclasses.replace(attack, objective=objective),
        [open_network(address, device) for address in surrogates],
        faces.images[chosen[rows]],
        keys=chosen[rows].tolist(),
        unit=len(rows),
        checkpoint=cache,
        progress=False,
    )
    return {"images": crafted.images}
