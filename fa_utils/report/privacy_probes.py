"""Chapter 2's measurements beside the sweeps: mixtures, maps, variable elimination, and the audit."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from fa_utils.attacks import ClubInformation, Misclassify
from fa_utils.attacks.transfer import network_name, open_network
from fa_utils.data import to_uint8
from fa_utils.metrics import two_way_bootstrap
from fa_utils.privacy.elimination import Elimination, fit_ive, fit_multi_ive
from fa_utils.privacy.information import information_per_image, train_club
from fa_utils.privacy.probes import PAPER_PROBES, accuracy_difference
from fa_utils.report.privacy import ELIMINATIONS, MIXED, OWN_SCALE, REFERENCE, whole_rows
from fa_utils.report.privacy_cases import (
    DEFAULT,
    FGSM,
    GRADIENT,
    MASKED,
    MI,
    MI_MLP,
    RANDOM,
    REMEMBERED,
    TWINS,
    Case,
    Errors,
    Plan,
    Readings,
    Verified,
    attack_of,
    gather,
    in_parallel,
    job_of,
    mixed_batches,
    on_device,
    privacy_code,
    probe_images,
    read_templates,
    run_jobs,
    train_heads,
    verify,
)
from fa_utils.report.results import result_row

LARGEST = DEFAULT[-1]

# ---------------------------------------------------------------- Fig. 5: clean and attacked templates together

SHARES = (0.0, 12.5, 25.0, 37.5, 50.0, 62.5, 75.0, 87.5, 100.0)  # percent of clean templates
STAR, STRONG = "eps*", f"eps {LARGEST:g}"


def mixed(attacked: np.ndarray, clean: np.ndarray, share: float, *, seed: int = 0) -> np.ndarray:
    """The attacked templates, a share (percent) of them replaced by the clean ones; larger shares hold the smaller."""
    order = np.random.default_rng(seed).permutation(len(clean))
    replaced = order[: round(len(clean) * share / 100)]
    templates = attacked.copy()
    templates[replaced] = clean[replaced]
    return templates


def mixture_rows(case: Case, plan: Plan, *, shares: Sequence[float] = SHARES, progress: bool = True) -> list[dict]:
    """Fig. 5 and claim 8: setting B on mixtures at eps* and at 0.3 (column ``x``: clean templates in percent)."""
    clean, keys, arguments = case.templates["clean", 0.0], [], []
    for name in (MI, MI_MLP):
        for words, eps in ((STAR, case.optimum[name]), (STRONG, LARGEST)):
            for share in shares:
                keys.append((name, words, share))
                templates = mixed(case.templates[name, eps], clean, share, seed=plan.seed)
                arguments.append((templates, case.labels, case.identity, plan.seed))
    right = dict(zip(keys, in_parallel(probe_images, arguments, plan.workers, progress, "mixtures"), strict=True))
    rows = [
        case.readings.row("Fig. 5", "B", values, method=f"{name}, {words}", source=case.name, x=share)
        for (name, words, share), values in right.items()
    ]
    for name, share in MIXED.items():
        place = {"metric": "accuracy_difference", "source": case.name}
        if case.name == "AgeDB":
            values = right[name, STRONG, 0.0] - right[name, STRONG, share]
            rows.append(case.readings.row("claim 8", "B", values, method=f"{name}, {STRONG}: none minus {share:g}% clean", **place))
        else:
            best = min((s for s in shares if s < 100), key=lambda s: right[name, STRONG, s].mean())
            values = right[name, STRONG, best] - right[name, STAR, 0.0]
            rows.append(case.readings.row("claim 8", "B", values, method=f"{name}: best mixture at {STRONG} minus {STAR}", x=best, **place))
    return rows


# ---------------------------------------------------------------- Fig. 6: pictures and maps


def perturbed_pictures(case: Case, plan: Plan, *, count: int = 4, epsilons: Sequence[float] | None = None) -> dict[float, np.ndarray]:
    """MI-FGSM on pictures of the balanced set: eps -> uint8 (count, 3, H, W), half of either label."""
    levels = (0.0, case.optimum[MI], LARGEST) if epsilons is None else epsilons
    rows = case.shown[shown_rows(case, count)]
    source = case.benchmark.faces.batch(rows).to(plan.device)
    encoder, attack = open_network(plan.extractor, plan.device), on_device(attack_of(MI, case.heads, plan), plan.device)
    moved = attack.sweep(encoder, source, levels, labels=torch.as_tensor(case.benchmark.labels(rows)))
    return {eps: to_uint8(images.cpu()).numpy() for eps, images in moved}


def shown_rows(case: Case, count: int) -> np.ndarray:
    """Positions in the balanced set of ``count`` (even) pictures, labels alternating."""
    return np.stack([np.flatnonzero(case.labels == label)[: count // 2] for label in (0, 1)], 1).ravel()


def feminine_probability(case: Case, eps: float, *, folds: int = 3) -> np.ndarray:
    """P(label 0) of each picture of the balanced set by logistic regression, cross-validated by people, (n,)."""
    templates = case.templates[MI, eps].astype(np.float64)
    folds = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    options = {"groups": case.identity, "cv": folds, "method": "predict_proba"}
    return cross_val_predict(LogisticRegression(max_iter=10000), templates, case.labels, **options)[:, 0]


def template_map(case: Case, eps: float, *, most: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """t-SNE of the balanced set's templates under MI-FGSM: positions (m, 2) and labels (m,)."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(case.labels))[:most])
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    tsne = TSNE(2, init="pca", perplexity=perplexity, random_state=seed)
    return tsne.fit_transform(case.templates[MI, eps][chosen]), case.labels[chosen]


