"""What chapter 2 runs: benchmarks in two halves, estimators, attacks at many eps, probes, verification.

The benchmarks are three domains of rendered people, or one dataset of real faces with a label ``gender``.
Every benchmark's people are split in two halves. Estimators, gender classifiers and the choice of eps see the development
half alone; all that is reported comes from the evaluation half (sheet 2-mi-privacy, items e and f). The variants that
follow the paper to the letter are in `fa_utils.report.privacy_probes`.
"""

import copy
import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import sklearn
import torch
from torch import nn
from tqdm.auto import tqdm

import fa_utils
from fa_utils.attacks import Attack, ClubInformation, Misclassify, RandomSigns
from fa_utils.attacks.transfer import network_name, network_sha256, open_network, split_addresses
from fa_utils.data import FaceSet, Pairs, load_domain, load_faces, to_uint8
from fa_utils.data.aging import fold_pairs
from fa_utils.metrics import equal_error_rate, pair_similarity, two_way_bootstrap, wilson_interval
from fa_utils.models.weights import write_atomically
from fa_utils.paths import CACHE
from fa_utils.privacy.information import ClubHead, train_club
from fa_utils.privacy.probes import (
    PAPER_PROBES,
    GenderMLP,
    Predictions,
    balanced_subset,
    cross_validate,
    halves_by_identity,
    mlp_predictions,
    train_mlp,
)
from fa_utils.report.results import result_row

