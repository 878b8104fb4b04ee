"""What chapter 4 runs, and how its tables, differences and claims come from the runs.

The same functions serve the notebook (live) and ``benchmarks/publish_eroding.py`` (published).
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fa_utils.attacks import Attack, GhostNetwork, GradientEroding, SkipGradient, corrasion, preset
from fa_utils.attacks.presets import PAPER4_EPS
from fa_utils.attacks.transfer import BLACK_BOX, Study, Trial, network_name, split_addresses
from fa_utils.models.recipes import ERODING_LIBRARY
from fa_utils.models.zoo import zoo_table
from fa_utils.report.claims import (
    Claim,
    Evidence,
    claim_every,
    claim_mean_difference,
    claim_printed,
)
from fa_utils.report.results import paper_table, result_row
from fa_utils.report.scores import (
    Scores,
    cell_differences,
    claim_in_cells,
    looks_of,
    mean_differences,
    mean_rows,
    printed_differences,
    score,
    section_rows,
    table_rows,
)

CHAPTER = "4_gradient_eroding"
PAPER = "4-gradient-eroding"
BASES = {"MI": "mi_fgsm", "TI": "ti_fgsm", "DI": "di_fgsm", "Vr": "vr_fgsm", "SI": "si_fgsm"}
OURS = "Corrasion"
METHODS = {**BASES, OURS: "corrasion"}
COPIES = {"MI": 1, "TI": 1, "DI": 1, "Vr": 3, "SI": 5, OURS: 3}  # passes forward and back in a step
GHOST, SKIP, RESIDUAL = "+Ghost", "+GE(c)", "+GE(d)"
DETERMINISTIC = ("MI", "TI", "SI")
FAR = 1e-3  # of the claims
FAR_NAMES = {FAR: "1e-3", "best": "best"}
PLACE = {"far": FAR_NAMES[FAR]}


# ---------------------------------------------------------------- who plays which part


@dataclass(frozen=True)
class Cast:
    """Which networks play which part, by address.

    Attributes
    ----------
    library : tuple of str
        All networks that judge.
    main : str
        Surrogate of Tables I and II and of the audit.
    singles : tuple of str
        Surrogates of Fig. 2.
    ensemble : tuple of str
        Surrogate of Table III.
    trained : dict of str to str
        Network of Table V -> its adversarially trained form.
    held_out : tuple of str
        Networks behind bytes: the one for verification, the one for identification. Neither is a surrogate of Table IV.
    """

    library: tuple[str, ...]
    main: str
    singles: tuple[str, ...]
    ensemble: tuple[str, ...]
    trained: dict[str, str]
    held_out: tuple[str, ...]

    @property
    def networks(self) -> list[str]:
        """Every network, once."""
        return list(dict.fromkeys([*self.library, *self.trained.values()]))

    def judges(self, source: Sequence[str]) -> tuple[str, ...]:
        """The networks that judge what a surrogate or an ensemble made: all but its own members."""
        return tuple(name for name in self.networks if name not in source)

    def cells(self, source: Sequence[str]) -> list[tuple[str, str]]:
        """(source, target) of the tables: the library without the surrogates."""
        label = "+".join(map(network_name, source))
        return [(label, network_name(name)) for name in self.library if name not in source]


# The paper's names in the order in which a smaller library takes them: surrogates, networks of Table V, held-out ones.
_ORDER = (
    "MXNET_LResNet50E_IR", "MXNET_LResNet34E_IR", "MXNET_LResNet100E_IR", "InsightFace_mobilefacenet", "CosFace",
    "FaceNet_casia", "ShuffleNet", "FaceNet_vggface2", "ResNet50", "InsightFace_IR_SE50", "ArcFace", "MobileNet",
    "evoLVe_IR_152", "evoLVe_IR_50", "evoLVe_IR_50_Asia",
)  # fmt: skip
SMALLEST = 7
TRAINED = {"InsightFace_mobilefacenet": "mobile-webface-corrasion", "CosFace": "ires-webface-corrasion"}


def make_cast(networks: str = "zoo", *, library: int = 15) -> Cast:
    """The parts, for the zoo or for networks of the reader's own.

    Parameters
    ----------
    networks : str
        ``"zoo"``, or three or more networks: see `split_addresses`. Each of
        them is a surrogate of Fig. 2, the first is that of Tables I and II, and all but the last two, at most three, are the
        ensemble.
    library : int
        Networks of the zoo, from 7 to 15.

    Raises
    ------
    ValueError
        For a library of another size, fewer than three networks, or one named twice.
    """
    if networks.strip() == "zoo":
        if not SMALLEST <= library <= len(_ORDER):
            raise ValueError(f"library = {library}: from {SMALLEST} to {len(_ORDER)} networks")
        chosen = _ORDER[:library]
        ours = {name: ERODING_LIBRARY[name] for name in ERODING_LIBRARY if name in chosen}
        singles = ("MXNET_LResNet100E_IR", "FaceNet_vggface2", "ResNet50")
        shipped = zoo_table().index
        return Cast(
            library=tuple(ours.values()),
            main=ours["MXNET_LResNet50E_IR"],
            singles=tuple(ours[name] for name in singles if name in ours),
            ensemble=tuple(ours[f"MXNET_LResNet{depth}E_IR"] for depth in (34, 50, 100)),
            trained={ours[name]: trained for name, trained in TRAINED.items() if trained in shipped},
            held_out=(ours["FaceNet_casia"], ours["ShuffleNet"]),
        )
    names = split_addresses(networks, least=3)
    ensemble = names[:-2][:3]
    return Cast(names, names[0], names, ensemble if len(ensemble) > 1 else (), {}, ())


def paper_names() -> dict[str, str]:
    """Our network -> the paper's name for what it stands for; trained forms with a star."""
    names = {ours: name for name, ours in ERODING_LIBRARY.items()}
    return names | {ours: f"{name}*" for name, ours in TRAINED.items()}


