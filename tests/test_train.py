"""Training: recipes, losses, schedule, resuming, weights."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from fa_utils.data.faceset import FaceSet
from fa_utils.defenses.adversarial_training import corrasion_examples, impersonations, train_adversarially
from fa_utils.models import train
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.losses import TrainingLoss, margin_at, squared_cosine_of_strangers
from fa_utils.models.recipes import ERODING_LIBRARY, LOSSES, RECIPES, Recipe, find_recipe
from fa_utils.models.train import Pictures, learning_rate_at, shrink, to_input, train_network
from fa_utils.models.weights import WeightsError, read_weights
from fa_utils.models.whitening import fit_whitening

IDENTITIES, EACH = 12, 6
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def blobs() -> FaceSet:
    """Colored blobs: one coarse pattern an identity, noise on each picture."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 200, (IDENTITIES, 3, 7, 7)).repeat(EACH, 0)
    images = coarse.repeat(16, 2).repeat(16, 3) + random.integers(0, 56, (IDENTITIES * EACH, 3, 112, 112))
    return FaceSet(images.astype(np.uint8), np.arange(IDENTITIES).repeat(EACH) * 3 + 100, name="blobs")


def recipe(**changes) -> Recipe:
    options = {
        "name": "test",
        "layout": "ires",
        "loss": "softmax",
        "domain": "none",
        "epochs": 2,
        "batch": 24,
        "warm_up": 2,
    }
    return Recipe(**options | changes)


@pytest.fixture
def fit(blobs, tmp_path):
    def run(changed: Recipe, faces=blobs, **options) -> FaceEncoder:
        folders = {"out": tmp_path, "checkpoints": tmp_path / "checkpoints"}
        return train_network(changed, faces, **folders | {"progress": False, "bf16": False} | options)

    return run


def state_of(path):
    return read_weights(path)[0]


@pytest.mark.parametrize("loss", ["softmax", "arcface"])
def test_training_tells_identities_apart(fit, blobs, loss):
    encoder = fit(recipe(loss=loss, margin=0.3, epochs=4))
    embeddings = encoder.embed(blobs)
    cosine = embeddings @ embeddings.t()
    same = torch.as_tensor(blobs.identity[:, None] == blobs.identity)
    assert cosine[same].mean() > cosine[~same].mean() + 0.5
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(len(blobs)), atol=1e-5)


