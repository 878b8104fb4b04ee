"""Chapter 1's verification: which pictures are compared, in which settings, with what errors; and the audit's comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fa_utils.attacks.transfer import network_name
from fa_utils.metrics import Interval, two_way_bootstrap
from fa_utils.report.gender_probes import (
    BLOCKS,
    CLEAN,
    EIGHT_BITS,
    FULL,
    LARGE,
    PGD,
    RAND_L2,
    REACHING,
    SAME_L2,
    SMALL,
    Backbone,
    Measured,
    control,
    denoised,
    fgsm,
    rand,
    rand_blocks,
)
from fa_utils.report.results import result_row
from fa_utils.verification import Comparison, compare_all, replicates

SETTINGS = ("CC", "DD", "AA", "CD", "CA")
ERRORS = ("eer", "fnmr", "auc_det")
FMR = 1e-3
OWN, FROZEN = "1e-3", "1e-3, threshold of CC"
ATTACKS = ("FGSM-fixed", "FGSM-variable", "PGD-ATK")
AT_LEAST = 3  # of six eps must fool a picture that is compared (paper, section 5.5)


# ---------------------------------------------------------------- part B: which pictures are compared


def successes(measured: Measured, backbone: Backbone, attack: str) -> np.ndarray:
    """Right when clean and wrong when attacked: bool, (6, N) for FGSM-fixed, (1, N) else."""
    clean = measured.correct[CLEAN]
    if attack == "PGD-ATK":
        return (clean & ~measured.correct[PGD])[None]
    hits = np.stack([clean & ~measured.correct[fgsm(eps)] for eps in backbone.grid])
    return hits if attack == "FGSM-fixed" else hits.any(0)[None]


def compared_rows(measured: Measured, backbone: Backbone) -> dict[str, np.ndarray]:
    """Rows compared in the fixed setting: fooled by three of six eps or more, and at that eps; by variant of FGSM."""
    hits = successes(measured, backbone, "FGSM-fixed")
    enough = hits.sum(0) >= AT_LEAST
    return {fgsm(eps): np.flatnonzero(enough & hit) for eps, hit in zip(backbone.grid, hits, strict=True)}


def chosen_eps(measured: Measured, backbone: Backbone, *, seed: int = 0) -> np.ndarray:
    """FGSM-variable: index of each picture's eps in the grid, -1 where none succeeds.

    VGG16 takes the smallest that succeeds, ResNet50 draws one of those that succeed (paper, sections 5.4.1 and 5.4.2).
    """
    hits = successes(measured, backbone, "FGSM-fixed")
    if backbone.smallest:
        return np.where(hits.any(0), hits.argmax(0), -1)
    draws = np.random.default_rng(seed).random(hits.shape)
    return np.where(hits.any(0), np.where(hits, draws, -1).argmax(0), -1)


def variable_embeddings(measured: Measured, backbone: Backbone, choice: np.ndarray, rows: np.ndarray, *, clean_up: bool) -> np.ndarray:
    """Embeddings (rows, D) of each picture at its own eps, attacked or denoised."""
    names = [fgsm(eps) for eps in backbone.grid]
    names = [denoised(name) for name in names] if clean_up else names
    stack = np.stack([measured.embedding[name][rows] for name in names])
    return stack[choice[rows], np.arange(len(rows))]


def combinations(clean: np.ndarray, attacked: np.ndarray, cleaned: np.ndarray | None) -> dict[str, tuple]:
    """The five settings as (gallery, probe) embeddings; probe None compares a set with itself."""
    found = {"CC": (clean, None), "AA": (attacked, None), "CA": (clean, attacked)}
    if cleaned is not None:
        found |= {"DD": (cleaned, None), "CD": (clean, cleaned)}
    return {name: found[name] for name in SETTINGS if name in found}


# ---------------------------------------------------------------- verification


@dataclass(frozen=True)
class Scored:
    """Errors of the settings on the same pictures: values in [0, 1], and bootstrap replicates that are paired across settings.

    Attributes
    ----------
    values : {setting: {metric: value}}
    draws : {setting: {metric: (resamples,)}}, nan where a resample has too few impostors for the metric
    frozen : {setting: (FNMR, FMR)} at the threshold of CC
    mated, impostors : {setting: count}
    """

    values: dict[str, dict[str, float]]
    draws: dict[str, dict[str, np.ndarray]]
    frozen: dict[str, tuple[float, float]]
    mated: dict[str, int]
    impostors: dict[str, int]

    def interval(self, setting: str, metric: str) -> Interval:
        """Value of a setting with its percentile interval; nan ends where no resample has the metric."""
        return _interval(self.values[setting][metric], self.draws[setting][metric])

    def difference(self, better: str, worse: str, metric: str) -> tuple[float, np.ndarray]:
        """Difference of two settings and its replicates."""
        return gap(self, better, self, worse, metric)


def gap(one: Scored, setting: str, other: Scored, other_setting: str, metric: str) -> tuple[float, np.ndarray]:
    """Difference of two settings of two sets of comparisons, and its replicates (paired by the people drawn)."""
    value = one.values[setting][metric] - other.values[other_setting][metric]
    return value, one.draws[setting][metric] - other.draws[other_setting][metric]


def _interval(value: float, draws: np.ndarray) -> Interval:
    if not np.isfinite(draws).any():
        return Interval(value, np.nan, np.nan)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(float(value), float(min(low, value)), float(max(high, value)))


def score_settings(
    pairs: Mapping[str, tuple], identity: np.ndarray, *, people: np.ndarray, n_resamples: int = 200, seed: int = 0
) -> Scored:
    """Compare all with all in each setting.

    Parameters
    ----------
    pairs : as `combinations` gives them
    identity : int (n,)
    people : int
        Everyone in the study: resampling draws from them, so that settings on different pictures stay paired.
    n_resamples : int
    """
    compared = {name: compare_all(a, identity, b, None if b is None else identity) for name, (a, b) in pairs.items()}
    values = {name: errors_of(c) for name, c in compared.items()}
    limit = compared["CC"].threshold(FMR) if "CC" in compared and compared["CC"].resolves(FMR) else None
    frozen = {name: c.errors_at(limit) for name, c in compared.items()} if limit is not None else {}
    options = {"people": people, "n_resamples": n_resamples, "seed": seed, "fmr": FMR, "metrics": ERRORS}
    draws = {name: replicates(a, identity, b, **options) for name, (a, b) in pairs.items()}
    return Scored(values, draws, frozen, {n: c.mated for n, c in compared.items()}, {n: c.impostors for n, c in compared.items()})


def errors_of(comparison: Comparison) -> dict[str, float]:
    """EER, FNMR at FMR 0.1% (nan where the impostors cannot resolve it) and AUC-DET, in [0, 1]."""
    fnmr = comparison.fnmr_at(FMR) if comparison.resolves(FMR) else float("nan")
    return {"eer": comparison.eer, "fnmr": fnmr, "auc_det": comparison.auc_det}


def error_rows(scored: Scored, table: str, **place) -> list[dict]:
    """Rows of all settings: three errors, FNMR and FMR at the threshold of CC, counts of comparisons."""
    rows = []
    for setting in scored.values:
        where = {"table": table, "target": setting, **place}
        for metric in ERRORS:
            interval = scored.interval(setting, metric)
            if np.isfinite(interval.estimate):
                far = OWN if metric == "fnmr" else ""
                rows.append(result_row(metric, interval, scored.mated[setting], far=far, **where))
        if setting in scored.frozen:
            for metric, value in zip(("fnmr", "fmr"), scored.frozen[setting], strict=True):
                rows.append(result_row(metric, value, scored.mated[setting], far=FROZEN, **where))
        rows.append(result_row("count", scored.mated[setting], scored.mated[setting], far="mated", **where))
        rows.append(result_row("count", scored.impostors[setting], scored.mated[setting], far="non-mated", **where))
    return rows


def effect_row(claim: str, metric: str, effect: tuple[float, np.ndarray], mated: int, **place) -> dict:
    """A difference of errors with its interval as a row of ``claim``."""
    return result_row(f"{metric}_difference", _interval(*effect), mated, table=claim, **place)


# ---------------------------------------------------------------- the paper's comparisons


@dataclass(frozen=True)
class Verification:
    """All comparisons of one backbone: by eps in the fixed setting, and of the variable attacks."""

    backbone: Backbone
    fixed: dict[float, Scored]
    random: dict[float, Scored]
    subset: dict[float, Scored]  # the audit's: one set of pictures for all eps
    variable: dict[str, Scored]


def is_comparable(identity: np.ndarray) -> bool:
    """Whether there is a mated and an impostor pair."""
    counts = np.unique(identity, return_counts=True)[1]
    return len(counts) > 1 and counts.max() > 1


def verify(measured: Measured, backbone: Backbone, *, n_resamples: int = 200, seed: int = 0) -> Verification:
    """Run the comparisons of Figures 7 to 10 and Tables 7, 8, 13 to 15, and those on one fixed subset."""
    people, chosen = np.unique(measured.identity), compared_rows(measured, backbone)

    def scored(rows: np.ndarray, attacked: str, *, clean_up: bool = True) -> Scored | None:
        if not is_comparable(measured.identity[rows]):
            return None
        cleaned = measured.embedding.get(denoised(attacked)) if clean_up else None
        pairs = combinations(
            measured.embedding[CLEAN][rows], measured.embedding[attacked][rows], None if cleaned is None else cleaned[rows]
        )
        return score_settings(pairs, measured.identity[rows], people=people, n_resamples=n_resamples, seed=seed)

    enough = np.flatnonzero(successes(measured, backbone, "FGSM-fixed").sum(0) >= AT_LEAST)
    sections: dict[str, dict] = {"fixed": {}, "random": {}, "subset": {}}
    for eps in backbone.grid:
        sections["fixed"][eps] = scored(chosen[fgsm(eps)], fgsm(eps))
        sections["random"][eps] = scored(chosen[fgsm(eps)], rand(eps), clean_up=False)
        sections["subset"][eps] = scored(enough, fgsm(eps))
    variable = {"PGD-ATK": scored(np.flatnonzero(successes(measured, backbone, "PGD-ATK")[0]), PGD)}
    choice = chosen_eps(measured, backbone, seed=seed)
    rows = np.flatnonzero(choice >= 0)
    if is_comparable(measured.identity[rows]):
        versions = [variable_embeddings(measured, backbone, choice, rows, clean_up=clean_up) for clean_up in (False, True)]
        pairs = combinations(measured.embedding[CLEAN][rows], *versions)
        variable["FGSM-variable"] = score_settings(pairs, measured.identity[rows], people=people, n_resamples=n_resamples, seed=seed)
    kept = {name: {eps: s for eps, s in section.items() if s is not None} for name, section in sections.items()}
    return Verification(backbone, **kept, variable={name: s for name, s in variable.items() if s is not None})


def average(scores: Sequence[Scored]) -> Scored:
    """Mean of the errors over the eps: what the figures show of the fixed setting. Counts are sums."""
    first = scores[0]
    values = {s: {m: float(np.mean([one.values[s][m] for one in scores])) for m in ERRORS} for s in first.values}
    draws = {s: {m: np.mean([one.draws[s][m] for one in scores], axis=0) for m in ERRORS} for s in first.draws}
    counts = [{s: sum(getattr(one, name)[s] for one in scores) for s in first.values} for name in ("mated", "impostors")]
    return Scored(values, draws, {}, *counts)


def verification_rows(found: Verification) -> list[dict]:
    """Rows of the tables "fixed" (``x`` is eps; without: the mean over eps), "random", "variable" and "Audit: subset"."""
    source, rows = found.backbone.source, []
    for eps, scored in found.fixed.items():
        rows += error_rows(scored, "fixed", source=source, method="FGSM-fixed", x=eps)
    if found.fixed:
        rows += error_rows(average(list(found.fixed.values())), "fixed", source=source, method="FGSM-fixed")
    for eps, scored in found.random.items():
        rows += error_rows(scored, "random", source=source, method="RAND-ATK", x=eps)
    for method, scored in found.variable.items():
        rows += error_rows(scored, "variable", source=source, method=method)
    for eps, scored in found.subset.items():
        rows += error_rows(scored, "Audit: subset", source=source, method="FGSM-fixed", x=eps)
    for table, section in (("excess", found.fixed), ("excess, one subset", found.subset)):
        for eps, scored in section.items():
            rows += excess_rows(scored, table, source=source, method="FGSM-fixed", x=eps)
    return rows


def excess_rows(scored: Scored, table: str, **place) -> list[dict]:
    """What each setting adds to the errors of CC."""
    effects = {
        (setting, metric): scored.difference(setting, "CC", metric)
        for setting in scored.values
        for metric in ("fnmr", "auc_det")
        if setting != "CC"
    }
    return [
        effect_row(table, metric, effect, scored.mated[setting], target=setting, **place)
        for (setting, metric), effect in effects.items()
        if np.isfinite(effect[1]).any()
    ]


def transfer_rows(measured: Measured, backbone: Backbone) -> list[dict]:
    """Tables 6 and 10: the classifier on the sets of compared pictures, 100% and 0% by construction but for the denoised ones."""
    table, rows = {"VGG16": "Table 6", "ResNet50": "Table 10"}[backbone.name], []
    choice, chosen = chosen_eps(measured, backbone), compared_rows(measured, backbone)
    picks = {"PGD-ATK": [(PGD, np.flatnonzero(successes(measured, backbone, "PGD-ATK")[0]))]}
    picks["FGSM-fixed"] = list(chosen.items())
    picks["FGSM-variable"] = [(fgsm(eps), np.flatnonzero(choice == i)) for i, eps in enumerate(backbone.grid)]
    for attack in ATTACKS:
        images = [(variant, index) for variant, index in picks[attack] if len(index)]
        if not images:
            continue
        people = np.concatenate([measured.identity[index] for _, index in images])
        sets = {"B_CleanTrans": lambda v: CLEAN, "B_AdvTrans": lambda v: v, "B_DenTrans": denoised}
        for name, variant_of in sets.items():
            right = np.concatenate([measured.correct[variant_of(v)][index] for v, index in images]).astype(float)
            place = {"table": table, "source": backbone.name, "method": attack, "target": name}
            interval = two_way_bootstrap(right, people, people, seed=0)
            rows.append(result_row("accuracy", interval, len(right), **place))
            labels = np.concatenate([measured.label[index] for _, index in images])
            rows.append(result_row("f1", f1_scores(right.astype(bool), labels)[0], len(right), **place))
    return rows


def f1_scores(correct: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """F1 with label 1 as the positive class, and the macro average, in [0, 1]."""
    found = []
    for positive in (1, 0):
        true = np.sum(correct & (labels == positive))
        wrong = np.sum(~correct)  # of two classes, an error is a miss of one and a false alarm of the other
        found.append(2 * true / (2 * true + wrong) if true + wrong else 0.0)
    return float(found[0]), float(np.mean(found))


# ---------------------------------------------------------------- effects: rows of "claim N"


def effects(found: Verification) -> list[dict]:
    """The differences behind claims 4 to 10, paired by the people that are drawn."""
    name, source, rows = found.backbone.name, found.backbone.source, []

    def add(claim: int, metric: str, method: str, effect, scored: Scored, setting: str, **place) -> None:
        if not np.isfinite(effect[1]).any():  # too few impostors for this error
            return
        rows.append(effect_row(f"claim {claim}", metric, effect, scored.mated[setting], method=method, source=source, **place))

    for eps, scored in found.fixed.items():
        for metric in ERRORS:
            for better, worse in (("AA", "CA"), ("CA", "CC")):
                add(4, metric, f"{better} minus {worse}", scored.difference(better, worse, metric), scored, better, x=eps)
            if name == "VGG16" and eps >= 0.0199 and metric != "eer":
                for better, worse in (("CD", "CC"), ("CA", "CD")):
                    add(6, metric, f"{better} minus {worse}", scored.difference(better, worse, metric), scored, better, x=eps)
        if name == "ResNet50":
            for better, worse in (("CD", "CA"), ("DD", "AA")):
                add(7, "auc_det", f"{better} minus {worse}", scored.difference(better, worse, "auc_det"), scored, better, x=eps)
            if eps in found.random:
                for setting in ("AA", "CA"):
                    effect = gap(scored, setting, found.random[eps], setting, "auc_det")
                    add(8, "auc_det", f"{setting}: FGSM minus RAND-ATK", effect, scored, setting, x=eps)
    for label, section in (("changing subsets", found.fixed), ("one subset", found.subset)):
        if len(section) > 1:
            first, last = section[min(section)], section[max(section)]
            for metric in ("fnmr", "auc_det"):
                one, other = (scored.difference("AA", "CC", metric) for scored in (last, first))
                add(5, metric, f"AA minus CC, largest minus smallest eps, {label}", (one[0] - other[0], one[1] - other[1]), last, "AA")
    if "PGD-ATK" in found.variable:
        scored = found.variable["PGD-ATK"]
        for setting in ("AA", "CA", "CD", "DD"):
            if setting in scored.values:
                add(9, "eer", f"PGD-ATK: {setting} minus CC", scored.difference(setting, "CC", "eer"), scored, setting)
    if "FGSM-variable" in found.variable:
        scored = found.variable["FGSM-variable"]
        fixed = average(list(found.fixed.values())) if found.fixed else None
        for setting in ("AA", "CA", "CD", "DD"):
            if name == "VGG16" and setting in scored.values:
                add(10, "eer", f"FGSM-variable: {setting} minus CC", scored.difference(setting, "CC", "eer"), scored, setting)
            elif fixed is not None and setting in scored.values and setting in fixed.values:
                effect = gap(scored, setting, fixed, setting, "eer")
                add(10, "eer", f"{setting}: FGSM-variable minus FGSM-fixed", effect, scored, setting)
    return rows


# ---------------------------------------------------------------- the audit

SIZES = {  # variant -> what it is
    PGD: "as printed: 0.001 a step, stops at success",
    FULL: "the same without the stop",
    fgsm(SMALL[0]): "FGSM at the L-infinity that PGD-ATK reaches",
    rand(SMALL[0]): "random signs at the same L-infinity",
    REACHING: "PGD that fills its ball, ten steps of a quarter",
    SAME_L2: "FGSM, each picture at the L2 of the line above",
    RAND_L2: "random signs, each picture at that L2",
    BLOCKS: "random signs of 2 x 2 pixels, each picture at that L2",
}


def audit_rows(measured: Measured, backbone: Backbone, *, n_resamples: int = 200, seed: int = 0) -> list[dict]:
    """Equal sizes, the 2 x 2 of same and different eps, unrelated networks, 8 bits: on the pictures that are right when clean.

    One set of pictures serves all lines of a table, so CC is one number. ``x`` is the mean root-mean-square change in gray levels.
    """
    audited = len(measured.embedding.get(REACHING, ()))
    rows = np.flatnonzero(measured.correct[CLEAN][:audited])
    if not audited or not is_comparable(measured.identity[rows]):
        return []
    identity, people = measured.identity[rows], np.unique(measured.identity[:audited])
    options = {"people": people, "n_resamples": n_resamples, "seed": seed}
    base = score_settings({"CC": (measured.embedding[CLEAN][rows], None)}, identity, **options)
    found = []

    def compared(embedding: np.ndarray) -> Scored:
        pairs = combinations(measured.embedding[CLEAN][rows], embedding, None)
        del pairs["CC"]
        return _beside(score_settings(pairs, identity, **options), base)

    def line(table: str, method: str, scored: Scored, rms: np.ndarray, correct: np.ndarray | None) -> None:
        place = {"table": table, "source": backbone.source, "method": method}
        for setting in ("AA", "CA"):
            for metric in ("auc_det", "eer"):
                effect = scored.difference(setting, "CC", metric)
                row = effect_row(table, metric, effect, scored.mated[setting], target=f"{setting} minus CC", method=method)
                found.append(row | {"source": backbone.source})
        found.append(result_row("rmsd", float(rms.mean()), len(rows), **place))
        if correct is not None:
            interval = two_way_bootstrap(correct.astype(float), identity, identity, seed=0)
            found.append(result_row("accuracy", interval, len(rows), **place))

    def variant(table: str, name: str) -> None:
        line(table, name, compared(measured.embedding[name][rows]), measured.rms[name][rows], measured.correct[name][rows])

    for name in SIZES:
        variant("Audit: size", name)
    for eps in dict.fromkeys((*SMALL, *LARGE)):
        variant("Audit: curve", fgsm(eps))
    for eps in dict.fromkeys((*backbone.grid, SMALL[0], LARGE[-1])):
        variant("Audit: curve", rand(eps))
    for eps in backbone.grid:
        variant("Audit: curve", rand_blocks(eps))
    for kind in ("untrained", "glasses"):
        for eps in backbone.grid:
            if control(kind, eps) in measured.embedding:  # not every dataset tells who wears glasses
                variant("Audit: controls", control(kind, eps))
    for eps in backbone.grid:
        variant("Audit: controls", fgsm(eps))
    draw = np.random.default_rng(seed)
    for size, grid in (("small", SMALL), ("large", LARGE)):
        embeddings, sizes = (np.stack([part[fgsm(eps)][rows] for eps in grid]) for part in (measured.embedding, measured.rms))
        line("Audit: factorial", f"same eps, {size}", average([compared(e) for e in embeddings]), sizes, None)
        pick = draw.integers(len(grid), size=len(rows)), np.arange(len(rows))
        line("Audit: factorial", f"different eps, {size}", compared(embeddings[pick]), sizes[pick], None)
    return found


def bits_rows(measured: Measured, backbone: Backbone) -> list[dict]:
    """What rounding to 8 bits does to the classifier's accuracy, on the audit's pictures that are right when clean."""
    audited, found = len(measured.embedding.get(REACHING, ())), []
    rows = np.flatnonzero(measured.correct[CLEAN][:audited])
    identity = measured.identity[rows]
    for name in (fgsm(backbone.grid[0]), fgsm(backbone.ball), PGD) if len(rows) else ():
        for shown in (name, EIGHT_BITS.format(name)):
            right = measured.correct[shown][:audited][rows].astype(float)
            interval = two_way_bootstrap(right, identity, identity, seed=0)
            found.append(result_row("accuracy", interval, len(rows), table="Audit: 8 bits", source=backbone.name, method=shown))
    return found


def recognizer_rows(measured: Measured, target: str, *, n_resamples: int = 200, seed: int = 0) -> list[dict]:
    """Table "networks": a face network on all clean pictures of part B: its three errors and the threshold at FMR 0.1%."""
    if not is_comparable(measured.identity):
        return []
    pairs = {"CC": (measured.embedding[CLEAN], None)}
    scored = score_settings(pairs, measured.identity, people=np.unique(measured.identity), n_resamples=n_resamples, seed=seed)
    place = {"table": "networks", "source": network_name(target), "method": "faces", "target": "part B"}
    rows = [
        result_row(metric, scored.interval("CC", metric), scored.mated["CC"], far=OWN if metric == "fnmr" else "", **place)
        for metric in ERRORS
        if np.isfinite(scored.values["CC"][metric])
    ]
    if "CC" in scored.frozen:
        threshold = compare_all(measured.embedding[CLEAN], measured.identity).threshold(FMR)
        rows.append(result_row("threshold", threshold, scored.impostors["CC"], far=OWN, **place))
    return rows


def _beside(scored: Scored, base: Scored) -> Scored:
    """The settings of both, on the same pictures."""
    parts = ({**getattr(base, name), **getattr(scored, name)} for name in ("values", "draws", "frozen", "mated", "impostors"))
    return Scored(*parts)


def backbone_rows(spec: tuple[Backbone, Measured, int, int]) -> dict:
    """All verification rows of a backbone and one face network, for `run_grid`: (backbone, variants, resamples, seed)."""
    backbone, measured, n_resamples, seed = spec
    found = verify(measured, backbone, n_resamples=n_resamples, seed=seed)
    rows = verification_rows(found) + effects(found)
    return {"rows": rows + audit_rows(measured, backbone, n_resamples=n_resamples, seed=seed)}
