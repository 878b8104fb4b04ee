"""What chapter 2 runs, and how its tables, differences and claims come from the runs.

The same functions serve the notebook (live) and ``benchmarks/publish_privacy.py`` (published).

Every benchmark's people are split in two halves. Estimators, gender classifiers and the choice of eps see the development
half alone; all that is reported comes from the evaluation half (sheet 2-mi-privacy, items e and f). The variants that
follow the paper to the letter are in `fa_utils.report.privacy_probes`.
"""

import functools
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

import fa_utils
from fa_utils.attacks import Attack, ClubInformation, Misclassify, RandomSigns
from fa_utils.attacks.transfer import network_sha256, open_network
from fa_utils.data import FaceSet, Pairs, load_domain, to_uint8
from fa_utils.data.aging import fold_pairs
from fa_utils.metrics import equal_error_rate, pair_similarity, two_way_bootstrap
from fa_utils.models.weights import write_atomically
from fa_utils.paths import CACHE
from fa_utils.privacy.information import ClubHead, train_club
from fa_utils.privacy.probes import (
    PAPER_PROBES,
    GenderMLP,
    Predictions,
    accuracy_difference,
    accuracy_interval,
    balanced_subset,
    cross_validate,
    halves_by_identity,
    mlp_predictions,
    train_mlp,
)
from fa_utils.report.claims import (
    Claim,
    Evidence,
    claim_all_positive,
    claim_every,
    claim_mean_difference,
    claim_printed,
)
from fa_utils.report.results import paper_table, result_row

CHAPTER = "2_mi_privacy"
PAPER = "2-mi-privacy"
EXTRACTOR = "ires-vggface2-arcface"
READERS = ("ires16-webface-arcface", "mobile-webface-softmax")


@dataclass(frozen=True)
class Source:
    """Where a benchmark's pictures come from, and the smallest age gap of its pairs in years."""

    domain: str
    pictures: int
    gap: float = 0.0


