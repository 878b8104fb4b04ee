"""What chapter 3 runs, and how its tables, differences and claims come from the runs.

The same functions serve the notebook (live) and ``benchmarks/publish_dfanet.py`` (published).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fa_utils.attacks import Attack, FeatureDropout, preset
from fa_utils.attacks.transfer import BLACK_BOX, Study, Trial, network_name, open_network, split_addresses
from fa_utils.models.recipes import RECIPES
from fa_utils.models.registry import find
from fa_utils.report.claims import Claim, Evidence, claim_all_positive, claim_every, claim_printed
from fa_utils.report.results import paper_table, result_row
from fa_utils.report.scores import (
    FAR_TEXT,
    Scores,
    difference_row,
    evidence_of,
    looks_of,
    mean_rows,
    off_diagonal,
    printed_differences,
    resolved_fars,
    score,
    table_rows,
)

CHAPTER = "3_dfanet"
METHODS = {
    "FIM": "fim",
    "DFANet-FIM": "dfanet_fim",
    "M-FIM": "m_fim",
    "DFANet-M-FIM": "dfanet_m_fim",
    "DI-M-FIM": "di_m_fim",
    "DFANet-DI-M-FIM": "dfanet_di_m_fim",
}
BEST, RIVAL = "DFANet-DI-M-FIM", "DI-M-FIM"
DETERMINISTIC = ("FIM", "M-FIM")
PAPER_DROP = {"ires": 0.1, "irse": 0.1, "incres": 0.05, "mobile": 0.025}
FULL, SHORT = "", " at few steps"  # what the published tables' names end with


# ---------------------------------------------------------------- who plays which part


@dataclass(frozen=True)
class Cast:
    """Which networks play which part.

    Attributes
    ----------
    groups : dict of str to tuple of str
        Table -> networks that attack one another.
    label_group : tuple of str
        Networks of Table I.
    main : str
        Surrogate of Fig. 4, Fig. 5 and the audit.
    curve_judges : tuple of str
        Networks watched at every step in Fig. 5.
    rate_groups : dict of str to tuple of str
        Surrogate of Fig. 3 -> networks that judge it.
    ensembles : tuple of tuple of str
        Surrogates of Table V.
    held_out : str or None
        The network behind the byte interface; in no ensemble.
    """

    groups: dict[str, tuple[str, ...]]
    label_group: tuple[str, ...]
    main: str
    curve_judges: tuple[str, ...]
    rate_groups: dict[str, tuple[str, ...]]
    ensembles: tuple[tuple[str, ...], ...]
    held_out: str | None

    @property
    def networks(self) -> list[str]:
        """Every network, once."""
        parts = [*self.groups.values(), self.label_group, self.curve_judges, *self.ensembles]
        found = [address for part in parts for address in part]
        return list(dict.fromkeys([*found, *([self.held_out] if self.held_out else [])]))


_MAIN = "ires-webface-softmax"
_HELD_OUT = "incres-webface-softmax"
_GROUPS = {
    "Table II": (_MAIN, "ires-imdb-softmax", "ires-vggface2-softmax", "ires-ms1m-softmax"),
    "Table III": (_MAIN, "ires-webface-triplet", "ires-webface-cosface", "ires-webface-arcface"),
    "Table IV": (_MAIN, "irse-webface-softmax", "mobile-webface-softmax", _HELD_OUT),
}
_ENSEMBLES = (
    (_MAIN, "ires-webface-cosface", "ires-webface-arcface"),
    ("ires-imdb-softmax", "ires-vggface2-softmax", "ires-ms1m-softmax"),
    (_MAIN, "irse-webface-softmax", "mobile-webface-softmax"),
)


def make_cast(networks: str = "zoo", *, per_table: int = 4) -> Cast:
    """The parts, for the zoo or for networks of the reader's own.

    Parameters
    ----------
    networks : str
        ``"zoo"``, or two or more networks: see `split_addresses`.
        Networks of one's own form a single group, as the paper's three comparisons do not apply to them.
    per_table : int
        Networks of the zoo in each table, from 2 to 4.

    Raises
    ------
    ValueError
        For fewer than two networks, or one named twice.
    """
    if networks.strip() == "zoo":
        groups = {table: names[:per_table] for table, names in _GROUPS.items()}
        rates = {name: tuple(n for n in groups["Table IV"] if n != name) for name in groups["Table IV"]}
        judges = tuple(names[-1] for names in groups.values())
        return Cast(groups, groups["Table II"], _MAIN, judges, rates, _ENSEMBLES[: max(1, per_table - 1)], _HELD_OUT)
    names = split_addresses(networks, least=2)
    *others, held_out = names
    ensembles = [tuple(others[k:] + others[:k])[:3] for k in range(min(3, len(others)))] if len(names) > 3 else []
    rates = {name: tuple(n for n in names if n != name) for name in names}
    unique = tuple(dict.fromkeys(tuple(sorted(ensemble)) for ensemble in ensembles))
    return Cast({"Networks": names}, names, names[0], names[1:4], rates, unique, held_out if unique else None)


def drop_rate(address: str) -> float:
    """The paper's drop rate for this kind of network; 0.1, its rate for residual networks, for unknown ones.

    The kind is the layout's, in the zoo and where a network was registered with one; else the name's beginning.
    """
    name, entry = network_name(address), find(address)
    layout = RECIPES[name].layout if name in RECIPES else (entry and entry.layout) or name
    return next((rate for kind, rate in PAPER_DROP.items() if layout.startswith(kind)), 0.1)


# ---------------------------------------------------------------- the trials of each section


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The attacker's settings.

    ``short`` is the paper's 13 steps of the baselines, ``steps`` the full number. ``drop`` replaces the paper's drop
    rate of each architecture. ``seeds`` are those of the random methods; the others have the first only.
    """

    eps: float = 10 / 255
    step_size: float = 1 / 255
    steps: int = 100
    short: int = 13
    drop: float | None = None
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not 1 <= self.short <= self.steps:
            raise ValueError(f"steps = {self.steps}: at least {self.short}, the steps of the baselines, are needed")

    def attack(self, method: str, source: Sequence[str], seed: int, **overrides) -> Attack:
        """One of the six methods, with the drop rate of the surrogate (the smallest, of an ensemble)."""
        drop = min(map(drop_rate, source)) if self.drop is None else self.drop
        how = {"eps": self.eps, "step_size": self.step_size, "steps": self.steps, "drop": drop, "seed": seed}
        return preset(METHODS[method], **how | overrides)


