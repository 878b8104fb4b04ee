"""Table VI and Fig. 7 of chapter 3: a benchmark before and after an attack, with and without defenses."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from fa_utils import metrics
from fa_utils.attacks.craft import run_grid
from fa_utils.attacks.transfer import network_name, open_network
from fa_utils.data import FaceSet, Pairs
from fa_utils.defenses import gaussian_blur, jpeg
from fa_utils.metrics import pair_similarity, rmsd, two_way_bootstrap, verification_accuracy
from fa_utils.models.zoo import zoo_table
from fa_utils.report.results import result_row

DEFENDED = "ires-webface-adversarial"
NO_DEFENSE = "No Defense"
FILTERS: dict[str, Callable | None] = {
    NO_DEFENSE: None,
    "JPEG Encoding": functools.partial(jpeg, quality=20),
    "Gaussian Blur": functools.partial(gaussian_blur, kernel_size=5, sigma=2.0),
}
TRAINED = "Adversarial Training"


def shortened(faces: FaceSet, pairs: Pairs, most: int) -> tuple[FaceSet, Pairs]:
    """About ``most`` pairs of a protocol, the first of each kind in each fold, and the pictures that they name.

    All of it where it has no more. Each fold keeps at least one pair of each kind that it has.
    """
    if len(pairs) <= most:
        return faces, pairs
    table = pd.DataFrame({"fold": pairs.fold, "same": pairs.same})
    number = table.groupby(["fold", "same"]).cumcount()
    each = max(1, most // len(table.drop_duplicates()))
    kept = pairs.take(np.flatnonzero(number < each))
    pictures = np.union1d(kept.a, kept.b)
    a, b = (np.searchsorted(pictures, side) for side in (kept.a, kept.b))
    return faces.subset(pictures), Pairs(a, b, kept.same, kept.fold)


def filtered(faces: FaceSet, defense: str, *, chunk: int = 500) -> FaceSet:
    """The pictures after a defense that acts on pictures, as uint8."""
    if FILTERS[defense] is None:
        return faces
    images = np.empty(faces.images.shape, np.uint8)
    for start in range(0, len(faces), chunk):
        rows = slice(start, start + chunk)
        images[rows] = FILTERS[defense](torch.from_numpy(np.array(faces.images[rows]))).numpy()
    return FaceSet(images, faces.identity, faces.attributes, faces.name)


def has_defended_network() -> bool:
    """Whether the zoo holds the adversarially trained network."""
    return DEFENDED in zoo_table().index


def verify(
    networks: Sequence[str],
    main: str,
    clean: FaceSet,
    attacked: FaceSet,
    pairs: Pairs,
    *,
    defended: str | None = None,
    workers: int = 1,
    device: str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Similarity of each pair of the protocol, to each network and under each defense, before and after the attack.

    Parameters
    ----------
    networks : sequence of str
        Judged without a defense.
    main : str
        Judged behind the filters too.
    defended : str, optional
        Address of the adversarially trained network.

    Returns
    -------
    DataFrame
        ``system`` (a network, or a defense), ``pictures`` ("LFW" or "TALFW"), ``pair``, ``similarity``.
    """
    jobs = [(network_name(name), name, NO_DEFENSE) for name in networks]
    jobs += [(name, main, name) for name in FILTERS]
    jobs += [(TRAINED, defended, NO_DEFENSE)] if defended else []
    run_one = functools.partial(_similarities, clean=clean, attacked=attacked, pairs=pairs, device=device)
    records = run_grid(jobs, run_one, workers=workers, progress=progress)
    return pd.concat([record["frame"] for record in records], ignore_index=True)