# ---------------------------------------------------------------- the attacks


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The attacker's settings: ``low`` and ``high`` are GE's range, ``spread`` is Ghost's, ``seeds`` those of random methods."""

    eps: float = PAPER4_EPS
    step_size: float = 1 / 255
    steps: int = 100
    low: float = 0.5
    high: float = 1.0
    spread: float = 0.22
    seeds: tuple[int, ...] = (0,)

    def eroding(self, branch: str = "residual") -> GradientEroding:
        return GradientEroding(self.low, self.high, branch)

    def surrogate(self, variant: str) -> list:
        """The part that a variant adds: none, Ghost, GE(c) or GE(d)."""
        parts = {"": [], GHOST: [GhostNetwork(self.spread)], SKIP: [self.eroding("shortcut")], RESIDUAL: [self.eroding()]}
        return parts[variant]

    def attack(self, base: str, variant: str = "", *, seed: int = 0, **overrides) -> Attack:
        """An attack of the paper, by its base and what is added to the surrogate."""
        how = {"eps": self.eps, "step_size": self.step_size, "steps": self.steps, "seed": seed}
        return preset(METHODS[base], **(how | {"surrogate": self.surrogate(variant)} | overrides))

    def seeds_of(self, base: str, *, random: bool) -> tuple[int, ...]:
        """One seed is enough where nothing is drawn."""
        return self.seeds if random or base not in DETERMINISTIC else self.seeds[:1]


def passes(base: str, steps: int) -> int:
    """Forward plus backward passes through one surrogate for one picture, the target's embedding included."""
    return 2 * COPIES[base] * steps + 1


