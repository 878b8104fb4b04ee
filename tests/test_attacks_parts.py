"""The parts on their own: dropout masks, diverse inputs, momentum, presets; agreement with torchattacks."""

import pytest
import torch
import torchattacks
from attack_networks import SIZE, pictures, residual_encoder, tiny_encoder
from torch import nn

from fa_utils.attacks import (
    PRESETS,
    Attack,
    DiverseInput,
    DiverseResize,
    FeatureDropout,
    Impersonate,
    LabelDodge,
    Momentum,
    NonFiniteGradient,
    Scope,
    preset,
)
from fa_utils.attacks.inputs import warp
from fa_utils.models.backbones import build_backbone
from fa_utils.models.encoder import FaceEncoder


def dropout_attack(steps=3, **options) -> Attack:
    return Attack(objective=Impersonate(), steps=steps, surrogate=[FeatureDropout(**options)])


def scope(images) -> Scope:
    return Scope(images, tuple(map(str, range(len(images)))), 0, "test")


class Recorder:
    """Records the outputs of a convolution as the next layer sees them, by pass."""

    def __init__(self, encoder):
        self.seen = []
        self.hook = encoder.backbone.norm.register_forward_pre_hook(
            lambda module, inputs: self.seen.append(inputs[0].detach().clone())
        )


def record(**options):
    encoder = tiny_encoder()
    # A constant, positive output of the first convolution makes its mask visible.
    nn.init.zeros_(encoder.backbone.conv1.weight)
    nn.init.ones_(encoder.backbone.conv1.bias)
    recorder = Recorder(encoder)
    dropout_attack(**options)(encoder, pictures(4, 1), pictures(4, 2))
    return recorder.seen[1:]  # the first is the pass that learns the shapes


def test_masks_are_shared_by_source_and_target_and_new_each_step():
    passes = record(p=0.3, target="masked", steps=3)
    assert len(passes) == 6
    for target, source in zip(passes[::2], passes[1::2], strict=True):
        assert torch.equal(target, source)
    masks = passes[1::2]
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])
    assert not torch.equal(masks[0][0], masks[0][1])  # one mask per image
    assert set(masks[0].unique().tolist()) == {0.0, 1.0}


def test_clean_target_sees_no_mask():
    clean, *masked = record(p=0.3, target="clean", steps=2)
    assert (clean == 1).all()
    assert len(masked) == 2
    assert all((mask == 0).any() for mask in masked)


