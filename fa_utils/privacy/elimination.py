"""Taking a label out of templates by eliminating what tells most of it: IVE and Multi-IVE, which paper 2 compares with.

Both ask a random forest which variables a label is read from, drop the most important ones, and ask again. IVE
(Terhörst et al. 2019) drops variables of the standardized template, which gets shorter. Multi-IVE (Melzi et al. 2023)
drops principal components, all but the first few, and maps back, so templates keep their length; with one label its
three ways of joining labels are one. After the authors' code: pterhoer/PrivacyPreservingFaceRecognition 4017b21 and
otroshi/multi-ive 8781f4a (sheet 2, section 2).
"""

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import StandardScaler, normalize
from threadpoolctl import threadpool_limits

from fa_utils.privacy.checks import check_features, check_labels


@dataclass(frozen=True)
class Elimination:
    """A fitted elimination: in which order variables go, and how templates are transformed.

    Attributes
    ----------
    scaler : StandardScaler
        Of the training database.
    pca : PCA or None
        Of the training database, for Multi-IVE; None for IVE.
    eliminated : ndarray of int
        Columns (IVE) or principal components (Multi-IVE), those that go first at the front.
    per_step : int
        How many go at each step.
    """

    scaler: StandardScaler
    pca: PCA | None
    eliminated: np.ndarray
    per_step: int

    @property
    def dim(self) -> int:
        """Length of the templates that go in."""
        return int(self.scaler.n_features_in_)

    @property
    def max_steps(self) -> int:
        """Steps that were fitted."""
        return len(self.eliminated) // self.per_step

    def transform(self, features, steps: int) -> np.ndarray:
        """Templates after so many steps; compare them by angle or, normalized, by Euclidean distance.

        Both methods return *standardized* templates, with the mean and the spread of the training database, also after
        zero steps: IVE's example eliminates from standardized features and goes on with them, and Multi-IVE maps back
        to the standardized templates, on which its authors measure verification. What elimination costs is therefore
        told against ``steps=0``; what the method costs as a whole, against the templates as they came.

        Parameters
        ----------
        features : Tensor or array, shape (N, dim)
        steps : int in [0, max_steps]

        Returns
        -------
        ndarray of float64
            IVE: (N, dim - steps * per_step), the remaining columns in their order. Multi-IVE: (N, dim).

        Raises
        ------
        ValueError
            When the features are not finite or of another length, or ``steps`` is out of its range.
        """
        rows = _matrix(features)
        if rows.shape[1] != self.dim:
            raise ValueError(f"features must have {self.dim} columns as those of the training had, got {rows.shape[1]}")
        if not 0 <= steps <= self.max_steps:
            raise ValueError(f"steps = {steps}: from 0 to {self.max_steps}, the steps that were fitted")
        gone = self.eliminated[: steps * self.per_step]
        if self.pca is None:
            return np.delete(self.scaler.transform(rows), gone, axis=1)
        with threadpool_limits(limits=1):
            components = self.pca.transform(self.scaler.transform(normalize(rows)))
            components[:, gone] = 0
            return self.pca.inverse_transform(components)


def fit_ive(
    features, labels, *, steps: int = 20, per_step: int = 5, trees: int = 30, seed: int = 0, workers: int = 1
) -> Elimination:
    """Incremental variable elimination: the variables that a label is read from, most important first.

    Parameters
    ----------
    features : Tensor or array, shape (N, D)
        Templates of a training database; paper 2 takes another one than it evaluates on.
    labels : array, shape (N,)
        0 or 1, both present.
    steps, per_step : int
        20 steps of 5 of 512 variables in the authors' example; at least one variable has to remain.
    trees : int
        Of each random forest; 30 in the authors' code.
    seed : int
        Of every forest.
    workers : int
        Threads; the result does not depend on it.

    Returns
    -------
    Elimination

    Raises
    ------
    ValueError
        When features or labels are refused (see :mod:`fa_utils.privacy.checks`), an option is below 1, or more variables
        would go than there are.
    """
    rows = _matrix(features)
    labels = check_labels(labels, len(rows))
    _check_numbers(rows.shape[1], steps, "steps", per_step, trees, kept=1)
    scaler = StandardScaler().fit(rows)
    gone = _eliminate(scaler.transform(rows), labels, steps, per_step, 0, trees, seed, workers)
    return Elimination(scaler, None, gone, per_step)


def fit_multi_ive(
    features,
    labels,
    *,
    rounds: int = 169,
    per_round: int = 3,
    locked: int = 5,
    trees: int = 30,
    seed: int = 0,
    workers: int = 1,
) -> Elimination:
    """Multi-IVE for one label: principal components that it is read from, most important first, the first few locked.

    Parameters
    ----------
    features : Tensor or array, shape (N, D)
        Templates of a training database, at least as many as they are long.
    labels : array, shape (N,)
        0 or 1, both present.
    rounds, per_round : int
        The authors count 170 rounds of 3 components, the templates before the first one included; with 5 of 512
        components locked, 169 rounds are all there are.
    locked : int
        Leading components that stay; 5 are advised, and paper 2 follows.
    trees, seed, workers
        As in :func:`fit_ive`.

    Returns
    -------
    Elimination

    Raises
    ------
    ValueError
        Where :func:`fit_ive` does, and with fewer rows than columns.
    """
    rows = _matrix(features)
    labels = check_labels(labels, len(rows))
    if locked < 0:
        raise ValueError(f"locked = {locked} must not be negative")
    _check_numbers(rows.shape[1], rounds, "rounds", per_round, trees, kept=max(locked, 1))
    if len(rows) < rows.shape[1]:
        raise ValueError(f"{rows.shape[1]} principal components need at least as many rows, got {len(rows)}")
    rows = normalize(rows)
    scaler = StandardScaler().fit(rows)
    with threadpool_limits(limits=1):
        pca = PCA(svd_solver="full")
        components = pca.fit_transform(scaler.transform(rows))
    gone = _eliminate(components, labels, rounds, per_round, locked, trees, seed, workers)
    return Elimination(scaler, pca, gone, per_round)


def _eliminate(
    columns: np.ndarray, labels, steps: int, per_step: int, locked: int, trees: int, seed: int, workers: int
) -> np.ndarray:
    """Columns in the order in which they go; the first ``locked`` are seen by the forests and never go."""
    left, gone = np.arange(columns.shape[1]), []
    columns = columns.astype(np.float32)  # as the forest would have them
    for _ in range(steps):
        forest = RandomForestClassifier(trees, random_state=seed, n_jobs=workers).fit(columns[:, left], labels)
        order = np.argsort(-forest.feature_importances_, kind="stable")
        worst = left[order[order >= locked][:per_step]]  # the locked ones never go, so they stay at the front
        gone.extend(worst.tolist())
        left = left[~np.isin(left, worst)]
    return np.array(gone)


def _matrix(features) -> np.ndarray:
    return check_features(features).detach().cpu().numpy().astype(np.float64, copy=False)


def _check_numbers(dim: int, steps: int, name: str, per_step: int, trees: int, *, kept: int) -> None:
    if min(steps, per_step, trees) < 1:
        raise ValueError(f"{name} = {steps}, eliminations a step = {per_step} and trees = {trees} must be at least 1")
    if steps * per_step > dim - kept:
        raise ValueError(
            f"{name} = {steps} with {per_step} each would eliminate {steps * per_step} of {dim} columns, "
            f"{kept} of which {'has' if kept == 1 else 'have'} to stay: at most {name} = {max(dim - kept, 0) // per_step}"
        )
