"""The zoo: trained networks by name, and how good they are."""

import csv
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fa_utils import metrics
from fa_utils.locks import locked
from fa_utils.models.backbones import build_backbone
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.losses import CosineClassifier, LinearClassifier
from fa_utils.models.recipes import RECIPES, Recipe, find_recipe, nearest
from fa_utils.models.weights import WeightsError, file_sha256, load_part, read_weights, write_atomically
from fa_utils.models.whitening import Whitening
from fa_utils.paths import WEIGHTS

__all__ = [
    "COLUMNS",
    "RECIPES",
    "Recipe",
    "evaluate_network",
    "find_recipe",
    "gender_accuracy",
    "load_encoder",
    "read_encoder",
    "register",
    "zoo_table",
]

THRESHOLDS = {1e-2: "threshold_far_1e-2", 1e-3: "threshold_far_1e-3", 1e-4: "threshold_far_1e-4"}
FIGURES = ("accuracy", "accuracy_sd", *THRESHOLDS.values(), "threshold_3000_pairs", "gender_accuracy")
RECIPE_COLUMNS = ("name", "layout", "width", "loss", "domain")
COLUMNS = (
    *RECIPE_COLUMNS, "identities", "images", "epochs", "seed", "file", "sha256", "parameters", *FIGURES,
)  # fmt: skip


def zoo_table(*, folder: str | Path = WEIGHTS) -> pd.DataFrame:
    """The networks that ship, one row each, by name.

    Returns
    -------
    pandas.DataFrame
        Columns as in ``COLUMNS``: what the network is, its file and sha256, accuracy and its standard
        deviation over ten folds, cosine thresholds at three false accept rates from all impostor pairs of the
        benchmark and from the 3,000 impostor pairs of its protocol (FAR 1e-3), and the accuracy at
        which a linear classifier reads the gender-like attribute from its embeddings.

    Raises
    ------
    WeightsError
        If the table is missing or lacks a column.
    """
    path = Path(folder) / "zoo.csv"
    if not path.is_file():
        raise WeightsError(
            f"the zoo table {path} does not exist; restore it, or train a network: fa train NAME"
        )
    table = pd.read_csv(path)
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise WeightsError(f"the zoo table {path} lacks the column {missing[0]!r}; restore the file")
    return table.set_index("name", drop=False)


def load_encoder(
    name: str, *, device: str | torch.device = "cpu", folder: str | Path = WEIGHTS
) -> FaceEncoder:
    """A network of the zoo, checked against its checksum.

    Parameters
    ----------
    name : str
        Such as ``"ires-webface-arcface"``.
    device : str or torch.device
        Where the network is put.
    folder : path
        Folder of the weight files and of ``zoo.csv``.

    Raises
    ------
    ValueError
        If the name is unknown; the nearest known name is offered.
    WeightsError
        If the weight file is missing, damaged, or another than the table says.
    """
    table = zoo_table(folder=folder)
    if name not in table.index:
        untrained = " It has a recipe but is not trained: fa train NAME." if name in RECIPES else ""
        raise ValueError(f"network {name!r} is not in the zoo{nearest(name, table.index)}{untrained}")
    row = table.loc[name]
    return read_encoder(Path(folder) / row["file"], sha256=row["sha256"]).to(device)


def read_encoder(path: str | Path, *, sha256: str | None = None) -> FaceEncoder:
    """The network of a weight file that :func:`~fa_utils.models.train.train_network` wrote.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, has another sha256, or holds another network than it says.
    """
    state, metadata = read_weights(path, sha256=sha256)
    if "recipe" not in metadata:
        raise WeightsError(
            f"weight file {path} carries no recipe: it was not written by fa train. A public checkpoint needs its "
            "layout: fa register NAME PATH --layout LAYOUT"
        )
    recipe = metadata["recipe"]
    backbone = build_backbone(recipe["layout"], width=recipe["width"])
    load_part(backbone, state, "backbone", path=path)
    whitening = classifier = None
    if "whitening.mean" in state:
        whitening = Whitening(len(state["whitening.mean"]))
        load_part(whitening, state, "whitening", path=path)
    if "classifier.weight" in state:
        classes, dim = state["classifier.weight"].shape
        if recipe.get("attribute"):
            classifier = LinearClassifier(dim, classes, rectify=getattr(backbone, "rectified_head", False))
        else:
            classifier = CosineClassifier(dim, classes, recipe["scale"])
        load_part(classifier, state, "classifier", path=path)
    return FaceEncoder(
        backbone,
        name=recipe["name"],
        input_size=backbone.input_size,
        whitening=whitening,
        classifier=classifier,
    )


