"""Classifiers that read a label off templates: the fixed one that is attacked, and those that adapt to the attack.

Setting A of paper 2 (Table 1) asks a :class:`GenderMLP` trained on clean templates. Setting B trains new classifiers on
the protected templates themselves and cross-validates them (:func:`cross_validate`). People have one gender on all of
their images, so a classifier that knows a person's face knows the answer: folds keep a person's images together unless
the leak itself is to be measured.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from fa_utils.metrics import Interval, wilson_interval
from fa_utils.privacy.checks import check_features, check_identity, check_labels
from fa_utils.privacy.perceptron import Perceptron, fit_perceptron, seeded

# The first three as in the later code of paper 2's authors (genderPrivacy, eval/evaluation_utils.py), less probabilities.
PROBES: dict[str, Callable[[int], BaseEstimator]] = {
    "logistic": lambda seed: LogisticRegression(max_iter=10000, random_state=seed),
    "linear_svm": lambda seed: SVC(kernel="linear", cache_size=500, random_state=seed),
    "rbf_svm": lambda seed: SVC(kernel="rbf", cache_size=500, random_state=seed),
    "boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
    # Without the strong penalty it learns people by heart, and is worse on others than logistic regression.
    "mlp": lambda seed: make_pipeline(StandardScaler(), MLPClassifier((64,), alpha=3.0, max_iter=30, random_state=seed)),
}
PAPER_PROBES = ("logistic", "linear_svm", "rbf_svm")


# ---------------------------------------------------------------- setting A: one classifier, trained on clean templates


class GenderMLP(Perceptron):
    """The classifier that setting A attacks: linear, leaky rectifier, linear to one logit of label 1 (paper 2, section 3.1).

    ``hidden(features)`` gives the gender-specific features (B, hidden) of MI-FGSM-MLP, after the leaky rectifier (the
    only place with several numbers to estimate information from; sheet 2, section 2). The slope below zero is torch's
    default, 0.01; the paper names none.

    Parameters
    ----------
    dim : int
        Length of a template.
    hidden : int
        512 in the paper.
    """

    def __init__(self, dim: int, *, hidden: int = 512):
        super().__init__(dim, hidden=hidden, outputs=1, slope=0.01)


def train_mlp(
    features,
    labels,
    *,
    iterations: int = 2000,
    batch: int = 128,
    learning_rate: float = 1e-3,
    hidden: int = 512,
    seed: int = 0,
) -> GenderMLP:
    """A gender classifier trained by binary cross-entropy (Adam; iterations, batch and rate are ours, the paper gives none).

    Parameters
    ----------
    features : Tensor or array, shape (N, D)
        The classifier comes on the device of the tensor.
    labels : array or Tensor, shape (N,)
        0 or 1, both present.
    iterations, batch, learning_rate, hidden, seed
        See :func:`fa_utils.privacy.perceptron.fit_perceptron`.

    Returns
    -------
    GenderMLP
        Frozen, in evaluation mode.

    Raises
    ------
    ValueError
        When features or labels are refused (see :mod:`fa_utils.privacy.checks`) or an option is out of its range.
    """
    rows = check_features(features).detach().float()
    targets = torch.as_tensor(check_labels(labels, len(rows)), device=rows.device).float()[:, None]
    mlp = seeded(lambda: GenderMLP(rows.shape[1], hidden=hidden), seed).to(rows.device)
    options = {"iterations": iterations, "batch": batch, "learning_rate": learning_rate, "seed": seed}
    return fit_perceptron(mlp, rows, targets, **options)[iterations]


@torch.no_grad()
def mlp_predictions(mlp: Callable, features) -> np.ndarray:
    """The label (0 or 1) that the classifier gives each row, int64 (N,): 1 where the logit is above zero."""
    return (mlp(check_features(features).float())[:, 0] > 0).long().cpu().numpy()


def halves_by_identity(identity, labels, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of the rows that share nobody: one to train the classifier of setting A on, one to attack.

    People are shuffled, sorted by their more frequent label, and dealt in turns; so both halves hold as many people of
    either label, up to one.

    Parameters
    ----------
    identity, labels : array, shape (N,)
    seed : int

    Returns
    -------
    tuple of two ndarrays
        Row numbers, rising.

    Raises
    ------
    ValueError
        When the labels are not 0 and 1, lengths differ, or a label has fewer than two people to go round.
    """
    identity = np.asarray(identity)
    labels = check_labels(labels, len(identity))
    people, person = np.unique(identity, return_inverse=True)
    mostly = np.bincount(person, weights=labels) / np.bincount(person) > 0.5
    order = np.random.default_rng(seed).permutation(len(people))
    order = order[np.argsort(mostly[order], kind="stable")]
    first = np.isin(person, order[::2])
    halves = np.flatnonzero(first), np.flatnonzero(~first)
    if any(len(np.unique(labels[half])) < 2 for half in halves):
        found = _people_of(identity, labels)
        raise ValueError(f"two halves that both hold both labels need two people of either label, got {found}")
    return halves


