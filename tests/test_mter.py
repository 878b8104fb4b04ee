"""Margin-based triplet embedding regularization."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fa_utils.data.faceset import FaceSet
from fa_utils.defenses import mter
from fa_utils.defenses.mter import (
    DEFENDED,
    GREY_LEVEL,
    adversaries,
    train_mter,
    triplet_hinge,
    triplet_regularizer,
    with_adversaries,
)
from fa_utils.models import train
from fa_utils.models.recipes import RECIPES, Recipe
from fa_utils.models.train import shrink, to_input, train_network

IDENTITIES, EACH = 12, 6
RECIPE = Recipe(name="start", layout="ires", loss="softmax", domain="none", epochs=4, batch=24, warm_up=2)
ROBUST = dataclasses.replace(RECIPE, name="robust", start="start", learning_rate=0.02)


class Toy(nn.Module):
    """Two features of 2 x 2 pictures; statistics of a batch as real networks have them."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Linear(12, 2, bias=False)
        self.norm = nn.BatchNorm1d(2, affine=False)
        with torch.no_grad():
            self.flat.weight.copy_(torch.stack([torch.ones(12), torch.tensor([1.0, -1.0] * 6)]))

    def forward(self, x):
        return self.norm(self.flat(x.flatten(1)))


@pytest.fixture(scope="module")
def blobs() -> FaceSet:
    """Colored blobs: one coarse pattern an identity, noise on each picture."""
    random = np.random.default_rng(0)
    coarse = random.integers(100, 120, (IDENTITIES, 3, 7, 7)).repeat(EACH, 0)
    images = coarse.repeat(16, 2).repeat(16, 3) + random.integers(0, 40, (IDENTITIES * EACH, 3, 112, 112))
    return FaceSet(images.astype(np.uint8), np.arange(IDENTITIES).repeat(EACH), name="blobs")


@pytest.fixture(scope="module")
def folder(blobs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mter")
    train_network(RECIPE, blobs, out=folder, checkpoints=folder, progress=False, bf16=False)
    return folder


@pytest.fixture
def pictures():
    """Eight pictures of four persons for the toy, some at the border of the box."""
    return (torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(3)) * 2.4 - 1.2).clamp(-1, 1)


def test_loss_is_the_papers_formula():
    random = np.random.default_rng(1)
    adversarial, source = 3 * random.normal(size=(2, 5, 4))
    adversarial[0] = 3 * source[0]  # nothing changed but the length
    labels = np.array([8, 9, 9, 7, 6, 5, 5])  # two more pictures have no adversaries; 1 and 2 are one person
    total = 0.0
    for i in (0, 2, 3, 4):
        a, s, t = (v / math.sqrt(sum(v**2)) for v in (adversarial[i], source[i], source[(i + 1) % 5]))
        total += max(0.0, math.dist(a, s) - math.dist(a, t) + 0.2)
    features = torch.tensor(np.concatenate([source, random.normal(size=(2, 4)), adversarial])).float()
    for weight in (1.0, 3.0):
        found = triplet_regularizer(margin=0.2, weight=weight)(features, torch.tensor(labels))
        assert found.item() == pytest.approx(weight * total / 4, rel=1e-5)
    assert triplet_regularizer()(features, torch.zeros(7)).item() == 0


def test_unmoved_pictures_have_a_finite_gradient():
    source = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    triplet_regularizer(margin=1.9)(torch.cat([source, source]), torch.arange(4)).backward()
    assert torch.isfinite(source.grad).all() and source.grad.any()


def test_features_without_adversaries_are_refused():
    for count in (6, 7, 13):
        with pytest.raises(ValueError, match=f"{count} features of 6 pictures: train with perturb"):
            triplet_regularizer()(torch.ones(count, 3), torch.arange(6))


def test_adversaries_stay_in_the_box_and_go_a_level_a_round(pictures):
    toy, targets = Toy().train(), pictures.roll(1, 0)
    for rounds in (1, 4):
        pushed = adversaries(toy, pictures, targets, rounds=rounds, tolerance=0.0)
        assert pushed.abs().max() <= 1 and (pushed - pictures).abs().max() <= rounds * GREY_LEVEL + 1e-6
        assert (pushed - pictures).abs().max() > (rounds - 0.5) * GREY_LEVEL
    assert torch.equal(pushed, adversaries(toy, pictures, targets, rounds=4, tolerance=0.0))
    assert toy.training and toy.norm.num_batches_tracked == 0 and not pushed.requires_grad
    assert all(parameter.grad is None for parameter in toy.parameters())
    toy.eval()

    def distance(x):
        return 1 - functional.cosine_similarity(toy(x), toy(targets))

    assert (distance(pushed) <= distance(pictures) + 1e-6).all() and distance(pushed).sum() < distance(pictures).sum()


