"""What chapter 5 runs, and how its tables, differences and claims come from the runs.

The same functions serve the notebook (live) and ``benchmarks/publish_bpfa.py`` (published).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import Tensor

from fa_utils.attacks import Attack, BeneficialPerturbation, Dodge, SpectrumCopies, VarianceTuning, preset
from fa_utils.attacks.transfer import Trial, network_name, open_network, split_addresses
from fa_utils.models.zoo import zoo_table
from fa_utils.report.bpfa_pairs import FIRST, OWN, slot
from fa_utils.report.claims import (
    Claim,
    Evidence,
    claim_every,
    claim_mean_difference,
    claim_printed,
    method_differences,
)
from fa_utils.report.dfanet import drop_rate
from fa_utils.report.results import paper_table, result_row
from fa_utils.report.scores import (
    Scores,
    cell_differences,
    claim_in_cells,
    difference_row,
    looks_of,
    mean_differences,
    mean_rows,
    printed_differences,
    section_rows,
    table_rows,
)

CHAPTER = "5_bpfa"
PAPER = "5-bpfa"
SINGLE = {"FIM": "fim", "MI": "mi", "DI": "di", "DFANet": "dfanet", "SSA": "ssa"}
COMBINED = {"FMD": "fmd", "FMDN": "fmdn", "SNI": "sni", "VMI": "vmi"}
METHODS = SINGLE | COMBINED
PLUS = "+BPFA"
DETERMINISTIC = ("FIM", "MI", "SNI")
IMPERSONATION, DODGING = 1e-3, 1e-2
FAR_NAMES = {IMPERSONATION: "1e-3", DODGING: "1e-2"}
TABLES = {  # (benchmark, methods) -> the paper's table, on plain and on robust targets
    ("LFW", "single"): ("Table I", "Table V"),
    ("CelebA-HQ", "single"): ("Table II", "Table VI"),
    ("LFW", "combined"): ("Table III", None),
    ("CelebA-HQ", "combined"): ("Table IV", None),
}
ENCODERS = {
    "FaceNet": "incres-webface-softmax",
    "MF": "mobile-webface-softmax",
    "IRSE50": "irse-webface-softmax",
    "IR152": "ir20-ms1m-arcface",
}
ROBUST = {
    "incres-webface-softmax": "incres-webface-mter",
    "mobile-webface-softmax": "mobile-webface-mter",
    "irse-webface-softmax": "irse-webface-mter",
    "ir20-ms1m-arcface": "ir20-ms1m-mter",
}
ETA = 8e-4  # the default of the first author's later code, for MobileFaceNet
ETAS = (-3.2e-3, -8e-4, -2e-4, 0.0, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3, 1.28e-2, 2.56e-2, 5.12e-2)
# Public networks gain from about 1e-5 to 1e-4 (MI, 20 steps, 12 pairs of LFW): the same number of values, sixteen times smaller.
FINE_ETAS = tuple(eta / 16 for eta in ETAS)


# ---------------------------------------------------------------- who plays which part


@dataclass(frozen=True)
class Cast:
    """Which networks play which part, by address.

    Attributes
    ----------
    encoders : tuple of str
        Sources and targets; the first is the source of dodging, of Fig. 4 and of Fig. 6, the second that of Fig. 3 and the audit.
    robust : dict of str to str
        Encoder -> its adversarially trained form.
    etas : tuple of float
        Sizes of the feature perturbation that the calibration tries, 0 and some negative ones among them.
    """

    encoders: tuple[str, ...]
    robust: dict[str, str]
    etas: tuple[float, ...] = ETAS

    @property
    def networks(self) -> list[str]:
        """Every network, once."""
        return [*self.encoders, *self.robust.values()]

    def black_box(self, source: str) -> list[tuple[str, str]]:
        """(source, target) of the other plain encoders."""
        return [(network_name(source), network_name(name)) for name in self.encoders if name != source]

    def hardened(self, source: str) -> list[tuple[str, str]]:
        """(source, target) of all robust forms, the source's own included: its weights are others."""
        return [(network_name(source), network_name(name)) for name in self.robust.values()]


