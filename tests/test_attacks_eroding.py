"""The parts of chapter 4: eroded gradients, Ghost, copies of the picture, smoothed gradients, corrasion."""

from contextlib import ExitStack

import pytest
import torch
from attack_networks import SIZE, pictures, residual_encoder, tiny_encoder
from torch.nn import functional

from fa_utils.attacks import (
    PRESETS,
    Attack,
    CopyNorm,
    DiversePad,
    GhostNetwork,
    GradientEroding,
    Impersonate,
    Momentum,
    NoiseCopies,
    ScaleCopies,
    Scope,
    SkipGradient,
    TranslateScale,
    TranslationInvariant,
    corrasion,
    engine,
    preset,
)
from fa_utils.attacks.gradients import gaussian_window, smooth
from fa_utils.models.backbones import SMALL, build_backbone
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.onnx import export_onnx, onnx_encoder

COUNT = 4
BUDGET = {"objective": Impersonate(distance="cosine"), "eps": 8 / 255, "step_size": 2 / 255, "steps": 3}


@pytest.fixture(scope="module")
def encoder():
    return residual_encoder()


@pytest.fixture(scope="module")
def pair():
    return pictures(COUNT, 1), pictures(COUNT, 2)


def attack(**parts) -> Attack:
    return Attack(**BUDGET, **parts)


def scope_of(images, *, label: str = "test", seed: int = 0) -> Scope:
    return Scope(images, tuple(map(str, range(len(images)))), seed, label)


def gradient_of(encoder, images, target, *parts, copies: int = 1):
    """Gradient of the cosine loss under surrogate parts, and the embeddings seen on the way."""
    leaf = images.clone().requires_grad_()
    with ExitStack() as stack:
        states = [stack.enter_context(part.attach(encoder, scope_of(images[: len(images) // copies]))) for part in parts]
        for state in states:
            state.enabled = True
            state.begin_step(0)
            state.begin_pass(copies)
        seen = encoder(leaf)
    return torch.autograd.grad((seen * target).sum(), leaf)[0], seen.detach()


# ---------------------------------------------------------------- neutral settings


@pytest.mark.parametrize(
    "neutral",
    [
        {"surrogate": [GradientEroding(1.0, 1.0)]},
        {"surrogate": [GradientEroding(1.0, 1.0, branch="shortcut")]},
        {"surrogate": [SkipGradient(1.0)]},
        {"surrogate": [GhostNetwork(0.0)]},
        {"inputs": [ScaleCopies(1)]},
        {"inputs": [NoiseCopies(1, sigma=0.0)]},
        {"inputs": [TranslateScale(p=0.0)]},
        {"inputs": [DiversePad(p=0.0)]},
        {"gradient": [TranslationInvariant(1)]},
        {"gradient": [CopyNorm()]},  # one copy: a positive factor, which the sign does not see
    ],
)
def test_neutral_settings_give_the_plain_attack_bit_for_bit(encoder, pair, neutral):
    assert torch.equal(attack(**neutral)(encoder, *pair), attack()(encoder, *pair))


def test_equal_copies_are_the_plain_attack(encoder, pair):
    copies = attack(inputs=[ScaleCopies(3, base=1.0)])(encoder, *pair)
    assert (copies == attack()(encoder, *pair)).double().mean() > 0.999  # three rows at once round otherwise


# ---------------------------------------------------------------- eroding


@pytest.mark.parametrize("branch", ["residual", "shortcut"])
@pytest.mark.parametrize("layout", ["ires", "irse", "mobile", "mobilenet", "shuffle", "incres", "resnet50"])
def test_forward_is_untouched(layout, branch):
    torch.manual_seed(0)
    network = FaceEncoder(build_backbone(layout), name=layout, input_size=56)
    images, target = pictures(2, 1, size=112, dtype=torch.float32), torch.ones(128)
    plain_gradient, plain = gradient_of(network, images, target)
    eroded_gradient, eroded = gradient_of(network, images, target, GradientEroding(branch=branch))
    assert torch.equal(plain, eroded)
    assert not torch.allclose(plain_gradient, eroded_gradient, rtol=1e-3)


@pytest.mark.parametrize("branch", ["residual", "shortcut"])
def test_gradient_is_that_of_a_partly_detached_branch(encoder, pair, branch):
    images, target = pair[0], encoder(pair[1])
    part = GradientEroding(0.3, 0.9, branch=branch)
    got, _ = gradient_of(encoder, images, target, part)
    # The factors that the part draws: (units,) for each image.
    draws = torch.stack([torch.rand(1, 2, generator=g)[0] for g in scope_of(images).generators()])
    factors = (0.3 + (0.9 - 0.3) * draws).double()

    def partly(i):
        def hook(module, inputs, output):
            scale = factors[:, i].view(-1, 1, 1, 1)
            return scale * output + (1 - scale) * output.detach()

        return hook

    handles = [
        getattr(unit, branch).register_forward_hook(partly(i)) for i, (_, unit) in enumerate(encoder.residual_units())
    ]
    # An identity shortcut returns its very input: give the reference a tensor of its own.
    try:
        want, _ = gradient_of(encoder, images, target)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)


def test_constant_eroding_is_the_skip_gradient_method(encoder, pair):
    constant = attack(surrogate=[GradientEroding(0.5, 0.5)])(encoder, *pair)
    assert torch.equal(constant, attack(surrogate=[SkipGradient(0.5)])(encoder, *pair))
    assert not torch.equal(constant, attack()(encoder, *pair))


def test_factors_are_new_for_each_image_unit_copy_and_pass(encoder, pair):
    part = GradientEroding()
    with part.attach(encoder, scope_of(pair[0])) as state:
        state.begin_pass(2)
        first = state.factors.clone()
        state.begin_pass(2)
        second = state.factors
    assert first.shape == (2 * COUNT, 2)
    assert len(torch.cat([first, second]).unique()) == 2 * 2 * COUNT * 2
    assert 0.5 <= first.min() and first.max() <= 1


# ---------------------------------------------------------------- Ghost


def test_ghost_scales_each_channel_of_the_shortcut(encoder, pair):
    unit = encoder.residual_units()[0][1]
    seen = []
    late = unit.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], output]))
    with GhostNetwork(0.2).attach(encoder, scope_of(pair[0])) as state:
        state.enabled = True
        state.begin_pass(1)
        encoder(pair[0])
        factors = state.factors[:, :6]
    late.remove()
    x, output = seen[-2:]  # the first pass was to learn how many channels there are
    torch.testing.assert_close(output, x * factors[:, :, None, None] + unit.residual(x))
    assert factors.std() > 0.05 and 0.8 <= factors.min() and factors.max() <= 1.2