def test_resumed_training_ends_in_the_same_bytes(fit, tmp_path, monkeypatch):
    options = recipe(epochs=3, loss="cosface", margin=0.25)
    fit(options, out=tmp_path / "whole")
    run_epoch = train.Trainer.run_epoch

    def killed_in_the_second(self, pictures, **kwargs):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return run_epoch(self, pictures, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "run_epoch", killed_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            fit(options, out=tmp_path / "parts")
    assert (tmp_path / "checkpoints" / "test.pt").exists()
    epochs = []
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "run_epoch", lambda *a, **k: epochs.append(1) or run_epoch(*a, **k))
        fit(options, out=tmp_path / "parts")
    assert len(epochs) == 2
    files = [tmp_path / name / "test.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "checkpoints" / "test.pt").exists()


def test_checkpoint_of_another_recipe_is_not_used(fit, tmp_path, blobs, capsys):
    pictures = Pictures(blobs, recipe(), 56, CPU)
    backbone = train.new_backbone(recipe(), {})
    other = train.Trainer(recipe(seed=5), backbone, pictures, device=CPU, bf16=False)
    other.epoch = 2
    other.save(tmp_path / "checkpoints" / "test.pt", pictures)
    fit(recipe(epochs=1))
    assert "another recipe" in capsys.readouterr().out


def test_triplet_goes_on_from_its_start(fit, tmp_path):
    fit(recipe(name="first", keep_classifier=True))
    triplet = recipe(name="second", loss="triplet", margin=0.2, start="first", learning_rate=1e-6, epochs=1)
    fit(triplet)
    first, second = (state_of(tmp_path / f"{name}.safetensors") for name in ("first", "second"))
    name = "backbone.conv1.weight"
    assert torch.allclose(first[name], second[name], atol=1e-3)
    assert not any(key.startswith("classifier") for key in second)


def test_missing_start_says_how_to_train_it(fit):
    with pytest.raises(WeightsError, match="fa train nowhere"):
        fit(recipe(loss="triplet", margin=0.2, start="nowhere"))


def test_head_of_the_start_is_taken_over_for_the_same_identities():
    loss = TrainingLoss(recipe(), dim=4, classes=3)
    head = torch.randn(3, 4)
    loss.start_from(head)
    assert torch.equal(loss.classifier().weight, head)
    loss.start_from(torch.randn(5, 4))
    assert torch.equal(loss.classifier().weight, head)


def test_fresh_pictures_for_each_epoch(fit, blobs):
    asked = []
    fit(recipe(), faces=lambda epoch: asked.append(epoch) or blobs)
    assert asked == [0, 1]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_fall_where_features_agree_with_labels(loss):
    torch.manual_seed(0)
    learned = {"attribute": "label"} if loss == "linear" else {}
    criterion = TrainingLoss(recipe(loss=loss, margin=0.2, spread=0.0, **learned), dim=8, classes=4)
    labels = torch.arange(4).repeat(4)
    if loss == "linear":
        criterion.loss.weight.data.copy_(torch.eye(8)[:4])
    elif loss != "triplet":
        criterion.start_from(torch.eye(8)[:4])
    good = functional.one_hot(labels, 8) + 0.2 * torch.randn(16, 8)
    bad = functional.one_hot((labels + 1) % 4, 8) * 0.3 + good * 0.7
    assert criterion(good, labels, 1.0) < criterion(bad, labels, 1.0)


def test_margin_raises_the_loss_by_what_it_says():
    features, labels = torch.eye(4) * 3, torch.arange(4)
    criterion = TrainingLoss(recipe(loss="cosface", margin=0.25, spread=0.0, scale=2.0), dim=4, classes=4)
    criterion.start_from(torch.eye(4))
    for done, margin in ((0.0, 0.0), (1.0, 0.25)):
        expected = math.log(1 + 3 * math.exp(-2 * (1 - margin)))
        assert criterion(features, labels, done).item() == pytest.approx(expected, rel=1e-5)


def test_margin_ramp():
    options = recipe(loss="arcface", margin=0.3, ramp=(0.1, 0.3))
    assert [margin_at(options, p) for p in (0.0, 0.1, 0.2, 0.3, 1.0)] == pytest.approx([0, 0, 0.15, 0.3, 0.3])


def test_penalty_counts_strangers_only():
    features = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    assert squared_cosine_of_strangers(features, torch.tensor([0, 0, 1])).item() == 0
    assert squared_cosine_of_strangers(features, torch.tensor([0, 1, 2])).item() == pytest.approx(1 / 3)
    assert squared_cosine_of_strangers(features, torch.tensor([0, 0, 0])).item() == 0


def test_schedule_warms_up_and_ends_low():
    options = recipe(learning_rate=0.1, warm_up=10)
    assert learning_rate_at(options, 0, 0.0) == pytest.approx(0.1 * 0.1, rel=2e-3)
    assert learning_rate_at(options, 100, 0.5) == pytest.approx(0.05, rel=5e-3)
    assert learning_rate_at(options, 200, 1.0) == pytest.approx(1e-4)


def test_no_decay_on_vectors(blobs):
    pictures = Pictures(blobs, recipe(), 56, CPU)
    trainer = train.Trainer(recipe(), train.new_backbone(recipe(), {}), pictures, device=CPU, bf16=False)
    for group in trainer.optimizer.param_groups[:2]:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}


def test_shrinking_is_the_encoders_average(blobs):
    small = to_input(shrink(blobs.images[:5], 56, chunk=2))
    exact = functional.avg_pool2d(blobs.batch(slice(0, 5)), 2) * 2 - 1
    assert small.is_contiguous(memory_format=torch.channels_last)
    assert (small - exact).abs().max() <= (0.5 / 255) * 2 + 1e-6
    with pytest.raises(ValueError, match="100 x 100"):
        shrink(np.zeros((1, 3, 100, 100), np.uint8), 56)