def evaluate_network(encoder: FaceEncoder, benchmark, *, progress: bool = False) -> dict[str, float]:
    """How good a network is, on a benchmark that it was not trained on.

    Parameters
    ----------
    encoder : FaceEncoder
    benchmark : (FaceSet, Pairs)
        As ``load_benchmark`` returns it; 0/1 labels in an attribute column ``gender``, where there is one.
    progress : bool
        Show a progress bar while embedding.

    Returns
    -------
    dict
        The last columns of the zoo table (``FIGURES``); nan for a false accept rate that the benchmark has
        too few impostor pairs for, and for gender where the benchmark has no labels.
    """
    faces, pairs = benchmark
    embeddings = encoder.embed(faces, progress=progress)
    scores = metrics.pair_similarity(embeddings[pairs.a], embeddings[pairs.b])
    accuracy = metrics.verification_accuracy(scores, pairs.same, pairs.fold)
    resolved = [far for far in THRESHOLDS if far * _impostor_pairs(faces.identity) >= 1]
    thresholds = metrics.impostor_thresholds(embeddings, faces.identity, resolved) if resolved else {}
    few = 1e-3 * int((~pairs.same).sum()) < 1
    return {
        "accuracy": accuracy.mean,
        "accuracy_sd": accuracy.sd,
        **{column: thresholds.get(far, math.nan) for far, column in THRESHOLDS.items()},
        "threshold_3000_pairs": math.nan if few else metrics.pairs_threshold(scores, pairs.same, 1e-3),
        "gender_accuracy": gender_accuracy(embeddings, faces),
    }


def gender_accuracy(embeddings: torch.Tensor, faces, *, folds: int = 5) -> float:
    """Accuracy in [0, 1] at which logistic regression reads ``gender`` from embeddings of unseen identities.

    Identities are never in training and test fold at once: otherwise the classifier could recognize people
    instead. Pictures of unknown gender (-1) take no part. nan where the pictures carry no gender labels, or
    only one gender.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score

    if "gender" not in faces.attributes:
        return math.nan
    labels = faces.attributes["gender"].to_numpy()
    known = labels >= 0
    if len(np.unique(labels[known])) < 2:
        return math.nan
    model = LogisticRegression(C=10, max_iter=1000)
    inputs, groups = embeddings.numpy()[known], faces.identity[known]
    scores = cross_val_score(model, inputs, labels[known], groups=groups, cv=GroupKFold(folds))
    return float(np.mean(scores))


def register(path: str | Path, figures: dict[str, float]) -> dict:
    """Write a trained network's row into the ``zoo.csv`` beside its weight file.

    Two trainings that finish together each get their row: the table is locked in between.

    Parameters
    ----------
    path : path
        Weight file.
    figures : dict
        What :func:`evaluate_network` found.

    Returns
    -------
    dict
        The row.
    """
    path = Path(path)
    metadata = read_weights(path)[1]
    recipe = metadata["recipe"]
    row = {column: recipe[column] for column in RECIPE_COLUMNS}
    row |= {"identities": metadata["identities"], "images": metadata["images"]}
    row |= {
        "epochs": recipe["epochs"],
        "seed": recipe["seed"],
        "file": path.name,
        "sha256": file_sha256(path),
    }
    row["parameters"] = _parameters(recipe)
    row |= {column: figures[column] for column in FIGURES}
    table = path.with_name("zoo.csv")
    with locked(path.parent):
        rows = {}
        if table.is_file():
            with open(table, newline="") as file:
                rows = {earlier["name"]: earlier for earlier in csv.DictReader(file)}
        rows[row["name"]] = row
        ordered = [
            *(name for name in RECIPES if name in rows),
            *(name for name in rows if name not in RECIPES),
        ]
        frame = pd.DataFrame([{c: _printed(rows[name][c]) for c in COLUMNS} for name in ordered])
        write_atomically(table, frame.to_csv(index=False, lineterminator="\n").encode())
    return row


def _parameters(recipe: dict) -> int:
    backbone = build_backbone(recipe["layout"], width=recipe["width"])
    return sum(parameter.numel() for parameter in backbone.parameters())


def _printed(value):
    return f"{value:.6g}" if isinstance(value, float) else value


def _impostor_pairs(identity: np.ndarray) -> int:
    counts = np.unique(identity, return_counts=True)[1]
    return int(len(identity) ** 2 - (counts**2).sum()) // 2