def test_frozen_mask_is_drawn_once():
    masks = record(p=0.3, frozen=True, steps=3)
    assert all(torch.equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize(
    ("options", "mean", "variance"),
    [
        ({}, 0.9, 0.09),
        ({"rescale": True}, 1.0, 0.09 / 0.81),
        ({"noise": "gaussian"}, 0.9, 0.09),
        ({"noise": "gaussian", "rescale": True}, 1.0, 0.09 / 0.81),
    ],
)
def test_noise_has_the_stated_moments(options, mean, variance):
    values = torch.cat([mask.flatten() for mask in record(p=0.1, target="clean", steps=40, **options)[1:]])
    error = (variance / len(values)) ** 0.5
    assert abs(values.mean() - mean) < 4 * error
    assert abs(values.var() / variance - 1) < 0.05


def test_mask_acts_in_the_backward_pass_too():
    """Where the mask of a convolution is zero, so is the gradient with respect to its unmasked output."""
    encoder = tiny_encoder()
    part = FeatureDropout(0.5, target="clean", layers=r"conv2$")
    images = pictures(3)
    kept = []
    encoder.backbone.conv2.register_forward_hook(lambda m, i, o: kept.append(o))
    with part.attach(encoder, scope(images)) as state:
        kept.clear()
        state.begin_step(0)
        state.enabled = True
        leaf = images.clone().requires_grad_(True)
        output = encoder(leaf)
        masked = kept[0]
        kernel = torch.autograd.grad(output.sum(), leaf)[0]
    # The same by hand: a network whose second convolution is multiplied by the mask found above.
    mask = (masked != 0).to(leaf.dtype)
    encoder.backbone.conv2._forward_hooks.clear()
    encoder.backbone.conv2.register_forward_hook(lambda m, i, o: o * mask)
    expected = torch.autograd.grad(encoder(leaf).sum(), leaf)[0]
    assert 0.3 < mask.mean() < 0.7
    torch.testing.assert_close(kernel, expected, rtol=1e-12, atol=1e-15)


def hooks_of(encoder) -> int:
    return sum(len(module._forward_hooks) for module in encoder.modules())


def test_hooks_are_removed_also_after_an_error():
    class Failing(Impersonate):
        def loss(self, prediction, reference):
            raise RuntimeError("in the middle")

    class Broken(Impersonate):
        def loss(self, prediction, reference):
            return prediction.sum(dim=1) * torch.nan

    pair = pictures(2, 1), pictures(2, 2)
    for objective, error in ((Impersonate(), None), (Failing(), RuntimeError), (Broken(), NonFiniteGradient)):
        first, second = tiny_encoder(1), tiny_encoder(2)
        second.requires_grad_(True)
        run = Attack(objective=objective, steps=2, surrogate=[FeatureDropout(0.1), FeatureDropout(0.2)])
        if error:
            with pytest.raises(error):
                run([first, second], *pair)
        else:
            run([first, second], *pair)
        assert hooks_of(first) == hooks_of(second) == 0
        assert all(parameter.requires_grad for parameter in second.parameters())
    missing = dropout_attack(layers="nothing")
    with pytest.raises(
        ValueError, match="layers='nothing' matches no convolution; there are: backbone.conv1"
    ):
        missing(first, *pair)
    assert hooks_of(first) == 0


def test_layers_choose_what_is_masked():
    encoder = FaceEncoder(build_backbone("irse"), name="irse", input_size=56)
    images = pictures(1, size=56, dtype=torch.float32)
    counts = {}
    for name, part in {
        "all": FeatureDropout(0.1),
        "gates": FeatureDropout(0.1, squeeze_excite=True),
        "some": FeatureDropout(0.1, layers="shortcut"),
    }.items():
        with part.attach(encoder, scope(images)):
            counts[name] = hooks_of(encoder)
    assert 0 < counts["some"] < counts["all"] < counts["gates"]
    assert counts["all"] == len(encoder.convolutions())


@pytest.mark.parametrize("layout", ["ires", "irse", "mobile", "incres"])
def test_every_layout_is_attacked(layout):
    torch.manual_seed(0)
    encoder = FaceEncoder(build_backbone(layout), name=layout, input_size=56)
    source, target = (pictures(2, seed, size=56, dtype=torch.float32) for seed in (1, 2))
    run = preset("dfanet_di_m_fim", steps=3, drop=0.02)
    images = run(encoder, source, target)
    assert ((images - source).abs().max() * 255).round() == 3
    assert hooks_of(encoder) == 0


def test_warp_by_the_identity_changes_nothing():
    images = pictures(3)
    identity = torch.eye(2, 3, dtype=images.dtype).expand(3, 2, 3)
    torch.testing.assert_close(warp(images, identity), images, rtol=0, atol=1e-12)


def test_warp_agrees_with_torch_and_is_zero_outside():
    images = 0.5 + pictures(4) / 2
    torch.manual_seed(0)
    matrices = torch.eye(2, 3, dtype=images.dtype) + 0.1 * torch.randn(4, 2, 3, dtype=images.dtype)
    grid = nn.functional.affine_grid(matrices, list(images.shape), align_corners=False)
    expected = nn.functional.grid_sample(images, grid, align_corners=False)
    moved = warp(images, matrices)
    inside = moved != 0
    assert 0.5 < inside.double().mean() < 1
    torch.testing.assert_close(moved[inside], expected[inside])
    assert moved[inside].min() >= 0.5 - 1e-12  # no pixel is half outside


@pytest.mark.parametrize("part", [DiverseInput(), DiverseResize()])
def test_diverse_inputs_differ_by_image_and_step(part):
    images = pictures(1).expand(4, -1, -1, -1)
    transform = part.bind(scope(images))
    ((first, weight),), ((second, _),) = transform(images, 0), transform(images, 1)
    assert weight == 1
    assert first.shape == images.shape
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_diverse_input_moves_a_share_p_of_images():
    images = pictures(400)
    ((moved, _),) = DiverseInput(p=0.3).bind(scope(images))(images, 0)
    changed = (moved != images).flatten(1).any(1)
    assert 0.2 < changed.double().mean() < 0.4
    ((always, _),) = DiverseInput(p=1.0).bind(scope(images))(images, 0)
    assert torch.equal(moved[changed], always[changed])  # p shifts no stream


def test_diverse_resize_keeps_the_whole_picture():
    images = torch.ones(200, 3, SIZE, SIZE, dtype=torch.float64)
    ((moved, _),) = DiverseResize(scale=(0.5, 1.0)).bind(scope(images))(images, 0)
    area = moved[:, 0].mean((1, 2))
    assert area.min() < 0.35
    assert 0.25 * (SIZE - 2) ** 2 / SIZE**2 <= area.min()
    assert area.max() <= 1
    assert set(moved.unique().round(decimals=9).tolist()) == {0.0, 1.0}


def test_gradient_through_the_input_part_is_exact():
    """A step through DI follows the gradient of the loss of the transformed picture."""
    encoder, source, target = tiny_encoder(), pictures(3, 1), pictures(3, 2)
    run = Attack(objective=Impersonate(), steps=1, inputs=[DiverseInput()])
    leaf = source.clone().requires_grad_(True)
    own = Scope(source, ("0", "1", "2"), 0, "DiverseInput/0")
    ((moved, _),) = DiverseInput().bind(own)(leaf, 0)
    loss = (encoder(moved) - encoder(target)).norm(dim=1).sum()
    expected = (source * 255 - torch.autograd.grad(loss, leaf)[0].sign()).clamp(0, 255) / 255
    idle = expected == source
    torch.testing.assert_close(run(encoder, source, target)[~idle], expected[~idle], rtol=0, atol=1e-12)


def test_momentum_norms():
    encoder, pair = tiny_encoder(), (pictures(5, 1), pictures(5, 2))
    by_norm = {
        norm: Attack(objective=Impersonate(), steps=12, gradient=[Momentum(1.0, norm)])(encoder, *pair)
        for norm in ("mean_abs", "l1", "l2")
    }
    assert torch.equal(by_norm["mean_abs"], by_norm["l1"])
    assert not torch.equal(by_norm["mean_abs"], by_norm["l2"])


class Classifier(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        return self.encoder.logits(images)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"steps": 1, "step_size": 8 / 255}, lambda m: torchattacks.FGSM(m, eps=8 / 255)),
        (
            {"steps": 10},
            lambda m: torchattacks.PGD(m, eps=8 / 255, alpha=2 / 255, steps=10, random_start=False),
        ),
        (
            {"steps": 10, "gradient": [Momentum(1.0)]},
            lambda m: torchattacks.MIFGSM(m, eps=8 / 255, alpha=2 / 255, steps=10, decay=1.0),
        ),
        (
            {"steps": 10, "gradient": [Momentum(0.5)]},
            lambda m: torchattacks.MIFGSM(m, eps=8 / 255, alpha=2 / 255, steps=10, decay=0.5),
        ),
    ],
)
def test_agrees_with_torchattacks(ours, theirs):
    """In float64, where rounding does not decide signs, all pixels agree after ten steps."""
    encoder, images = tiny_encoder(), pictures(8, 3)
    labels = encoder.logits(images).argmax(1)
    run = Attack(**{"objective": LabelDodge(), "eps": 8 / 255, "step_size": 2 / 255, **ours})
    reference = theirs(Classifier(encoder).eval())(images, labels)
    torch.testing.assert_close(run(encoder, images), reference, rtol=0, atol=1e-9)
    assert (reference - images).abs().max() > 7 / 255


