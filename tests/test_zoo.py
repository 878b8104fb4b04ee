"""The zoo: weight files, their checksums, the table, and how a network is measured."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fa_utils.data.faceset import FaceSet, Pairs
from fa_utils.models import zoo
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.recipes import Recipe
from fa_utils.models.train import train_network
from fa_utils.models.weights import WeightsError, read_weights, save_weights
from fa_utils.models.zoo import evaluate_network, gender_accuracy, load_encoder, register, zoo_table
from fa_utils.paths import WEIGHTS

RECIPE = Recipe(
    name="tiny",
    layout="ires",
    loss="softmax",
    domain="none",
    epochs=1,
    batch=16,
    warm_up=1,
    keep_classifier=True,
)
FIGURES = {column: 0.5 for column in zoo.FIGURES}


@pytest.fixture(scope="module")
def faces() -> FaceSet:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (24, 3, 56, 56), dtype=np.uint8)
    return FaceSet(images, np.arange(24) // 4, name="noise")


@pytest.fixture(scope="module")
def trained(faces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    encoder = train_network(RECIPE, faces, out=folder, checkpoints=folder, progress=False, bf16=False)
    register(folder / "tiny.safetensors", FIGURES)
    return folder, encoder


def test_loaded_network_is_the_trained_one(trained, faces):
    folder, encoder = trained
    loaded = load_encoder("tiny", folder=folder)
    assert loaded.name == "tiny"
    # Weights travel as float16.
    assert torch.nn.functional.cosine_similarity(loaded.embed(faces), encoder.embed(faces)).min() > 0.9999
    images = faces.batch(slice(0, 4))
    assert torch.allclose(loaded.logits(images), encoder.logits(images), atol=0.1)
    assert loaded.logits(images).shape == (4, 6)


def test_table_row(trained):
    folder, encoder = trained
    row = zoo_table(folder=folder).loc["tiny"]
    assert tuple(zoo_table(folder=folder).columns) == zoo.COLUMNS
    assert (row["identities"], row["images"], row["epochs"]) == (6, 24, 1)
    assert row["parameters"] == sum(p.numel() for p in encoder.backbone.parameters())


def test_rows_keep_their_order_and_are_replaced(trained, faces, tmp_path):
    for name in ("other", "ires-webface-arcface", "ires-webface-softmax", "other"):
        train_recipe = dataclasses.replace(RECIPE, name=name)
        state, metadata = read_weights(trained[0] / "tiny.safetensors")
        metadata["recipe"] = dataclasses.asdict(train_recipe)
        save_weights(tmp_path / f"{name}.safetensors", state, metadata=metadata)
        register(tmp_path / f"{name}.safetensors", FIGURES)
    assert list(zoo_table(folder=tmp_path).index) == ["ires-webface-softmax", "ires-webface-arcface", "other"]


def test_unknown_network_offers_the_nearest(trained):
    with pytest.raises(ValueError, match=r"'tinny' is not in the zoo; did you mean 'tiny'\?"):
        load_encoder("tinny", folder=trained[0])
    with pytest.raises(ValueError, match="not trained: fa train"):
        load_encoder("ires-webface-arcface", folder=trained[0])


def test_table_that_is_missing_or_cut(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        zoo_table(folder=tmp_path)
    (tmp_path / "zoo.csv").write_text("name,file\na,b\n")
    with pytest.raises(WeightsError, match="lacks the column 'layout'"):
        zoo_table(folder=tmp_path)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    state = {
        "a.weight": torch.linspace(0, 1, 600).reshape(20, 30),
        "a.running_var": torch.tensor([1e-9, 1e6]),
    }
    return path, state, save_weights(path, state, metadata={"recipe": {"name": "x"}})


def test_matrices_are_halved_and_vectors_are_not(weights):
    path, state, digest = weights
    read, metadata = read_weights(path, sha256=digest)
    assert metadata == {"recipe": {"name": "x"}}
    assert torch.equal(read["a.running_var"], state["a.running_var"])
    assert torch.equal(read["a.weight"], state["a.weight"].half().float())
    assert path.stat().st_size < 600 * 2 + 500


def test_wrong_checksum_names_file_and_both_sums(weights):
    path, _, digest = weights
    with pytest.raises(WeightsError, match=f"w.safetensors.*sha256 {digest}, expected 0000.*git checkout"):
        read_weights(path, sha256="0000")


def test_one_changed_bit_is_found(weights):
    path, _, digest = weights
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"expected {digest}"):
        read_weights(path, sha256=digest)


def test_truncated_and_missing_files(weights):
    path, _, _ = weights
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="is damaged"):
        read_weights(path)
    path.unlink()
    with pytest.raises(WeightsError, match="does not exist"):
        read_weights(path)


@pytest.mark.parametrize("bad", [float("nan"), 1e6])
def test_unsafe_values_are_not_written(tmp_path, bad):
    with pytest.raises(ValueError, match="tensor a"):
        save_weights(tmp_path / "w", {"a": torch.full((2, 2), bad)}, metadata={})
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_the_earlier_file(weights, monkeypatch):
    path, _, digest = weights

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        save_weights(path, {"a": torch.zeros(2, 2)}, metadata={})
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    read_weights(path, sha256=digest)


def test_weights_of_another_network(trained, tmp_path):
    state, metadata = read_weights(trained[0] / "tiny.safetensors")
    metadata["recipe"]["layout"] = "mobile"
    save_weights(tmp_path / "w", state, metadata=metadata)
    with pytest.raises(WeightsError, match="of another network: missing backbone"):
        zoo.read_encoder(tmp_path / "w")
    save_weights(tmp_path / "w", state, metadata={})
    with pytest.raises(WeightsError, match="no recipe"):
        zoo.read_encoder(tmp_path / "w")


class Pixel(nn.Module):
    """Embedding of a picture: its first pixels."""

    def forward(self, x):
        return x[:, :, :4, 0].flatten(1)


@pytest.fixture(scope="module")
def benchmark():
    """40 identities of 5 pictures whose first column is the identity's own, with a little noise."""
    random = np.random.default_rng(1)
    identity = np.arange(200) // 5
    gender = random.integers(0, 2, 40)
    column = random.integers(30, 220, (40, 3, 4))
    column[:, 0, 0] = np.where(gender, 230, 20)
    images = np.zeros((200, 3, 8, 8), np.uint8)
    images[:, :, :4, 0] = column[identity] + random.integers(-15, 15, (200, 3, 4))
    faces = FaceSet(images, identity, pd.DataFrame({"gender": gender[identity]}), "columns")
    a = np.arange(0, 200, 5).repeat(2)
    b = np.stack([np.arange(1, 200, 5), (np.arange(0, 200, 5) + 5) % 200], 1).ravel()
    return faces, Pairs(a, b, np.tile([True, False], 40), np.arange(80) // 8)


def test_figures_of_a_network(benchmark):
    encoder = FaceEncoder(Pixel(), name="pixel", input_size=8)
    figures = evaluate_network(encoder, benchmark)
    assert tuple(figures) == zoo.FIGURES
    assert figures["accuracy"] > 0.9
    assert figures["threshold_far_1e-2"] < figures["threshold_far_1e-3"] < figures["threshold_far_1e-4"]
    assert np.isnan(figures["threshold_3000_pairs"])  # 40 impostor pairs cannot resolve 1e-3
    assert figures["gender_accuracy"] > 0.9


def test_gender_folds_are_grouped_by_identity(benchmark):
    faces, _ = benchmark
    # An embedding that names the identity and nothing else says nothing about unseen people.
    one_hot = torch.eye(40)[torch.as_tensor(faces.identity)]
    assert gender_accuracy(one_hot, faces) < 0.7
    unlabeled = FaceSet(faces.images, faces.identity, name="unlabeled")
    assert np.isnan(gender_accuracy(one_hot, unlabeled))


@pytest.mark.skipif(not (WEIGHTS / "zoo.csv").is_file(), reason="no trained networks in this checkout")
def test_shipped_networks_match_their_table():
    table = zoo_table()
    assert set(zoo.RECIPES) <= set(table.index)
    sizes = {}
    for name, row in table.iterrows():
        encoder = load_encoder(name)
        assert (encoder.classifier is not None) == (
            row["loss"] == "softmax" and row["layout"] == "ires" and name in zoo.RECIPES
        )
        if name in zoo.RECIPES:  # the adversarially trained network pays for its robustness
            assert 0.97 <= row["accuracy"] <= 0.997
        if name in zoo.RECIPES and row["layout"] != "vgg16":  # its fully connected layers spread few directions
            assert row["threshold_far_1e-3"] < 0.5
            assert 0.85 <= row["gender_accuracy"] <= 0.95
        sizes[name] = (WEIGHTS / row["file"]).stat().st_size
    assert sum(sizes[name] for name in list(zoo.RECIPES)[:10]) < 20e6  # DFANet's ten
    assert sum(sizes.values()) < 50e6
