"""Denoisers: UDnCNN, its four losses, the cache, and what stays as it was."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fa_utils.defenses import denoisers
from fa_utils.defenses.denoisers import LOSSES, DenoiserRecipe, UDnCNN, denoise, guidance, train_denoiser
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.losses import LinearClassifier
from fa_utils.models.resnet import FaceResNet50
from fa_utils.models.vgg import VGG16

SIDE, COUNT = 32, 12
RECIPE = DenoiserRecipe(loss="pixel", width=4, epochs=2, batch=5, learning_rate=0.01, seed=1)
GUIDED = [loss for loss in LOSSES if loss != "pixel"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(denoisers, "CACHE", tmp_path)
    return tmp_path / "denoisers"


@pytest.fixture
def classifier() -> FaceEncoder:
    torch.manual_seed(0)
    backbone = VGG16(widths=(4, 4, 6, 6, 6), hidden=10, dropout=0.0, input_size=SIDE, embedding=8)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # statistics of one batch: without, nothing of a picture is left after thirteen layers
    backbone.train()(2 * torch.rand(16, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3) - 1)
    for norm in norms:
        norm.momentum = 0.1
    return FaceEncoder(backbone, name="vgg", input_size=SIDE, classifier=LinearClassifier(8, 2, rectify=True))


@pytest.fixture
def resnet() -> FaceEncoder:
    torch.manual_seed(0)
    backbone = FaceResNet50(
        units=(1, 1), widths=(4, 4), stem_width=4, stem_kernel=3, neck=4, input_size=SIDE, embedding=8
    )
    return FaceEncoder(backbone, name="resnet", input_size=SIDE, classifier=LinearClassifier(8, 2))


@pytest.fixture
def clean() -> np.ndarray:
    """Coarse color patches, so that noise can be told from them."""
    patches = np.random.default_rng(0).integers(40, 216, (COUNT, 3, 4, 4))
    return patches.repeat(8, 2).repeat(8, 3).astype(np.uint8)


@pytest.fixture
def adversarial(clean) -> np.ndarray:
    signs = np.random.default_rng(1).choice([-12, 12], clean.shape)
    return (clean + signs).astype(np.uint8)


def random_network(**options) -> UDnCNN:
    """Evaluation mode, with statistics that differ from channel to channel."""
    torch.manual_seed(3)
    model = UDnCNN(**options)
    for norm in model.norms:
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return model.eval()


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values())
    return all(torch.equal(a, b) for a, b in pairs)


# ---------------------------------------------------------------- the network


def pooled(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maxima of 2 x 2 blocks, and a 0/1 map of where the first of each lies; an odd last row or column has none."""
    n, c, height, width = h.shape
    blocks = h[:, :, : height // 2 * 2, : width // 2 * 2].reshape(n, c, height // 2, 2, width // 2, 2)
    blocks = blocks.transpose(0, 1, 2, 4, 3, 5).reshape(n, c, height // 2, width // 2, 4)
    where = np.eye(4)[blocks.argmax(-1)].reshape(n, c, height // 2, width // 2, 2, 2)
    places = np.zeros(h.shape)
    places[:, :, : height // 2 * 2, : width // 2 * 2] = where.transpose(0, 1, 2, 4, 3, 5).reshape(
        n, c, height // 2 * 2, width // 2 * 2
    )
    return blocks.max(-1), places


def spread(h: np.ndarray, places: np.ndarray) -> np.ndarray:
    larger = h.repeat(2, 2).repeat(2, 3)
    odd = [(0, 0), (0, 0)] + [(0, a - b) for a, b in zip(places.shape[2:], larger.shape[2:])]
    return np.pad(larger, odd) * places


def by_hand(model: UDnCNN, images: np.ndarray, bn_eps: float) -> np.ndarray:
    """The architecture as the sheet words it, with another pooling."""

    def convolved(layer, h):
        weight, bias = layer.weight.double(), layer.bias.double()
        return F.conv2d(torch.as_tensor(h), weight, bias, padding=1).detach().numpy()

    def block(index, h):
        norm = model.norms[index]
        mean, variance, gain, bias = (
            t.detach().double().numpy()[:, None, None]
            for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return np.maximum(0, gain * (convolved(model.inner[index], h) - mean) / np.sqrt(variance + bn_eps) + bias)

    x = 2 * images.astype(float) - 1
    depth = len(model.inner)
    h, down = np.maximum(0, convolved(model.first, x)), []
    for index in range(depth // 2 - 1):
        h, places = pooled(block(index, h))
        down.append((h, places))
    for index in (depth // 2 - 1, depth // 2):
        h = block(index, h)
    for index in range(depth // 2 + 1, depth):
        skip, places = down.pop()
        h = spread(block(index, (h + skip) / math.sqrt(2)), places)
    return (x + convolved(model.last, h) + 1) / 2


@pytest.mark.parametrize("depth, bn_eps, size", [(6, 64.0, (12, 16)), (6, 1e-5, (13, 7)), (4, 64.0, (5, 9)), (8, 2.0, (8, 11))])
def test_the_network_is_the_one_of_the_sheet(depth, bn_eps, size):
    model = random_network(width=5, depth=depth, bn_eps=bn_eps)
    images = torch.rand(2, 3, *size)
    found = model(images)
    assert found.shape == images.shape
    np.testing.assert_allclose(found.detach().numpy(), by_hand(model, images.numpy(), bn_eps), atol=2e-4)


def test_published_and_corrected_batch_norm():
    published, corrected = UDnCNN(), UDnCNN(bn_eps=1e-5)
    assert [tuple(m.weight.shape) for m in published.modules() if isinstance(m, nn.Conv2d)] == [
        (64, 3, 3, 3), *[(64, 64, 3, 3)] * 6, (3, 64, 3, 3)
    ]  # fmt: skip
    assert [norm.eps for norm in published.norms] == [64.0] * 6
    assert all((norm.weight == 1.25 * math.sqrt(64)).all() for norm in published.norms)
    assert [norm.eps for norm in corrected.norms] == [1e-5] * 6
    assert all((norm.weight == 1.25).all() for norm in corrected.norms)
    for convolution, inputs in [(published.first, 27), *((c, 576) for c in published.inner)]:
        assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / inputs), rel=0.1)
    assert published.last.weight.abs().max() <= 1 / math.sqrt(576)  # torch's own start, narrower


def test_the_last_convolution_adds_to_the_input_in_the_inner_scale():
    model = random_network(width=4)
    nn.init.zeros_(model.last.weight)
    nn.init.zeros_(model.last.bias)
    images = torch.rand(2, 3, 9, 10)
    assert torch.equal(model(images), images)
    nn.init.constant_(model.last.bias, 4.0)
    assert torch.allclose(model(images), images + 2)  # 4 of [-1, 1] are 2 of [0, 1]; nothing is clipped


def test_gradients_reach_every_parameter_and_the_input():
    model, images = UDnCNN(width=4), torch.rand(2, 3, 11, 13, requires_grad=True)
    model(images).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for name, p in model.named_parameters() if not name.startswith("inner") or "weight" in name)
    assert images.grad.abs().min() > 0


@pytest.mark.parametrize("options, said", [
    ({"depth": 5}, "even"), ({"depth": 0}, "depth"), ({"width": 0}, "width"), ({"width": 2.5}, "width"),
    ({"bn_eps": 0}, "bn_eps"), ({"bn_eps": math.nan}, "bn_eps"),
])  # fmt: skip
def test_networks_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        UDnCNN(**options)


def test_too_small_pictures_are_named():
    with pytest.raises(ValueError, match=r"\(3, 8\).*halved 2 times"):
        UDnCNN(width=2)(torch.rand(1, 3, 3, 8))


# ---------------------------------------------------------------- what the losses compare


def test_layers_of_vgg(classifier):
    images = torch.rand(3, 3, SIDE, SIDE)
    features = classifier.backbone.features
    cut = [i for i, module in enumerate(features) if isinstance(module, nn.Conv2d)][-1] + 1
    expected = {
        "pixel": images,
        "last_conv": features[:cut](classifier.prepare(images)),
        "fc2": classifier.backbone.classifier(features(classifier.prepare(images)).flatten(1)),
        "logits": classifier.logits(images),
    }
    for loss in LOSSES:
        with guidance(loss, classifier) as layer:
            assert torch.equal(layer(images), expected[loss])
    assert expected["last_conv"].shape == (3, 6, 2, 2) and expected["logits"].shape == (3, 2)


def test_layers_of_resnet(resnet):
    images = torch.rand(3, 3, SIDE, SIDE)
    with guidance("logits", resnet) as layer:
        assert torch.equal(layer(images), resnet.features(images))  # what enters the layer of logits
    with guidance("last_conv", resnet) as layer:
        assert torch.equal(layer(images), resnet.backbone.neck[0](resnet.backbone.maps(resnet.prepare(images))))


@pytest.mark.parametrize("loss", LOSSES)
def test_clean_pictures_are_compared_as_they_are_with_denoised_adversarial_ones(
    classifier, clean, adversarial, monkeypatch, loss
):
    seen, distance = [], denoisers._distance

    def spy(wanted, found):
        seen.append((wanted.detach(), found.detach(), distance(wanted, found)))
        return seen[-1][-1]

    monkeypatch.setattr(denoisers, "_distance", spy)
    recipe = dataclasses.replace(RECIPE, loss=loss, epochs=1, batch=COUNT)
    train_denoiser(recipe, classifier, clean, adversarial, progress=False, cache=False)
    ((wanted, found, value),) = seen
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(recipe.seed)).numpy()
    start = denoisers._new(recipe).train()
    with guidance(loss, classifier) as layer, torch.no_grad():
        torch.testing.assert_close(wanted, layer(torch.tensor(clean[order]) / 255))
        torch.testing.assert_close(found, layer(start(torch.tensor(adversarial[order]) / 255)), rtol=1e-4, atol=1e-5)
    assert value.item() == pytest.approx(np.abs(wanted.numpy() - found.numpy()).mean(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_denoiser_that_returns_the_clean_picture_has_nothing_to_learn(classifier, clean, adversarial, monkeypatch, loss):
    new = denoisers._new

    def identity(recipe):
        model = new(recipe)
        nn.init.zeros_(model.last.weight)
        nn.init.zeros_(model.last.bias)
        return model

    monkeypatch.setattr(denoisers, "_new", identity)
    recipe = dataclasses.replace(RECIPE, loss=loss)
    done = train_denoiser(recipe, classifier, clean, clean, progress=False, cache=False)
    assert not done.last.weight.any() and not done.last.bias.any()
    done = train_denoiser(recipe, classifier, clean, adversarial, progress=False, cache=False)
    assert done.last.weight.any()


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("bn_eps", [64.0, 1e-5])
def test_the_pixel_denoiser_removes_noise(clean, adversarial, bn_eps):
    recipe = dataclasses.replace(RECIPE, bn_eps=bn_eps, width=8, epochs=30)
    done = train_denoiser(recipe, None, clean, adversarial, progress=False)
    error = [np.abs(images.astype(int) - clean).mean() for images in (adversarial, denoise(done, adversarial))]
    assert error[1] < 0.95 * error[0]


@pytest.mark.parametrize("loss", GUIDED)
def test_guided_losses_fall(classifier, clean, adversarial, monkeypatch, loss):
    values, distance = [], denoisers._distance

    def spy(wanted, found):
        values.append(distance(wanted, found))
        return values[-1]

    monkeypatch.setattr(denoisers, "_distance", spy)
    recipe = dataclasses.replace(RECIPE, loss=loss, epochs=15, learning_rate=1e-3)
    train_denoiser(recipe, classifier, clean, adversarial, progress=False, cache=False)
    first, last = (np.mean([value.item() for value in part]) for part in (values[:3], values[-9:]))
    assert len(values) == 45 and last < 0.8 * first


def test_the_learning_rate_falls_twice(clean, adversarial, monkeypatch):
    rates = []

    class Adam(torch.optim.Adam):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            super().step()

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    recipe = dataclasses.replace(RECIPE, epochs=10, batch=COUNT, learning_rate=0.02)
    train_denoiser(recipe, None, clean, adversarial, progress=False)
    assert rates == pytest.approx([0.02] * 6 + [0.002] * 3 + [0.0002])


def test_every_picture_is_seen_once_an_epoch():
    order = torch.Generator().manual_seed(0)
    batches = list(denoisers._batches(RECIPE, 12, order))
    assert [len(batch) for batch in batches] == [5, 5, 2, 5, 5, 2]
    epochs = [np.concatenate(batches[:3]), np.concatenate(batches[3:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2 and list(epochs[0]) != list(epochs[1])


@pytest.mark.parametrize("loss", GUIDED)
@pytest.mark.parametrize("fails", [False, True])
def test_the_classifier_is_left_as_it_was(classifier, clean, adversarial, monkeypatch, loss, fails):
    classifier.train().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    modes = []
    distance = denoisers._distance

    def spy(wanted, found):
        modes.append(classifier.training or classifier.backbone.features[1].training)
        return distance(wanted, found) * (math.nan if fails and len(modes) == 3 else 1)

    monkeypatch.setattr(denoisers, "_distance", spy)
    recipe = dataclasses.replace(RECIPE, loss=loss)
    if fails:
        with pytest.raises(FloatingPointError, match=f"{loss} loss of step 3 of 6 is nan"):
            train_denoiser(recipe, classifier, clean, adversarial, progress=False)
        assert not list(denoisers.CACHE.rglob("*.safetensors"))
    else:
        train_denoiser(recipe, classifier, clean, adversarial, progress=False)
    assert modes and not any(modes) and classifier.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert not any(module._forward_hooks for module in classifier.modules())
    assert all(p.grad is None and p.requires_grad for p in classifier.parameters())


def test_the_seed_decides_and_nothing_else(classifier, clean, adversarial):
    recipe = dataclasses.replace(RECIPE, loss="logits")
    options = {"progress": False, "cache": False}
    torch.manual_seed(5)
    first = train_denoiser(recipe, classifier, clean, adversarial, **options)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # the global generator was left alone
    assert same(first, train_denoiser(recipe, classifier, clean, adversarial, **options))
    other = train_denoiser(dataclasses.replace(recipe, seed=2), classifier, clean, adversarial, **options)
    assert not same(first, other)
    assert not first.training and not any(p.requires_grad for p in first.parameters())


def test_bfloat16_trains_as_well(classifier, clean, adversarial, monkeypatch):
    monkeypatch.setattr(denoisers, "bf16_pays", lambda *_: True)
    recipe = dataclasses.replace(RECIPE, width=8, epochs=30)
    done = train_denoiser(recipe, classifier, clean, adversarial, progress=False)
    assert np.abs(denoise(done, adversarial).astype(int) - clean).mean() < 0.95 * 12
    assert all(p.dtype == torch.float32 for p in done.parameters())


def test_progress_is_shown_on_demand(clean, adversarial, monkeypatch, capsys):
    ends = []

    class Bar(denoisers.tqdm):
        def close(self):
            if not (self.disable or ends):  # it is closed once more when it is collected
                ends.append((self.desc, self.n, self.total, self.postfix))
            super().close()

    monkeypatch.setattr(denoisers, "tqdm", Bar)
    train_denoiser(RECIPE, None, clean, adversarial, progress=False, cache=False)
    assert not ends and not any(capsys.readouterr())
    train_denoiser(RECIPE, None, clean, adversarial, progress=True, cache=False)
    ((name, done, total, shown),) = ends
    assert name == "denoiser, pixel" and done == total == 6 and shown.startswith("loss 0.")
    assert "denoiser, pixel" in capsys.readouterr().err


# ---------------------------------------------------------------- cache


@pytest.fixture
def trained(classifier, clean, adversarial):
    return train_denoiser(dataclasses.replace(RECIPE, loss="fc2"), classifier, clean, adversarial, progress=False)


def test_the_second_time_nothing_is_trained(trained, classifier, clean, adversarial, monkeypatch):
    monkeypatch.setattr(denoisers, "_fit", None)
    again = train_denoiser(dataclasses.replace(RECIPE, loss="fc2"), classifier, clean, adversarial)
    assert same(trained, again) and not again.training


@pytest.mark.parametrize("what", ["recipe", "weight", "scale", "clean", "adversarial", "source"])
def test_whatever_changes_is_trained_anew(trained, classifier, clean, adversarial, folder, monkeypatch, what, tmp_path):
    (before,) = folder.iterdir()
    recipe = dataclasses.replace(RECIPE, loss="fc2", batch=RECIPE.batch + (what == "recipe"))
    if what == "weight":
        classifier.backbone.features[0].weight.data[0, 0, 0, 0] += 1e-3
    if what == "scale":
        classifier.mean += 0.01  # not in the state dict
    if what == "source":
        copy = shutil.copy(denoisers.__file__, tmp_path / "copy.py")
        with open(copy, "a") as file:
            file.write("# changed\n")
        monkeypatch.setattr(denoisers, "__file__", copy)
    for name, images in (("clean", clean), ("adversarial", adversarial)):
        if what == name:
            images[-1, -1, -1, -1] ^= 1
    train_denoiser(recipe, classifier, clean, adversarial, progress=False)
    assert len(list(folder.iterdir())) == 2 and before in folder.iterdir()


def test_the_pixel_loss_asks_for_no_classifier(classifier, clean, adversarial, folder):
    with_one = train_denoiser(RECIPE, classifier, clean, adversarial, progress=False)
    assert same(with_one, train_denoiser(RECIPE, None, clean, adversarial, progress=False))
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_file_is_made_again(trained, classifier, clean, adversarial, folder, damage):
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    other = denoisers.safetensors.torch.save({k: v.contiguous() for k, v in UDnCNN(width=5).state_dict().items()})
    path.write_bytes({"cut": whole[:-9], "empty": b"", "other": other}[damage])
    recipe = dataclasses.replace(RECIPE, loss="fc2")
    assert same(trained, train_denoiser(recipe, classifier, clean, adversarial, progress=False))
    assert [file.read_bytes() for file in folder.iterdir()] == [whole]


def test_without_cache_nothing_is_written(clean, adversarial, folder):
    train_denoiser(RECIPE, None, clean, adversarial, progress=False, cache=False)
    assert not folder.exists()


# ---------------------------------------------------------------- use


class Shifted(nn.Module):
    """Adds gray levels."""

    def __init__(self, levels: float):
        super().__init__()
        self.levels = nn.Parameter(torch.tensor(levels / 255))

    def forward(self, images):
        assert not self.training
        return images + self.levels


@pytest.mark.parametrize("levels, change", [(0.4, 0), (0.6, 1), (-0.4, 0), (-0.6, -1), (300, 255)])
def test_results_are_rounded_and_clipped(levels, change):
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 5)).astype(np.uint8)
    model = Shifted(levels)
    found = denoise(model, images, batch_size=3)
    np.testing.assert_array_equal(found, np.clip(images.astype(int) + change, 0, 255))
    assert found.dtype == np.uint8 and model.training


def test_the_batch_size_changes_nothing(trained, adversarial):
    whole = denoise(trained, adversarial).astype(int)
    assert np.abs(denoise(trained, adversarial, batch_size=5) - whole).max() <= 1
    assert np.abs(whole - adversarial).max() > 1
    with pytest.raises(ValueError, match="batch_size"):
        denoise(trained, adversarial, batch_size=0)


def test_a_result_that_is_not_finite_is_no_picture(adversarial):
    with pytest.raises(ValueError, match="NaN"):
        denoise(Shifted(math.nan), adversarial)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("options, said", [
    ({"loss": "logit"}, "did you mean 'logits'"), ({"loss": "mse"}, "pixel, last_conv, fc2, logits"), ({"epochs": 0}, "epochs"),
    ({"batch": 1.5}, "batch"), ({"learning_rate": 0.0}, "learning_rate"), ({"learning_rate": math.inf}, "learning_rate"),
    ({"bn_eps": -1.0}, "bn_eps"), ({"seed": -1}, "seed"), ({"width": True}, "width"),
])  # fmt: skip
def test_recipes_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(RECIPE, **options)


def test_pictures_that_do_not_fit(clean, adversarial):
    wrong = [
        (clean[:-1], adversarial, ValueError, r"\(11, 3, 32, 32\).*\(12, 3, 32, 32\)"),
        (clean[:0], adversarial[:0], ValueError, "clean must have the shape.*at least one"),
        (clean[:, :2], adversarial[:, :2], ValueError, r"\(12, 2, 32, 32\)"),
        (clean, adversarial / 255, TypeError, "adversarial.*float64"),
        (torch.tensor(clean), adversarial, TypeError, "clean must be a numpy array"),
    ]
    for first, second, kind, said in wrong:
        with pytest.raises(kind, match=said):
            train_denoiser(RECIPE, None, first, second, progress=False)
    with pytest.raises(TypeError, match="images must be a numpy array"):
        denoise(UDnCNN(width=2), clean / 255)


def test_classifiers_that_do_not_fit(classifier, resnet, clean, adversarial):
    def attempt(loss, network, **options):
        train_denoiser(dataclasses.replace(RECIPE, loss=loss), network, clean, adversarial, progress=False, **options)

    with pytest.raises(ValueError, match="'resnet'.*no second fully connected layer.*logits"):
        attempt("fc2", resnet)
    with pytest.raises(ValueError, match="needs the attacked classifier"):
        attempt("logits", None)
    with pytest.raises(ValueError, match="classifier is on cpu, the denoiser on meta"):
        attempt("logits", classifier, device="meta")
    classifier.classifier = None
    with pytest.raises(RuntimeError, match="no classification head"):
        attempt("logits", classifier)