BENCHMARKS = {  # name in the paper -> ours; AgeDB has more pictures a person, so that half its people hold 6,000 pairs at the gap
    "LFW": Source("lfw", 4),
    "AgeDB": Source("agedb", 16, gap=30.0),
    "ColorFERET": Source("colorferet", 6),
}
MI, MI_MLP, FGSM, RANDOM = "MI-FGSM", "MI-FGSM-MLP", "FGSM", "RND-ATK"
GRADIENT = (MI, MI_MLP, FGSM)
ATTACKS = (*GRADIENT, RANDOM)
SETTINGS = ("A", "B")
DEFAULT = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # eps on the scale of [0, 1]; paper, section 4.3
TOP = 0.03  # end of the sensitive range
EARLY = 0.015  # where the paper says that the attacks have reached their lowest accuracy in setting A
UTILITY = (0.003, 0.006, 0.015, 0.03, 0.05, 0.1, 0.3)  # eps at which all pictures are attacked and verified


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is computed, and with what.

    Attributes
    ----------
    people : int or None
        Of each benchmark, both halves together; all by default.
    images : int
        Pictures of the gender-balanced sets of either half, at most.
    iterations : int
        Of the estimator. A third of them and 1.58 times as many are looked at too (paper: 5,000, 15,000 and 23,700).
    sensitive : int
        Steps of the sensitive range up to 0.03; 50 in the paper.
    utility : sequence of float
        The eps at which all pictures of the evaluation half are attacked.
    folds : int
        Folds of the verification protocol.
    extractor : str
        Address of the network whose templates are protected.
    unit : int
        Pictures attacked at once.
    """

    people: int | None = None
    images: int = 5000
    iterations: int = 15000
    sensitive: int = 50
    utility: tuple[float, ...] = UTILITY
    folds: int = 10
    extractor: str = EXTRACTOR
    unit: int = 64
    seed: int = 0
    device: str = "cpu"
    workers: int = 1

    @property
    def grid(self) -> tuple[float, ...]:
        """The sensitive range."""
        return tuple(round(TOP * step / self.sensitive, 6) for step in range(1, self.sensitive + 1))

    @property
    def epsilons(self) -> tuple[float, ...]:
        """No attack, the sensitive and the default range."""
        return (0.0, *self.grid, *DEFAULT)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Iterations of Fig. 2."""
        return (max(1, self.iterations // 3), self.iterations, round(1.58 * self.iterations))

    @property
    def early(self) -> float:
        """The last eps of the grid that is not above `EARLY`; the first where all are."""
        below = [eps for eps in self.grid if eps <= EARLY + 1e-9]
        return below[-1] if below else self.grid[0]


# ---------------------------------------------------------------- benchmarks


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A benchmark's pictures, its people in two halves.

    Attributes
    ----------
    pairs : Pairs
        Positions in ``evaluation``, not in ``faces``.
    development, evaluation : int array
        Rows of ``faces``, all pictures of either half.
    tuned, shown : int array
        Positions in ``development`` and in ``evaluation`` of the gender-balanced sets.
    """

    name: str
    faces: FaceSet
    pairs: Pairs
    development: np.ndarray
    evaluation: np.ndarray
    tuned: np.ndarray
    shown: np.ndarray

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """The gender-like attribute of some rows, 0 (feminine) or 1."""
        return self.faces.attributes["gender"].to_numpy()[rows].astype(np.int64)

    def identity(self, rows: np.ndarray) -> np.ndarray:
        """Who is on some rows."""
        return self.faces.identity[rows]


def make_benchmark(name: str, plan: Plan, *, progress: bool = True) -> Benchmark:
    """Render a benchmark, split its people and make its pairs.

    Raises
    ------
    ValueError
        For people too few for two halves, for the folds, or for a pair at the age gap in each of them.
    """
    source = BENCHMARKS[name]
    faces = load_domain(source.domain, "test", identities=plan.people, pictures=source.pictures, progress=progress)
    return split_benchmark(name, faces, plan, gap=source.gap)


def split_benchmark(name: str, faces: FaceSet, plan: Plan, *, gap: float = 0.0) -> Benchmark:
    """The halves, balanced sets and pairs of any pictures with attributes ``gender`` and ``age``."""
    labels = faces.attributes["gender"].to_numpy()
    halves = halves_by_identity(faces.identity, labels, seed=plan.seed)
    development, evaluation = (np.sort(np.asarray(half)) for half in halves)
    sets = []
    for half in (development, evaluation):
        chosen = balanced_subset(labels[half], faces.identity[half], _even(plan.images, labels[half]), seed=plan.seed)
        sets.append(np.sort(np.asarray(chosen)))
    age = faces.attributes["age"].to_numpy()[evaluation]
    pairs = fold_pairs(faces.identity[evaluation], age=age, gap=gap, folds=plan.folds, seed=plan.seed)
    return Benchmark(name, faces, pairs, development, evaluation, *sets)


def _even(images: int, labels: np.ndarray) -> int:
    """The largest even size that both labels can fill."""
    return min(images // 2, int(np.bincount(labels.astype(int), minlength=2).min())) * 2


# ---------------------------------------------------------------- estimators, classifiers, attacks


class OnHidden(nn.Module):
    """A CLUB head on the hidden features of the gender classifier: what MI-FGSM-MLP attacks."""

    def __init__(self, mlp: GenderMLP, head: ClubHead):
        super().__init__()
        self.mlp, self.head = mlp, head

    def forward(self, templates):
        return self.head(self.mlp.hidden(templates))


@dataclass(frozen=True, eq=False)
class Heads:
    """What is trained on the clean templates of a benchmark: estimators by iterations, the classifier, its estimator."""

    club: dict[int, ClubHead]
    mlp: GenderMLP
    club_mlp: OnHidden
    iterations: int

    @property
    def main(self) -> ClubHead:
        """The estimator that the attacks use."""
        return self.club[self.iterations]


def train_heads(templates: np.ndarray, labels: np.ndarray, plan: Plan, *, checkpoints: bool = True) -> Heads:
    """The estimator, the classifier and the estimator on its hidden features, from clean templates (N, D)."""
    steps = plan.checkpoints if checkpoints else (plan.iterations,)
    club = train_club(templates, labels, iterations=max(steps), checkpoints=steps, seed=plan.seed)
    mlp = train_mlp(templates, labels, iterations=plan.iterations, seed=plan.seed)
    with torch.no_grad():
        hidden = mlp.hidden(torch.as_tensor(templates))
    inner = train_club(hidden, labels, iterations=plan.iterations, seed=plan.seed)[plan.iterations]
    return Heads({step: club[step] for step in steps}, mlp, OnHidden(mlp, inner), plan.iterations)


TWINS = {MI: "FGSM, CLUB head", FGSM: "MI-FGSM, MLP"}  # an attack and the same with the other loss on the same head
MASKED = "RND-ATK, masked"


def iterated(steps: int) -> str:
    """How Fig. 2 calls MI-FGSM with an estimator of so many iterations."""
    return f"{MI}, {steps} iterations"


def attack_of(name: str, heads: Heads, plan: Plan) -> Attack:
    """A one-step attack by the name that tables give it; its eps is that of the sweep.

    Raises
    ------
    KeyError
        For a name that is none.
    """
    objectives = {
        MI: lambda: ClubInformation(heads.main),
        MI_MLP: lambda: ClubInformation(heads.club_mlp),
        FGSM: lambda: Misclassify(heads.mlp),
        RANDOM: lambda: RandomSigns(),
        MASKED: lambda: RandomSigns(mask=True),
        TWINS[MI]: lambda: Misclassify(heads.main),
        TWINS[FGSM]: lambda: ClubInformation(heads.mlp),
    } | {iterated(steps): lambda head=head: ClubInformation(head) for steps, head in heads.club.items()}
    return Attack(objective=objectives[name](), eps=DEFAULT[-1], step_size=DEFAULT[-1], steps=1, seed=plan.seed)


# ---------------------------------------------------------------- templates of attacked pictures


@dataclass(frozen=True, eq=False)
class Job:
    """One attack on some pictures at several eps, and who reads the templates.

    ``labels`` are what the attack takes for true; ``rounded`` stores the pictures as 8-bit numbers before they are read.
    """

    faces: FaceSet
    rows: np.ndarray
    labels: np.ndarray
    name: str
    attack: Attack
    epsilons: tuple[float, ...]
    extractor: str
    readers: tuple[str, ...] = ()
    rounded: bool = False
    unit: int = 64
    device: str = "cpu"

    @property
    def judges(self) -> tuple[str, ...]:
        """Networks that read the templates; the extractor where none is named."""
        return self.readers or (self.extractor,)

    def digest(self) -> str:
        """What the templates depend on, as a short name."""
        state = hashlib.sha256(_code().encode())
        weights = [network_sha256(name) for name in (self.extractor, *self.judges)]
        state.update(repr((self.attack, self.epsilons, weights, self.rounded, self.faces.name, torch.__version__)).encode())
        for part in (self.rows, self.labels, self.faces.identity, self.faces.images[self.rows[:: max(1, len(self.rows) // 50)]]):
            state.update(np.ascontiguousarray(part).tobytes())
        head = getattr(self.attack.objective, "head", None)
        for weight in head.state_dict().values() if head is not None else ():
            state.update(weight.cpu().numpy().tobytes())
        return state.hexdigest()[:24]


@functools.lru_cache(maxsize=1)
def _code() -> str:
    """The code that attacks and embeds: kept templates must not outlive it."""
    root = Path(fa_utils.__file__).parent
    files = [root / "attacks" / f"{name}.py" for name in ("engine", "objectives")]
    files += [root / "models" / f"{name}.py" for name in ("encoder", "iresnet", "resnet", "mobilefacenet", "vgg")]
    return fa_utils.__version__ + "".join(file.read_text() for file in files)


def mixed_batches(labels: np.ndarray, unit: int) -> list[np.ndarray]:
    """Positions in batches of about ``unit``, each with both labels in about the proportion of the whole.

    Raises
    ------
    ValueError
        If there is one label only, or so few of one that a batch must lack it.
    """
    labels = np.asarray(labels)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        chosen = np.flatnonzero(labels == label)
        place[chosen] = (np.arange(len(chosen)) + 0.5) / len(chosen)
    batches = np.array_split(np.argsort(place, kind="stable"), max(1, -(-len(labels) // unit)))
    for batch in batches:
        if len(np.unique(labels[batch])) < 2:
            found = np.unique(labels, return_counts=True)
            counts = ", ".join(f"{count} of label {label}" for label, count in zip(*found, strict=True))
            raise ValueError(f"batches of {unit} cannot all hold both labels: there are {counts}; take larger batches or more pictures")
    return batches


def attack_templates(job: Job) -> dict[str, np.ndarray]:
    """Templates of the attacked pictures: reader -> float32 (eps, n, D), unit vectors. One gradient a picture for all eps."""
    encoder = open_network(job.extractor, job.device)
    judges = {name: open_network(name, job.device) for name in job.judges}
    found: dict[str, np.ndarray] = {}
    for batch in mixed_batches(job.labels, job.unit):
        rows = job.rows[batch]
        source = job.faces.batch(rows).to(job.device)
        labels = torch.as_tensor(job.labels[batch]) if getattr(job.attack.objective, "takes_labels", False) else None
        moved = job.attack.sweep(encoder, source, job.epsilons, labels=labels, keys=[str(row) for row in rows])
        for level, (_, images) in enumerate(moved):
            if job.rounded:
                images = to_uint8(images).to(images.dtype) / 255
            for name, judge in judges.items():
                with torch.no_grad():
                    templates = judge(images).cpu().numpy()
                if name not in found:
                    found[name] = np.empty((len(job.epsilons), len(job.rows), templates.shape[1]), np.float32)
                found[name][level, batch] = templates
    return found


def _kept_templates(job: Job, cache: Path | None) -> dict[str, np.ndarray]:
    path = cache and cache / f"{job.digest()}.npz"
    if path and path.exists():
        with np.load(path) as kept:
            return {name: kept[name] for name in kept.files}
    found = attack_templates(job)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, **found)
        write_atomically(path, buffer.getvalue())
    return found


def run_jobs(
    jobs: Sequence[Job], *, workers: int = 1, cache: Path | None = CACHE / "privacy", progress: bool = True
) -> list[dict[str, np.ndarray]]:
    """The templates of every job, kept on the disk, in processes of one thread each."""
    return _parallel(_kept_templates, [(job, cache) for job in jobs], workers, progress, "attacks")


def _parallel(function, arguments: Sequence[tuple], workers: int, progress: bool, words: str) -> list:
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        runner = joblib.Parallel(n_jobs=workers if len(arguments) > 1 else 1, return_as="generator")
        done = runner(joblib.delayed(function)(*each) for each in arguments)
        return list(tqdm(done, total=len(arguments), desc=words, disable=not progress, leave=False))


class Templates(dict):
    """(attack, eps) -> templates (n, D) of the same pictures; at eps 0 every attack has the clean ones."""

    def __missing__(self, key):
        name, eps = key
        if eps == 0 and name != "clean":
            return self["clean", 0.0]
        raise KeyError(f"no templates of {name} at eps {eps:g}")


def job_of(benchmark: Benchmark, rows: np.ndarray, name: str, heads: Heads, plan: Plan, epsilons, **options) -> Job:
    """The job of an attack on rows of a benchmark at the plan's settings; ``labels`` among the options replace the true ones."""
    shared = {"extractor": plan.extractor, "unit": plan.unit, "device": plan.device, "labels": benchmark.labels(rows)}
    attack = attack_of(name, heads, plan)
    return Job(benchmark.faces, rows, name=name, attack=attack, epsilons=tuple(epsilons), **(shared | options))


def gather(jobs: Sequence[Job], results: Sequence[Mapping[str, np.ndarray]], clean: np.ndarray) -> Templates:
    """The templates of jobs on the same rows, as the first judge of each reads them."""
    found = Templates({("clean", 0.0): clean})
    for job, result in zip(jobs, results, strict=True):
        for eps, templates in zip(job.epsilons, result[job.judges[0]], strict=True):
            found[job.name, eps] = templates
    return found


# ---------------------------------------------------------------- reading gender from templates


class Readings:
    """Which templates were read right, on one benchmark.

    ``right[setting, attack, eps]`` is (n,): 0 or 1 in setting A, the share of the three probes in setting B.
    """

    def __init__(self, identity: np.ndarray):
        self.identity = np.asarray(identity)
        self.right: dict[tuple[str, str, float], np.ndarray] = {}

    def values(self, setting: str, name: str, epsilons) -> np.ndarray:
        """Mean over some eps, (n,)."""
        epsilons = np.atleast_1d(epsilons)
        return np.mean([self.right[setting, name if eps else "clean", float(eps)] for eps in epsilons], axis=0)

    def accuracy(self, setting: str, name: str, eps) -> float:
        """In [0, 1]."""
        return float(self.values(setting, name, eps).mean())

    def interval(self, values: np.ndarray):
        """Mean with an interval clustered by identity."""
        return two_way_bootstrap(values, self.identity, self.identity, seed=0)

    def lowest(self, setting: str, name: str, epsilons: Sequence[float]) -> float:
        """The eps of lowest accuracy; the smallest of several."""
        return float(min(epsilons, key=lambda eps: (round(self.accuracy(setting, name, eps), 12), eps)))

    def row(self, table: str, setting: str, values: np.ndarray, **place) -> dict:
        """A result row of an accuracy, or of a difference of two."""
        metric = place.pop("metric", "accuracy")
        return result_row(metric, self.interval(values), len(values), table=table, target=f"setting {setting}", **place)


def read_templates(
    readings: Readings,
    templates: Templates,
    labels: np.ndarray,
    mlp: GenderMLP,
    plan: Plan,
    *,
    names: Sequence[str],
    epsilons: Sequence[float],
    progress: bool = True,
) -> Readings:
    """Fill in both settings for some attacks at some eps; probes of setting B run side by side."""
    keys = [("clean", 0.0)] + [(name, eps) for name in names for eps in epsilons if eps]
    keys = [key for key in dict.fromkeys(keys) if ("B", *key) not in readings.right]
    arguments = [(templates[key], labels, readings.identity, plan.seed) for key in keys]
    for key, right in zip(keys, _parallel(_setting_b, arguments, plan.workers, progress, "probes"), strict=True):
        readings.right["A", *key] = (np.asarray(mlp_predictions(mlp, templates[key])) == labels).astype(float)
        readings.right["B", *key] = right
    return readings


def _setting_b(templates, labels, identity, seed: int) -> np.ndarray:
    return cross_validate(templates, labels, identity, probes=PAPER_PROBES, seed=seed).per_image()


# ---------------------------------------------------------------- one benchmark, from pictures to readings


@dataclass(eq=False)
class Case:
    """Everything about one benchmark.

    Attributes
    ----------
    clean : dict
        "development" and "evaluation" -> clean templates of all pictures of that half.
    heads : Heads
        Trained on the development half.
    templates : Templates
        Of the balanced set of the evaluation half.
    readings : Readings
        Of the same.
    tuning : Readings
        Of the balanced set of the development half.
    optimum : dict
        Attack -> its eps*: the lowest accuracy in setting B on the development half.
    """

    benchmark: Benchmark
    clean: dict[str, np.ndarray]
    heads: Heads
    templates: Templates = field(default_factory=Templates)
    readings: Readings | None = None
    tuning: Readings | None = None
    optimum: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def shown(self) -> np.ndarray:
        """Rows of the balanced set of the evaluation half."""
        return self.benchmark.evaluation[self.benchmark.shown]

    @property
    def tuned(self) -> np.ndarray:
        """Rows of the balanced set of the development half."""
        return self.benchmark.development[self.benchmark.tuned]

    @property
    def labels(self) -> np.ndarray:
        return self.benchmark.labels(self.shown)

    @property
    def identity(self) -> np.ndarray:
        return self.benchmark.identity(self.shown)


def open_cases(plan: Plan, names: Sequence[str] = tuple(BENCHMARKS), *, progress: bool = True) -> dict[str, Case]:
    """Render the benchmarks, embed them and train what is trained on their development halves."""
    benchmarks = [make_benchmark(name, plan, progress=progress) for name in names]
    done = _parallel(_open_case, [(benchmark, plan) for benchmark in benchmarks], plan.workers, progress, "estimators")
    return {case.name: case for case in done}


def _open_case(benchmark: Benchmark, plan: Plan) -> Case:
    encoder = open_network(plan.extractor, plan.device)
    clean = {}
    for half in ("development", "evaluation"):
        rows = getattr(benchmark, half)
        batches = np.array_split(rows, max(1, -(-len(rows) // plan.unit)))
        with torch.no_grad():
            parts = [encoder(benchmark.faces.batch(part).to(plan.device)).float().cpu().numpy() for part in batches]
        clean[half] = np.concatenate(parts)
    heads = train_heads(clean["development"], benchmark.labels(benchmark.development), plan)
    return Case(benchmark, clean, heads)


def choose_optima(cases: Mapping[str, Case], plan: Plan, names: Sequence[str] = GRADIENT, *, progress: bool = True) -> None:
    """eps* of each attack on each benchmark, from the development half's balanced set and the sensitive range."""
    jobs = [[job_of(case.benchmark, case.tuned, name, case.heads, plan, plan.grid) for name in names] for case in cases.values()]
    results = run_jobs(sum(jobs, []), workers=plan.workers, progress=progress)
    for number, (case, mine) in enumerate(zip(cases.values(), jobs, strict=True)):
        part = results[number * len(names) : (number + 1) * len(names)]
        templates = gather(mine, part, case.clean["development"][case.benchmark.tuned])
        rows, labels = case.tuned, case.benchmark.labels(case.tuned)
        case.tuning = Readings(case.benchmark.identity(rows))
        read_templates(case.tuning, templates, labels, case.heads.mlp, plan, names=names, epsilons=plan.grid, progress=progress)
        case.optimum = {name: case.tuning.lowest("B", name, plan.grid) for name in names}


def sweep_attacks(cases: Mapping[str, Case], plan: Plan, names: Sequence[str], epsilons: Sequence[float], *, progress: bool = True) -> None:
    """Attack the balanced sets of the evaluation halves and read them in both settings."""
    wanted = tuple(eps for eps in dict.fromkeys(epsilons) if eps)
    jobs = [[job_of(case.benchmark, case.shown, name, case.heads, plan, wanted) for name in names] for case in cases.values()]
    results = run_jobs(sum(jobs, []), workers=plan.workers, progress=progress)
    for number, (case, mine) in enumerate(zip(cases.values(), jobs, strict=True)):
        part = results[number * len(names) : (number + 1) * len(names)]
        case.templates.update(gather(mine, part, case.clean["evaluation"][case.benchmark.shown]))
        case.readings = case.readings or Readings(case.identity)
        read_templates(case.readings, case.templates, case.labels, case.heads.mlp, plan, names=names, epsilons=wanted, progress=progress)


# ---------------------------------------------------------------- rows of the figures


def curve_rows(case: Case, table: str, names: Sequence[str], epsilons: Sequence[float]) -> list[dict]:
    """Figures 2 to 4: accuracy on the balanced set in both settings against eps (column ``x``)."""
    rows = []
    for setting in SETTINGS:
        for name in names:
            for eps in dict.fromkeys((0.0, *epsilons)):
                values = case.readings.values(setting, name, eps)
                rows.append(case.readings.row(table, setting, values, method=name, source=case.name, x=eps))
    return rows


def optimum_rows(case: Case) -> list[dict]:
    """eps* of each attack (column ``x``) with the setting-B accuracy that it has on both halves."""
    rows = []
    for name, eps in case.optimum.items():
        for readings, half in ((case.tuning, "development"), (case.readings, "evaluation")):
            place = {"method": name, "source": case.name, "x": eps, "far": half}
            rows.append(readings.row("Optimum", "B", readings.values("B", name, eps), **place))
    return rows


# ---------------------------------------------------------------- all pictures: privacy against verification


class Verified(NamedTuple):
    """One method at one strength on all pictures of an evaluation half: gender probes and scores of the pairs."""

    predictions: Predictions
    scores: np.ndarray


def verify(benchmark: Benchmark, templates: np.ndarray, seed: int, other: np.ndarray | None = None) -> Verified:
    """Setting B on all pictures, and the cosine of every pair; ``other`` holds the templates of the pairs' second pictures."""
    rows = benchmark.evaluation
    predictions = cross_validate(templates, benchmark.labels(rows), benchmark.identity(rows), probes=PAPER_PROBES, seed=seed)
    return Verified(predictions, pair_scores(benchmark.pairs, templates, other))


def pair_scores(pairs: Pairs, templates: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    """Cosine of every pair; it ranks as the Euclidean distance of unit templates does."""
    return pair_similarity(templates[pairs.a], (templates if other is None else other)[pairs.b])


def whole_attacks(
    cases: Mapping[str, Case], plan: Plan, names: Sequence[str] = ATTACKS, *, progress: bool = True
) -> dict[str, dict[tuple[str, float], Verified]]:
    """Every attack on all pictures of the evaluation halves, at the eps of ``plan.utility`` and at eps*."""
    jobs, owners = [], []
    for case in cases.values():
        for name in names:
            epsilons = tuple(sorted({*plan.utility, case.optimum.get(name, plan.utility[0])}))
            jobs.append(job_of(case.benchmark, case.benchmark.evaluation, name, case.heads, plan, epsilons))
            owners.append(case.name)
    results = run_jobs(jobs, workers=plan.workers, progress=progress)
    keys, arguments = [], []
    for case in cases.values():
        keys.append((case.name, "clean", 0.0))
        arguments.append((case.benchmark, case.clean["evaluation"], plan.seed))
    for owner, job, result in zip(owners, jobs, results, strict=True):
        for eps, templates in zip(job.epsilons, result[plan.extractor], strict=True):
            keys.append((owner, job.name, eps))
            arguments.append((cases[owner].benchmark, templates, plan.seed))
    found: dict[str, dict] = {name: {} for name in cases}
    for (owner, name, eps), verified in zip(keys, _verify_all(arguments, plan, progress), strict=True):
        found[owner][name, eps] = verified
    return found


def _verify_all(arguments: Sequence[tuple], plan: Plan, progress: bool) -> list[Verified]:
    return _parallel(verify, arguments, plan.workers, progress, "whole sets")


def error_replicates(scores: np.ndarray, pairs: Pairs, identity: np.ndarray, *, n_resamples: int = 500, seed: int = 0) -> np.ndarray:
    """Equal error rates of bootstrap resamples of people, (n_resamples,), in [0, 1].

    A person drawn k times counts k times in a mated pair; an impostor pair counts the product of both (the pigeonhole
    bootstrap, Owen 2007). The same seed draws the same people, so that two methods on the same pairs are paired.
    """
    _, who = np.unique(identity, return_inverse=True)
    one, two = who[pairs.a], who[pairs.b]
    size = int(who.max()) + 1
    random = np.random.default_rng(seed)
    order = np.argsort(-scores, kind="stable")
    same = pairs.same[order]
    one, two = one[order], two[order]
    found = np.empty(n_resamples)
    for k in range(n_resamples):
        drawn = random.multinomial(size, np.full(size, 1 / size))
        weight = np.where(same, drawn[one], drawn[one] * drawn[two]).astype(float)
        accepted = np.cumsum(weight * ~same) / max(1e-12, float((weight * ~same).sum()))
        rejected = 1 - np.cumsum(weight * same) / max(1e-12, float((weight * same).sum()))
        after = int(np.argmax(accepted >= rejected))
        found[k] = (accepted[after] + rejected[after]) / 2
    return found


def error_interval(replicates: np.ndarray, estimate: float) -> tuple[float, float, float]:
    """Percentile interval of a statistic, widened to hold its estimate."""
    low, high = np.quantile(replicates, [0.025, 0.975])
    return estimate, min(float(low), estimate), max(float(high), estimate)


class Errors:
    """Equal error rates of the methods on one benchmark, their replicates computed once."""

    def __init__(self, benchmark: Benchmark, *, n_resamples: int = 500):
        self.benchmark, self.n_resamples = benchmark, n_resamples
        self.kept: dict[bytes, np.ndarray] = {}

    def rate(self, scores: np.ndarray) -> float:
        """In [0, 1]."""
        return equal_error_rate(scores, self.benchmark.pairs.same)

    def replicates(self, scores: np.ndarray) -> np.ndarray:
        key = hashlib.sha256(np.ascontiguousarray(scores).tobytes()).digest()
        if key not in self.kept:
            identity = self.benchmark.identity(self.benchmark.evaluation)
            self.kept[key] = error_replicates(scores, self.benchmark.pairs, identity, n_resamples=self.n_resamples)
        return self.kept[key]

    def interval(self, scores: np.ndarray) -> tuple[float, float, float]:
        """The rate with its interval."""
        return error_interval(self.replicates(scores), self.rate(scores))

    def difference(self, one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
        """Rate of the one minus rate of the other, paired."""
        return error_interval(self.replicates(one) - self.replicates(other), self.rate(one) - self.rate(other))


def whole_rows(case: Case, table: str, method: str, verified: Verified, errors: Errors, *, x: float = math.nan, **place) -> list[dict]:
    """Balanced accuracy and equal error rate of one method on all pictures."""
    shared = {"table": table, "method": method, "source": case.name, "x": x, **place}
    gender = accuracy_interval(verified.predictions, balanced=True, seed=0)
    images, pairs = len(case.benchmark.evaluation), len(case.benchmark.pairs)
    return [
        result_row("balanced_accuracy", gender, images, **shared),
        result_row("eer", errors.interval(verified.scores), pairs, **shared),
    ]


REFERENCE = "Reference"
ELIMINATIONS = ("IVE", "Multi-IVE")
MIXED = {MI: 50.0, MI_MLP: 37.5}  # attack -> share of clean templates in percent at which the paper finds AgeDB most private


def utility_rows(case: Case, whole: Mapping[tuple[str, float], Verified], errors: Errors) -> list[dict]:
    """Privacy against utility: every attack at every eps (column ``x``) on all pictures."""
    rows = []
    for (name, eps), verified in whole.items():
        rows += whole_rows(case, "Privacy and utility", REFERENCE if name == "clean" else name, verified, errors, x=eps)
    return rows


# ---------------------------------------------------------------- the differences behind the claims


def setting_effects(case: Case, plan: Plan) -> list[dict]:
    """Claims 1 to 4 on one benchmark."""
    readings, late = case.readings, [eps for eps in plan.epsilons if eps > plan.early]
    rows = []

    def add(claim: int, setting: str, method: str, values: np.ndarray, **place) -> None:
        shared = {"metric": "accuracy_difference", "method": method, "source": case.name, **place}
        rows.append(readings.row(f"claim {claim}", setting, values, **shared))

    for name in GRADIENT:
        eps = readings.lowest("A", name, late)
        values = readings.values("A", name, eps) - readings.values("A", name, plan.early)
        add(1, "A", f"{name}: lowest beyond eps {plan.early:g} minus there", values, x=eps)
    eps = readings.lowest("A", RANDOM, plan.epsilons[1:])
    add(1, "A", f"{RANDOM}: lowest minus clean", readings.values("A", RANDOM, eps) - readings.values("A", RANDOM, 0.0), x=eps)

    mean = {name: readings.values("A", name, DEFAULT) for name in ATTACKS}
    sign = -1 if case.name == "AgeDB" else 1
    for name in (MI, MI_MLP):
        words = f"{name} minus {FGSM}" if sign < 0 else f"{FGSM} minus {name}"
        add(2, "A", words, sign * (mean[FGSM] - mean[name]))
    add(2, "A", f"{MI_MLP} minus {MI}", mean[MI_MLP] - mean[MI])

    clean = readings.values("B", MI, 0.0)
    for name in GRADIENT:
        for eps in DEFAULT:
            add(3, "B", f"{name} minus clean", readings.values("B", name, eps) - clean, x=eps)
    add(3, "B", f"clean minus {RANDOM}", clean - readings.values("B", RANDOM, DEFAULT))

    best = min((MI, MI_MLP), key=lambda name: case.tuning.accuracy("B", name, case.optimum[name]))
    values = readings.values("B", FGSM, case.optimum[FGSM]) - readings.values("B", best, case.optimum[best])
    add(4, "B", f"{FGSM} minus {best}, each at its eps*", values)
    return rows


def training_effects(case: Case, plan: Plan, epsilons: Sequence[float]) -> list[dict]:
    """Claim 7 on one benchmark: what other numbers of iterations change, averaged over the eps of Fig. 2."""
    middle, rows = iterated(plan.iterations), []
    for steps in (plan.checkpoints[0], plan.checkpoints[-1]):
        for setting in SETTINGS:
            values = case.readings.values(setting, iterated(steps), epsilons) - case.readings.values(setting, middle, epsilons)
            place = {"metric": "accuracy_difference", "source": case.name, "method": f"{steps} minus {plan.iterations} iterations"}
            rows.append(case.readings.row("claim 7", setting, values, far="all eps", **place))
            if case.name == "AgeDB" and setting == "B":
                large = [eps for eps in epsilons if eps >= DEFAULT[0]]
                values = case.readings.values("B", iterated(steps), large) - case.readings.values("B", middle, large)
                rows.append(case.readings.row("claim 7", setting, values, far="default range", **place))
    return rows


def utility_effects(case: Case, whole: Mapping[tuple[str, float], Verified], errors: Errors) -> list[dict]:
    """Claim 5 on one benchmark: what MI-FGSM at eps* does to both numbers."""
    clean, attacked = whole["clean", 0.0], whole[MI, case.optimum[MI]]
    place = {"table": "claim 5", "source": case.name, "x": case.optimum[MI]}
    fall = accuracy_difference(clean.predictions, attacked.predictions, balanced=True, seed=0)
    rise = errors.difference(attacked.scores, clean.scores)
    images, pairs = len(case.benchmark.evaluation), len(case.benchmark.pairs)
    return [
        result_row("balanced_accuracy_difference", fall, images, method=f"clean minus {MI}", **place),
        result_row("eer_difference", rise, pairs, method=f"{MI} minus clean", **place),
    ]


# ---------------------------------------------------------------- the claims

MARGIN = 1.0  # points: "does not lower", "not above"
SIMILAR = 3.0  # points: "changes little", "similar gender accuracy"
FALL = 6.0  # points: the smallest fall of gender accuracy that the text names
AGREE = 99.9  # percent
STATEMENTS = {
    1: (f"Setting A: the gradient attacks reach their lowest accuracy by eps 0.015, RND-ATK does not lower it (by {MARGIN:g} point or more)", "Fig. 3 and 4"),
    2: ("Setting A: both MI attacks are below FGSM on LFW and ColorFERET, above it on AgeDB; MI-FGSM is not above MI-FGSM-MLP", "Fig. 3"),
    3: ("Setting B: from eps 0.05 on every gradient attack gives an accuracy above the clean one, RND-ATK does not", "Fig. 3"),
    4: ("Setting B: an MI attack at its eps* gives a lower accuracy than FGSM at its own, on all benchmarks", "Fig. 4"),
    5: (f"MI-FGSM at eps* costs the probes {FALL:g} points or more and the EER less than one, on all benchmarks", "Table 2"),
    6: ("At similar gender accuracy MI-FGSM has a lower EER than IVE and Multi-IVE, on all benchmarks", "Table 2"),
    7: (f"The estimator's iterations change the accuracies by less than {SIMILAR:g} points; AgeDB, setting B, is lowest at 15,000", "Fig. 2"),
    8: ("Mixing in clean templates helps at eps 0.3 on AgeDB; on LFW and ColorFERET it stays worse than eps* alone", "Fig. 5"),
    9: (f"MI-FGSM is cross-entropy FGSM on the estimator's head: {AGREE:g}% of the signs agree", "sheet, 3a"),
}


def judge_effects(rows: pd.DataFrame | None) -> dict[int, Evidence]:
    """Evidence on each claim from a run's rows; claims that the run does not speak to are left out."""
    if rows is None or rows.empty:
        return {}
    judges = {1: _each(-MARGIN), 2: _second, 3: _third, 4: _each(0.0), 5: _fifth, 6: _sixth, 7: _seventh, 8: _each(0.0), 9: _each(AGREE, "percent")}
    found = {}
    for number, judge in judges.items():
        part = rows[rows["table"] == f"claim {number}"]
        if len(part):
            found[number] = judge(part)
    return found


def _evidence(row: Mapping, *, bound: float = 0.0, sign: int = 1, unit: str = "points") -> Evidence:
    low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
    return claim_mean_difference(sign * row["value"], low, high, int(row["n_pairs"]), bound=bound, unit=unit)


def _where(row: Mapping) -> str:
    return f"{row['source']}, {row['method']}"


def _each(bound: float, unit: str = "points"):
    def judge(part: pd.DataFrame) -> Evidence:
        return claim_every({_where(row): _evidence(row, bound=bound, unit=unit) for row in part.to_dict("records")})

    return judge


def _second(part: pd.DataFrame) -> Evidence:
    """MI-FGSM "not above" MI-FGSM-MLP allows the margin; the other parts are strict."""
    weak = f"{MI_MLP} minus {MI}"
    return claim_every(
        {_where(row): _evidence(row, bound=-MARGIN if row["method"] == weak else 0.0) for row in part.to_dict("records")}
    )


def _third(part: pd.DataFrame) -> Evidence:
    random = part["method"] == f"clean minus {RANDOM}"
    cells = part[~random].copy()
    cells["label"] = [f"{_where(row)}, eps {row['x']:g}" for row in cells.to_dict("records")]
    parts = {"gradient attacks above clean in every cell": claim_all_positive(cells.reset_index(drop=True))}
    return claim_every(parts | {_where(row): _evidence(row, bound=-MARGIN) for row in part[random].to_dict("records")})


def _fifth(part: pd.DataFrame) -> Evidence:
    parts = {}
    for row in part.to_dict("records"):
        falls = row["metric"] == "balanced_accuracy_difference"
        parts[_where(row)] = _evidence(row, bound=FALL) if falls else _evidence(row, bound=-1.0, sign=-1)
    return claim_every(parts)


def _sixth(part: pd.DataFrame) -> Evidence:
    """EER differences; where the other method is more private by more than `SIMILAR` points, nothing can be said."""
    gaps = part[part["metric"] == "balanced_accuracy_difference"].set_index(["source", "method"])["value"]
    parts = {}
    for row in part[part["metric"] == "eer_difference"].to_dict("records"):
        evidence = _evidence(row)
        if gaps[row["source"], row["method"]] < -SIMILAR:
            evidence = Evidence("undecided", evidence.effect, evidence.low, evidence.high, evidence.n_pairs, detail="not similarly private")
        parts[_where(row)] = evidence
    return claim_every(parts)


def _seventh(part: pd.DataFrame) -> Evidence:
    parts = {}
    for row in part.to_dict("records"):
        name = f"{_where(row)}, {row['target']}"
        if row["far"] == "default range":
            parts[f"{name}, default range"] = _evidence(row)
        else:
            parts |= {name + words: _evidence(row, bound=-SIMILAR, sign=sign) for sign, words in ((1, ""), (-1, ", reversed"))}
    return claim_every(parts)


def judge_printed() -> dict[int, Evidence]:
    """Evidence from the paper's own numbers, at face value; most of its curves have none."""
    table = paper_table(PAPER)
    cells = table[table["table"] == "Table 2"].pivot_table(index="source", columns=["method", "metric"], values="value")
    gender = {method: cells[method, "balanced_accuracy"] for method in (REFERENCE, MI)}
    eer = {method: cells[method, "eer"] for method in (REFERENCE, MI, *ELIMINATIONS)}
    worse = {f"{name} on {source}": eer[name][source] - eer[MI][source] for name in ELIMINATIONS for source in cells.index}
    found = {
        5: claim_printed([*(gender[REFERENCE] - gender[MI] - FALL), *(1 - (eer[MI] - eer[REFERENCE]))]),
        6: claim_printed(list(worse.values()), labels=list(worse)),
    }
    figure = table[(table["table"] == "Fig. 5") & (table["metric"] == "accuracy")]
    value = figure.set_index(["source", "method", "setting"])["value"]
    clean, at = value["AgeDB", REFERENCE, "B, 100% clean"], "B, eps 0.300, 0% clean"
    labels = [f"AgeDB, {name} at eps 0.3" for name in (MI, MI_MLP)]
    found[3] = claim_printed([value["AgeDB", name, at] - clean for name in (MI, MI_MLP)], labels=labels)
    gaps = table[(table["table"] == "Fig. 4") & (table["metric"] == "accuracy_difference")]
    found[4] = claim_printed(gaps["value"])
    helped = [value["AgeDB", name, at] - value["AgeDB", name, f"B, eps 0.300, {share:g}% clean"] for name, share in MIXED.items()]
    worse = [value["LFW", name, "B, eps 0.300, best mixture"] - value["LFW", name, "B, eps*, 0% clean"] for name in MIXED]
    found[8] = claim_printed([*helped, *worse])
    return dict(sorted(found.items()))


def make_claims(published: pd.DataFrame | None, live: pd.DataFrame | None, *, printed: bool = True) -> list[Claim]:
    """The nine claims with the evidence of each run."""
    runs = {"printed": judge_printed() if printed else {}, "published": judge_effects(published), "live": judge_effects(live)}
    return [
        Claim(number, statement, where, **{run: evidence.get(number) for run, evidence in runs.items()})
        for number, (statement, where) in STATEMENTS.items()
    ]