def make_cast(networks: str = "zoo", *, encoders: int = 4) -> Cast:
    """The parts, for the zoo or for networks of the reader's own.

    Parameters
    ----------
    networks : str
        ``"zoo"``, or two or more networks: see `split_addresses`.
    encoders : int
        Networks of the zoo, from 2 to 4.

    Raises
    ------
    ValueError
        For another number of networks, or one named twice.
    """
    if networks.strip() == "zoo":
        if not 2 <= encoders <= len(ENCODERS):
            raise ValueError(f"encoders = {encoders}: from 2 to {len(ENCODERS)}")
        chosen, shipped = tuple(ENCODERS.values())[:encoders], zoo_table().index
        return Cast(chosen, {name: ROBUST[name] for name in chosen if ROBUST[name] in shipped})
    names = split_addresses(networks, least=2)
    return Cast(names, {}, ETAS if set(names) <= set(zoo_table().index) else FINE_ETAS)


def paper_names() -> dict[str, str]:
    """Our network -> the paper's name for what it stands for."""
    plain = {ours: name for name, ours in ENCODERS.items()}
    return plain | {ROBUST[ours]: f"{name}_adv" for ours, name in plain.items()}


# ---------------------------------------------------------------- the attacks


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The attacker's settings.

    ``etas`` gives each network its size of the feature perturbation (`ETA` where it is missing), ``spectra`` are SSA's copies,
    ``neighbors`` VT's; ``drop`` replaces the paper's drop rate of each architecture; ``seeds`` are those of the random methods.
    """

    eps: float = 10 / 255
    step_size: float = 1 / 255
    steps: int = 1500
    spectra: int = 20
    neighbors: int = 20
    drop: float | None = None
    seeds: tuple[int, ...] = (0,)
    etas: Mapping[str, float] = field(default_factory=dict)

    @property
    def looks(self) -> tuple[int, ...]:
        """After which steps Fig. 4 looks: 1, 2, 5, 10, 20, ... and the last."""
        grid = (digit * 10**power for power in range(len(str(self.steps))) for digit in (1, 2, 5))
        return (*(step for step in grid if step < self.steps), self.steps)

    def eta(self, source: str) -> float:
        """The size of the perturbation on a surrogate."""
        return self.etas.get(network_name(source), ETA)

    def attack(self, method: str, source: str, *, seed: int = 0, eta: float | None = None, **overrides) -> Attack:
        """A method by the name that tables give it, with ``+BPFA`` or without."""
        base = method.removesuffix(PLUS)
        drop = drop_rate(source) if self.drop is None else self.drop
        how = {"eps": self.eps, "step_size": self.step_size, "steps": self.steps, "seed": seed, "drop": drop}
        if base == "SSA":
            how["inputs"] = [SpectrumCopies(self.spectra)]
        if base == "VMI":
            how["gradient"] = [VarianceTuning(self.neighbors), preset("mi").gradient[0]]
        name = METHODS[base] + ("_bpfa" if method.endswith(PLUS) else "")
        return preset(name, eta=self.eta(source) if eta is None else eta, **(how | overrides))

    def copies(self, method: str) -> int:
        """Forward and backward passes in a step."""
        several = {"SSA": self.spectra, "SNI": 5, "VMI": self.neighbors + 1}
        return several.get(method.removesuffix(PLUS), 1)

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """One seed is enough where nothing is drawn."""
        return self.seeds[:1] if method.removesuffix(PLUS) in DETERMINISTIC else self.seeds


def both(methods) -> list[str]:
    """Each method without BPFA and with it."""
    return [method + variant for method in methods for variant in ("", PLUS)]


def table_trials(cast: Cast, budget: Budget, methods) -> list[Trial]:
    """Tables I to VI: each encoder as source, judged by all encoders, itself included, and by all robust forms.

    FMDN from the first encoder is also looked at along the way, for Fig. 4, by the other encoders.
    """
    trials = []
    for source in cast.encoders:
        for method in both(methods):
            along = budget.looks if (source, method.removesuffix(PLUS)) == (cast.encoders[0], "FMDN") else ()
            others = tuple(name for name in cast.encoders if name != source)
            looks = looks_of(dict.fromkeys(along, others) | {budget.steps: tuple(cast.networks)})
            for seed in budget.seeds_of(method):
                trials.append(Trial((source,), method, budget.attack(method, source, seed=seed), looks))
    return trials


@dataclass(frozen=True)
class DodgeOwn(Dodge):
    """Dodge by an attacker who knows no other picture than the attacked one, whichever picture judges."""

    def anchor(self, source: Tensor, target: Tensor | None) -> Tensor:
        return source


def dodging_trials(cast: Cast, budget: Budget) -> list[Trial]:
    """Tables VII and VIII: FMDN with and without BPFA, from the first encoder; step 0 is the unattacked picture."""
    source, goal, judges = cast.encoders[0], DodgeOwn(distance="squared_l2"), tuple(cast.networks)
    looks = looks_of({0: judges, budget.steps: judges})
    return [
        Trial((source,), method, budget.attack(method, source, seed=seed, objective=goal), looks)
        for method in both(["FMDN"])
        for seed in budget.seeds
    ]


CALIBRATED = "MI"  # FMDN, the method of Fig. 3, only loses from a positive eta in a few dozen steps: it would choose the smallest


def eta_method(eta: float, base: str = "FMDN") -> str:
    """How the calibration calls a method with a size of the perturbation."""
    return f"{base}, eta {eta:g}"


def eta_runs(cast: Cast) -> list[tuple[str, str, float]]:
    """(source, method, eta) of the calibration, MI from every encoder, and of Fig. 3, FMDN from the second."""
    runs = [(source, CALIBRATED, eta) for source in cast.encoders for eta in cast.etas if eta >= 0]
    return runs + [(cast.encoders[1], "FMDN", eta) for eta in cast.etas]


def eta_trials(cast: Cast, budget: Budget) -> list[Trial]:
    """Fig. 3 and the calibration, judged by the other encoders."""
    trials = []
    for source, base, eta in eta_runs(cast):
        judges = tuple(name for name in cast.encoders if name != source)
        attack = budget.attack(base + PLUS, source, seed=budget.seeds[0], eta=eta)
        trials.append(Trial((source,), eta_method(eta, base), attack, ((budget.steps, judges),)))
    return trials


PLACEMENTS = {"conv": "convolution", "bn": "normalization", "act": "activation"}


def layer_method(placement: str) -> str:
    """How Table IX calls FMDN with BPFA at one kind of layer; at convolutions it is that of Table III."""
    return "FMDN" + PLUS if placement == "conv" else f"FMDN{PLUS}({placement})"


def placements_of(cast: Cast) -> dict[str, tuple[str, ...]]:
    """Which kinds of layers each encoder has, by address; exported graphs may have folded or spelled out some of them."""
    return {address: tuple(key for key, layers in PLACEMENTS.items() if _has(address, layers)) for address in cast.encoders}


def _has(address: str, layers: str) -> bool:
    try:
        return bool(BeneficialPerturbation(layers=layers).chosen(open_network(address)))
    except ValueError:  # it matches nothing
        return False


def left_out(placements: Mapping[str, Sequence[str]]) -> str:
    """A sentence about the encoders that lack a kind of layer; empty where none does."""
    lacking = {
        network_name(address): " and ".join(f"{PLACEMENTS[key]}s" for key in PLACEMENTS if key not in found)
        for address, found in placements.items()
    }
    parts = [f"{name} has no {kinds}" for name, kinds in lacking.items() if kinds]
    return f"Left out, as there is no such layer to perturb: {'; '.join(parts)}." if parts else ""


def layer_trials(cast: Cast, budget: Budget, placements: Mapping[str, Sequence[str]] | None = None) -> list[Trial]:
    """Table IX: FMDN with BPFA at normalization and at activation layers, of the encoders that have them (`placements_of`)."""
    trials = []
    for source in cast.encoders:
        plain = budget.attack("FMDN", source)
        for placement in ("bn", "act"):
            if placements is not None and placement not in placements[source]:
                continue
            parts = [*plain.surrogate, BeneficialPerturbation(budget.eta(source), layers=PLACEMENTS[placement])]
            for seed in budget.seeds:
                attack = budget.attack("FMDN", source, seed=seed, surrogate=parts)
                trials.append(Trial((source,), layer_method(placement), attack, ((budget.steps, cast.encoders),)))
    return trials


# ---------------------------------------------------------------- the audit

CONTROLS = {  # direction of the perturbation -> what it tells
    "own": "the paper's: sign of the gradient of the step before",
    "same": "exact gradient of the same step, twice the passes",
    "raw": "the gradient itself, at the norm of its sign",
    "random": "random signs",
    "other": "sign of another picture's gradient",
    "shuffled": "its signs at other places",
    "gaussian": "Gaussian noise of the same norm",
}
CONTROL = "MI, {}"
SCALED = "MI, eta in units of each layer's spread"
AUDIT_EPS = (4 / 255, 7 / 255)  # smaller budgets, for success at equal L2


def audit_trials(cast: Cast, budget: Budget, *, relative: float = 2e-3) -> list[Trial]:
    """Direction or noise, on MI from the second encoder; and eta in units of the layers' spread."""
    source = cast.encoders[1]
    judges = tuple(name for name in cast.encoders if name != source)
    trials = []

    def add(method: str, part: BeneficialPerturbation, seed: int) -> None:
        attack = budget.attack("MI", source, seed=seed, surrogate=[part])
        trials.append(Trial((source,), method, attack, ((budget.steps, judges),)))

    for direction in CONTROLS:
        random = direction in ("random", "shuffled", "gaussian")
        for seed in budget.seeds if random else budget.seeds[:1]:
            add(CONTROL.format(direction), BeneficialPerturbation(budget.eta(source), direction=direction), seed)
    add(CONTROL.format("APFA"), BeneficialPerturbation(-budget.eta(source)), budget.seeds[0])
    add(SCALED, BeneficialPerturbation(relative, scale="spread"), budget.seeds[0])
    for method in both(["MI", "FMD"]):
        for eps in AUDIT_EPS:
            for seed in budget.seeds_of(method):
                attack = budget.attack(method, source, seed=seed, eps=eps)
                trials.append(Trial((source,), smaller(method, eps), attack, ((budget.steps, judges),)))
    return trials