def test_ghost_embeds_the_target_without_ghosts(encoder, pair):
    result = attack(surrogate=[GhostNetwork(0.3)]).run(encoder, *pair)
    assert (result.forwards, result.backwards) == (BUDGET["steps"] + 1, BUDGET["steps"])


# ---------------------------------------------------------------- all of them


MIXED = {
    "ge": {"surrogate": [GradientEroding()]},
    "ghost": {"surrogate": [GhostNetwork()]},
    "noise": {"inputs": [NoiseCopies(3)]},
    "pad": {"inputs": [DiversePad(0.7)]},
    "translate": {"inputs": [TranslateScale(0.7)]},
    "corrasion": {"preset": {"surrogate": [GradientEroding()]}},
    "ghost, copies": {"surrogate": [GhostNetwork()], "inputs": [ScaleCopies(3, sigma=0.05)], "gradient": [CopyNorm()]},
}


def mixed(name: str) -> Attack:
    options = MIXED[name]
    return corrasion(steps=3, **options["preset"]) if "preset" in options else attack(**options)


@pytest.mark.parametrize("name", MIXED)
def test_results_do_not_depend_on_the_batch(encoder, pair, name):
    whole = mixed(name)(encoder, *pair)
    parts = [
        mixed(name)(encoder, pair[0][i : i + 1], pair[1][i : i + 1], keys=[i]) for i in range(COUNT)
    ]
    assert (whole == torch.cat(parts)).double().mean() > 0.999


