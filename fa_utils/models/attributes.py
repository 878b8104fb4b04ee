"""Classifiers of an attribute of a face (gender, glasses): what chapter 1 attacks.

They are `FaceEncoder` objects with two logits, in the layouts of the face networks, so every part of the package can use them.
"""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from fa_utils.models.backbones import build_backbone
from fa_utils.models.encoder import FaceEncoder, take
from fa_utils.models.losses import LinearClassifier
from fa_utils.models.recipes import ATTRIBUTE_RECIPES, nearest
from fa_utils.models.weights import WeightsError, file_sha256, read_weights, write_atomically
from fa_utils.models.zoo import read_encoder
from fa_utils.paths import WEIGHTS

__all__ = ["COLUMNS", "classifier_table", "evaluate_classifier", "load_classifier", "predict_labels", "register_classifier", "untrained_classifier"]

FIGURES = ("accuracy", "balanced_accuracy", "f1", "f1_label_1")
COLUMNS = ("name", "layout", "width", "attribute", "domain", "images", "epochs", "seed", "file", "sha256", *FIGURES)


def classifier_table(*, folder: str | Path = WEIGHTS) -> pd.DataFrame:
    """The attribute classifiers that ship, one row each, by name; accuracies on the domain's part C.

    Raises
    ------
    WeightsError
        If the table is missing or lacks a column.
    """
    path = Path(folder) / "attributes.csv"
    if not path.is_file():
        raise WeightsError(f"the table {path} does not exist; restore it, or train: fa train {next(iter(ATTRIBUTE_RECIPES))}")
    table = pd.read_csv(path)
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise WeightsError(f"the table {path} lacks the column {missing[0]!r}; restore the file")
    return table.set_index("name", drop=False)


def load_classifier(name: str, *, device: str | torch.device = "cpu", folder: str | Path = WEIGHTS) -> FaceEncoder:
    """An attribute classifier, checked against its checksum; ``.logits(images)`` gives (B, 2).

    Raises
    ------
    ValueError
        If the name is unknown; the nearest known name is offered.
    WeightsError
        If the weight file is missing, damaged, or another than the table says.
    """
    table = classifier_table(folder=folder)
    if name not in table.index:
        raise ValueError(f"classifier {name!r} is unknown{nearest(name, table.index)}")
    row = table.loc[name]
    return read_encoder(Path(folder) / row["file"], sha256=row["sha256"]).to(device)


def untrained_classifier(layout: str, *, width: str = "small", seed: int = 0, images: torch.Tensor | None = None) -> FaceEncoder:
    """A classifier with random weights: the control that knows nothing of the attribute.

    Parameters
    ----------
    layout, width : str
        As ``build_backbone`` takes them.
    seed : int
        Seed of the weights.
    images : Tensor, (B, 3, H, W) in [0, 1], optional
        Pictures whose statistics its batch normalizations take; without, the layers of a deep network push all pictures to
        one point.

    Raises
    ------
    ValueError
        Unknown layout; the nearest is offered.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone(layout, width=width)
        dim = backbone(torch.zeros(2, 3, backbone.input_size, backbone.input_size)).shape[1]
        head = LinearClassifier(dim, 2, rectify=getattr(backbone, "rectified_head", False))
        encoder = FaceEncoder(
            backbone, name=f"{layout}, untrained", input_size=backbone.input_size, classifier=head
        )
        if images is not None:
            _take_statistics(encoder, images)
    return encoder


@torch.no_grad()
def _take_statistics(encoder: FaceEncoder, images: torch.Tensor) -> None:
    """Set the running statistics of all batch normalizations to those of ``images``."""
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    encoder.features(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


@torch.no_grad()
def predict_labels(classifier: FaceEncoder, images, *, batch_size: int = 64) -> np.ndarray:
    """Predicted labels, int64 (N,), of a float tensor (N, 3, H, W) in [0, 1] or a FaceSet."""
    starts = range(0, len(images), batch_size)
    parts = (take(images, start, min(start + batch_size, len(images))) for start in starts)
    return np.concatenate([classifier.logits(part.to(classifier.device)).argmax(1).cpu().numpy() for part in parts])


def evaluate_classifier(classifier: FaceEncoder, faces, attribute: str) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro F1 and F1 of label 1, in [0, 1], on pictures with labels in that column.

    Raises
    ------
    ValueError
        If the pictures lack the attribute; the ones that they have are named.
    """
    if attribute not in faces.attributes:
        raise ValueError(f"{faces.name!r} has no attribute {attribute!r}; it has {', '.join(faces.attributes)}")
    labels, predicted = faces.attributes[attribute].to_numpy().astype(int), predict_labels(classifier, faces)
    return {
        "accuracy": float(np.mean(labels == predicted)),
        "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
        "f1": float(f1_score(labels, predicted, average="macro")),
        "f1_label_1": float(f1_score(labels, predicted)),
    }


def register_classifier(path: str | Path, figures: dict[str, float]) -> dict:
    """Write a trained classifier's row into the ``attributes.csv`` beside its weight file; returns the row."""
    path = Path(path)
    metadata = read_weights(path)[1]
    recipe = metadata["recipe"]
    row = {column: recipe[column] for column in ("name", "layout", "width", "attribute", "domain", "epochs", "seed")}
    row |= {"images": metadata["images"], "file": path.name, "sha256": file_sha256(path)}
    row |= {name: f"{figures[name]:.6g}" for name in FIGURES}
    table = path.with_name("attributes.csv")
    rows = {}
    if table.is_file():
        with open(table, newline="") as file:
            rows = {earlier["name"]: earlier for earlier in csv.DictReader(file)}
    rows[row["name"]] = row
    ordered = [*(n for n in ATTRIBUTE_RECIPES if n in rows), *(n for n in rows if n not in ATTRIBUTE_RECIPES)]
    frame = pd.DataFrame([{column: rows[name][column] for column in COLUMNS} for name in ordered])
    write_atomically(table, frame.to_csv(index=False, lineterminator="\n").encode())
    return row
