"""Attribute classifiers: training on labels, the shipped files, the untrained control, VGG16."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from fa_utils.data import FaceSet, load_domain
from fa_utils.models import attributes
from fa_utils.models.attributes import (
    classifier_table,
    evaluate_classifier,
    load_classifier,
    predict_labels,
    untrained_classifier,
)
from fa_utils.models.backbones import build_backbone
from fa_utils.models.losses import LinearClassifier
from fa_utils.models.recipes import ATTRIBUTE_RECIPES, Recipe, find_recipe
from fa_utils.models.train import train_network
from fa_utils.models.vgg import VGG16
from fa_utils.models.weights import WeightsError
from fa_utils.models.zoo import read_encoder
from fa_utils.paths import WEIGHTS


@pytest.fixture(scope="module")
def bright() -> FaceSet:
    """Noise, darker or brighter: an attribute that any network can learn."""
    random = np.random.default_rng(0)
    labels = np.arange(96) % 2
    images = random.integers(0, 100, (96, 3, 56, 56)) + 130 * labels[:, None, None, None]
    return FaceSet(images.astype(np.uint8), np.arange(96), pd.DataFrame({"bright": labels.astype(float)}), "bright")


def recipe(**changes) -> Recipe:
    options = {"name": "test", "layout": "vgg16", "loss": "linear", "attribute": "bright", "domain": "none", "epochs": 12, "batch": 24}
    return Recipe(**options | {"warm_up": 2, "spread": 0.0, "whitening": 0.0, "keep_classifier": True, "learning_rate": 0.05} | changes)


@pytest.mark.parametrize("layout", ["vgg16", "resnet50"])
def test_an_attribute_is_learned_instead_of_the_identity(bright, tmp_path, layout):
    trained = train_network(recipe(layout=layout), bright, out=tmp_path, checkpoints=tmp_path, progress=False, bf16=False)
    figures = evaluate_classifier(trained, bright, "bright")
    assert figures["accuracy"] > 0.95 and figures["f1"] > 0.95
    read = read_encoder(tmp_path / "test.safetensors")
    assert read.classifier.rectify == (layout == "vgg16") and isinstance(read.classifier, LinearClassifier)
    some = bright.batch(slice(0, 4))
    with torch.no_grad():  # float16 on disk
        assert torch.allclose(read.logits(some), trained.logits(some), atol=0.05)


def test_registering_twice_keeps_one_row(bright, tmp_path):
    train_network(recipe(epochs=1), bright, out=tmp_path, checkpoints=tmp_path, progress=False, bf16=False)
    figures = dict.fromkeys(attributes.FIGURES, 0.5)
    for value in (0.5, 0.75):
        attributes.register_classifier(tmp_path / "test.safetensors", figures | {"accuracy": value})
    table = classifier_table(folder=tmp_path)
    assert list(table.index) == ["test"] and table.loc["test", "accuracy"] == 0.75
    assert load_classifier("test", folder=tmp_path).name == "test"
    with open(tmp_path / "test.safetensors", "ab") as file:
        file.write(b"x")
    with pytest.raises(WeightsError, match="sha256"):
        load_classifier("test", folder=tmp_path)


def test_a_loss_and_an_attribute_go_together():
    with pytest.raises(ValueError, match="go together"):
        recipe(attribute=None)
    with pytest.raises(ValueError, match="go together"):
        recipe(loss="softmax")
    assert all(r.attribute and name == f"{r.layout}-{r.domain}-{r.attribute}" for name, r in ATTRIBUTE_RECIPES.items())
    assert find_recipe("vgg16-celeba-gender").attribute == "gender"


def test_a_missing_attribute_is_named(bright):
    with pytest.raises(ValueError, match="no attribute 'gender'; it has bright"):
        evaluate_classifier(untrained_classifier("resnet50"), bright, "gender")


def test_untrained_classifiers_follow_their_seed(bright):
    some = bright.batch(slice(0, 24))
    one, again, other = (untrained_classifier("resnet50", seed=seed, images=some) for seed in (0, 0, 1))
    with torch.no_grad():
        assert torch.equal(one.logits(some), again.logits(some))
        assert not torch.equal(one.logits(some), other.logits(some))
        spread, flat = (network.features(some).std(0).mean() for network in (one, untrained_classifier("resnet50")))
    assert spread > 2 * flat  # with statistics of pictures it tells pictures apart
    assert not any(module.training for module in one.modules())


@pytest.mark.parametrize("name", list(ATTRIBUTE_RECIPES))
def test_the_shipped_classifiers_are_as_good_as_their_table_says(name):
    row = classifier_table().loc[name]
    assert row["balanced_accuracy"] > 0.9 and (WEIGHTS / row["file"]).stat().st_size < 2.5e6
    faces = load_domain("celeba", "val", identities=60, pictures=2, progress=False)
    classifier = load_classifier(name)
    predicted = predict_labels(classifier, faces)
    assert abs(np.mean(predicted == faces.attributes[row["attribute"]]) - row["accuracy"]) < 0.1
    assert classifier.logits(faces.batch(slice(0, 3))).shape == (3, 2)


def test_unknown_classifiers_offer_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'vgg16-celeba-gender'"):
        load_classifier("vgg16-celeba-gendre")
    with pytest.raises(WeightsError, match="does not exist"):
        classifier_table(folder=tmp_path)


def test_vgg16_is_configuration_d():
    net = build_backbone("vgg16")
    convolutions = [module for module in net.features if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 13 and net.last_convolution is convolutions[-1]
    assert net(torch.zeros(2, 3, 56, 56)).shape == (2, 128)
    with torch.device("meta"):
        full = VGG16()
    assert sum(p.numel() for p in full.parameters() if p.ndim > 1) == 134_248_128  # 138,357,544 less the third layer and all biases
    assert (net(torch.rand(4, 3, 56, 56)) < 0).any()  # before the rectifier


def test_recipes_of_attributes_ship_their_heads():
    assert all(r.keep_classifier and not r.whitening for r in ATTRIBUTE_RECIPES.values())
    assert dataclasses.asdict(ATTRIBUTE_RECIPES["vgg16-celeba-gender"])["loss"] == "linear"