def smaller(method: str, eps: float) -> str:
    """How the audit calls a method at a smaller eps."""
    return f"{method}, eps {255 * eps:.0f}/255"


def audit_rows(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Direction or noise: each control against the paper's direction, and against none."""
    cells, step, rows = cast.black_box(cast.encoders[1]), budget.steps, []
    place = {"far": FAR_NAMES[IMPERSONATION]}
    own = (CONTROL.format("own"), step)
    rows += section_rows(scores, "Audit: direction", "no perturbation", cells, ("MI", step), own, **place)
    for direction in (*CONTROLS, "APFA"):
        column = (CONTROL.format(direction), step)
        rows += section_rows(scores, "Audit: direction", direction, cells, column, None if direction == "own" else own, **place)
    rows += section_rows(scores, "Audit: direction", "own, eta by spread", cells, (SCALED, step), own, **place)
    return rows


def compute_rows(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Every method's hit rate, similarity and deviation on the other encoders, with its passes a picture in column ``x``."""
    source = cast.encoders[1]
    cells, rows = cast.black_box(source), []
    for method in both(METHODS):
        if scores.has(method, budget.steps, cells):
            place = {"far": FAR_NAMES[IMPERSONATION], "x": 2 * budget.copies(method) * budget.steps + 1}
            rows += section_rows(scores, "Audit: compute", method, cells, (method, budget.steps), None, **place)
    return rows


def deviation_rows(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Success against deviation: MI and FMD with and without BPFA at three budgets (column ``x``: eps in gray levels)."""
    cells, rows = cast.black_box(cast.encoders[1]), []
    for method in both(["MI", "FMD"]):
        for eps in (*AUDIT_EPS, budget.eps):
            name = method if eps == budget.eps else smaller(method, eps)
            if scores.has(name, budget.steps, cells):
                place = {"far": FAR_NAMES[IMPERSONATION], "x": round(255 * eps)}
                for row in section_rows(scores, "Audit: deviation", method, cells, (name, budget.steps), None, **place):
                    rows.append(row)
    return rows


# ---------------------------------------------------------------- tables


def transfer_rows(scores: Scores, cast: Cast, budget: Budget, benchmark: str, kind: str) -> list[dict]:
    """Tables I to VI: hit rate and similarity in each cell, and their mean over the black-box cells of a source."""
    plain, robust = TABLES[slot(benchmark), kind]
    methods = both(SINGLE if kind == "single" else COMBINED)
    steps, place, rows = dict.fromkeys(methods, budget.steps), {"far": FAR_NAMES[IMPERSONATION]}, []
    for source in cast.encoders:
        name = network_name(source)
        parts = [(plain, [(name, name), *cast.black_box(source)], cast.black_box(source))]
        parts += [(robust, cast.hardened(source), cast.hardened(source))] if robust and cast.robust else []
        for table, cells, averaged in parts:
            rows += table_rows(scores, table, cells, steps, **place)
            for method in methods:
                if scores.has(method, budget.steps, averaged):
                    rows += mean_rows(scores, table, averaged, method, budget.steps, **place)
    return rows


def dodging_table(benchmark: str, picture: str, *, robust: bool = False) -> str:
    """What a table of dodging is called; the paper has the first benchmark and the own picture only."""
    name = "Table VIII" if robust else "Table VII"
    name += "" if slot(benchmark) == FIRST else f", {benchmark}"
    return name if picture == OWN else f"{name}, {picture} picture"


def dodging_rows(scores: Scores, cast: Cast, budget: Budget, benchmark: str = "LFW", picture: str = OWN) -> list[dict]:
    """Tables VII and VIII, and the means over their targets, unattacked pictures among them."""
    source, rows = cast.encoders[0], []
    name, place = network_name(source), {"far": FAR_NAMES[DODGING]}
    groups = (([(name, name)], cast.black_box(source)), ([], cast.hardened(source)))
    for own, cells in groups[: 2 if cast.robust else 1]:
        table = dodging_table(benchmark, picture, robust=not own)
        rows += table_rows(scores, table, own + cells, dict.fromkeys(both(["FMDN"]), budget.steps), **place)
        rows += mean_rows(scores, table, cells, "FMDN", 0, name=UNATTACKED, **place)
        for method in both(["FMDN"]):
            rows += mean_rows(scores, table, cells, method, budget.steps, **place)
    return rows


UNATTACKED = "unattacked"


def eta_rows(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Fig. 3: hit rate and similarity on the other encoders against eta (column ``x``), on the calibration pairs.

    In table "Fig. 3, gain": the paired difference to eta 0.
    """
    rows = []
    for source, base, eta in eta_runs(cast):
        place = {"far": FAR_NAMES[IMPERSONATION], "x": eta}
        cells, here = cast.black_box(source), (eta_method(eta, base), budget.steps)
        rows += mean_rows(scores, "Fig. 3", cells, *here, name=base + PLUS, **place)
        where = {"metric": "similarity", "name": base + PLUS, "source": network_name(source), "target": "mean", **place}
        rows.append(difference_row(scores, "Fig. 3, gain", cells, here, (eta_method(0.0, base), budget.steps), **where))
    return rows


def calibrated(rows: Sequence[dict]) -> dict[str, float]:
    """The positive eta of highest mean similarity of MI for each source; the similarity tells what hit rates cannot."""
    best: dict[str, tuple[float, float]] = {}
    for row in rows:
        if row["metric"] == "similarity" and row["method"] == CALIBRATED + PLUS and row["x"] > 0:
            source = row["source"]
            best[source] = max(best.get(source, (-math.inf, 0.0)), (row["value"], row["x"]))
    return {source: eta for source, (_, eta) in best.items()}


def layer_rows(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Table IX."""
    steps = {layer_method(placement): budget.steps for placement in PLACEMENTS}
    place, rows = {"far": FAR_NAMES[IMPERSONATION]}, []
    for source in cast.encoders:
        name = network_name(source)
        for row in table_rows(scores, "Table IX", [(name, name), *cast.black_box(source)], steps, **place):
            method = row["method"] + "(conv)" if row["method"] == "FMDN" + PLUS else row["method"]
            rows.append(row | {"method": method})
    return rows


def curve_rows(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Fig. 4: FMDN with and without BPFA, where they were run, from the first encoder against the steps (column ``x``)."""
    cells, rows = cast.black_box(cast.encoders[0]), []
    for method in both(["FMDN"]):
        for step in budget.looks if scores.has(method, budget.steps, cells) else ():
            rows += mean_rows(scores, "Fig. 4", cells, method, step, x=step, far=FAR_NAMES[IMPERSONATION])
    return rows


# ---------------------------------------------------------------- the differences behind the claims


def transfer_effects(scores: Scores, cast: Cast, budget: Budget, benchmark: str, kind: str) -> list[dict]:
    """Claim 1 in every cell, with the benchmark in the name of the method; claim 2 on the white box."""
    plain, robust = TABLES[slot(benchmark), kind]
    place, rows = {"far": FAR_NAMES[IMPERSONATION]}, []
    for source in cast.encoders:
        parts = [(plain, cast.black_box(source)), (robust, cast.hardened(source) if robust else [])]
        for method in SINGLE if kind == "single" else COMBINED:
            for table, cells in parts:
                if not (cells and scores.has(method + PLUS, budget.steps, cells)):
                    continue
                pair = (method + PLUS, method, budget.steps)
                found = cell_differences(scores, "claim 1", cells, *pair, **place)
                found += mean_differences(scores, "claim 1", cells, *pair, **place)
                rows += [row | {"method": f"{table}: {row['method']}"} for row in found]
            own = [(network_name(source), network_name(source))]
            if not scores.has(method + PLUS, budget.steps, own):
                continue
            name = f"{benchmark}: {method}{PLUS} minus {method}"
            compared = (method + PLUS, budget.steps), (method, budget.steps)
            where = {"metric": "hit_rate", "name": name, "source": own[0][0], "target": own[0][1], **place}
            rows.append(difference_row(scores, "claim 2", own, *compared, **where))
    return rows


def order_effects(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Claims 3, 4 and 7, from the methods that were run on the first benchmark, averaged over the black-box cells of all sources."""
    cells, step = [cell for source in cast.encoders for cell in cast.black_box(source)], budget.steps
    shared = {"source": "all", "target": "mean", "far": FAR_NAMES[IMPERSONATION], "steps": step}
    rows, n_pairs = [], len(scores.sources)

    def gain(method: str, at: int = step, metric: str = "hit_rate") -> np.ndarray:
        return scores.cells(metric, method + PLUS, at, cells) - scores.cells(metric, method, at, cells)

    def run(*methods: str) -> bool:
        return all(scores.has(method + PLUS, step, cells) for method in methods)

    for metric in ("hit_rate", "similarity"):
        name = f"{metric}_difference"
        for weak in ("FIM", "MI"):
            for strong in ("FMDN", "SSA"):
                if run(weak, strong):
                    value = scores.interval((gain(weak, metric=metric) - gain(strong, metric=metric)) / 2)
                    method = f"half of: gain of {weak} minus gain of {strong}"
                    rows.append(result_row(name, value, n_pairs, table="claim 3", method=method, **shared))
        if run("FMD", "FMDN"):
            value = scores.interval(scores.cells(metric, "FMD" + PLUS, step, cells) - scores.cells(metric, "FMDN" + PLUS, step, cells))
            rows.append(result_row(name, value, n_pairs, table="claim 4", method="FMD+BPFA minus FMDN+BPFA", **shared))
        rows += _growth(scores, cast, budget, metric) if run("FMDN") else []
    return rows


EDGE = 10  # steps of a gray level from the middle of the ball to its edge, at the paper's budget


def _growth(scores: Scores, cast: Cast, budget: Budget, metric: str) -> list[dict]:
    """Claim 7, from the first encoder: slopes of the curves of Fig. 4, and of their gap, for each doubling of the steps.

    In table "Fig. 4, late" the same from `EDGE` steps on, where at least three looks are left.
    """
    cells, rows = cast.black_box(cast.encoders[0]), []
    for table, first in (("claim 7", 1), ("Fig. 4, late", EDGE)):
        looks = [step for step in budget.looks if step >= first]
        if len(looks) < (2 if first == 1 else 3):
            continue
        weights = slope_weights(looks)
        slopes = {
            method: sum(weight * scores.cells(metric, method, step, cells) for weight, step in zip(weights, looks, strict=True))
            for method in both(["FMDN"])
        }
        slopes["gap"] = slopes["FMDN" + PLUS] - slopes["FMDN"]
        place = {"table": table, "source": cells[0][0], "target": "mean", "steps": budget.steps, "far": FAR_NAMES[IMPERSONATION]}
        for name, values in slopes.items():
            row = result_row(f"{metric}_difference", scores.interval(values), len(scores.sources), **place)
            rows.append(row | {"method": f"{name}: each doubling of the steps, {looks[0]} to {looks[-1]}"})
    return rows


def slope_weights(steps: Sequence[int]) -> np.ndarray:
    """Weights of values after ``steps`` whose weighted sum is the least-squares slope against log2 of the steps."""
    at = np.log2(np.asarray(steps, float))
    at -= at.mean()
    return at / (at**2).sum()


def eta_effects(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Claim 5, on the reported pairs, from the second encoder: its eta against none, against the largest, against APFA."""
    source = cast.encoders[1]
    cells, eta, rows = cast.black_box(source), budget.eta(source), []
    chosen = ("FMDN" + PLUS, budget.steps)
    for words, other in (("none", "FMDN"), ("the largest", eta_method(max(cast.etas))), ("APFA", eta_method(-eta))):
        for metric in ("hit_rate", "similarity"):
            name = f"eta {eta:g} minus {words}"
            where = {"metric": metric, "name": name, "source": network_name(source), "target": "mean", "far": FAR_NAMES[IMPERSONATION]}
            rows.append(difference_row(scores, "claim 5", cells, chosen, (other, budget.steps), **where))
    return rows


def eta_controls(cast: Cast, budget: Budget) -> list[Trial]:
    """What claim 5 compares with, on the reported pairs: the largest eta, and the calibrated one with the other sign."""
    source = cast.encoders[1]
    judges = tuple(name for name in cast.encoders if name != source)
    return [
        Trial((source,), eta_method(eta), budget.attack("FMDN" + PLUS, source, seed=seed, eta=eta), ((budget.steps, judges),))
        for eta in dict.fromkeys((max(cast.etas), -budget.eta(source)))
        for seed in budget.seeds
    ]


def layer_effects(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Claim 6: the three placements against one another, averaged over the black-box cells of the encoders that have both."""
    names, rows = list(PLACEMENTS), []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            black = [cast.black_box(source) for source in cast.encoders]
            both_run = [part for part in black if all(scores.has(layer_method(name), budget.steps, part) for name in (one, other))]
            cells = [cell for part in both_run for cell in part]
            if not cells:
                continue
            for metric in ("hit_rate", "similarity"):
                where = {"metric": metric, "name": f"{one} minus {other}", "source": "all", "target": "mean"}
                pair = (layer_method(one), budget.steps), (layer_method(other), budget.steps)
                rows.append(difference_row(scores, "claim 6", cells, *pair, **where, far=FAR_NAMES[IMPERSONATION]))
    return rows


def dodging_effects(scores: Scores, cast: Cast, budget: Budget, benchmark: str = "LFW", picture: str = OWN) -> list[dict]:
    """Claim 9: BPFA's gain in dodging, averaged over plain and over robust targets; by another picture in a table of its own."""
    source, rows = cast.encoders[0], []
    table = "claim 9" if picture == OWN else f"claim 9, {picture} picture"
    for name, cells in (("plain targets", cast.black_box(source)), ("robust targets", cast.hardened(source))):
        if cells:
            pair = ("FMDN" + PLUS, budget.steps), ("FMDN", budget.steps)
            where = {"name": f"{benchmark}: FMDN+BPFA minus FMDN, {name}", "source": network_name(source), "target": "mean"}
            for metric in ("hit_rate", "similarity"):
                rows.append(difference_row(scores, table, cells, *pair, metric=metric, **where, far=FAR_NAMES[DODGING]))
    return rows


# ---------------------------------------------------------------- the claims

MARGIN = 1.0  # points: "stays", for white-box hit rates
SIMILAR = 3.0  # points: "similar"; the paper's largest spread is 2.6
STATEMENTS = {
    1: ("BPFA raises the black-box hit rate of every method in every cell", "Tables I to VI"),
    2: (f"BPFA does not lower the white-box hit rate by {MARGIN:g} point or more", "Tables I to IV"),
    3: ("BPFA gains more with the weak methods FIM and MI than with the strong FMDN and SSA", "Tables I and III"),
    4: ("With BPFA, DFANet adds nothing: FMD+BPFA is above FMDN+BPFA", "Table III"),
    5: ("The calibrated eta beats none, the largest eta, and APFA", "Fig. 3"),
    6: (f"Convolution, normalization and activation outputs serve alike, within {SIMILAR:g} points", "Table IX"),
    7: ("The hit rate grows with the steps, with and without BPFA, and so does the gap", "Fig. 4"),
    8: ("At the same picture the perturbed network's loss is above the plain one's, and grows with eta", "Fig. 5"),
    9: ("BPFA raises the dodging rate, on plain and on robust targets", "Tables VII and VIII"),
    10: ("BPFA needs less than one percent more memory", "Table X"),
}
PLAIN_TABLES, ROBUST_TABLES = ("Table I", "Table II", "Table III", "Table IV"), ("Table V", "Table VI")


def judge_effects(rows: pd.DataFrame | None) -> dict[int, Evidence]:
    """Evidence on each claim from a run's rows; claims that the run does not speak to are left out."""
    if rows is None or rows.empty:
        return {}
    found = {}
    first = rows[rows["table"] == "claim 1"]
    evidence = claim_in_cells(first, sorted(set(first["method"])))
    if evidence is not None:
        found[1] = evidence
    for number, bound in ((2, -MARGIN), (3, 0.0), (4, 0.0), (5, 0.0), (7, 0.0), (9, 0.0)):
        part = rows[(rows["table"] == f"claim {number}") & (rows["metric"] == "hit_rate_difference")]
        if len(part):
            found[number] = claim_every({_where(row): _evidence(row, bound=bound) for row in part.to_dict("records")})
    for number, judge in ((6, _similar), (8, _losses), (10, _memory)):
        part = rows[rows["table"] == f"claim {number}"]
        if len(part):
            found[number] = judge(part)
    return found


def _where(row: dict) -> str:
    places = [row[key] for key in ("source", "target") if row[key] not in ("", "all", "mean")]
    return ", ".join([row["method"], *dict.fromkeys(places)])


def _evidence(row: dict, *, bound: float = 0.0, sign: int = 1, unit: str = "points") -> Evidence:
    # A sum of shares that should be 0 may end at 1e-16, which is not above 0.
    value, low, high = (round(sign * row[name], 9) for name in ("value", "ci_low", "ci_high"))
    low, high = sorted((low, high))
    return claim_mean_difference(value, low, high, int(row["n_pairs"]), bound=bound, unit=unit)


def _similar(part: pd.DataFrame) -> Evidence:
    """Equivalence: each difference surely above minus the margin and below plus the margin."""
    part = part[part["metric"] == "hit_rate_difference"]
    return claim_every(
        {
            row["method"] + suffix: _evidence(row, bound=-SIMILAR, sign=sign)
            for row in part.to_dict("records")
            for sign, suffix in ((1, ""), (-1, ", reversed"))
        }
    )


def _losses(part: pd.DataFrame) -> Evidence:
    return claim_every({row["method"]: _evidence(row, unit="squared L2") for row in part.to_dict("records")})


def _memory(part: pd.DataFrame) -> Evidence:
    below = [1.0 - row["value"] for row in part.to_dict("records")]
    return claim_printed(below, labels=list(part["method"] + ", " + part["source"]), unit="percent below the bound")


def judge_printed() -> dict[int, Evidence]:
    """Evidence from the paper's own cells, at face value; curves have no printed numbers."""
    tables = paper_table(PAPER)
    hits = tables[tables["metric"] == "hit_rate"]
    white = hits["note"].str.contains("White-box")
    six = hits[hits["table"].isin((*PLAIN_TABLES, *ROBUST_TABLES))]
    cell = ("table", "source", "target")
    pairs = {"single": [(m + PLUS, m) for m in SINGLE], "combined": [(m + PLUS, m) for m in COMBINED]}
    black = six[~white.reindex(six.index)]
    groups = {
        "single": black[black["table"].isin(("Table I", "Table II", *ROBUST_TABLES))],
        "combined": black[black["table"].isin(("Table III", "Table IV"))],
    }
    gains = {kind: [_gains(frame, pair) for pair in pairs[kind]] for kind, frame in groups.items()}
    every = pd.concat([part for parts in gains.values() for part in parts], ignore_index=True)
    found = {1: claim_printed(every["value"], labels=every["label"])}
    own = six[white.reindex(six.index) & six["method"].str.endswith(PLUS)]["value"]
    found[2] = claim_printed([float(own.min()) - 100 + MARGIN])
    one = {name: part["value"].mean() for name, part in zip(SINGLE, [_only(g, "Table I") for g in gains["single"]], strict=True)}
    three = {n: p["value"].mean() for n, p in zip(COMBINED, [_only(g, "Table III") for g in gains["combined"]], strict=True)}
    strong = {"FMDN": three["FMDN"], "SSA": one["SSA"]}
    found[3] = claim_printed([one[weak] - strong[name] for weak in ("FIM", "MI") for name in strong])
    table3 = black[black["table"] == "Table III"].pivot_table(index=["source", "target"], columns="method", values="value")
    found[4] = claim_printed(table3["FMD" + PLUS] - table3["FMDN" + PLUS], labels=["/".join(key) for key in table3.index])
    nine = hits[(hits["table"] == "Table IX") & ~white.reindex(hits.index)]
    spread = nine.groupby(["source", "target"])["value"].agg(np.ptp)
    found[6] = claim_printed([SIMILAR - value for value in spread])
    dodged = hits[hits["table"].isin(("Table VII", "Table VIII")) & ~white]
    found[9] = printed_differences(dodged, [("FMDN" + PLUS, "FMDN")], by=cell)
    return found


def _gains(frame: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    return method_differences(frame, *pair, by=("table", "source", "target")).assign(pair=pair[0])


def _only(gains: pd.DataFrame, table: str) -> pd.DataFrame:
    return gains[gains["table"] == table]


def make_claims(published: pd.DataFrame | None, live: pd.DataFrame | None, *, printed: bool = True) -> list[Claim]:
    """The ten claims with the evidence of each run."""
    runs = {"printed": judge_printed() if printed else {}, "published": judge_effects(published)}
    runs["live"] = judge_effects(live)
    return [
        Claim(number, statement, where, **{run: evidence.get(number) for run, evidence in runs.items()})
        for number, (statement, where) in STATEMENTS.items()
    ]