def transfer_trials(
    cast: Cast, budget: Budget, *, methods: Sequence[str] = tuple(METHODS), curve: Sequence[int] = ()
) -> list[Trial]:
    """Tables II to IV, each surrogate once: judged by every network of its tables and by itself.

    The main surrogate is also looked at after the steps of ``curve``, by the networks of Fig. 5.
    """
    trials = []
    sources = dict.fromkeys(name for names in cast.groups.values() for name in names)
    for source in sources:
        judges = _judges(cast, source)
        looks = {budget.short: judges, budget.steps: judges}
        if source == cast.main:
            watched = dict.fromkeys([source, *cast.curve_judges])
            for step in curve:
                looks[step] = tuple(dict.fromkeys([*looks.get(step, ()), *watched]))
        for method in methods:
            for seed in budget.seeds[:1] if method in DETERMINISTIC else budget.seeds:
                attack = budget.attack(method, [source], seed)
                trials.append(Trial((source,), method, attack, looks_of(looks)))
    return trials


def label_trials(cast: Cast, budget: Budget) -> list[Trial]:
    """Table I: FTGSM and ITGSM where the surrogate kept its classifier, FFM and FIM; all in few steps."""
    trials = []
    for source in cast.label_group:
        judges = tuple(name for name in cast.label_group if name != source)
        names = {"FFM": ("ffm", 1), "FIM": ("fim", budget.short)}
        if open_network(source).classifier is not None:
            names = {"FTGSM": ("ftgsm", 1), "ITGSM": ("itgsm", budget.short)} | names
        for method, (recipe, steps) in names.items():
            how = {} if steps == 1 and recipe in ("ftgsm", "ffm") else {"step_size": budget.step_size}
            attack = preset(recipe, eps=budget.eps, steps=steps, seed=budget.seeds[0], **how)
            trials.append(Trial((source,), method, attack, ((steps, judges),)))
    return trials