# ---------------------------------------------------------------- information before and after


def information_rows(case: Case, plan: Plan) -> list[dict]:
    """The vCLUB estimate (column ``x``: eps) by the attacked estimator, an independent one, and one trained on attacked templates.

    The third is trained on one half of the evaluation people's attacked templates and asked about the other, and the
    reverse: what an observer who adapts can still estimate.
    """
    labels, rows = case.labels, []
    development = case.benchmark.labels(case.benchmark.development)
    other = train_club(case.clean["development"], development, iterations=plan.iterations, seed=plan.seed + 1)[plan.iterations]
    people = np.unique(case.identity)
    first = np.isin(case.identity, people[: len(people) // 2])
    for eps in (0.0, case.optimum[MI], LARGEST):
        templates = case.templates[MI, eps]
        values = {name: _information(head, templates, labels) for name, head in (("attacked estimator", case.heads.main), ("independent estimator", other))}
        values["estimator trained on attacked templates"] = _adapted_information(templates, labels, first, plan)
        for name, each in values.items():
            interval = two_way_bootstrap(each, case.identity, case.identity, seed=0)
            rows.append(result_row("information", interval, len(each), table="Information", method=name, source=case.name, x=eps))
    return rows


def _information(head, templates: np.ndarray, labels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return information_per_image(head, torch.as_tensor(templates), labels).cpu().numpy()


def _adapted_information(templates, labels, first: np.ndarray, plan: Plan) -> np.ndarray:
    found = np.empty(len(labels))
    steps = max(1, plan.iterations // 10)  # more, and it learns half the people by heart
    for half in (first, ~first):
        head = train_club(templates[half], labels[half], iterations=steps, seed=plan.seed)[steps]
        found[~half] = _information(head, templates[~half], labels[~half])
    return found


# ---------------------------------------------------------------- variable elimination

TRAINED_ON = {"LFW": "AgeDB", "AgeDB": "LFW", "ColorFERET": "LFW"}  # importance comes from another benchmark


def trained_on(name: str, cases: Mapping[str, Case]) -> str:
    """The benchmark whose development half ranks variables for this one: another where there is one, else its own."""
    other = TRAINED_ON.get(name, name)
    return other if other in cases else name


def fit_eliminations(cases: Mapping[str, Case], plan: Plan, *, progress: bool = True) -> dict[str, dict[str, Elimination]]:
    """IVE and Multi-IVE for each benchmark, from the clean templates of a development half: see `trained_on`.

    Multi-IVE is left out where `too_few_for_rotation` says so.
    """
    keys, arguments = [], []
    for other in dict.fromkeys(trained_on(name, cases) for name in cases):
        templates = cases[other].clean["development"]
        labels = cases[other].benchmark.labels(cases[other].benchmark.development)
        for method in ELIMINATIONS[: 1 if too_few_for_rotation(cases[other]) else 2]:
            keys.append((other, method))
            arguments.append((method, templates, labels, plan.pace, plan.seed, privacy_code()))
    done = dict(zip(keys, in_parallel(REMEMBERED.cache(_fit_elimination), arguments, plan.workers, progress, "eliminations"), strict=True))
    return {name: {method: found for (other, method), found in done.items() if other == trained_on(name, cases)} for name in cases}


def too_few_for_rotation(case: Case) -> bool:
    """Whether the development half has fewer pictures than templates have numbers: not all principal components are there."""
    return len(case.clean["development"]) < case.clean["development"].shape[1]


STEPS, PER_STEP = 20, 5  # IVE's example
PER_ROUND, LOCKED = 3, 5  # Multi-IVE's settings


def _fit_elimination(method: str, templates: np.ndarray, labels: np.ndarray, pace: int, seed: int, code: str) -> Elimination:
    """The published settings; Multi-IVE goes on until only the locked components and less than a round are left. ``code`` is for the key."""
    if method == "IVE":
        return fit_ive(templates, labels, steps=STEPS // pace, per_step=PER_STEP * pace, seed=seed)
    each = PER_ROUND * pace
    rounds = (templates.shape[1] - LOCKED) // each
    return fit_multi_ive(templates, labels, rounds=rounds, per_round=each, locked=LOCKED, seed=seed)


def unit(templates: np.ndarray) -> np.ndarray:
    """Rows of length one; what is left of a template after elimination is compared by Euclidean distance of these."""
    return templates / np.maximum(np.linalg.norm(templates, axis=1, keepdims=True), 1e-12)


def own_scale(elimination: Elimination, templates: np.ndarray, steps: int) -> np.ndarray:
    """What is left after elimination on the scale that the extractor gave: not standardized, as the methods leave it."""
    if elimination.pca is None:
        return np.delete(templates, elimination.eliminated[: steps * elimination.per_step], axis=1)
    return elimination.scaler.inverse_transform(elimination.transform(templates, steps))


def eliminated(
    case: Case, eliminations: Mapping[str, Elimination], plan: Plan, *, levels: int = 10, progress: bool = True
) -> dict[str, dict[int, Verified]]:
    """Both methods, and both on the templates' own scale, on all pictures: method -> {eliminated variables: result}.

    For none (the templates are standardized all the same) and for at most ``levels`` numbers, which grow by a factor: the
    first variables cost most. Numbers between two steps take the variables of a step in the order of their importance.
    """
    templates, keys, arguments = case.clean["evaluation"], [], []
    for method, elimination in eliminations.items():
        single = replace(elimination, per_step=1)
        for gone in sorted({0, *np.geomspace(1, single.max_steps, levels).round().astype(int).tolist()}):
            for name, left in ((method, single.transform(templates, gone)), (OWN_SCALE[method], own_scale(single, templates, gone))):
                keys.append((name, gone))
                arguments.append((case.benchmark, unit(left), plan.seed))
    found: dict[str, dict[int, Verified]] = {name: {} for name, _ in keys}
    for (name, gone), verified in zip(keys, in_parallel(verify, arguments, plan.workers, progress, "eliminations"), strict=True):
        found[name][gone] = verified
    return found


def elimination_rows(case: Case, found: Mapping[str, Mapping[int, Verified]], errors: Errors) -> list[dict]:
    """Privacy against utility of the eliminations (column ``x``: eliminated variables)."""
    rows = []
    for method, by_number in found.items():
        for gone, verified in by_number.items():
            rows += whole_rows(case, "Privacy and utility", method, verified, errors, x=gone)
    return rows


def nearest(by_number: Mapping[int, Verified], goal: float, measure) -> int:
    """How many eliminated variables, at least one, bring ``measure`` closest to ``goal``; the fewest of several."""
    return min((gone for gone in by_number if gone), key=lambda gone: (abs(measure(by_number[gone]) - goal), gone))


def table_rows(case: Case, whole: Mapping, found: Mapping[str, Mapping[int, Verified]], errors: Errors) -> list[dict]:
    """Table 2, claim 6 and the audits at equal EER and on the own scale: reference, MI-FGSM at eps*, and the eliminations.

    As in the paper, an elimination is stopped where it is closest to MI-FGSM's gender accuracy on the very pictures that
    are evaluated. That choice favors the eliminations.
    """
    attacked, rows = whole[MI, case.optimum[MI]], []
    rows += whole_rows(case, "Table 2", REFERENCE, whole["clean", 0.0], errors)
    rows += whole_rows(case, "Table 2", MI, attacked, errors, x=case.optimum[MI])
    rows += whole_rows(case, "Audit: equal EER", REFERENCE, whole["clean", 0.0], errors)
    rows += whole_rows(case, "Audit: equal EER", MI, attacked, errors, x=case.optimum[MI])
    for method, by_number in found.items():
        private = nearest(by_number, attacked.predictions.accuracy(balanced=True), lambda v: v.predictions.accuracy(balanced=True))
        useful = nearest(by_number, errors.rate(attacked.scores), lambda v: errors.rate(v.scores))
        places = ("Table 2", "claim 6") if method in ELIMINATIONS else ("Audit: own scale", "Audit: own scale")
        for table, claim, gone in ((*places, private), ("Audit: equal EER", "Audit: equal EER", useful)):
            rows += whole_rows(case, table, method, by_number[gone], errors, x=gone)
            rows += _against(case, claim, f"{method} minus {MI}", by_number[gone], attacked, errors, x=gone)
    return rows


def _against(case: Case, table: str, method: str, one: Verified, other: Verified, errors: Errors, **place) -> list[dict]:
    gender = accuracy_difference(one.predictions, other.predictions, balanced=True, seed=0)
    shared = {"table": table, "method": method, "source": case.name, **place}
    return [
        result_row("balanced_accuracy_difference", gender, len(case.benchmark.evaluation), **shared),
        result_row("eer_difference", errors.difference(one.scores, other.scores), len(case.benchmark.pairs), **shared),
    ]


# ---------------------------------------------------------------- audit 1: MI-FGSM is FGSM


SINGLE, DOUBLE = 400, 100  # pictures whose gradients are compared in single and in double precision


def sign_agreement(
    case: Case, plan: Plan, head, *, most: int = SINGLE, number: torch.dtype = torch.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Signs of the gradient of the estimate and of the cross-entropy on one head: share that agrees, and whether the latter is saturated.

    A cross-entropy is saturated when the true label's probability rounds to one.

    Parameters
    ----------
    most : int
        Pictures, evenly from the balanced set.
    number : torch.dtype
        float32, as attacks compute, or float64.

    Returns
    -------
    two arrays, shape (m,)
        Share in [0, 1]; 0 or 1.
    """
    encoder, head = (copy.deepcopy(part).to(plan.device, number) for part in (open_network(plan.extractor, plan.device), head))
    rows = sampled(case.shown, most)
    labels = case.benchmark.labels(rows)
    shares, saturated = np.empty(len(rows)), np.empty(len(rows))
    for batch in mixed_batches(labels, plan.unit):
        wanted, gradients = torch.as_tensor(labels[batch]), []
        for objective in (ClubInformation(head), Misclassify(head)):
            images = case.benchmark.faces.batch(rows[batch]).to(plan.device, number).requires_grad_()
            logits = objective.predict(encoder, images)
            gradients.append(torch.autograd.grad(objective.loss(logits, wanted.to(plan.device)).sum(), images)[0])
        same = gradients[0].sign() == gradients[1].sign()
        shares[batch] = same.flatten(1).float().mean(1).cpu()
        sure = logits.detach().cpu().softmax(1).gather(1, wanted[:, None])[:, 0]
        saturated[batch] = (sure == 1).float()
    return shares, saturated


def sampled(rows: np.ndarray, most: int) -> np.ndarray:
    """At most about ``most`` of the rows, evenly."""
    return rows[:: max(1, len(rows) // most)]




def equality_rows(cases: Mapping[str, Case], plan: Plan, *, progress: bool = True) -> list[dict]:
    """Audit 1 and claim 9: signs, and the 2 x 2 of {information, cross-entropy} x {CLUB head, MLP} in both settings."""
    rows = []
    for case in cases.values():
        for name, head in (("CLUB head", case.heads.main), ("MLP", case.heads.mlp)):
            shares, saturated = sign_agreement(case, plan, head)
            exact, _ = sign_agreement(case, plan, head, most=DOUBLE, number=torch.float64)
            rows.append(_share_row(case, f"signs that agree, {name}", shares, SINGLE))
            rows.append(_share_row(case, f"the same in double precision, {name}", exact, DOUBLE))
            rows.append(_share_row(case, f"images with a saturated cross-entropy, {name}", saturated, SINGLE))
            if name == "CLUB head":
                rows.append(_share_row(case, "signs that agree", shares, SINGLE, table="claim 9"))
    for case in cases.values():
        levels = tuple(sorted({case.optimum[MI], case.optimum[FGSM], DEFAULT[0], LARGEST}))
        _extra_sweep(case, plan, list(TWINS.values()), levels, progress=progress)
        for (loss, head), name in CROSSED.items():
            for setting in ("A", "B"):
                for eps in levels:
                    values = case.readings.values(setting, name, eps)
                    rows.append(case.readings.row("Audit: 2 x 2", setting, values, method=f"{loss} on {head}", source=case.name, x=eps))
    return rows


def _share_row(case: Case, method: str, values: np.ndarray, most: int, *, table: str = "Audit: equality") -> dict:
    """A share of signs or of pictures, from one value for each of the `sampled` pictures."""
    people = sampled(case.identity, most)
    interval = two_way_bootstrap(values, people, people, seed=0)
    return result_row("hit_rate", interval, len(values), table=table, method=method, source=case.name)


CROSSED = {
    ("information", "CLUB head"): MI,
    ("cross-entropy", "CLUB head"): TWINS[MI],
    ("information", "MLP"): TWINS[FGSM],
    ("cross-entropy", "MLP"): FGSM,
}


def _extra_sweep(case: Case, plan: Plan, names: Sequence[str], epsilons: Sequence[float], *, progress: bool = True, **options) -> None:
    """Further attacks on the balanced set, into the case's templates and readings; ``alias`` renames a single one."""
    alias = options.pop("alias", None)
    jobs = [job_of(case.benchmark, case.shown, name, case.heads, plan, epsilons, **options) for name in names]
    results = run_jobs(jobs, workers=plan.workers, progress=progress)
    if alias:
        jobs = [replace(jobs[0], name=alias)]
    case.templates.update(gather(jobs, results, case.templates["clean", 0.0]))
    names = [job.name for job in jobs]
    read_templates(case.readings, case.templates, case.labels, case.heads.mlp, plan, names=names, epsilons=epsilons, progress=progress)


# ---------------------------------------------------------------- audits 2 to 5

ROUNDED = f"{MI}, 8 bits"


def rounding_rows(case: Case, plan: Plan, *, progress: bool = True) -> list[dict]:
    """Audit 2: MI-FGSM at every eps of the sensitive range, on floats and on pictures stored with 8 bits."""
    _extra_sweep(case, plan, [MI], plan.grid, progress=progress, rounded=True, alias=ROUNDED)
    rows = []
    for name in (MI, ROUNDED):
        for setting in ("A", "B"):
            for eps in plan.grid:
                values = case.readings.values(setting, name, eps)
                rows.append(case.readings.row("Audit: 8 bits", setting, values, method=name, source=case.name, x=eps))
    return rows


def choice_rows(case: Case, plan: Plan) -> list[dict]:
    """Audit 3: setting-B accuracy on the evaluation half at the eps* of either half, and how much the second flatters."""
    rows, readings = [], case.readings
    for name in GRADIENT:
        chosen = {"chosen on others": case.optimum[name], "chosen on the evaluated": readings.lowest("B", name, plan.grid)}
        values = {words: readings.values("B", name, eps) for words, eps in chosen.items()}
        for words, eps in chosen.items():
            rows.append(readings.row("Audit: choice of eps", "B", values[words], method=name, source=case.name, x=eps, far=words))
        gap = values["chosen on others"] - values["chosen on the evaluated"]
        rows.append(readings.row("Audit: choice of eps", "B", gap, metric="accuracy_difference", method=name, source=case.name, far="others minus evaluated"))
    return rows


STRONGER = {"boosting": ("boosting",), "small MLP": ("mlp",)}


def adaptive_rows(case: Case, plan: Plan, *, progress: bool = True) -> list[dict]:
    """Audit 4: stronger probes, and probes that saw clean templates too (column ``x``: eps of MI-FGSM), against setting B."""
    clean = (case.templates["clean", 0.0], case.labels, case.identity)
    keys, arguments = [], []
    for eps in (0.0, case.optimum[MI], LARGEST):
        templates = case.templates[MI, eps]
        for words, probes in ({"the paper's probes": PAPER_PROBES} | STRONGER).items():
            for training, extra in (("attacked", None), ("attacked and clean", clean)):
                if eps or extra is None:
                    keys.append((words, training, eps))
                    arguments.append((templates, case.labels, case.identity, plan.seed, probes, extra))
    right = dict(zip(keys, in_parallel(probe_images, arguments, plan.workers, progress, "adaptive probes"), strict=True))
    rows = []
    for (words, training, eps), values in right.items():
        place = {"method": words, "source": case.name, "x": eps, "far": training}
        rows.append(case.readings.row("Audit: adaptive", "B", values, **place))
        gap = values - right["the paper's probes", "attacked", eps]
        if (words, training) != ("the paper's probes", "attacked"):
            rows.append(case.readings.row("Audit: adaptive", "B", gap, metric="accuracy_difference", **place))
    return rows


def reader_rows(case: Case, plan: Plan, *, progress: bool = True) -> list[dict]:
    """Audit 5: pictures perturbed for one extractor, templates read by others (columns ``x``: eps, ``far``: the reader)."""
    levels = (0.0, case.optimum[MI], DEFAULT[0], LARGEST)
    readers = tuple(dict.fromkeys((plan.extractor, *plan.readers)))
    job = job_of(case.benchmark, case.shown, MI, case.heads, plan, levels, readers=readers)
    (result,) = run_jobs([job], progress=False)
    keys = [(reader, level) for reader in job.judges for level in range(len(levels))]
    arguments = [(result[reader][level], case.labels, case.identity, plan.seed) for reader, level in keys]
    right = dict(zip(keys, in_parallel(probe_images, arguments, plan.workers, progress, "readers"), strict=True))
    rows = []
    for (reader, level), values in right.items():
        place = {"method": MI, "source": case.name, "x": levels[level], "far": network_name(reader)}
        rows.append(case.readings.row("Audit: other extractors", "B", values, **place))
        if level:
            gap = values - right[reader, 0]
            rows.append(case.readings.row("Audit: other extractors", "B", gap, metric="accuracy_difference", **place))
    return rows


# ---------------------------------------------------------------- variants


def label_rows(case: Case, plan: Plan, *, progress: bool = True) -> list[dict]:
    """What probes learn at large eps: MI-FGSM given random labels; can the probes read gender, and can they read those labels?"""
    labels = np.random.default_rng(plan.seed).permutation(case.labels)
    levels = (case.optimum[MI], DEFAULT[0], LARGEST)
    job = job_of(case.benchmark, case.shown, MI, case.heads, plan, levels, labels=labels)
    (result,) = run_jobs([job], progress=False)
    keys, arguments = [], []
    for eps, templates in zip(levels, result[plan.extractor], strict=True):
        for words, asked in (("random labels, gender read", case.labels), ("random labels, those labels read", labels)):
            keys.append((words, eps))
            arguments.append((templates, asked, case.identity, plan.seed))
    right = zip(keys, in_parallel(probe_images, arguments, plan.workers, progress, "label control"), strict=True)
    rows = [
        case.readings.row("Audit: labels", "B", case.readings.values("B", MI, eps), method="true labels, gender read", source=case.name, x=eps)
        for eps in levels
    ]
    return rows + [
        case.readings.row("Audit: labels", "B", values, method=words, source=case.name, x=eps) for (words, eps), values in right
    ]


def variant_rows(case: Case, plan: Plan, *, progress: bool = True) -> list[dict]:
    """The paper's other readings: folds without groups, estimator and MLP trained on the evaluated images, masked random signs."""
    rows, readings = [], case.readings
    levels = (0.0, case.optimum[MI], LARGEST)
    arguments = [(case.templates[MI, eps], case.labels, case.identity, plan.seed, PAPER_PROBES, None, False) for eps in levels]
    for eps, values in zip(levels, in_parallel(probe_images, arguments, plan.workers, progress, "ungrouped folds"), strict=True):
        rows.append(readings.row("Audit: variants", "B", values, method=f"{MI}, folds not grouped", source=case.name, x=eps))
    own = train_heads(case.templates["clean", 0.0], case.labels, plan, checkpoints=False)
    job = job_of(case.benchmark, case.shown, MI, own, plan, levels)
    (result,) = run_jobs([job], progress=False)
    again = Readings(case.identity)
    templates = gather([job], [result], case.templates["clean", 0.0])
    read_templates(again, templates, case.labels, own.mlp, plan, names=[MI], epsilons=levels, progress=progress)
    for setting in ("A", "B"):
        for eps in levels:
            values = again.values(setting, MI, eps)
            rows.append(readings.row("Audit: variants", setting, values, method=f"{MI}, heads trained on the evaluated", source=case.name, x=eps))
    _extra_sweep(case, plan, [MASKED], (LARGEST,), progress=progress)
    for name in (RANDOM, MASKED):
        for setting in ("A", "B"):
            values = readings.values(setting, name, LARGEST)
            rows.append(readings.row("Audit: variants", setting, values, method=name, source=case.name, x=LARGEST))
    return rows


def one_sided_rows(case: Case, whole: Mapping[tuple[str, float], Verified], errors: Errors) -> list[dict]:
    """EER under MI-FGSM (column ``x``: eps) when both pictures of a pair are attacked, and when only one is."""
    rows = []
    for (name, eps), verified in whole.items():
        if name == MI:
            for words, scores in (("both pictures attacked", verified.scores), ("one picture attacked", verified.one_sided)):
                place = {"table": "Audit: one side", "method": words, "source": case.name, "x": eps}
                rows.append(result_row("eer", errors.interval(scores), len(case.benchmark.pairs), **place))
    return rows


def audit_rows(cases: Mapping[str, Case], plan: Plan, *, progress: bool = True) -> list[dict]:
    """All audits on the balanced sets."""
    rows = equality_rows(cases, plan, progress=progress)
    for case in cases.values():
        for part in (rounding_rows, adaptive_rows, reader_rows, label_rows, variant_rows):
            rows += part(case, plan, progress=progress)
        rows += choice_rows(case, plan)
    return rows