def early(budget: Budget) -> list[int]:
    """Where the main surrogate's attacks are looked at on the way, for the comparison at equal compute."""
    return sorted({max(1, budget.steps // 3), budget.steps})


def _trials(cast: Cast, budget: Budget, source: tuple[str, ...], methods, *, steps: Sequence[int] = ()) -> list[Trial]:
    judges = cast.judges(source)
    looks = looks_of(dict.fromkeys([*steps, budget.steps], judges))
    return [
        Trial(source, base + variant, budget.attack(base, variant, seed=seed), looks)
        for base, variant in methods
        for seed in budget.seeds_of(base, random=variant != "")
    ]


def main_trials(cast: Cast, budget: Budget) -> list[Trial]:
    """Tables I and II: five attacks, each plain, with Ghost, with GE(c) and with GE(d); and corrasion, plain and with GE(d)."""
    methods = [(base, variant) for base in BASES for variant in ("", GHOST, SKIP, RESIDUAL)]
    methods += [(OURS, ""), (OURS, RESIDUAL)]
    return _trials(cast, budget, (cast.main,), methods, steps=early(budget))


def single_trials(cast: Cast, budget: Budget) -> list[Trial]:
    """Fig. 2: six attacks without erosion from each of its surrogates; the main one's are among those of Table II."""
    sources = [(name,) for name in cast.singles if name != cast.main]
    return [trial for source in sources for trial in _trials(cast, budget, source, [(base, "") for base in METHODS])]


def ensemble_trials(cast: Cast, budget: Budget) -> list[Trial]:
    """Table III: six attacks with and without GE(d) from the ensemble."""
    if not cast.ensemble:
        return []
    trials = _trials(cast, budget, cast.ensemble, [(base, variant) for base in METHODS for variant in ("", RESIDUAL)])
    if not cast.held_out:
        return trials
    # The service of Table IV is asked about two of them.
    asked = {"MI", OURS + RESIDUAL}
    box = BLACK_BOX + cast.held_out[0]
    return [
        replace(trial, looks=tuple((step, (*judges, box)) for step, judges in trial.looks)) if trial.method in asked else trial
        for trial in trials
    ]


def white_box_trials(cast: Cast, budget: Budget) -> list[Trial]:
    """MI with each network of Table V as its own surrogate, plain and trained."""
    names = [name for both in cast.trained.items() for name in both]
    return [Trial((name,), "MI", budget.attack("MI"), ((budget.steps, (name,)),)) for name in names]


# ---------------------------------------------------------------- the audit

DECAY = {  # what multiplies the gradient through the residual branches; the constant of the same mean
    "constant 0.75": (SkipGradient(0.75), None),
    "uniform 0.5 to 1": (GradientEroding(0.5, 1.0), "constant 0.75"),
    "uniform 0.6 to 0.9": (GradientEroding(0.6, 0.9), "constant 0.75"),
    "constant 0.5": (SkipGradient(0.5), None),
    "uniform 0.25 to 0.75": (GradientEroding(0.25, 0.75), "constant 0.5"),
    "uniform 0.01 to 0.99": (GradientEroding(0.01, 0.99), "constant 0.5"),
    "constant 0.2": (SkipGradient(0.2), None),
}
ABLATION = {
    "without movement T": {"p": 0.0},
    "without scales S": {"base": 1.0},
    "without noise": {"sigma": 0.0},
    "without smoothing W": {"kernel": 1},
}
CALIBRATED = "+calibrated Ghost"
LONGER = 3  # MI and DI for the compute of corrasion, which makes three copies
SMALL_EPS = 10 / 255


def audit_trials(cast: Cast, budget: Budget, *, spread: float) -> list[Trial]:
    """The controls on the main surrogate: decay, calibrated Ghost, equal compute, ablation, a smaller budget."""
    judges = cast.judges((cast.main,))
    trials = []

    def add(method: str, base: str, seed: int, **overrides) -> None:
        attack = budget.attack(base, seed=seed, **overrides)
        trials.append(Trial((cast.main,), method, attack, ((attack.steps, judges),)))

    for name, (part, _) in DECAY.items():
        for seed in budget.seeds if isinstance(part, GradientEroding) else budget.seeds[:1]:
            add(f"MI, {name}", "MI", seed, surrogate=[part])
    for base in BASES:
        for seed in budget.seeds:
            add(base + CALIBRATED, base, seed, surrogate=[GhostNetwork(spread)])
    for base in ("MI", "DI"):
        for variant in ("", RESIDUAL):
            for seed in budget.seeds_of(base, random=variant != ""):
                parts = {"surrogate": budget.surrogate(variant)}
                add(f"{base}{variant}, {LONGER} times the steps", base, seed, steps=LONGER * budget.steps, **parts)
    for seed in budget.seeds:
        for name, choice in ABLATION.items():
            plain = corrasion(**choice)
            parts = {"inputs": plain.inputs, "gradient": plain.gradient, "surrogate": budget.surrogate(RESIDUAL)}
            add(f"{OURS}{RESIDUAL}, {name}", OURS, seed, **parts)
    if budget.eps > SMALL_EPS:
        for base in ("MI", "DI", OURS):
            for variant in ("", RESIDUAL):
                for seed in budget.seeds_of(base, random=variant != ""):
                    add(small(base + variant), base, seed, eps=SMALL_EPS, surrogate=budget.surrogate(variant))
    return trials


def small(method: str) -> str:
    """How the audit calls a method at the eps of the other chapters."""
    return f"{method}, eps of 10 gray levels"


def audit_rows(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Every section of the audit: means over the judges, and paired differences to what it is compared with."""
    cells, steps = cast.cells((cast.main,)), budget.steps
    full = OURS + RESIDUAL
    sections: dict[str, dict[str, tuple]] = {  # section -> method -> ((column, step) in the study, compared with)
        "Audit: decay or diversity": {"MI": (("MI", steps), None)}
        | {name: ((f"MI, {name}", steps), other and (f"MI, {other}", steps)) for name, (_, other) in DECAY.items()},
        "Audit: Ghost": {
            f"{base}{variant}": ((f"{base}{variant}", steps), (f"{base}{RESIDUAL}", steps))
            for base in BASES
            for variant in ("", GHOST, CALIBRATED)
        },
        "Audit: ablation": {full: ((full, steps), None), "without GE": ((OURS, steps), (full, steps))}
        | {name: ((f"{full}, {name}", steps), (full, steps)) for name in ABLATION},
        "Audit: eps of 10 gray levels": {
            f"{base}{variant}": ((small(base + variant), steps), (small(base), steps) if variant else None)
            for base in ("MI", "DI", OURS)
            for variant in ("", RESIDUAL)
        },
    }
    rows = []
    for table, methods in sections.items():
        for name, (column, other) in methods.items():
            if scores.has(*column, cells):
                rows += section_rows(scores, table, name, cells, column, other, **PLACE)
    return rows


def compute_rows(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Hit rate and similarity against passes (column ``x``), for the main surrogate's attacks."""
    cells, rows = cast.cells((cast.main,)), []
    for base in METHODS:
        for variant in ("", RESIDUAL):
            places = [(base + variant, step) for step in early(budget)]
            places.append((f"{base}{variant}, {LONGER} times the steps", LONGER * budget.steps))
            for method, step in places:
                if scores.has(method, step, cells):
                    place = {"name": base + variant, "x": passes(base, step), "far": FAR_NAMES[FAR]}
                    rows += mean_rows(scores, "Audit: compute", cells, method, step, **place)
    return rows


# ---------------------------------------------------------------- tables


def main_rows(study: Study, thresholds: pd.DataFrame, cast: Cast, budget: Budget) -> list[dict]:
    """Tables I and II: each network that judges, and their mean, at FAR 1e-3 and at the best-accuracy threshold."""
    return _both(study, thresholds, "Table II", cast.cells((cast.main,)), budget)


def single_rows(study: Study, thresholds: pd.DataFrame, cast: Cast, budget: Budget) -> list[dict]:
    """Fig. 2."""
    return [row for name in cast.singles for row in _both(study, thresholds, "Fig. 2", cast.cells((name,)), budget, plain=True)]


def ensemble_rows(study: Study, thresholds: pd.DataFrame, cast: Cast, budget: Budget) -> list[dict]:
    """Table III."""
    return _both(study, thresholds, "Table III", cast.cells(cast.ensemble), budget) if cast.ensemble else []


def _both(study: Study, thresholds: pd.DataFrame, table: str, cells, budget: Budget, *, plain: bool = False) -> list[dict]:
    variants = ("",) if plain else ("", GHOST, SKIP, RESIDUAL)
    methods = {base + variant: budget.steps for base in METHODS for variant in variants}
    rows = []
    for at, name in FAR_NAMES.items():
        scores = score(study, thresholds, at=at)
        found = table_rows(scores, table, cells, methods, far=name)
        found += [
            row
            for method in methods
            if scores.has(method, budget.steps, cells)
            for row in mean_rows(scores, table, cells, method, budget.steps, far=name)
        ]
        # A similarity has no threshold: once is enough.
        rows += [row for row in found if at == FAR or row["metric"] == "hit_rate"]
    return rows


def service_rows(study: Study, thresholds: pd.DataFrame, cast: Cast, budget: Budget) -> list[dict]:
    """Table IV, targeted: what the held-out network behind bytes accepts as the target, and the queries that it took."""
    if not (cast.held_out and cast.ensemble):
        return []
    label, name = "+".join(map(network_name, cast.ensemble)), network_name(cast.held_out[0])
    cells, rows = [(label, BLACK_BOX + name)], []
    for at, far in FAR_NAMES.items():
        scores = score(study, thresholds, at=at)
        for row in table_rows(scores, "Table IV", cells, {"MI": budget.steps, OURS + RESIDUAL: budget.steps}, far=far):
            if at == FAR or row["metric"] == "hit_rate":
                rows.append(row | {"target": name})
    queries = int(study.costs.loc[study.costs["source"] == label, "queries"].sum())
    where = {"method": "queries of the service", "source": "all", "target": name, "steps": budget.steps}
    return [*rows, result_row("cost", queries, len(scores.sources), table="Table IV", **where)]


def training_rows(
    study: Study, thresholds: pd.DataFrame, measured: pd.DataFrame, cast: Cast, budget: Budget, *, protocol: int
) -> list[dict]:
    """Table V: hit rates before and after adversarial training, the gain, and the accuracies on ``protocol`` pairs."""
    rows, scores = [], score(study, thresholds, at=FAR)
    for plain, trained in cast.trained.items():
        for name in (plain, trained):
            accuracy = measured.loc[network_name(name), "accuracy"]
            rows.append(result_row("accuracy", accuracy, protocol, table="Table V", target=network_name(name), method="clean"))
        for source in (cast.ensemble, (cast.main,)):
            rows += _gain_rows(scores, source, network_name(plain), network_name(trained), budget)
        for name in map(network_name, (plain, trained)):
            if scores.has("MI", budget.steps, [(name, name)]):
                hits = scores.interval(scores.cells("hit_rate", "MI", budget.steps, [(name, name)]), share=True)
                place = {"source": name, "target": name, "method": "MI, white box", "steps": budget.steps}
                rows.append(result_row("hit_rate", hits, len(scores.sources), table="Table V", far=FAR_NAMES[FAR], **place))
    return rows


def _gain_rows(scores: Scores, source: Sequence[str], plain: str, trained: str, budget: Budget) -> list[dict]:
    label, rows = "+".join(map(network_name, source)), []
    for base in METHODS:
        if not scores.has(base, budget.steps, [(label, plain), (label, trained)]):
            continue
        before, after = (scores.cells("hit_rate", base, budget.steps, [(label, name)]) for name in (plain, trained))
        place = {"table": "Table V", "source": label, "method": base, "steps": budget.steps, "far": FAR_NAMES[FAR]}
        for name, values in ((plain, before), (trained, after)):
            rows.append(result_row("hit_rate", scores.interval(values, share=True), len(scores.sources), target=name, **place))
        gain = scores.interval(before - after)
        rows.append(result_row("hit_rate_difference", gain, len(scores.sources), target=plain, **place))
    return rows


# ---------------------------------------------------------------- the differences behind the claims


EVERY_CELL = {  # claim -> what is compared in every cell, for each of the five attacks
    "claim 1": [(RESIDUAL, "")],
    "claim 2": [(RESIDUAL, SKIP), (SKIP, "")],
    "claim 3": [(RESIDUAL, GHOST)],
}


def effects(study: Study, thresholds: pd.DataFrame, cast: Cast, budget: Budget, *, mains: Sequence[str] = ()) -> list[dict]:
    """The differences behind claims 1 to 7, at FAR 1e-3, as far as the study holds what they compare.

    ``mains`` are the surrogates of claims 1 to 3; the cast's main one, unless others are given.
    """
    scores, step, rows = score(study, thresholds, at=FAR), budget.steps, []
    for claim, compared in EVERY_CELL.items():
        for better, worse in compared:
            for base, main in itertools.product(BASES, mains or (cast.main,)):
                rows += _if_run(scores, claim, cast.cells((main,)), base + better, base + worse, step, every=True)
    sources = [(name,) for name in cast.singles] + ([cast.ensemble] if cast.ensemble else [])
    for source in sources:
        for base in BASES:
            rows += _if_run(scores, "claim 5", cast.cells(source), OURS, base, step)
    if cast.ensemble:
        cells = cast.cells(cast.ensemble)
        for base in METHODS:
            rows += _if_run(scores, "claim 4", cells, base + RESIDUAL, base, step)
        for base in BASES:
            rows += _if_run(scores, "claim 6", cells, OURS + RESIDUAL, base, step)
        if all(scores.has(base + variant, step, cells) for base in METHODS for variant in ("", RESIDUAL)):
            rows += _six_method_mean(scores, cells, step)
    return rows


def _if_run(scores: Scores, claim: str, cells, better: str, worse: str, step: int, *, every: bool = False) -> list[dict]:
    if not (scores.has(better, step, cells) and scores.has(worse, step, cells)):
        return []
    means = mean_differences(scores, claim, cells, better, worse, step, **PLACE)
    return means + (cell_differences(scores, claim, cells, better, worse, step, **PLACE) if every else [])


def _six_method_mean(scores: Scores, cells, step: int) -> list[dict]:
    place = {"source": cells[0][0], "target": "mean", "method": "mean of six with GE(d) minus without", "steps": step}
    rows = []
    for metric in ("hit_rate", "similarity"):
        gaps = [scores.cells(metric, base + RESIDUAL, step, cells) - scores.cells(metric, base, step, cells) for base in METHODS]
        interval = scores.interval(np.mean(gaps, axis=0))
        rows.append(result_row(f"{metric}_difference", interval, len(scores.sources), table="claim 7", **place, far=FAR_NAMES[FAR]))
    return rows


# ---------------------------------------------------------------- the claims

ADVERTISED = 19.68  # points: "corrasion is 19.68% better", the paper's introduction
STATEMENTS = {
    1: ("GE(d) raises the hit rate of MI, TI, DI, Vr and SI in every cell", "Table II"),
    2: ("GE(d) beats GE(c), and GE(c) beats no erosion, in every cell", "Table II"),
    3: ("GE(d) beats Ghost in every cell", "Tables I and II"),
    4: ("On the ensemble, GE(d) raises the mean hit rate of each of the six attacks, corrasion included", "Table III"),
    5: ("Corrasion beats MI, TI, DI, Vr and SI on average, from each single surrogate and from the ensemble", "Fig. 2, Table III"),
    6: (f"Corrasion with GE(d) leads each of the five attacks by {ADVERTISED} points or more", "Table III"),
    7: ("GE(d) raises the mean over the six attacks", "Table III"),
    8: ("Adversarial training lowers the hit rate of all five attacks, on both networks", "Table V"),
}

def judge_effects(rows: pd.DataFrame | None) -> dict[int, Evidence]:
    """Evidence on each claim from a run's rows; claims that the run does not speak to are left out."""
    if rows is None or rows.empty:
        return {}
    found = {}
    for number in (1, 2, 3):
        part = rows[rows["table"] == f"claim {number}"]
        compared = EVERY_CELL[f"claim {number}"]
        parts = {}
        for better, worse in compared:
            evidence = claim_in_cells(part, [f"{base}{better} minus {base}{worse}" for base in BASES])
            if evidence is not None:
                parts[f"{better.strip('+')} over {worse.strip('+') or 'none'}"] = evidence
        if len(parts) == len(compared):
            found[number] = claim_every(parts) if len(parts) > 1 else next(iter(parts.values()))
    for number in (4, 5, 6, 7, 8):
        table = "Table V" if number == 8 else f"claim {number}"
        part = rows[(rows["table"] == table) & (rows["metric"] == "hit_rate_difference")]
        if number == 8:
            part = part[part["source"].str.contains("+", regex=False) & part["method"].isin(BASES)]
        if len(part):
            bound = ADVERTISED if number == 6 else 0.0
            found[number] = claim_every({_where(row): _evidence(row, bound) for row in part.to_dict("records")})
    return found


def _where(row: dict) -> str:
    source = "the ensemble" if "+" in row["source"] else row["source"]
    target = "" if row["target"] == "mean" else f" on {row['target']}"
    return f"{row['method']}, {source}{target}"


def _evidence(row: dict, bound: float) -> Evidence:
    return claim_mean_difference(row["value"], row["ci_low"], row["ci_high"], int(row["n_pairs"]), bound=bound)


def judge_printed() -> dict[int, Evidence]:
    """Evidence from the paper's own cells, at face value."""
    tables = paper_table(PAPER)
    two, three = (tables[tables["table"] == name] for name in ("Table II", "Table III"))
    both = pd.concat([tables[(tables["table"] == "Table I") & tables["method"].str.endswith(GHOST)], two])

    def over(frame, pairs: Iterable[tuple[str, str]]) -> Evidence:
        return printed_differences(frame, [(base + a, base + b) for base in BASES for a, b in pairs], by=("target",))

    means = three.groupby("method")["value"].mean()
    singles = tables[(tables["table"] == "Fig. 2") & tables["method"].isin([OURS, "DI"])]
    found = {1: over(two, EVERY_CELL["claim 1"]), 2: over(two, EVERY_CELL["claim 2"]), 3: over(both, EVERY_CELL["claim 3"])}
    found[4] = claim_printed([means[base + RESIDUAL] - means[base] for base in METHODS], labels=list(METHODS))
    leads = {f"{base}, the ensemble": means[OURS] - means[base] for base in BASES}
    pivot = singles.pivot_table(index="source", columns="method", values="value")
    leads |= {f"DI, {name}": row[OURS] - row["DI"] for name, row in pivot.iterrows()}
    found[5] = claim_printed(leads.values(), labels=list(leads))
    gaps = {base: means[OURS + RESIDUAL] - means[base] for base in BASES}
    found[6] = claim_printed(gaps.values(), labels=list(gaps), bound=ADVERTISED)
    six = [means[base + RESIDUAL] - means[base] for base in METHODS]
    found[7] = claim_printed([float(np.mean(six))])
    five = tables[(tables["table"] == "Table V") & tables["method"].isin(BASES)]
    found[8] = claim_printed(five["value"], labels=list(five["method"] + " on " + five["target"]))
    return found


def make_claims(published: pd.DataFrame | None, live: pd.DataFrame | None, *, printed: bool = True) -> list[Claim]:
    """The eight claims with the evidence of each run."""
    runs = {"printed": judge_printed() if printed else {}, "published": judge_effects(published)}
    runs["live"] = judge_effects(live)
    return [
        Claim(number, statement, where, **{run: evidence.get(number) for run, evidence in runs.items()})
        for number, (statement, where) in STATEMENTS.items()
    ]