def test_adversaries_stop_when_all_are_there(pictures):
    toy = Toy().eval()
    assert torch.equal(adversaries(toy, pictures, pictures, rounds=10), pictures)
    targets = pictures.roll(1, 0)
    stopped = adversaries(toy, pictures, targets, rounds=200, tolerance=0.1)
    steps = round(float((stopped - pictures).abs().max() / GREY_LEVEL))
    assert 1 < steps < 200
    far = [1 - functional.cosine_similarity(toy(x), toy(targets)).min() for x in
           (stopped, adversaries(toy, pictures, targets, rounds=steps - 1, tolerance=0.1))]  # fmt: skip
    assert far[0] <= 0.1 < far[1]


def test_adversaries_of_the_first_pictures_are_appended(pictures):
    toy = Toy().train()
    for share, count in ((0.1, 2), (0.5, 4), (1.0, 8)):
        longer = with_adversaries(rounds=2, share=share, bf16=False)(toy, pictures)
        assert torch.equal(longer[:8], pictures) and len(longer) == 8 + count
        first = pictures[:count]
        assert torch.equal(longer[8:], adversaries(toy, first, torch.cat([first[1:], first[:1]]), rounds=2))


def train_from(folder, blobs, out, **options):
    usual = {"recipe": ROBUST, "checkpoints": out, "progress": False, "bf16": False, "rounds": 3}
    return train_mter(blobs, out=out, **usual | options)


def start_in(folder, out):
    out.mkdir(exist_ok=True)
    (out / "start.safetensors").write_bytes((folder / "start.safetensors").read_bytes())
    return out


def test_training_lowers_the_success_of_the_attack(folder, blobs):
    usual = {"out": folder, "checkpoints": folder, "progress": False, "bf16": False}
    plain = train_network(dataclasses.replace(ROBUST, name="plain"), blobs, **usual)
    robust = train_from(folder, blobs, folder, weight=5.0, share=0.5, rounds=4)
    images = to_input(shrink(blobs.images[::EACH], 56))
    targets = images.roll(-1, 0)

    def violation(encoder):
        pushed = adversaries(encoder.backbone, images, targets, rounds=4, tolerance=0.0)
        with torch.no_grad():
            return triplet_hinge(*(encoder.backbone(x) for x in (pushed, images, targets)), margin=0.2).mean()

    assert violation(robust) < 0.8 * violation(plain)
    embeddings = robust.embed(blobs)
    same = torch.as_tensor(blobs.identity[:, None] == blobs.identity)
    assert (embeddings @ embeddings.t())[same].mean() > (embeddings @ embeddings.t())[~same].mean() + 0.5


def test_resumed_training_ends_in_the_same_bytes(folder, blobs, tmp_path, monkeypatch):
    whole, parts = (start_in(folder, tmp_path / name) for name in ("whole", "parts"))
    recipe = dataclasses.replace(ROBUST, epochs=2)
    train_from(folder, blobs, whole, recipe=recipe)
    run_epoch = train.Trainer.run_epoch

    def killed_in_the_second(self, pictures, **kwargs):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return run_epoch(self, pictures, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Trainer, "run_epoch", killed_in_the_second)
        train_from(folder, blobs, parts, recipe=recipe)
    assert not (parts / "robust.safetensors").exists()
    train_from(folder, blobs, parts, recipe=recipe)
    assert (whole / "robust.safetensors").read_bytes() == (parts / "robust.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (triplet_regularizer, {"margin": -0.1}, r"margin is -0.1, must lie in \[0, 2\)"),
        (triplet_regularizer, {"margin": math.nan}, "margin is nan"),
        (triplet_regularizer, {"weight": 0.0}, "weight is 0.0"),
        (triplet_regularizer, {"weight": math.inf}, "weight is inf"),
        (with_adversaries, {"rounds": 0}, "rounds is 0, must be 1 or more"),
        (with_adversaries, {"tolerance": 2.0}, "tolerance is 2.0"),
        (with_adversaries, {"share": 1.5}, r"share is 1.5, must lie in \(0, 1\]"),
    ],
)
def test_bad_parameters(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_recipes_start_from_the_four_encoders(capsys):
    assert {name: recipe.start for name, recipe in DEFENDED.items()} == {
        "incres-webface-mter": "incres-webface-softmax",
        "mobile-webface-mter": "mobile-webface-softmax",
        "irse-webface-mter": "irse-webface-softmax",
        "ir20-ms1m-mter": "ir20-ms1m-arcface",
    }
    assert all(recipe.start in RECIPES and name not in RECIPES for name, recipe in DEFENDED.items())
    assert len({recipe.seed for recipe in DEFENDED.values()}) == 4
    assert set(mter.HINGE_WEIGHT) <= set(DEFENDED)
    with pytest.raises(SystemExit):
        mter.main(["irse-webface-mtr"])
    assert "did you mean 'irse-webface-mter'" in capsys.readouterr().err