def balanced_subset(labels, identity, size: int, *, seed: int = 0) -> np.ndarray:
    """Rows of a subset with as many images of either label, from as many people as possible (paper 2: 5,000 images).

    Within a label everyone gives one image, drawn at random, before anyone gives a second.

    Parameters
    ----------
    labels, identity : array, shape (N,)
    size : int
        Images, an even number.
    seed : int

    Returns
    -------
    ndarray of int, shape (size,)
        Row numbers, rising.

    Raises
    ------
    ValueError
        When ``size`` is odd or below 2, a label has fewer than size / 2 rows, the labels are not 0 and 1, or lengths differ.
    """
    identity = np.asarray(identity)
    labels = check_labels(labels, len(identity))
    if size < 2 or size % 2:
        raise ValueError(f"size must be an even number of images, at least 2, got {size}")
    counts = np.bincount(labels)
    if size // 2 > counts.min():
        found = f"{counts[0]} of 0 and {counts[1]} of 1"
        raise ValueError(f"{size} images, balanced, need {size // 2} of either label; there are {found}")
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [_round_robin(order[labels[order] == label], identity)[: size // 2] for label in (0, 1)]
    return np.sort(np.concatenate(chosen))


def _round_robin(rows: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """The rows, everyone's first before anyone's second."""
    person = np.unique(identity[rows], return_inverse=True)[1]
    together = np.argsort(person, kind="stable")
    start = np.searchsorted(person[together], person[together])
    turn = np.empty(len(rows), dtype=int)
    turn[together] = np.arange(len(rows)) - start
    return rows[np.argsort(turn, kind="stable")]


# ---------------------------------------------------------------- setting B: classifiers trained on protected templates


@dataclass(frozen=True)
class Predictions:
    """Which rows each probe got right while it had not seen them.

    Attributes
    ----------
    labels, identity : ndarray, shape (N,)
    correct : mapping of str to boolean ndarray, shape (N,)
        By the probe's name.
    """

    labels: np.ndarray
    identity: np.ndarray
    correct: Mapping[str, np.ndarray]

    def per_image(self) -> np.ndarray:
        """Share of the probes that are right about each row, in [0, 1], shape (N,)."""
        return np.mean(list(self.correct.values()), axis=0)

    def accuracy(self, balanced: bool = False) -> float:
        """Mean accuracy of the probes over all rows, in [0, 1]; balanced: mean of the accuracies on label 0 and on label 1."""
        right = self.per_image()
        if balanced:
            return float(np.mean([right[self.labels == label].mean() for label in (0, 1)]))
        return float(right.mean())


def cross_validate(
    features,
    labels,
    identity,
    *,
    probes: Sequence[str] | Mapping[str, Callable[[int], BaseEstimator]] = PAPER_PROBES,
    folds: int = 3,
    grouped: bool = True,
    extra: tuple | None = None,
    seed: int = 0,
    workers: int = 1,
) -> Predictions:
    """Setting B (paper 2, Table 1): each row's label predicted by probes trained on the other folds.

    Parameters
    ----------
    features : Tensor or array, shape (N, D)
        Templates as the probe is to see them: normalized in the authors' later code, as embeddings of encoders are here.
    labels : array, shape (N,)
        0 or 1, both present.
    identity : array, shape (N,)
    probes : sequence of names in :data:`PROBES`, or mapping of names to estimators by seed
    folds : int
        3 in the paper.
    grouped : bool
        Keep a person's images in one fold. The paper does not say; its authors' later code does. False measures the leak.
    extra : tuple (features, labels, identity), optional
        Further training rows, such as clean templates that an adapting attacker has. For each fold those of the people
        in the training folds are used, never those of the people held out, nor of people who are not in ``identity``.
    seed : int
        Of the folds and of the probes.
    workers : int
        Processes; each computes with one thread. The result does not depend on it.

    Returns
    -------
    Predictions

    Raises
    ------
    ValueError
        When features, labels or lengths are refused, a probe is unknown, there are more folds than people of a label, a
        training set would lack a label, or ``extra`` comes without grouping or without anyone in ``identity``.
    """
    rows = _matrix(features)
    labels, identity = check_labels(labels, len(rows)), check_identity(identity, len(rows))
    chosen = _chosen(probes)
    more = None if extra is None else _extra(extra, rows.shape[1], identity, grouped)
    splits = _folds(labels, identity, folds, grouped, seed)
    jobs = []
    for train, test in splits:
        x, y = rows[train], labels[train]
        if more is not None:
            seen = np.isin(more[2], identity[train])
            x, y = np.concatenate([x, more[0][seen]]), np.concatenate([y, more[1][seen]])
        jobs += [delayed(_predict)(build(seed), x, y, rows[test]) for build in chosen.values()]
    found = iter(Parallel(n_jobs=workers)(jobs))
    correct = {name: np.zeros(len(rows), dtype=bool) for name in chosen}
    for _, test in splits:
        for name in chosen:
            correct[name][test] = next(found) == labels[test]
    return Predictions(labels, identity, correct)


def _predict(estimator: BaseEstimator, x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # The perceptron's number of epochs is chosen, not a failure to converge.
        warnings.filterwarnings("ignore", "Stochastic Optimizer", ConvergenceWarning)
        return estimator.fit(x, y).predict(asked)


def _matrix(features, name: str = "features") -> np.ndarray:
    return check_features(features, name).detach().cpu().numpy().astype(np.float64, copy=False)


def _chosen(probes) -> dict[str, Callable[[int], BaseEstimator]]:
    if isinstance(probes, Mapping):
        chosen = dict(probes)
    else:
        names = [probes] if isinstance(probes, str) else list(probes)
        unknown = [name for name in names if name not in PROBES]
        if unknown:
            raise ValueError(f"unknown probes {unknown}; there are {', '.join(PROBES)}")
        chosen = {name: PROBES[name] for name in names}
    if not chosen:
        raise ValueError("no probe given")
    return chosen


def _extra(extra: tuple, dim: int, identity: np.ndarray, grouped: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not grouped:
        raise ValueError("extra rows need grouped folds: without, everyone is held out and nobody's rows may be used")
    rows = _matrix(extra[0], "extra features")
    if rows.shape[1] != dim:
        raise ValueError(f"extra features must have {dim} columns as the features have, got {rows.shape[1]}")
    labels = check_labels(extra[1], len(rows), "extra labels", both=False)
    people = check_identity(extra[2], len(rows), "extra identity")
    if not np.isin(people, identity).any():
        raise ValueError("nobody in the extra identity is in identity: none of the extra rows would be used")
    return rows, labels, people


def _folds(
    labels: np.ndarray, identity: np.ndarray, folds: int, grouped: bool, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Train and test rows of each fold."""
    people = {label: len(np.unique(identity[labels == label])) for label in (0, 1)}
    if not 2 <= folds <= min(people.values()):
        found = _people_of(identity, labels)
        raise ValueError(f"folds = {folds}: from 2 to the number of people of the rarer label, got {found}")
    person = np.unique(identity, return_inverse=True)[1]
    return _split_once(labels.tobytes(), person.astype(np.int64).tobytes(), folds, grouped, seed)


@functools.lru_cache(maxsize=16)
def _split_once(labels: bytes, person: bytes, folds: int, grouped: bool, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    # A figure asks for hundreds of cross-validations of the same people, and grouping takes as long as a probe.
    labels, person = np.frombuffer(labels, np.int64), np.frombuffer(person, np.int64)
    splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    splits = list(splitter.split(labels, labels, person if grouped else None))
    if any(len(np.unique(labels[train])) < 2 for train, _ in splits):
        raise ValueError(f"a training set of {folds} folds would hold a single label: too few people, or too unequal")
    return splits


def _people_of(identity: np.ndarray, labels: np.ndarray) -> str:
    return " and ".join(f"{len(np.unique(identity[labels == label]))} people of label {label}" for label in (0, 1))


# ---------------------------------------------------------------- how sure


def accuracy_interval(
    predictions: Predictions, *, balanced: bool = False, seed: int = 0, n_resamples: int = 1000, level: float = 0.95
) -> Interval:
    """The accuracy and its percentile interval, people drawn with replacement (their images are not independent).

    Where every probe is right about every row, or about none, all resamples agree; then the interval is Wilson's for as
    many trials as there are people. The folds are held fixed: what another split would give is not in the interval.

    Parameters
    ----------
    predictions : Predictions
    balanced : bool
        As in :meth:`Predictions.accuracy`.
    seed, n_resamples, level
        Of the bootstrap.

    Returns
    -------
    Interval
        In [0, 1].

    Raises
    ------
    ValueError
        With fewer than two people, or when ``level`` or ``n_resamples`` is out of range.
    """
    right = predictions.per_image()
    interval = _clustered(predictions, right, predictions.accuracy(balanced), balanced, seed, n_resamples, level)
    if right.min() == right.max() and right.min() in (0, 1):
        people = len(np.unique(predictions.identity))
        return wilson_interval(people * int(right.min()), people, level=level)
    return interval


def accuracy_difference(
    one: Predictions, other: Predictions, *, balanced: bool = False, seed: int = 0, n_resamples: int = 1000, level: float = 0.95
) -> Interval:
    """Accuracy of ``one`` less that of ``other`` on the same rows, people drawn once for both; in [-1, 1].

    Parameters
    ----------
    one, other : Predictions
        Of the same rows in the same order; probes may differ.
    balanced, seed, n_resamples, level
        As in :func:`accuracy_interval`.

    Returns
    -------
    Interval
        Without width where the two are right about the same rows.

    Raises
    ------
    ValueError
        When labels or identities differ, and where :func:`accuracy_interval` does.
    """
    if not (np.array_equal(one.labels, other.labels) and np.array_equal(one.identity, other.identity)):
        raise ValueError("a paired difference needs the same rows in the same order: labels or identities differ")
    estimate = one.accuracy(balanced) - other.accuracy(balanced)
    return _clustered(one, one.per_image() - other.per_image(), estimate, balanced, seed, n_resamples, level)


def _clustered(predictions, values, estimate: float, balanced: bool, seed: int, n_resamples: int, level: float) -> Interval:
    people, person = np.unique(predictions.identity, return_inverse=True)
    if len(people) < 2:
        raise ValueError("an interval needs at least two people to draw from")
    if n_resamples < 100 or not 0 < level < 1:
        raise ValueError(f"n_resamples = {n_resamples} must be at least 100, and level = {level:g} inside (0, 1)")
    stratum = predictions.labels if balanced else np.zeros(len(values), dtype=int)
    cell, shape = person * 2 + stratum, (len(people), 2)
    sums = np.bincount(cell, weights=values, minlength=2 * len(people)).reshape(shape)
    counts = np.bincount(cell, minlength=2 * len(people)).reshape(shape)
    used = slice(0, 2 if balanced else 1)
    draws = np.random.default_rng(seed).multinomial(len(people), np.full(len(people), 1 / len(people)), size=n_resamples)
    drawn_sums, drawn = (draws @ sums)[:, used], (draws @ counts)[:, used]
    whole = (drawn > 0).all(1)  # a resample without a label has no balanced accuracy
    means = (drawn_sums[whole] / drawn[whole]).mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high))
