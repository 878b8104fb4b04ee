"""Chapter 4's measurements beside the transfer runs: Ghost on clean pictures, spread of gradients, an identification service."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fa_utils.attacks import Dodge, GhostNetwork, Scope, craft
from fa_utils.attacks.transfer import PairSet, network_name, open_network, png
from fa_utils.data import FaceSet, Pairs, load_domain
from fa_utils.metrics import pair_similarity, two_way_bootstrap, verification_accuracy, wilson_interval
from fa_utils.models.onnx import BlackBox
from fa_utils.report.eroding import DECAY, GHOST, OURS, RESIDUAL, SKIP, Budget, Cast
from fa_utils.report.results import result_row

SPREADS = (0.1, 0.22, 0.4, 0.6, 0.8, 0.95)
LOSS = 0.1  # of accuracy: the rule of Ghost's authors


def false_accept_rates(addresses: Sequence[str], faces: FaceSet, thresholds: pd.Series, *, block: int = 512) -> dict[str, float]:
    """Share of all impostor pairs of a benchmark that each network's threshold accepts, by network name."""
    rates, n = {}, len(faces)
    counts = np.unique(faces.identity, return_counts=True)[1]
    impostors = (n**2 - int((counts**2).sum())) // 2
    for address in addresses:
        unit, threshold = open_network(address).embed(faces).numpy(), thresholds[network_name(address)]
        accepted = 0
        for start in range(0, n, block):
            rows = slice(start, start + block)
            above = unit[rows] @ unit.T > threshold
            other = faces.identity[rows, None] != faces.identity[None, :]
            accepted += int((above & other).sum())
        rates[network_name(address)] = accepted / 2 / impostors  # every pair was met twice
    return rates


# ---------------------------------------------------------------- Ghost in the forward pass


@torch.no_grad()
def embed_under(part, encoder, faces: FaceSet, *, seed: int = 0, batch_size: int = 64) -> Tensor:
    """Embeddings (N, D) under one fresh draw of a surrogate part for each picture."""
    found = []
    for start in range(0, len(faces), batch_size):
        rows = np.arange(start, min(start + batch_size, len(faces)))
        pictures = faces.batch(rows).to(encoder.device)
        with part.attach(encoder, Scope(pictures, tuple(map(str, rows)), seed, "probe")) as state:
            state.enabled = True
            state.begin_step(0)
            state.begin_pass(1)
            found.append(encoder(pictures).cpu())
    return torch.cat(found)


def ghost_rows(encoder, benchmark: tuple[FaceSet, Pairs], spreads: Sequence[float] = SPREADS) -> list[dict]:
    """What Ghost costs: accuracy, and similarity of pictures to themselves, at each spread (column ``x``; 0 is no Ghost)."""
    faces, pairs = benchmark
    clean, rows = encoder.embed(faces), []
    for spread in (0.0, *spreads):
        embedded = embed_under(GhostNetwork(spread), encoder, faces) if spread else clean
        scores = pair_similarity(embedded[pairs.a], embedded[pairs.b])
        accuracy = verification_accuracy(scores, pairs.same, pairs.fold).mean
        same = min(1.0, float(pair_similarity(embedded, clean).mean()))
        place = {"table": "Audit: Ghost spread", "source": encoder.name, "method": "Ghost", "x": spread}
        rows += [result_row("accuracy", accuracy, len(pairs), **place), result_row("similarity", same, len(faces), **place)]
    return rows


def calibrated_spread(rows: Sequence[dict], *, loss: float = LOSS) -> float:
    """The smallest spread that costs ``loss`` of the clean accuracy, or the largest tried where none does."""
    accuracy = {row["x"]: row["value"] for row in rows if row["metric"] == "accuracy"}
    wanted = (1 - loss) * accuracy[0.0]
    enough = [spread for spread, value in accuracy.items() if spread > 0 and value <= wanted]
    return min(enough) if enough else max(accuracy)


# ---------------------------------------------------------------- how far draws of the gradient differ


def gradient_draws(encoder, part, source: Tensor, target: Tensor, *, draws: int, seed: int = 0) -> Tensor:
    """Gradients (draws, B, pixels) of 1 - cos at the same pictures, under fresh draws of a surrogate part (None: none)."""
    with torch.no_grad():
        wanted = encoder(target)
    keys, found = tuple(map(str, range(len(source)))), []
    for draw in range(draws if part is not None else 1):
        images = source.clone().requires_grad_()
        if part is None:
            loss = (1 - (encoder(images) * wanted).sum(1)).sum()
        else:
            with part.attach(encoder, Scope(source, keys, seed + draw, "draws")) as state:
                state.enabled = True
                state.begin_step(0)
                state.begin_pass(1)
                loss = (1 - (encoder(images) * wanted).sum(1)).sum()
        found.append(torch.autograd.grad(loss, images)[0].flatten(1))
    return torch.stack(found)