def test_agrees_with_torchattacks_on_a_face_network_in_float64():
    torch.manual_seed(0)
    encoder = FaceEncoder(
        build_backbone("ires"), name="ires", input_size=56, classifier=nn.Linear(128, 20)
    ).double()
    images = pictures(2, 3, size=112)
    labels = encoder.logits(images).argmax(1)
    run = Attack(objective=LabelDodge(), eps=8 / 255, step_size=2 / 255, steps=10, gradient=[Momentum()])
    theirs = torchattacks.MIFGSM(Classifier(encoder).eval(), eps=8 / 255, alpha=2 / 255, steps=10, decay=1.0)
    torch.testing.assert_close(run(encoder, images), theirs(images, labels), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_run(name):
    encoder, source, target = residual_encoder(), pictures(2, 1), pictures(2, 2)
    run = preset(name, steps=1 if PRESETS[name].step_size is None else 2, seed=5)
    assert run.seed == 5
    if getattr(run.objective, "takes_labels", False):
        result = run(encoder, source, labels=encoder.logits(source).argmax(1))
    else:
        result = run(encoder, source, target)
    assert 0 < (result - source).abs().max() <= run.eps + 1e-12


def test_presets_are_the_published_compositions():
    assert preset("fim").steps == preset("itgsm").steps == 13
    assert preset("fim", eps=4 / 255).steps == 5
    assert preset("DFANet-DI-M-FIM").steps == 1500
    ffm = preset("ffm", eps=7 / 255)
    assert (ffm.steps, ffm.step_size) == (1, 7 / 255)
    full = preset("dfanet_di_m_fim", drop=0.025, steps=50)
    assert full.surrogate == (FeatureDropout(0.025),)
    assert full.inputs == (DiverseInput(),)
    assert full.gradient == (Momentum(1.0),)
    assert preset("fim", surrogate=[FeatureDropout(0.2)], step_size=2 / 255).step_size == 2 / 255


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preset("dfanet_di_mfim"), "did you mean 'dfanet_di_m_fim'"),
        (
            lambda: preset("fim", stepsize=0.1),
            "unknown parameter of Attack 'stepsize'; did you mean 'step_size'",
        ),
        (lambda: preset("ffm", steps=13), "takes one step"),
        (lambda: preset("dfanet_fim", drop=1.2), "must lie in"),
        (lambda: preset("fim", eps=3), "for 3 grey levels write 3 / 255"),
    ],
)
def test_bad_presets(call, message):
    with pytest.raises(ValueError, match=message):
        call()