EXTRACTOR = "ires-vggface2-arcface"
READERS = ("ires16-webface-arcface", "mobile-webface-softmax")
PROCEDURAL = "procedural"


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
AS_IN_PAPER = {name.lower(): name for name in BENCHMARKS}  # a real dataset's name -> the paper's; others keep theirs
MOST_PICTURES = 6  # of a person in verification pairs on real faces
MI, MI_MLP, FGSM, RANDOM = "MI-FGSM", "MI-FGSM-MLP", "FGSM", "RND-ATK"
GRADIENT = (MI, MI_MLP, FGSM)
ATTACKS = (*GRADIENT, RANDOM)
SETTINGS = ("A", "B")
DEFAULT = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # eps on the scale of [0, 1]; paper, section 4.3
TOP = 0.03  # end of the sensitive range
EARLY = 0.015  # where the paper says that the attacks have reached their lowest accuracy in setting A
STEPS = 50  # of the sensitive range
GRIDS = {  # which of its steps are run: few where curves are flat, all that matter where they bend
    "quick": (2, 5, 25, 50),
    "coarse": (1, 2, 3, 5, 7, 10, 25, 50),
    "fine": (*range(1, 11), 12, 14, 16, 20, 25, 30, 40, 50),
    "full": tuple(range(1, STEPS + 1)),
}
UTILITY = (0.0018, 0.006, 0.03, 0.3)  # eps at which all pictures are attacked and verified, besides eps*


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is computed, and with what.

    Attributes
    ----------
    people : int or None
        Of each benchmark, both halves together; all by default. Of a real dataset those with two or more pictures first.
    images : int
        Pictures of the gender-balanced sets of either half, at most.
    iterations : int
        Of the estimator. A third of them and 1.58 times as many are looked at too (paper: 5,000, 15,000 and 23,700).
    grid_name : str
        Which steps of the sensitive range are run, a key of `GRIDS`; "full" in the paper.
    utility : sequence of float
        The eps at which all pictures of the evaluation half are attacked.
    folds : int
        Folds of the verification protocol.
    extractor : str
        Address of the network whose templates are protected.
    readers : sequence of str
        Addresses of other networks that read the attacked pictures.
    faces : str
        "procedural", or the address of a real dataset (`fa_utils.data.load_faces`).
    pace : int
        Published steps of IVE and rounds of Multi-IVE that are taken at once; 1 is as published.
    unit : int
        Pictures attacked at once.
    """

    people: int | None = None
    images: int = 5000
    iterations: int = 15000
    grid_name: str = "full"
    utility: tuple[float, ...] = UTILITY
    folds: int = 10
    extractor: str = EXTRACTOR
    readers: tuple[str, ...] = READERS
    faces: str = PROCEDURAL
    pace: int = 1
    unit: int = 64
    seed: int = 0
    device: str = "cpu"
    workers: int = 1

    @property
    def grid(self) -> tuple[float, ...]:
        """The sensitive range."""
        return tuple(round(TOP * step / STEPS, 6) for step in GRIDS[self.grid_name])

    @property
    def epsilons(self) -> tuple[float, ...]:
        """No attack, the sensitive and the default range."""
        return (0.0, *self.grid, *DEFAULT)

    @property
    def few(self) -> tuple[float, ...]:
        """Every second eps of both ranges, for Fig. 2."""
        return (*self.grid[1::2], *DEFAULT[::2], DEFAULT[-1])

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Iterations of Fig. 2."""
        return (max(1, self.iterations // 3), self.iterations, round(1.58 * self.iterations))

    @property
    def networks(self) -> str:
        """How results call the extractor: "zoo" for the default one, else its name."""
        return "zoo" if self.extractor == EXTRACTOR else network_name(self.extractor)

    @property
    def early(self) -> float:
        """The last eps of the sensitive range that is not above `EARLY`."""
        return max(eps for eps in self.grid if eps <= EARLY + 1e-9)


def readers_of(networks: str) -> tuple[str, ...]:
    """Addresses of the other networks that read attacked pictures: "zoo", or as `split_addresses` reads them."""
    if networks == "zoo":
        return READERS
    return split_addresses(networks)


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
    gap : float
        Smallest age gap of the pairs in years.
    unlabeled : int
        Pictures that are left out because their label is not known.
    """

    name: str
    faces: FaceSet
    pairs: Pairs
    development: np.ndarray
    evaluation: np.ndarray
    tuned: np.ndarray
    shown: np.ndarray
    gap: float = 0.0
    unlabeled: int = 0

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


def real_benchmark(faces: FaceSet, plan: Plan) -> Benchmark:
    """A real dataset's halves, sets and pairs; named as in the paper where the paper has it.

    LFW's and AgeDB's own lists of pairs are not used: they compare people of different halves, and what is left within a
    half is few and uneven. Pairs are drawn from the evaluation half in their way instead (`fold_pairs`), with AgeDB's age
    gap where ages are known, and from at most `MOST_PICTURES` pictures of a person, or a few often photographed people
    would be most of the mated pairs.

    Raises
    ------
    ValueError
        Where no picture has a label ``gender`` of 0 or 1, and for people too few, as in `make_benchmark`.
    """
    name = AS_IN_PAPER.get(faces.name, faces.name)
    gap = BENCHMARKS[name].gap if name in BENCHMARKS and "age" in faces.attributes else 0.0
    known = np.flatnonzero(np.isin(gender_labels(faces), (0, 1)))
    rows = known if plan.people is None else known[people_first(faces.identity[known], plan.people, seed=plan.seed)]
    return split_benchmark(name, faces, plan, gap=gap, rows=rows, most=None if gap else MOST_PICTURES)


def gender_labels(faces: FaceSet) -> np.ndarray:
    """The attribute ``gender`` of every picture, int64 (N,): 1 masculine, 0 feminine, -1 not known.

    Raises
    ------
    ValueError
        If the faces have no such attribute, or all of it is unknown.
    """
    columns = list(faces.attributes.columns)
    if "gender" not in columns:
        raise ValueError(
            f"the faces {faces.name!r} have no attribute 'gender', which this chapter hides: they have {', '.join(columns) or 'none'}. "
            "LFW needs male_names.txt and female_names.txt beside its pictures, a folder of your own a column gender (1, 0; -1 for unknown) in its attributes CSV"
        )
    labels = pd.to_numeric(faces.attributes["gender"], errors="coerce").fillna(-1).to_numpy(np.int64)
    if not np.isin(labels, (0, 1)).any():
        raise ValueError(f"no picture of {faces.name!r} has a gender of 1 or 0: all {len(labels)} are unknown")
    return labels


def people_first(identity: np.ndarray, people: int, *, seed: int = 0) -> np.ndarray:
    """Rows of so many people, drawn at random, those with two pictures or more before those with one: mated pairs need two."""
    names, counts = np.unique(identity, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(counts[order] < 2, kind="stable")]
    return np.flatnonzero(np.isin(identity, names[order[:people]]))


def split_benchmark(
    name: str, faces: FaceSet, plan: Plan, *, gap: float = 0.0, rows: np.ndarray | None = None, most: int | None = None
) -> Benchmark:
    """The halves, balanced sets and pairs of any pictures with an attribute ``gender``, and ``age`` for a gap.

    Parameters
    ----------
    rows : int array, optional
        The pictures that take part, all with a known label; all pictures by default.
    most : int, optional
        Pictures of a person that pairs are drawn from; all by default.
    """
    labels = gender_labels(faces)
    rows = np.arange(len(faces)) if rows is None else rows
    halves = halves_by_identity(faces.identity[rows], labels[rows], seed=plan.seed)
    development, evaluation = (rows[np.sort(np.asarray(half))] for half in halves)
    sets = []
    for half in (development, evaluation):
        chosen = balanced_subset(labels[half], faces.identity[half], _even(plan.images, labels[half]), seed=plan.seed)
        sets.append(np.sort(np.asarray(chosen)))
    pairs = half_pairs(faces, evaluation, plan, gap=gap, most=most)
    return Benchmark(name, faces, pairs, development, evaluation, *sets, gap=gap, unlabeled=int((labels < 0).sum()))


def half_pairs(faces: FaceSet, rows: np.ndarray, plan: Plan, *, gap: float, most: int | None) -> Pairs:
    """Pairs of the pictures on ``rows``, as positions in ``rows``; ages matter for a gap alone."""
    identity, kept = faces.identity[rows], np.arange(len(rows))
    if most is not None:
        order = np.random.default_rng(plan.seed).permutation(len(rows))
        kept = np.sort(order[turns(identity[order]) < most])
    age = faces.attributes["age"].to_numpy()[rows][kept] if gap else None
    pairs = fold_pairs(identity[kept], age=age, gap=gap, folds=plan.folds, seed=plan.seed)
    return Pairs(a=kept[pairs.a], b=kept[pairs.b], same=pairs.same, fold=pairs.fold)


def turns(identity: np.ndarray) -> np.ndarray:
    """How many entries of the same person come before each entry, (n,)."""
    return pd.Series(identity).groupby(identity).cumcount().to_numpy()


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
    return REMEMBERED.cache(_train_heads)(templates, labels, plan.iterations, steps, plan.seed, privacy_code())


def _train_heads(templates, labels, iterations: int, steps: tuple[int, ...], seed: int, code: str) -> Heads:
    """``code`` is there for the key alone."""
    club = train_club(templates, labels, iterations=max(steps), checkpoints=steps, seed=seed)
    mlp = train_mlp(templates, labels, iterations=iterations, seed=seed)
    with torch.no_grad():
        hidden = mlp.hidden(torch.as_tensor(templates))
    inner = train_club(hidden, labels, iterations=iterations, seed=seed)[iterations]
    return Heads({step: club[step] for step in steps}, mlp, OnHidden(mlp, inner), iterations)


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


def on_device(attack: Attack, device: str) -> Attack:
    """The attack with a copy of its head where the network is; heads themselves stay on the CPU, with the templates."""
    head = getattr(attack.objective, "head", None)
    if head is None or device == "cpu":
        return attack
    return replace(attack, objective=replace(attack.objective, head=copy.deepcopy(head).to(device)))


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
    files += [root / "models" / f"{name}.py" for name in ("encoder", "iresnet", "resnet", "mobilefacenet", "vgg", "onnx")]
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
    judges, attack = {name: open_network(name, job.device) for name in job.judges}, on_device(job.attack, job.device)
    found: dict[str, np.ndarray] = {}
    for batch in mixed_batches(job.labels, job.unit):
        rows = job.rows[batch]
        source = job.faces.batch(rows).to(job.device)
        labels = torch.as_tensor(job.labels[batch]) if getattr(attack.objective, "takes_labels", False) else None
        moved = attack.sweep(encoder, source, job.epsilons, labels=labels, keys=[str(row) for row in rows])
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
    return in_parallel(_kept_templates, [(job, cache) for job in jobs], workers, progress, "attacks")


REMEMBERED = joblib.Memory(CACHE / "privacy", verbose=0)  # what is fitted, by its arguments and the code that fits


@functools.lru_cache(maxsize=1)
def privacy_code() -> str:
    """The code of `fa_utils.privacy` with the versions of what it stands on: nothing kept must outlive it."""
    folder = Path(fa_utils.__file__).parent / "privacy"
    return "".join([sklearn.__version__, torch.__version__, *(file.read_text() for file in sorted(folder.glob("*.py")))])


def in_parallel(function, arguments: Sequence[tuple], workers: int, progress: bool, words: str) -> list:
    """``function(*each)`` for every tuple of arguments, in order, in processes of one thread each."""
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        # No memory maps of large arguments: they come read-only, which torch warns of.
        runner = joblib.Parallel(n_jobs=workers if len(arguments) > 1 else 1, return_as="generator", max_nbytes=None)
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

    def interval(self, values: np.ndarray, *, share: bool = False):
        """Mean with an interval clustered by identity; for shares that are all 0 or all 1 Wilson's over the people."""
        if share and values.min() == values.max() and values.min() in (0.0, 1.0):
            people = len(np.unique(self.identity))
            return wilson_interval(int(values[0]) * people, people)
        return two_way_bootstrap(values, self.identity, self.identity, seed=0)

    def lowest(self, setting: str, name: str, epsilons: Sequence[float]) -> float:
        """The eps of lowest accuracy; the smallest of several."""
        return float(min(epsilons, key=lambda eps: (round(self.accuracy(setting, name, eps), 12), eps)))

    def row(self, table: str, setting: str, values: np.ndarray, **place) -> dict:
        """A result row of an accuracy, or of a difference of two."""
        metric = place.pop("metric", "accuracy")
        interval = self.interval(values, share=metric == "accuracy")
        return result_row(metric, interval, len(values), table=table, target=f"setting {setting}", **place)


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
    for key, right in zip(keys, in_parallel(probe_images, arguments, plan.workers, progress, "probes"), strict=True):
        readings.right["A", *key] = (np.asarray(mlp_predictions(mlp, templates[key])) == labels).astype(float)
        readings.right["B", *key] = right
    return readings


def probe(templates, labels, identity, seed: int, probes=PAPER_PROBES, extra=None, grouped: bool = True) -> Predictions:
    """`cross_validate`, each result kept on the disk: a long run that was killed goes on where it was."""
    state = hashlib.sha256(privacy_code().encode() + repr((seed, probes, grouped)).encode())
    for part in (templates, labels, identity, *(extra or ())):
        state.update(np.ascontiguousarray(part).tobytes())
    path = CACHE / "privacy" / "probes" / f"{state.hexdigest()[:24]}.npz"
    if path.exists():
        with np.load(path) as kept:
            return Predictions(np.asarray(labels), np.asarray(identity), {name: kept[name] for name in kept.files})
    found = cross_validate(templates, labels, identity, probes=probes, extra=extra, grouped=grouped, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **found.correct)
    write_atomically(path, buffer.getvalue())
    return found


def probe_images(*arguments) -> np.ndarray:
    """Share of the probes that are right about each row, (n,); arguments of `probe`."""
    return probe(*arguments).per_image()


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
    """Render or read the benchmarks, embed them and train what is trained on their development halves.

    Real faces are one benchmark, whatever ``names`` says.
    """
    if plan.faces == PROCEDURAL:
        benchmarks = [make_benchmark(name, plan, progress=progress) for name in names]
    else:
        benchmarks = [real_benchmark(load_faces(plan.faces, progress=progress), plan)]
    done = in_parallel(_open_case, [(benchmark, plan) for benchmark in benchmarks], plan.workers, progress, "estimators")
    return {case.name: case for case in done}


def _open_case(benchmark: Benchmark, plan: Plan) -> Case:
    clean = {half: clean_templates(benchmark.faces, getattr(benchmark, half), plan) for half in ("development", "evaluation")}
    heads = train_heads(clean["development"], benchmark.labels(benchmark.development), plan)
    return Case(benchmark, clean, heads)


def clean_templates(faces: FaceSet, rows: np.ndarray, plan: Plan) -> np.ndarray:
    """Templates of pictures as they are, float32 (n, D), unit vectors; kept on the disk."""
    state = hashlib.sha256(repr((_code(), network_sha256(plan.extractor), faces.name, torch.__version__)).encode())
    for part in (rows, faces.identity, faces.images[rows[:: max(1, len(rows) // 50)]]):
        state.update(np.ascontiguousarray(part).tobytes())
    path = CACHE / "privacy" / f"{state.hexdigest()[:24]}.npy"
    if path.exists():
        return np.load(path)
    encoder = open_network(plan.extractor, plan.device)
    batches = np.array_split(rows, max(1, -(-len(rows) // plan.unit)))
    with torch.no_grad():
        found = np.concatenate([encoder(faces.batch(part).to(plan.device)).float().cpu().numpy() for part in batches])
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, found)
    write_atomically(path, buffer.getvalue())
    return found


def read_clean(cases: Mapping[str, Case], plan: Plan, *, progress: bool = True) -> list[dict]:
    """Read gender from the clean templates of the balanced sets; rows of both settings."""
    sweep_attacks(cases, plan, (), (), progress=progress)
    return [
        case.readings.row("Clean", setting, case.readings.values(setting, "clean", 0.0), method="clean", source=case.name)
        for case in cases.values()
        for setting in SETTINGS
    ]


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
    results = run_jobs(sum(jobs, []), workers=plan.workers, progress=progress) if names else []
    for number, (case, mine) in enumerate(zip(cases.values(), jobs, strict=True)):
        part = results[number * len(names) : (number + 1) * len(names)]
        case.templates.update(gather(mine, part, case.clean["evaluation"][case.benchmark.shown]))
        case.readings = case.readings or Readings(case.identity)
        read_templates(case.readings, case.templates, case.labels, case.heads.mlp, plan, names=names, epsilons=wanted, progress=progress)


# ---------------------------------------------------------------- all pictures: privacy against verification


class Verified(NamedTuple):
    """One method at one strength on all pictures of an evaluation half.

    ``scores`` are the cosines of the pairs, both pictures protected; ``one_sided`` those with the second picture clean,
    None where that makes no sense.
    """

    predictions: Predictions
    scores: np.ndarray
    one_sided: np.ndarray | None = None


def verify(benchmark: Benchmark, templates: np.ndarray, seed: int, clean: np.ndarray | None = None) -> Verified:
    """Setting B on all pictures, and the scores of all pairs; ``clean`` are the templates without the method."""
    rows = benchmark.evaluation
    predictions = probe(templates, benchmark.labels(rows), benchmark.identity(rows), seed)
    one_sided = None if clean is None else pair_scores(benchmark.pairs, templates, clean)
    return Verified(predictions, pair_scores(benchmark.pairs, templates), one_sided)


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
            arguments.append((cases[owner].benchmark, templates, plan.seed, cases[owner].clean["evaluation"]))
    found: dict[str, dict] = {name: {} for name in cases}
    for (owner, name, eps), verified in zip(keys, in_parallel(verify, arguments, plan.workers, progress, "whole sets"), strict=True):
        found[owner][name, eps] = verified
    return found


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

    def clean(self, templates: np.ndarray) -> np.ndarray:
        """Scores of the pairs for templates (n, D) of the evaluation half."""
        return pair_scores(self.benchmark.pairs, templates)

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