def value_and_slope(network, part, x: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """A network's value at ``x`` (1, 1, 1, 1), and its gradient there, under one draw of a surrogate part (None: none)."""
    leaf = x.clone().requires_grad_()
    if part is None:
        value = network(leaf)
    else:
        with part.attach(network, Scope(x, ("0",), seed, "slope")) as state:
            state.enabled = True
            state.begin_step(0)
            state.begin_pass(1)
            value = network(leaf)
    return float(value.detach()), float(torch.autograd.grad(value.sum(), leaf)[0])


def spread_rows(encoder, source: Tensor, target: Tensor, budget: Budget, *, draws: int = 8) -> list[dict]:
    """Mean cosine between two draws (``target`` "other draws") and to the plain gradient, for each way of eroding."""
    parts = {f"MI, {name}": part for name, (part, _) in DECAY.items()}
    parts |= {"MI" + variant: budget.surrogate(variant)[0] for variant in (GHOST, SKIP, RESIDUAL)}
    plain, rows = gradient_draws(encoder, None, source, target, draws=1)[0], []
    for name, part in parts.items():
        found = gradient_draws(encoder, part, source, target, draws=draws, seed=budget.seeds[0])
        unit = torch.nn.functional.normalize(found, dim=2)
        between = torch.einsum("ibp,jbp->bij", unit, unit)
        off = ~torch.eye(draws, dtype=torch.bool)
        mutual = between[:, off].mean(1)
        to_plain = torch.nn.functional.cosine_similarity(found, plain.unsqueeze(0), dim=2).mean(0)
        place = {"table": "Audit: directions", "source": encoder.name, "method": name}
        for other, values in (("other draws", mutual), ("plain gradient", to_plain)):
            rows.append(result_row("similarity", float(values.mean().clamp(-1, 1)), len(source), target=other, **place))
    return rows


# ---------------------------------------------------------------- identification behind bytes


def enrolled(pairs: PairSet, *, people: int) -> FaceSet:
    """A gallery with one more clean picture of each source, and strangers up to ``people``; rendered faces.

    Raises
    ------
    ValueError
        If ``people`` is below the number of sources or above the 200 that there are.
    """
    wanted = np.unique(pairs.source_id)
    everyone = load_domain("ms1m", "test", pictures=2, progress=False)
    count = len(np.unique(everyone.identity))
    if not len(wanted) <= people <= count:
        raise ValueError(f"people = {people}: from {len(wanted)}, the sources, to {count}")
    strangers = np.setdiff1d(np.arange(count), wanted)[: people - len(wanted)]
    second = np.flatnonzero(np.arange(len(everyone)) % 2 == 1)
    return everyone.subset(second[np.isin(everyone.identity[second], np.union1d(wanted, strangers))])


def identify(service: BlackBox, pictures: np.ndarray, gallery: FaceSet) -> np.ndarray:
    """The person of the most similar gallery picture, for each picture; one query for each picture and gallery entry."""
    files = [png(image) for image in gallery.images]
    found = [service.compare_many((png(picture), file) for file in files) for picture in pictures]
    return gallery.identity[np.argmax(np.stack(found), axis=1)]


def identification_rows(
    cast: Cast, budget: Budget, pairs: PairSet, gallery: FaceSet, *, device: str, unit: int, checkpoint=None
) -> list[dict]:
    """Table IV, untargeted: dodging on the ensemble, rank-1 identification by the second held-out network.

    The rate counts only people who are identified before the attack.
    """
    service = BlackBox(open_network(cast.held_out[1]), thresholds={})
    rows_, first = np.unique(pairs.source, return_index=True)
    people, clean = pairs.source_id[first], pairs.sources[rows_]
    known = identify(service, clean, gallery) == people
    place = {"table": "Table IV", "target": network_name(cast.held_out[1]), "steps": budget.steps}
    failing = wilson_interval(int((~known).sum()), len(known))
    rows = [result_row("hit_rate", failing, len(known), method="clean pictures", source="none", **place)]
    networks = [open_network(address, device) for address in cast.ensemble]
    for base, variant in (("MI", ""), (OURS, RESIDUAL)):
        attack = budget.attack(base, variant, seed=budget.seeds[0], objective=Dodge(distance="cosine"))
        keys = rows_.tolist()
        done = craft(attack, networks, clean, None, keys=keys, unit=unit, checkpoint=checkpoint, progress=False)
        missed = (identify(service, done.images, gallery) != people)[known].astype(float)
        interval = two_way_bootstrap(missed, people[known], people[known], seed=0) if known.any() else (0.0, 0.0, 0.0)
        if missed.size and missed.min() == missed.max():
            interval = wilson_interval(int(missed.sum()), len(missed))
        label = "+".join(map(network_name, cast.ensemble))
        rows.append(result_row("hit_rate", interval, int(known.sum()), method=base + variant, source=label, **place))
    queries = {"method": "queries of the service", "source": "all"}
    return [*rows, result_row("cost", service.queries, len(known), **queries, **place)]