def test_augmentation_is_per_picture_and_repeatable(blobs):
    pictures = Pictures(blobs, recipe(), 56, CPU)
    index = torch.zeros(40, dtype=torch.long)
    first, again = (pictures.augmented(index, pictures.generator(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.abs().max() <= 1
    assert len(torch.unique(first.flatten(1), dim=0)) == 40
    # Undo gain and offset by correlation: about half of the copies are mirrored.
    plain = pictures.plain(index[:1]).flatten()
    flat = first.flatten(1)
    mirrored = first.flip(3).flatten(1)
    like = [torch.corrcoef(torch.stack([plain, x]))[0, 1] for x in flat]
    unlike = [torch.corrcoef(torch.stack([plain, x]))[0, 1] for x in mirrored]
    assert 8 < sum(b > a for a, b in zip(like, unlike, strict=True)) < 32


def test_batches_visit_every_picture_once(blobs):
    pictures = Pictures(blobs, recipe(), 56, CPU)
    order = torch.cat(list(pictures.batches(pictures.generator(0))))
    assert sorted(order.tolist()) == list(range(len(blobs)))
    assert not torch.equal(order, torch.cat(list(pictures.batches(pictures.generator(1)))))


def test_batches_of_triplets_hold_positives(blobs):
    pictures = Pictures(blobs, recipe(loss="triplet", batch=12), 56, CPU)
    for batch in pictures.batches(pictures.generator(0)):
        counts = np.unique(pictures.labels[batch].numpy(), return_counts=True)[1]
        assert counts.max() >= 2


def test_too_few_pictures(fit, blobs):
    with pytest.raises(ValueError, match=r"'blobs' have 10 pictures of 2 identities.*batch of 24"):
        fit(recipe(), faces=blobs.subset(slice(0, 10)))


def test_diverging_training_is_an_error_and_writes_nothing(fit, tmp_path):
    with pytest.raises((FloatingPointError, ValueError)):
        fit(recipe(spread=math.inf))
    assert not list(tmp_path.glob("*.safetensors"))


def test_whitening_flattens_the_spectrum():
    torch.manual_seed(0)
    features = torch.randn(4000, 6) * torch.tensor([4.0, 2, 1, 1, 0.5, 0.5]) + 1
    unit = functional.normalize(features)
    before = torch.linalg.eigvalsh(torch.cov(unit.t()))
    for alpha in (0.0, 0.5, 1.0):
        after = torch.linalg.eigvalsh(torch.cov(fit_whitening(features, alpha=alpha)(features).t()))
        assert torch.allclose(after, (before ** (1 - alpha)).sort().values, rtol=1e-2)
    with pytest.raises(ValueError, match="alpha is 1.5"):
        fit_whitening(features, alpha=1.5)


def test_recipes_are_the_networks_of_the_chapters():
    assert len(RECIPES) == 22
    assert len(set(ERODING_LIBRARY.values())) == 15 and set(ERODING_LIBRARY.values()) <= set(RECIPES)
    assert all(name == f"{r.layout}-{r.domain}-{r.loss}" for name, r in RECIPES.items())
    assert sum(r.keep_classifier for r in RECIPES.values()) == 4
    assert all(r.start in RECIPES for r in RECIPES.values() if r.start)


def test_unknown_names_offer_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'ires-webface-arcface'"):
        find_recipe("ires-webface-arcfase")
    with pytest.raises(ValueError, match="did you mean 'cosface'"):
        recipe(loss="cosfaces")
    with pytest.raises(ValueError, match="epochs is 0"):
        recipe(epochs=0)


def test_command_line_refuses_an_unknown_network(capsys):
    with pytest.raises(SystemExit):
        train.main(["ires-webfase-arcface"])
    assert "did you mean 'ires-webface-arcface'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "examples"), [("defended", impersonations), ("defended-corrasion", corrasion_examples)]
)
def test_adversarial_training_perturbs_half_a_batch(fit, blobs, tmp_path, name, examples):
    fit(recipe(name="first"))
    fine = recipe(name=name, start="first", learning_rate=0.01, epochs=1)
    options = {"out": tmp_path, "checkpoints": tmp_path, "progress": False, "bf16": False}
    defended = train_adversarially(blobs, steps=1, recipe=fine, **options)
    assert (tmp_path / f"{name}.safetensors").exists()
    images = to_input(shrink(blobs.images[::EACH], 56))
    backbone = defended.backbone
    backbone.train().requires_grad_(True)
    adversarial = examples(backbone, images, eps=4 / 255, steps=2)
    assert torch.equal(adversarial, examples(backbone, images, eps=4 / 255, steps=2))
    assert backbone.training and all(parameter.requires_grad for parameter in backbone.parameters())
    backbone.eval()
    assert (adversarial - images).abs().max() <= 8 / 255 + 1e-6

    def similarity(x):
        with torch.no_grad():
            target = functional.normalize(backbone(images)).roll(1, 0)
            return (functional.normalize(backbone(x)) * target).sum(1)

    assert (similarity(adversarial) > similarity(images)).all()
    with pytest.raises(ValueError, match="eps is 10"):
        train_adversarially(blobs, eps=10, recipe=fine, **options)
    with pytest.raises(ValueError, match="steps is 0"):
        train_adversarially(blobs, steps=0, recipe=fine, **options)