def rate_method(rate: float, own: float) -> str:
    """Name of the attack at a drop rate; at 0 and at the surrogate's own rate it is one of Tables II to IV."""
    return RIVAL if rate == 0 else BEST if rate == own else f"{BEST}, drop rate {rate:g}"


def rate_trials(cast: Cast, budget: Budget, rates: Sequence[float]) -> list[Trial]:
    """Fig. 3: the drop rates that Tables II to IV do not hold, with the first seed."""
    trials = []
    for source, judges in cast.rate_groups.items():
        own = drop_rate(source) if budget.drop is None else budget.drop
        for rate in rates:
            method = rate_method(rate, own)
            if method in METHODS:
                continue
            attack = budget.attack(BEST, [source], budget.seeds[0], drop=rate)
            trials.append(Trial((source,), method, attack, ((budget.steps, judges),)))
    return trials


def ensemble_trials(cast: Cast, budget: Budget) -> list[Trial]:
    """Table V: E-DI-M-FIM with and without DFANet, judged by the held-out network behind bytes."""
    judges = (BLACK_BOX + str(cast.held_out),)
    return [
        Trial(source, method.replace("DI-", "E-DI-"), budget.attack(method, source, seed), ((budget.steps, judges),))
        for source in cast.ensembles
        for method in (RIVAL, BEST)
        for seed in budget.seeds
    ]


@dataclass(frozen=True)
class Copies:
    """An input part: the picture several times, so that what follows draws for each copy; the mean gradient counts."""

    count: int = 2

    def bind(self, scope):
        return lambda images, step: [(images, 1 / self.count)] * self.count


AUDIT = {
    BEST: "as in the tables",
    RIVAL: "as in the tables",
    "DI-M-FIM, 1.5 times the steps": "equal compute if a backward costs a forward",
    "DI-M-FIM, twice the steps": "more compute than DFANet",
    "DI-M-FIM, two copies a step": "more compute than DFANet",
    "frozen mask": "one thinned network for all steps",
    "Gaussian noise": "equal mean and variance",
    "rescaled": "divided by one minus the drop rate",
    "clean target": "one forward pass a step less",
}


def audit_trials(cast: Cast, budget: Budget) -> list[Trial]:
    """The controls, on the main surrogate; the two reference attacks are among those of Tables II to IV."""
    source, judges = cast.main, _judges(cast, cast.main)
    steps, half_more = budget.steps, max(budget.steps + 1, round(1.5 * budget.steps))
    drop = drop_rate(source) if budget.drop is None else budget.drop
    masks = {
        "frozen mask": FeatureDropout(drop, frozen=True),
        "Gaussian noise": FeatureDropout(drop, noise="gaussian"),
        "rescaled": FeatureDropout(drop, rescale=True),
        "clean target": FeatureDropout(drop, target="clean"),
    }
    trials = []
    for seed in budget.seeds:
        plain = budget.attack(RIVAL, [source], seed)
        for name, count in (("DI-M-FIM, 1.5 times the steps", half_more), ("DI-M-FIM, twice the steps", 2 * steps)):
            longer = budget.attack(RIVAL, [source], seed, steps=count)
            trials.append(Trial((source,), name, longer, ((count, judges),)))
        copies = budget.attack(RIVAL, [source], seed, inputs=[Copies(2), *plain.inputs])
        trials.append(Trial((source,), "DI-M-FIM, two copies a step", copies, ((steps, judges),)))
        for name, mask in masks.items():
            attack = budget.attack(BEST, [source], seed, surrogate=[mask])
            trials.append(Trial((source,), name, attack, ((steps, judges),)))
    return trials


# The whole number of gray levels whose deviation comes nearest to the paper's 1.34; not chosen by what it does to accuracy.
REWRITING_EPS = 2 / 255