@pytest.mark.parametrize("name", ["noise", "corrasion", "ghost, copies"])
def test_stacked_copies_give_the_result_of_a_loop(encoder, pair, name, monkeypatch):
    stacked = mixed(name).run(encoder, *pair)
    monkeypatch.setattr(engine, "STACKED_ROWS", 1)
    looped = mixed(name).run(encoder, *pair)
    assert (stacked.images == looped.images).double().mean() > 0.999
    assert (stacked.forwards, stacked.backwards) == (looped.forwards, looped.backwards)


def test_masks_are_the_same_for_stacked_copies(encoder, pair, monkeypatch):
    from fa_utils.attacks import FeatureDropout

    both = attack(inputs=[ScaleCopies(3)], surrogate=[FeatureDropout(0.2)])
    stacked = both(encoder, *pair)
    monkeypatch.setattr(engine, "STACKED_ROWS", 1)
    assert (stacked == both(encoder, *pair)).double().mean() > 0.999


@pytest.mark.parametrize("part", [GradientEroding(), GhostNetwork(), SkipGradient()])
def test_hooks_are_removed_also_after_an_error(encoder, pair, part):
    def hooks():
        return sum(len(module._forward_hooks) for module in encoder.modules())

    assert hooks() == 0
    attack(surrogate=[part])(encoder, *pair)
    assert hooks() == 0

    def fail(step, images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(surrogate=[part]).run(encoder, *pair, on_step=fail)
    assert hooks() == 0


@pytest.mark.parametrize("part", [GradientEroding(), GhostNetwork(), SkipGradient()])
def test_a_network_without_residual_units_is_refused_before_any_work(pair, part):
    plain = tiny_encoder()
    plain.register_forward_hook(lambda *_: pytest.fail("the network was run"))
    with pytest.raises(ValueError, match="'tiny-0' has no residual unit"):
        attack(surrogate=[part])(plain, *pair)


@pytest.mark.parametrize("layout", [layout for layout in SMALL if layout != "vgg16"])  # a plain chain
def test_every_residual_layout_has_residual_units(layout):
    assert FaceEncoder(build_backbone(layout), name=layout, input_size=56).residual_units()


def test_an_onnx_network_is_eroded_as_the_network_that_it_was(tmp_path):
    torch.manual_seed(0)
    network = FaceEncoder(build_backbone("mobile"), name="mobile", input_size=56)  # all its shortcuts are identities
    read = onnx_encoder(export_onnx(network, tmp_path / "mobile.onnx"))
    assert len(read.residual_units()) == len(network.residual_units()) == 5
    images, target = pictures(2, 1, size=112, dtype=torch.float32), torch.ones(128)
    for part in (GradientEroding(0.5, 0.5), GradientEroding(0.5, 0.5, branch="shortcut")):
        want, _ = gradient_of(network, images, target, part)
        got, _ = gradient_of(read, images, target, part)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------- copies


def test_scale_copies():
    images = pictures(2, 1)
    copies = ScaleCopies(3, origin=0.5).bind(scope_of(images))(images, 0)
    for j, (copy, weight) in enumerate(copies):
        torch.testing.assert_close(copy, 0.5 + (images - 0.5) / 2**j)
        assert weight == pytest.approx(1 / 3)


def test_noise_is_added_before_or_after_scaling():
    images = torch.full((2, 3, 64, 64), 0.5, dtype=torch.float64)
    for noise, spreads in (("before", (0.1, 0.05, 0.025)), ("after", (0.1, 0.1, 0.1))):
        copies = ScaleCopies(3, sigma=0.1, noise=noise).bind(scope_of(images))(images, 0)
        for (copy, _), spread in zip(copies, spreads, strict=True):
            assert copy.std().item() == pytest.approx(spread, rel=0.03)


def test_noise_differs_by_image_copy_and_step():
    images = torch.full((2, 3, 8, 8), 0.5, dtype=torch.float64)
    bound = NoiseCopies(2, 0.1).bind(scope_of(images))
    drawn = [copy[i] for step in range(2) for copy, _ in bound(images, step) for i in range(2)]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_translate_scale_moves_as_stated():
    image = torch.zeros(200, 3, 33, 33, dtype=torch.float64)
    image[:, :, 16, 16] = 1.0  # a point at the center
    moved = TranslateScale(1.0, shift=0.25, scale=(1.0, 1.0)).bind(scope_of(image))(image, 0)[0][0]
    weight = moved[:, 0] / moved[:, 0].sum((1, 2), keepdim=True)
    rows = (weight * torch.arange(33.0).view(1, -1, 1)).sum((1, 2)) - 16
    assert rows.abs().max() <= 0.25 * 33 and rows.abs().max() > 0.2 * 33
    assert abs(rows.mean()) < 1.0
    share = (TranslateScale(0.7).bind(scope_of(image))(image, 0)[0][0] != image).flatten(1).any(1).double().mean()
    assert 0.6 < share < 0.8


def test_diverse_pad_shows_the_whole_picture():
    images = torch.ones(50, 3, 40, 40, dtype=torch.float64)
    padded = DiversePad(1.0).bind(scope_of(images))(images, 0)[0][0]
    assert padded.shape == images.shape
    area = padded[:, 0].mean((1, 2))  # (r / canvas)^2 with r from 40 to 43 on 44
    assert area.min() >= (40 / 44) ** 2 - 0.01 and area.max() <= (43 / 44) ** 2 + 0.01 and area.std() > 0.01


def test_gradient_through_diverse_pad_is_exact():
    images = pictures(2, 3).requires_grad_()
    bound = [DiversePad(1.0).bind(scope_of(images)) for _ in range(2)]
    weights = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    gradient = torch.autograd.grad((bound[0](images, 0)[0][0] * weights).sum(), images)[0]
    other = torch.randn_like(gradient)  # the map is linear in the picture
    with torch.no_grad():
        assert ((bound[1](other, 0)[0][0] * weights).sum() - (gradient * other).sum()).abs() < 1e-9


# ---------------------------------------------------------------- gradients


def test_smoothing_is_the_official_kernel():
    gradient = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    points = torch.linspace(-3, 3, 15, dtype=torch.float64)
    density = torch.exp(-points.square() / 2)
    kernel = torch.outer(density, density)
    kernel = (kernel / kernel.sum()).expand(3, 1, 15, 15)
    want = functional.conv2d(gradient, kernel, padding=7, groups=3)
    torch.testing.assert_close(smooth(gradient, gaussian_window(15)), want)


def test_each_copy_counts_the_same_after_copy_norm(encoder, pair):
    """Halving the contrast halves the gradient of a copy: without the norm the later copies hardly count."""
    source, target = pair
    step = {"objective": BUDGET["objective"], "eps": 8 / 255, "step_size": 2 / 255, "steps": 1}
    copies = [source / 2**j for j in range(3)]
    wanted, parts = encoder(target), []
    for j, copy in enumerate(copies):
        leaf = copy.clone().requires_grad_()
        parts.append(torch.autograd.grad(-(encoder(leaf) * wanted).sum(), leaf)[0] / 2**j)
    mean = sum(part / part.abs().sum((1, 2, 3), keepdim=True) for part in parts)
    want = (source - 2 / 255 * mean.sign()).clamp(0, 1)
    got = Attack(**step, inputs=[ScaleCopies(3)], gradient=[CopyNorm()])(encoder, source, target)
    assert (got - want).abs().max() < 1e-9
    plain = (source - 2 / 255 * sum(parts).sign()).clamp(0, 1)
    assert (Attack(**step, inputs=[ScaleCopies(3)])(encoder, source, target) - plain).abs().max() < 1e-9
    assert not torch.equal(want, plain)


def test_a_zero_gradient_stays_zero_under_copy_norm():
    assert torch.equal(CopyNorm().bind(None).each(torch.zeros(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4))


# ---------------------------------------------------------------- corrasion


def test_corrasion_is_algorithm_1(encoder, pair):
    """Written out once more, without noise and transformation, in float64."""
    source, target = pair
    x, momentum, wanted = source.clone(), 0, encoder(target)
    window = gaussian_window(15)
    for _ in range(3):
        mean = 0
        for j in range(3):
            leaf = x.clone().requires_grad_()
            gradient = torch.autograd.grad((encoder(leaf / 2**j) * wanted).sum(), leaf)[0]
            mean = mean + gradient / gradient.abs().sum((1, 2, 3), keepdim=True) / 3
        momentum = momentum + mean
        x = x + smooth(momentum, window).sign() / 255
        x = torch.minimum(torch.maximum(x, source - 0.08), source + 0.08).clamp(0, 1)
    got = corrasion(steps=3, sigma=0.0, p=0.0)(encoder, source, target)
    assert ((got - x).abs() < 1e-9).double().mean() > 0.999


def test_choices_of_corrasion_are_parts():
    plain = corrasion()
    assert plain.eps == pytest.approx(0.08) and plain.steps == 100
    assert [type(part).__name__ for part in plain.gradient] == ["CopyNorm", "Momentum", "TranslationInvariant"]
    other = corrasion(normalize="mean", smooth="before")
    assert [type(part).__name__ for part in other.gradient] == ["TranslationInvariant", "Momentum"]
    assert repr(preset("corrasion")) == repr(plain)
    assert preset("corrasion_ge_d").surrogate == (GradientEroding(),)


def test_presets_of_the_paper():
    names = [f"{base}_fgsm{suffix}" for base in ("mi", "ti", "di", "vr", "si") for suffix in ("", "_ghost", "_ge_c", "_ge_d")]
    assert set(names) <= set(PRESETS)
    assert all(preset(name).eps == pytest.approx(0.08) and Momentum(1.0) in preset(name).gradient for name in names)
    assert preset("si_fgsm").inputs == (ScaleCopies(5),) and preset("vr_fgsm_ge_c").surrogate[0].branch == "shortcut"
    assert preset("ti_fgsm").gradient[0] == TranslationInvariant(15)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GradientEroding(0.0, 1.0), r"0 < low <= high <= 1, got 0.0"),
        (lambda: GradientEroding(0.5, 1.5), r"0 < low <= high <= 1"),
        (lambda: GradientEroding(0.9, 0.5), r"0 < low <= high <= 1"),
        (lambda: GradientEroding(float("nan"), 1.0), r"0 < low <= high <= 1"),
        (lambda: GradientEroding(branch="skip"), r"branch must be one of .*'skip'"),
        (lambda: SkipGradient(0.0), r"gamma must lie in \(0, 1\], got 0.0"),
        (lambda: GhostNetwork(1.0), r"spread must lie in \[0, 1\), got 1.0"),
        (lambda: TranslationInvariant(4), "odd number of at least 1, got 4"),
        (lambda: TranslationInvariant(-1), "odd number"),
        (lambda: CopyNorm("l3"), "norm must be one of"),
        (lambda: ScaleCopies(0), "whole number of at least 1, got 0"),
        (lambda: NoiseCopies(2.5), "whole number of at least 1, got 2.5"),
        (lambda: NoiseCopies(3, sigma=15), "sigma must lie in .* 15 / 255"),
        (lambda: ScaleCopies(3, base=0.5), "base must be finite and at least 1"),
        (lambda: ScaleCopies(3, origin=2.0), r"origin must lie in \[0, 1\]"),
        (lambda: ScaleCopies(3, noise="between"), "noise must be 'before' or 'after'"),
        (lambda: TranslateScale(1.5), r"p must lie in \[0, 1\]"),
        (lambda: TranslateScale(shift=1.0), r"shift must lie in \[0, 1\)"),
        (lambda: DiversePad(growth=0.9), r"growth must lie in \(1, 2\]"),
        (lambda: corrasion(normalize="copy"), "normalize must be one of"),
        (lambda: corrasion(smooth="never"), "smooth must be one of"),
        (lambda: corrasion(copies=0), "at least 1, got 0"),
        (lambda: preset("corasion"), "did you mean 'corrasion'"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_kernel_larger_than_the_picture_is_refused_before_any_work(pair):
    network = tiny_encoder()
    network.register_forward_hook(lambda *_: pytest.fail("the network was run"))
    with pytest.raises(ValueError, match="kernel is 17, larger than the pictures of 16 pixels"):
        attack(gradient=[TranslationInvariant(17)])(network, *pair)
