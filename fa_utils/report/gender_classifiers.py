"""Chapter 1's networks: which classifiers are attacked and which face networks judge, for rendered faces and for photographs.

The classifiers that ship have seen rendered faces only. For photographs they are trained further on part A of the dataset, at run
time; their weights stay in the cache and are never committed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fa_utils.attacks.craft import run_grid
from fa_utils.attacks.transfer import open_network, split_addresses
from fa_utils.data import FaceSet, to_uint8
from fa_utils.models import encoder as encoder_code
from fa_utils.models import losses, train
from fa_utils.models.attributes import classifier_table, evaluate_classifier, load_classifier
from fa_utils.models.encoder import resize
from fa_utils.models.recipes import ATTRIBUTE_RECIPES, Recipe
from fa_utils.models.zoo import read_encoder
from fa_utils.paths import CACHE
from fa_utils.report.gender_faces import EACH, load_part
from fa_utils.report.gender_probes import BACKBONES, Backbone
from fa_utils.report.results import result_row

CLASSIFIERS = CACHE / "classifiers"
EPOCHS = 10
SMALLEST = 0.02  # share of the rarer label below which an attribute is not learned


def make_cast(
    faces: str = "procedural",
    networks: str = "zoo",
    *,
    backbones: Sequence[str] = tuple(BACKBONES),
    epochs: int = EPOCHS,
    device: str = "cpu",
    workers: int = 1,
    folder: Path | None = None,
    progress: bool = True,
) -> dict[str, Backbone]:
    """The backbones of the study with their classifiers and face networks, by name.

    Parameters
    ----------
    faces : str
        "procedural", or an address of real faces: then the classifiers are trained on its part A first, or come from the cache.
    networks : str
        "zoo": each backbone is judged by the face network of its own layout; or addresses by commas: all of them judge both.
    backbones : sequence of str
        Names in `BACKBONES`.
    epochs : int
        Passes through part A.
    device, workers : str, int
        Where the classifiers are trained, and in how many processes.
    folder : path, optional
        Where trained classifiers are kept; the cache by default.

    Raises
    ------
    ValueError, FileNotFoundError, WeightsError
        A network that cannot be opened; faces that lack what the chapter needs (see `load_part`).
    """
    cast = {name: BACKBONES[name] for name in backbones}
    if networks != "zoo":
        addresses = split_addresses(networks)
        for address in addresses:
            open_network(address, device)
        cast = {name: dataclasses.replace(backbone, targets=addresses) for name, backbone in cast.items()}
    if faces == "procedural":
        return cast
    learned = load_part(faces, "A")
    wanted = [(name, "gender") for name in cast]
    wanted += [(name, "glasses") for name in cast if _learnable(learned, "glasses")]
    specs = [
        (faces, cast[name].layout, attribute, epochs, device, folder or CLASSIFIERS) for name, attribute in wanted
    ]
    paths = [record["path"] for record in run_grid(specs, _trained, workers=workers, progress=progress)]
    found = dict(zip(wanted, paths, strict=True))
    return {
        name: dataclasses.replace(
            backbone, faces=faces, classifier=found[name, "gender"], unrelated=found.get((name, "glasses"), "")
        )
        for name, backbone in cast.items()
    }


def classifier_rows(backbone: Backbone, *, pictures: int = EACH, device: str = "cpu") -> list[dict]:
    """Table "networks": how good the classifiers that were trained here are on part B; none for those that ship."""
    rows = []
    for attribute, address in (("gender", backbone.classifier), ("glasses", backbone.unrelated)):
        if backbone.faces == "procedural" or not address:
            continue
        faces = load_part(backbone.faces, "B", pictures=pictures)
        faces = faces.subset(faces.attributes[attribute].to_numpy() >= 0)
        figures = evaluate_classifier(read_encoder(address).to(device), faces, attribute)
        place = {"table": "networks", "source": backbone.name, "method": attribute, "target": "part B"}
        rows += [result_row(name, figures[name], len(faces), **place) for name in ("accuracy", "balanced_accuracy")]
        rows.append(result_row("f1", figures["f1_label_1"], len(faces), **place))
    return rows


# ---------------------------------------------------------------- training on photographs


def train_classifier(
    faces: FaceSet, layout: str, attribute: str, *, epochs: int = EPOCHS, device: str = "cpu", folder: Path | None = None
) -> Path:
    """Train a classifier of an attribute on photographs, from the weights of the one that learned from rendered faces.

    A finished one is found again in the folder, by pictures, labels, recipe and code.

    Parameters
    ----------
    faces : FaceSet
        With labels 0 and 1 in that column; others are left out. Pictures of any size.

    Returns
    -------
    path of the weight file

    Raises
    ------
    ValueError
        The column is missing, or holds one label only.
    """
    if attribute not in faces.attributes:
        raise ValueError(f"{faces.name!r} has no attribute {attribute!r}; it has {', '.join(faces.attributes)}")
    faces = faces.subset(faces.attributes[attribute].to_numpy() >= 0)
    shipped = ATTRIBUTE_RECIPES[f"{layout}-celeba-{attribute}"]
    recipe = dataclasses.replace(
        shipped, start=shipped.name, domain=faces.name, epochs=epochs, learning_rate=0.02, batch=max(8, min(64, len(faces) // 30)),
        warm_up=20,
    )  # fmt: skip
    small = _shrunk(faces, load_classifier(shipped.name).input_size)
    folder = folder or CLASSIFIERS
    recipe = dataclasses.replace(recipe, name=f"{layout}-{faces.name}-{attribute}-{_key(recipe, small, attribute)}")
    path = Path(folder) / f"{recipe.name}.safetensors"
    if not path.is_file():
        train.train_network(recipe, small, out=folder, checkpoints=folder, device=device, progress=False)
    return path


def _trained(spec: tuple) -> dict:
    faces, layout, attribute, epochs, device, folder = spec
    path = train_classifier(load_part(faces, "A"), layout, attribute, epochs=epochs, device=device, folder=folder)
    return {"path": str(path)}


def _learnable(faces: FaceSet, attribute: str) -> bool:
    """Whether a classifier of the attribute can be trained: both labels are there, and not too rare."""
    if attribute not in faces.attributes:
        return False
    labels = faces.attributes[attribute].to_numpy()
    labels = labels[labels >= 0]
    return len(labels) > 0 and SMALLEST <= labels.mean() <= 1 - SMALLEST


def _shrunk(faces: FaceSet, side: int) -> FaceSet:
    """The pictures at the side that the network sees, made as its encoder does it."""
    parts = [to_uint8(resize(faces.batch(slice(i, i + 256)), side).clamp(0, 1)).numpy() for i in range(0, len(faces), 256)]
    return FaceSet(np.concatenate(parts), faces.identity, faces.attributes, faces.name)


def _key(recipe: Recipe, faces: FaceSet, attribute: str) -> str:
    """Sixteen hexadecimal digits for all that the training depends on."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(recipe), sort_keys=True).encode())
    digest.update(classifier_table().loc[recipe.start, "sha256"].encode())
    digest.update(np.ascontiguousarray(faces.images).tobytes())
    digest.update(np.asarray(faces.attributes[attribute], dtype=np.int64).tobytes())
    for module in (train, losses, encoder_code):
        digest.update(Path(module.__file__).read_bytes())
    digest.update(torch.__version__.encode())
    return digest.hexdigest()[:16]