def _similarities(job, *, clean: FaceSet, attacked: FaceSet, pairs: Pairs, device: str) -> dict:
    system, address, defense = job
    network, parts = open_network(address, device), []
    for pictures, faces in (("LFW", clean), ("TALFW", attacked)):
        embeddings = network.embed(filtered(faces, defense))
        scores = pair_similarity(embeddings[pairs.a], embeddings[pairs.b])
        columns = {"system": system, "pictures": pictures, "pair": np.arange(len(pairs)), "similarity": scores}
        parts.append(pd.DataFrame(columns))
    return {"frame": pd.concat(parts)}


def scores_of(frame: pd.DataFrame, system: str, pictures: str) -> np.ndarray:
    """Similarities in the order of the pairs."""
    part = frame[(frame["system"] == system) & (frame["pictures"] == pictures)]
    return part.sort_values("pair")["similarity"].to_numpy()


def decisions(scores: np.ndarray, pairs: Pairs) -> np.ndarray:
    """1.0 for each pair that the LFW protocol decides rightly: the threshold of a fold is the best on the others."""
    right = np.empty(len(scores))
    for fold in np.unique(pairs.fold):
        test = pairs.fold == fold
        threshold = metrics.best_threshold(scores[~test], pairs.same[~test])
        right[test] = (scores[test] > threshold) == pairs.same[test]
    return right


def accuracy_rows(frame: pd.DataFrame, faces: FaceSet, pairs: Pairs, **place) -> list[dict]:
    """Table VI: accuracy by the LFW protocol, with an interval clustered by the persons of each pair.

    ``place`` goes into each row, such as the ``steps`` of the attack.
    """
    rows = []
    people = faces.identity[pairs.a], faces.identity[pairs.b]
    for system, pictures in dict.fromkeys(zip(frame["system"], frame["pictures"], strict=True)):
        scores = scores_of(frame, system, pictures)
        right = decisions(scores, pairs)
        _, low, high = two_way_bootstrap(right, *people, seed=0)
        mean = verification_accuracy(scores, pairs.same, pairs.fold).mean
        interval = (mean, min(low, mean), max(high, mean))
        where = {"table": "Table VI", "method": system, "target": pictures}
        rows.append(result_row("accuracy", interval, len(pairs), **where, **place))
    return rows


def accuracy_effects(frame: pd.DataFrame, faces: FaceSet, pairs: Pairs, **place) -> list[dict]:
    """Claim 9: every network falls; each defense lifts the attacked accuracy, and not to the clean one."""
    people = faces.identity[pairs.a], faces.identity[pairs.b]
    right = {
        key: decisions(scores_of(frame, *key), pairs)
        for key in dict.fromkeys(zip(frame["system"], frame["pictures"], strict=True))
    }
    systems = list(dict.fromkeys(system for system, _ in right))
    defenses = [name for name in systems if name in (*FILTERS, TRAINED) and name != NO_DEFENSE]
    compared = {f"{s}: LFW minus TALFW": ((s, "LFW"), (s, "TALFW")) for s in systems if s not in defenses}
    for name in defenses:
        compared[f"{name}: TALFW minus undefended"] = ((name, "TALFW"), (NO_DEFENSE, "TALFW"))
        compared[f"{name}: undefended LFW minus TALFW"] = ((NO_DEFENSE, "LFW"), (name, "TALFW"))
    return [
        result_row(
            "accuracy_difference",
            two_way_bootstrap(right[one] - right[two], *people, seed=0),
            len(pairs),
            table="claim 9",
            method=name,
            **place,
        )
        for name, (one, two) in compared.items()
    ]


def deviation_rows(clean: FaceSet, attacked: FaceSet, chosen: np.ndarray, **place) -> list[dict]:
    """Root-mean-square deviation of the changed pictures, in grey levels: mean and standard deviation."""
    values = rmsd(attacked.images[chosen], clean.images[chosen])
    where = {"table": "TALFW", "method": "changed pictures"}
    spread = [("mean", values.mean()), ("standard deviation", values.std())]
    return [result_row("rmsd", value, len(chosen), target=name, **where, **place) for name, value in spread]