def rewriting_attack(budget: Budget, surrogates: Sequence[str], *, steps: int | None = None) -> Attack:
    """TALFW's attack: DFANet-DI-M-FIM in a small ball, against the partners' clean embeddings (one forward a step)."""
    drop = min(map(drop_rate, surrogates)) if budget.drop is None else budget.drop
    return preset(
        METHODS[BEST],
        eps=REWRITING_EPS,
        step_size=min(budget.step_size, REWRITING_EPS),
        steps=steps or budget.steps,
        seed=budget.seeds[0],
        surrogate=[FeatureDropout(drop, target="clean")],
    )


def _judges(cast: Cast, source: str) -> tuple[str, ...]:
    """The surrogate itself, then all networks that share a table with it."""
    others = [name for names in cast.groups.values() if source in names for name in names]
    return tuple(dict.fromkeys([source, *others]))


# ---------------------------------------------------------------- rows of the tables and figures


def transfer_cells(cast: Cast) -> list[tuple[str, str]]:
    """The black-box cells of all tables, each once."""
    return list(dict.fromkeys(cell for names in cast.groups.values() for cell in off_diagonal(names)))


def transfer_rows(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Tables II to IV in full and after few steps, and their white-box cells."""
    rows = []
    for table, names in cast.groups.items():
        for ending, step in ((FULL, budget.steps), (SHORT, budget.short)):
            if step == budget.steps and ending == SHORT:
                continue
            steps = dict.fromkeys(METHODS, step)
            rows += table_rows(scores, table + ending, off_diagonal(names), steps, far="1e-3")
    diagonal = list(dict.fromkeys((network_name(n), network_name(n)) for names in cast.groups.values() for n in names))
    return rows + table_rows(scores, "white box", diagonal, dict.fromkeys(METHODS, budget.steps), far="1e-3")


def label_rows(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Table I."""
    steps = {"FTGSM": 1, "ITGSM": budget.short, "FFM": 1, "FIM": budget.short}
    return table_rows(scores, "Table I", off_diagonal(cast.label_group), steps, far="1e-3")


def rate_rows(scores: Scores, cast: Cast, budget: Budget, rates: Sequence[float]) -> list[dict]:
    """Fig. 3: hit rate and similarity, averaged over the judges, at each drop rate (column ``x``)."""
    rows = []
    for source, judges in cast.rate_groups.items():
        own = drop_rate(source) if budget.drop is None else budget.drop
        cells = [(network_name(source), network_name(judge)) for judge in judges]
        for rate in rates:
            method = rate_method(rate, own)
            rows += mean_rows(scores, "Fig. 3", cells, method, budget.steps, name=BEST, x=rate, far="1e-3")
    return rows


def curve_rows(scores: Scores, cast: Cast, steps: Sequence[int]) -> list[dict]:
    """Fig. 4: hit rate and similarity against the number of steps, averaged over the judges of Fig. 5."""
    cells = [(network_name(cast.main), network_name(judge)) for judge in cast.curve_judges]
    ran = [(method, step) for method in METHODS for step in steps if scores.has(method, step, cells)]
    return [row for one in ran for row in mean_rows(scores, "Fig. 4", cells, *one, x=one[1], far="1e-3")]


def distance_rows(study: Study, cast: Cast) -> list[dict]:
    """Fig. 5 as rows: ``x`` is the step."""
    rows = []
    chosen = study.frame[study.frame["source"] == network_name(cast.main)]
    watched = dict.fromkeys([network_name(cast.main), *map(network_name, cast.curve_judges)])
    n_pairs = chosen["pair"].nunique()
    for method in [name for name in METHODS if name in set(chosen["method"])]:
        part = chosen[(chosen["method"] == method) & chosen["target"].isin(watched)]
        distance = np.sqrt(np.maximum(0, 2 - 2 * part["similarity"]))
        means = distance.groupby([part["target"], part["step"]]).mean()
        for (target, step), value in means.items():
            place = {"table": "Fig. 5", "source": network_name(cast.main), "target": target, "method": method}
            rows.append(result_row("distance", value, n_pairs, x=float(step), **place))
    return rows


def ensemble_rows(study: Study, thresholds: pd.DataFrame, budget: Budget) -> list[dict]:
    """Table V: hit rates at each FAR that the benchmark resolves, and the similarity, which has none."""
    rows = []
    for far in resolved_fars(study, thresholds):
        scores = score(study, thresholds, at=far)
        for source, method, step, target in scores.similarity.columns:
            place = {"table": "Table V", "source": source, "method": method, "target": target, "steps": step}
            for metric in ("hit_rate", "similarity"):
                values = scores.cells(metric, method, step, [(source, target)])
                interval = scores.interval(values, share=metric == "hit_rate")
                rows.append(result_row(metric, interval, len(scores.sources), far=FAR_TEXT[far], **place))
    return rows


# ---------------------------------------------------------------- paired differences


COMPARED = {
    "claim 1": [(f"DFANet-{base}", base) for base in ("FIM", "M-FIM", "DI-M-FIM")],
    "claim 2": [("DI-M-FIM", "M-FIM"), ("M-FIM", "FIM")],
}
NARROWEST = ("FIM", "M-FIM", "DFANet-FIM", "DI-M-FIM")  # the other methods of Fig. 5


def transfer_effects(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """The differences behind claims 1, 2, 3, 6 and the distances behind 7."""
    rows, cells, full, short = [], transfer_cells(cast), budget.steps, budget.short
    main = [cell for cell in cells if cell[0] == network_name(cast.main)]
    ran = {method for method in METHODS if scores.has(method, full, cells) and scores.has(method, short, cells)}
    for metric in ("hit_rate", "similarity"):
        for claim, compared in COMPARED.items():
            if not ran.issuperset(name for pair in compared for name in pair):
                continue  # a claim about several methods is judged on all of them or not at all
            for step in dict.fromkeys((full, short)):
                for better, worse in compared:
                    pair = (better, step), (worse, step)
                    rows.append(difference_row(scores, claim, cells, *pair, metric=metric, x=step))
        if ran.issuperset(METHODS):
            rows += _best_of_all(scores, cells, full, metric)
        if full > short and ran.issuperset((BEST, RIVAL, "FIM")):
            rows += _crossing(scores, main, full, short, metric)
    return rows + (gap_effects(scores, cast, budget) if ran.issuperset((*NARROWEST, BEST)) else [])


def _best_of_all(scores: Scores, cells, step: int, metric: str) -> list[dict]:
    """Claim 3: DFANet-DI-M-FIM against each other method in each cell."""
    return [
        difference_row(scores, "claim 3", [cell], (BEST, step), (other, step), metric=metric, source=cell[0], target=cell[1])
        for other in METHODS
        if other != BEST
        for cell in cells
    ]


def _crossing(scores: Scores, cells, full: int, short: int, metric: str) -> list[dict]:
    """Claim 6: below DI-M-FIM at few steps, above at many; DI-M-FIM gains from steps, FIM does not."""
    names = {"name": f"{RIVAL} minus {BEST}, few steps"}, {"name": f"{BEST} minus {RIVAL}, all steps"}
    rows = [
        difference_row(scores, "claim 6", cells, (RIVAL, short), (BEST, short), metric=metric, **names[0]),
        difference_row(scores, "claim 6", cells, (BEST, full), (RIVAL, full), metric=metric, **names[1]),
    ]
    gains = [scores.cells(metric, m, full, cells) - scores.cells(metric, m, short, cells) for m in (RIVAL, "FIM")]
    interval = scores.interval((gains[0] - gains[1]) / 2)  # halved: two differences add up to at most 200 points
    place = {"table": "claim 6", "method": "half of: gain of DI-M-FIM minus gain of FIM", "steps": full}
    return [*rows, result_row(f"{metric}_difference", interval, len(scores.sources), **place)]


def gap_effects(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Claim 7: how much wider each other method's gap between targets and surrogate is."""
    main = network_name(cast.main)
    judges = [(main, network_name(judge)) for judge in cast.curve_judges]
    gaps = {}
    for method in (*NARROWEST, BEST):
        distance = {
            place: np.sqrt(np.maximum(0, 2 - 2 * scores.cells("similarity", method, budget.steps, part)))
            for place, part in (("judges", judges), ("surrogate", [(main, main)]))
        }
        gaps[method] = distance["judges"].mean(axis=1) - distance["surrogate"][:, 0]
    rows = []
    for method in NARROWEST:
        interval = scores.interval(gaps[method] - gaps[BEST])
        place = {"table": "claim 7", "method": f"gap of {method} minus gap of {BEST}", "steps": budget.steps}
        rows.append(result_row("distance_difference", interval, len(scores.sources), **place))
    return rows


def label_effects(scores: Scores, cast: Cast, budget: Budget) -> list[dict]:
    """Claim 4: feature over label level, iterative over one-step."""
    cells, many = off_diagonal(cast.label_group), budget.short
    compared = [
        (("FFM", 1), ("FTGSM", 1)),
        (("FIM", many), ("ITGSM", many)),
        (("FIM", many), ("FFM", 1)),
        (("ITGSM", many), ("FTGSM", 1)),
    ]
    return [
        difference_row(scores, "claim 4", cells, *pair, metric=metric)
        for metric in ("hit_rate", "similarity")
        for pair in compared
        if all(scores.has(*one, cells) for one in pair)
    ]


def rate_effects(scores: Scores, cast: Cast, budget: Budget, rates: Sequence[float]) -> list[dict]:
    """Claim 5: the paper's rate against none at all, and against the largest; no rate is chosen on these pairs."""
    rows = []
    for source, judges in cast.rate_groups.items():
        own = drop_rate(source) if budget.drop is None else budget.drop
        name = network_name(source)
        cells = [(name, network_name(judge)) for judge in judges]
        for metric in ("hit_rate", "similarity"):
            for other, words in ((0.0, "none"), (max(rates), f"{max(rates):g}")):
                methods = (BEST, budget.steps), (rate_method(other, own), budget.steps)
                label = f"the paper's rate minus {words}"
                rows.append(difference_row(scores, "claim 5", cells, *methods, metric=metric, name=label, source=name))
    return rows


def ensemble_effects(study: Study, thresholds: pd.DataFrame, budget: Budget) -> list[dict]:
    """Claim 8: DFANet's gain on the held-out network, over all ensembles, at each FAR."""
    rows = []
    methods = ("DFANet-E-DI-M-FIM", budget.steps), ("E-DI-M-FIM", budget.steps)
    for far in resolved_fars(study, thresholds):
        scores = score(study, thresholds, at=far)
        cells = sorted({(source, target) for source, _, _, target in scores.similarity.columns})
        metrics = ("hit_rate", "similarity") if far == 1e-3 else ("hit_rate",)
        for metric in metrics:
            rows.append(difference_row(scores, "claim 8", cells, *methods, metric=metric, far=FAR_TEXT[far]))
    return rows


def audit_rows(scores: Scores, study: Study, cast: Cast, budget: Budget) -> list[dict]:
    """The audit: each control's hit rate, similarity, deviation and cost, and its difference to DFANet-DI-M-FIM."""
    main, rows = network_name(cast.main), []
    judges = [name for name in map(network_name, _judges(cast, cast.main)) if name != main]
    cells = [(main, judge) for judge in judges]
    costs = study.costs[study.costs["source"] == main].drop_duplicates("method").set_index("method")
    for variant in AUDIT:
        step = int(costs.loc[variant, "steps"])
        place = {"table": "Audit", "source": main, "method": variant, "steps": step}
        numbers = {metric: scores.cells(metric, variant, step, cells) for metric in ("hit_rate", "similarity", "rmsd")}
        n_pairs = len(scores.sources)
        for metric, values in numbers.items():
            rows.append(result_row(metric, scores.interval(values, share=metric == "hit_rate"), n_pairs, **place))
        passes = int(costs.loc[variant, "forwards"]), int(costs.loc[variant, "backwards"])
        for name, count in zip(("forwards a picture", "backwards a picture"), passes, strict=True):
            rows.append(result_row("cost", count, n_pairs, **place, target=name))
        if variant != BEST:
            for metric in ("hit_rate", "similarity"):
                gap = numbers[metric] - scores.cells(metric, BEST, budget.steps, cells)
                rows.append(result_row(f"{metric}_difference", scores.interval(gap), n_pairs, **place))
    return rows


# ---------------------------------------------------------------- the claims

STATEMENTS = {
    1: ("Adding DFANet raises the hit rate on other networks, for FIM, M-FIM and DI-M-FIM, at equal steps", "Tables II to IV"),
    2: ("DI-M-FIM beats M-FIM, and M-FIM beats FIM, on other networks", "Tables II to IV"),
    3: ("DFANet-DI-M-FIM beats each of the other five attacks in every cell", "Tables II to IV"),
    4: ("Feature level beats label level at the same number of steps, and iterative beats one-step", "Table I"),
    5: ("The hit rate rises and then falls with the drop rate: the paper's rate beats none and the largest", "Fig. 3"),
    6: ("DFANet-DI-M-FIM is below DI-M-FIM at few steps and above it at many; FIM gains less from steps than DI-M-FIM", "Fig. 4"),
    7: ("The distance gap between targets and surrogate is smallest for DFANet-DI-M-FIM", "Fig. 5"),
    8: ("DFANet raises the hit rate of the ensemble attack on the held-out service", "Table V"),
    9: ("The attacked benchmark lowers every network's accuracy, and each defense raises it without restoring it", "Table VI"),
}
METRIC_OF = {7: "distance_difference", 9: "accuracy_difference"}


def judge_effects(effects: pd.DataFrame | None) -> dict[int, Evidence]:
    """Evidence on each claim from a run's differences; claims that the run does not speak to are left out."""
    if effects is None or effects.empty:
        return {}
    found = {}
    for number in STATEMENTS:
        metric = METRIC_OF.get(number, "hit_rate_difference")
        part = effects[(effects["table"] == f"claim {number}") & (effects["metric"] == metric)]
        if part.empty:
            continue
        if number in (1, 2):  # the full number of steps decides; few steps are shown in the chapter
            part = part[part["steps"] == part["steps"].max()]
        if number == 3:
            cells = part.assign(label=part["source"] + " on " + part["target"] + ": " + part["method"])
            found[number] = claim_all_positive(cells.reset_index(drop=True))
            continue
        names = part["method"] + part["source"].map(lambda s: f", {s}" if s else "")
        if number == 8:
            names += " at FAR " + part["far"]
        found[number] = claim_every(dict(zip(names, map(evidence_of, part.to_dict("records")), strict=True)))
    return found


def judge_printed() -> dict[int, Evidence]:
    """Evidence from the paper's own cells, at face value; Figures 3 to 5 have no printed numbers."""
    tables = paper_table("3-dfanet")
    three = tables[tables["table"].isin(["Table II", "Table III", "Table IV"])]
    label = tables[tables["table"] == "Table I"]
    best = [(BEST, other) for other in METHODS if other != BEST]
    found = {
        1: printed_differences(three, [(f"DFANet-{base}", base) for base in ("FIM", "M-FIM", "DI-M-FIM")]),
        2: printed_differences(three, [("DI-M-FIM", "M-FIM"), ("M-FIM", "FIM")]),
        3: printed_differences(three, best),
        4: printed_differences(label, [("FFM", "FTGSM"), ("FIM", "ITGSM"), ("FIM", "FFM"), ("ITGSM", "FTGSM")]),
    }
    service = tables[tables["table"] == "Table V"]
    found[8] = printed_differences(service, [("DFANet-E-DI-M-FIM", "E-DI-M-FIM")], by=("source", "far"))
    six = tables[tables["table"] == "Table VI"]
    clean, attacked = (six[six["target"] == name].set_index("method")["value"] for name in ("LFW", "TALFW"))
    falls = clean - attacked.reindex(clean.index)
    defended = [name for name in ("JPEG Encoding", "Gaussian Blur", "Adversarial Training") if name in falls]
    lifts = attacked[defended] - attacked["No Defense"]
    labels = [f"{name} falls" for name in falls.index] + [f"{name} lifts" for name in defended]
    found[9] = claim_printed([*falls, *lifts], labels=labels)
    return found


def make_claims(published: pd.DataFrame | None, live: pd.DataFrame | None, *, printed: bool = True) -> list[Claim]:
    """The nine claims with the evidence of each run."""
    runs = {"printed": judge_printed() if printed else {}, "published": judge_effects(published)}
    runs["live"] = judge_effects(live)
    return [
        Claim(number, statement, where, **{run: evidence.get(number) for run, evidence in runs.items()})
        for number, (statement, where) in STATEMENTS.items()
    ]


