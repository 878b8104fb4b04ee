"""The parts of chapter 5: beneficial perturbations, spectrum copies, Nesterov's look-ahead, variance tuning."""

import dataclasses
import functools
from contextlib import ExitStack, contextmanager

import pytest
import torch
from attack_networks import SIZE, pictures, residual_encoder, tiny_encoder
from scipy.fft import dctn, idctn
from torch import nn

from fa_utils.attacks import (
    PRESETS,
    Attack,
    BeneficialPerturbation,
    DiverseInput,
    Dodge,
    FeatureDropout,
    GhostNetwork,
    GradientEroding,
    Impersonate,
    Momentum,
    Nesterov,
    NoiseCopies,
    ScaleCopies,
    Scope,
    SpectrumCopies,
    SurrogateState,
    VarianceTuning,
    engine,
    preset,
    signs,
)
from fa_utils.attacks.beneficial import DIRECTIONS
from fa_utils.attacks.spectrum import dct_matrix
from fa_utils.memory import peak_bytes
from fa_utils.models.backbones import build_backbone
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.onnx import export_onnx, onnx_encoder

COUNT = 4
STEP, EPS = 2 / 255, 8 / 255
BUDGET = {"objective": Impersonate("squared_l2"), "eps": EPS, "step_size": STEP, "steps": 4}
BPFA = BeneficialPerturbation(0.05)  # large, to be seen


@pytest.fixture(scope="module")
def encoder():
    return residual_encoder()


@pytest.fixture(scope="module")
def pair():
    return pictures(COUNT, 1), pictures(COUNT, 2)


def attack(**parts) -> Attack:
    return Attack(**{**BUDGET, **parts})


def scope_of(images, label: str = "test") -> Scope:
    return Scope(images, tuple(map(str, range(len(images)))), 0, label, EPS, STEP)


def same_share(a, b) -> float:
    return ((a - b).abs() < 1e-9).double().mean().item()


# ---------------------------------------------------------------- the formula


def written_out(encoder, source, target, eta, layers, *, copies=(1.0,), steps=4, act=lambda x: x):
    """BPFA once more as a plain loop: gradients by `torch.autograd.grad`, perturbations as a list."""
    x, wanted = source.clone(), encoder(target)
    signs: dict = {}
    for _ in range(steps):
        total = 0
        for j, scale in enumerate(copies):
            outputs = []

            def hook(module, inputs, output, j=j, outputs=outputs):
                output = output + eta * signs[j][len(outputs)] if j in signs else output * 1
                outputs.append(output)
                return output

            handles = [layer.register_forward_hook(hook) for layer in layers]
            leaf = x.clone().requires_grad_()
            loss = (encoder(leaf * scale) - wanted).square().sum()
            for handle in handles:
                handle.remove()
            gradient, *inner = torch.autograd.grad(loss, [leaf, *outputs])
            signs[j] = [g.sign() for g in inner]
            total = total + gradient
        x = torch.minimum(torch.maximum(x - STEP * total.sign(), source - EPS), source + EPS).clamp(0, 1)
    return x


@pytest.mark.parametrize("eta", [0.05, -0.05])
@pytest.mark.parametrize(("layers", "count"), [("convolution", 6), ("activation", 2), ("normalization", 1)])
def test_bpfa_is_the_written_out_loop(encoder, pair, layers, count, eta):
    part = BeneficialPerturbation(eta, layers)
    chosen = [module for _, module in part.chosen(encoder)]
    assert len(chosen) == count
    got = attack(surrogate=[part])(encoder, *pair)
    assert same_share(got, written_out(encoder, *pair, eta, chosen)) > 0.999
    assert same_share(got, attack()(encoder, *pair)) < 0.999


def test_each_copy_has_perturbations_of_its_own(encoder, pair):
    layers = [module for _, module in BPFA.chosen(encoder)]
    got = attack(surrogate=[BPFA], inputs=[ScaleCopies(3)])(encoder, *pair)
    assert same_share(got, written_out(encoder, *pair, BPFA.eta, layers, copies=(1.0, 0.5, 0.25))) > 0.999


def perturbations(encoder, pair, *parts, layer: str, steps: int = 2, **options):
    """What the parts add to the output of a layer, step by step, and the gradient there."""
    added, gradients, plain = [], [], []
    module = encoder.get_submodule(layer)

    @dataclasses.dataclass(frozen=True)
    class Watch:
        first: bool

        @contextmanager
        def attach(self, encoder, scope):
            state = SurrogateState()

            def hook(module, inputs, output):
                if not state.enabled:
                    return
                if self.first:
                    plain.append(output.detach().clone())
                else:
                    added.append(output.detach() - plain[-1])
                    output.register_hook(lambda gradient: gradients.append(gradient.clone()))

            handle = module.register_forward_hook(hook)
            yield state
            handle.remove()

    attack(surrogate=[Watch(True), *parts, Watch(False)], steps=steps, **options)(encoder, *pair)
    return added, gradients


def test_the_perturbation_raises_the_loss_and_its_negative_lowers_it(encoder, pair):
    """Loss of the second step against eta (Fig. 5 b): its gradient there is nearly that of the first."""
    wanted, losses = encoder(pair[1]), {}

    class Recorded(Impersonate):
        def loss(self, prediction, reference):
            losses.setdefault(self.distance, []).append((prediction.detach() - wanted).norm(dim=1).mean().item())
            return super().loss(prediction, reference)

    found = {}
    for eta in (-0.01, 0.0, 0.01, 0.02):
        losses.clear()
        attack(objective=Recorded("squared_l2"), steps=2, surrogate=[BeneficialPerturbation(eta)])(encoder, *pair)
        found[eta] = losses["squared_l2"]
    assert len({first for first, _ in found.values()}) == 1  # nothing is added at the first step
    second = [second for _, second in found.values()]
    assert second == sorted(second) and second[0] < second[1] < second[2] < second[3]


def test_nothing_is_added_where_the_gradient_is_zero():
    torch.manual_seed(0)
    network = FaceEncoder(build_backbone("incres"), name="incres", input_size=56)  # its rectifiers are often off
    pair = pictures(2, 1, size=56, dtype=torch.float32), pictures(2, 2, size=56, dtype=torch.float32)
    name = next(name for name, _ in network.convolutions())
    added, gradients = perturbations(network, pair, BeneficialPerturbation(0.25), layer=name)
    off = gradients[0] == 0
    assert 0.05 < off.double().mean() < 0.95
    torch.testing.assert_close(added[1], 0.25 * gradients[0].sign(), rtol=0, atol=1e-6)


# ---------------------------------------------------------------- neutral settings


NEUTRAL = {
    "bpfa": {"surrogate": [BeneficialPerturbation(0.0)]},
    "bpfa, same step": {"surrogate": [BeneficialPerturbation(0.0, direction="same")]},
    "spectrum": {"inputs": [SpectrumCopies(1, rho=0.0, sigma=0.0)]},
    "nesterov": {"gradient": [Nesterov(0.0)]},
    "variance": {"gradient": [VarianceTuning(0)]},
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_give_the_plain_attack_bit_for_bit_at_no_cost(encoder, pair, name):
    neutral, plain = attack(**NEUTRAL[name]).run(encoder, *pair), attack().run(encoder, *pair)
    assert torch.equal(neutral.images, plain.images)
    assert (neutral.forwards, neutral.backwards) == (plain.forwards, plain.backwards)


@pytest.mark.parametrize("name", ["fim", "mi", "di", "dfanet", "ssa", "fmd", "fmdn", "sni", "vmi"])
def test_presets_without_eta_are_the_presets_without_bpfa(encoder, pair, name):
    plain, off = preset(name, steps=2, seed=3), preset(f"{name}_bpfa", steps=2, seed=3, eta=0)
    assert torch.equal(plain(encoder, *pair), off(encoder, *pair))


# ---------------------------------------------------------------- batches, copies, streams


MIXED = {
    "bpfa": {"surrogate": [BPFA]},
    "bpfa, dropout, diverse, momentum": {
        "surrogate": [FeatureDropout(0.1, target="clean"), BPFA],
        "inputs": [DiverseInput()],
        "gradient": [Momentum()],
    },
    "bpfa, scales": {"surrogate": [BPFA], "inputs": [ScaleCopies(3)]},
    "bpfa, noise": {"surrogate": [BPFA], "inputs": [NoiseCopies(3)]},
    "bpfa on activations": {"surrogate": [BeneficialPerturbation(0.05, "activation")], "inputs": [NoiseCopies(3)]},
    "bpfa, eroding, ghost": {
        "surrogate": [GradientEroding(), GhostNetwork(), BPFA],
        "inputs": [NoiseCopies(3)],
    },
    "spread": {"surrogate": [dataclasses.replace(BPFA, scale="spread")], "inputs": [NoiseCopies(3)]},
    **{
        direction: {"surrogate": [dataclasses.replace(BPFA, direction=direction)], "inputs": [NoiseCopies(3)]}
        for direction in DIRECTIONS
    },
    "spectrum": {"inputs": [SpectrumCopies(3)], "surrogate": [BPFA]},
    "spectrum, at the picture": {"inputs": [SpectrumCopies(3, gradient="input")]},
    "nesterov": {"gradient": [Nesterov()], "inputs": [ScaleCopies(3)]},
    "variance": {"gradient": [VarianceTuning(3), Momentum()], "surrogate": [BPFA], "inputs": [NoiseCopies(2)]},
    "masked": {"surrogate": [FeatureDropout(0.1, target="clean"), BPFA], "inputs": [NoiseCopies(3)]},
}


@pytest.mark.parametrize("name", [name for name in MIXED if name != "other"])
def test_results_do_not_depend_on_the_batch(encoder, pair, name):
    whole = attack(**MIXED[name])(encoder, *pair)
    parts = [
        attack(**MIXED[name])(encoder, pair[0][i : i + 1], pair[1][i : i + 1], keys=[i]) for i in range(COUNT)
    ]
    assert same_share(whole, torch.cat(parts)) > 0.998


@pytest.mark.parametrize("rows", [1, 2 * COUNT])
@pytest.mark.parametrize("name", MIXED)
def test_stacked_copies_give_the_result_of_a_loop(encoder, pair, name, rows, monkeypatch):
    stacked = attack(**MIXED[name]).run(encoder, *pair)
    monkeypatch.setattr(engine, "STACKED_ROWS", rows)
    looped = attack(**MIXED[name]).run(encoder, *pair)
    assert same_share(stacked.images, looped.images) > 0.998
    assert (stacked.forwards, stacked.backwards) == (looped.forwards, looped.backwards)


def test_state_does_not_leak_between_batches(encoder, pair):
    run = attack(surrogate=[BPFA])
    first = run(encoder, *pair)
    run(encoder, pictures(3, 7), pictures(3, 8))
    assert torch.equal(run(encoder, *pair), first)


def test_an_ensemble_has_a_state_for_each_network(encoder, pair):
    """The networks' gradients, each under its own perturbations, are summed; a weight of zero leaves one network."""
    both = attack(surrogate=[BPFA], weights=[1.0, 0.0])([encoder, residual_encoder(1)], *pair)
    assert same_share(both, attack(surrogate=[BPFA])(encoder, *pair)) > 0.999


def test_of_a_gradient_its_signs_are_kept_until_they_are_used(encoder, pair):
    layer, outputs = "backbone.stem", []
    with BeneficialPerturbation(0.05, names=layer).attach(encoder, scope_of(pair[0])) as state:
        state.enabled = True
        assert state.signs() == {}
        with hook_on(encoder.get_submodule(layer), outputs.append):
            leaf = pair[0].clone().requires_grad_()
            _, gradient = torch.autograd.grad(encoder(leaf).square().sum(), [leaf, *outputs])
        kept = state.signs()
        assert kept.keys() == {layer} and kept[layer].dtype == torch.int8
        assert torch.equal(kept[layer], gradient.sign())
        state.begin_pass(1)
        encoder(leaf)
        assert state.signs() == {}


@contextmanager
def hook_on(module, call):
    handle = module.register_forward_hook(lambda module, inputs, output: call(output))
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("layers", ["convolution", "normalization", "activation"])
@pytest.mark.parametrize("layout", ["mobile", "incres"])
def test_the_peak_of_memory_is_the_plain_attacks(layout, layers):
    """At most 5% above it; what tensors take is counted, so it is the same on each machine."""
    torch.manual_seed(0)
    network = FaceEncoder(build_backbone(layout), name=layout, input_size=56)
    pair = [pictures(4, seed, size=56, dtype=torch.float32) for seed in (1, 2)]
    plain, perturbed = (
        peak_bytes(lambda parts=parts: attack(steps=3, surrogate=parts)(network, *pair))
        for parts in ([], [BeneficialPerturbation(0.01, layers)])
    )
    assert perturbed < 1.05 * plain


# ---------------------------------------------------------------- composition


def test_the_masked_output_is_perturbed_unless_the_order_says_otherwise(encoder, pair):
    dropout = FeatureDropout(0.5, target="clean")
    layer = "backbone.stem"
    after, _ = perturbations(encoder, pair, dropout, BPFA, layer=layer)
    before, _ = perturbations(encoder, pair, BPFA, dropout, layer=layer)
    masked, _ = perturbations(encoder, pair, dropout, layer=layer)
    dropped = masked[1] != 0
    torch.testing.assert_close((after[1] - masked[1]).abs(), torch.full_like(after[1], BPFA.eta))
    torch.testing.assert_close(before[1][dropped], masked[1][dropped])  # the mask takes the perturbation too


def test_the_reference_is_the_unperturbed_networks(encoder, pair):
    seen = []

    class Recorded(Impersonate):
        def loss(self, prediction, reference):
            seen.append(reference.clone())
            return super().loss(prediction, reference)

    attack(objective=Recorded(), surrogate=[BPFA])(encoder, *pair)
    assert len(seen) == 4 and all(torch.equal(reference, encoder(pair[1])) for reference in seen)


def test_no_pass_more_than_the_plain_attack_unless_asked_for(encoder, pair):
    def cost(**options):
        run = attack(surrogate=[dataclasses.replace(BPFA, **options)]).run(encoder, *pair)
        return run.forwards, run.backwards

    assert cost() == (5, 4)
    assert cost(direction="same") == (9, 8)


def test_a_module_that_is_used_twice_is_two_layers(pair):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.shared, self.linear = nn.Conv2d(3, 3, 3, 4), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(48, 8)

        def forward(self, images):
            hidden = torch.tanh(self.shared(torch.tanh(self.conv(images))))
            return self.linear(torch.tanh(self.shared(hidden)).flatten(1))

    torch.manual_seed(0)
    network = FaceEncoder(Twice(), name="twice", input_size=SIZE).double()
    got = attack(surrogate=[BPFA])(network, *pair)
    want = written_out(network, *pair, BPFA.eta, [network.backbone.conv, network.backbone.shared])
    assert same_share(got, want) > 0.999


@pytest.mark.parametrize("layers", ["convolution", "normalization", "activation"])
@pytest.mark.parametrize("layout", ["ires", "irse", "mobile", "incres", "resnet50", "shuffle"])
def test_every_layout_and_kind_of_layer(layout, layers):
    torch.manual_seed(0)
    network = FaceEncoder(build_backbone(layout), name=layout, input_size=56)
    pair = pictures(2, 1, size=56, dtype=torch.float32), pictures(2, 2, size=56, dtype=torch.float32)
    run = attack(steps=3, surrogate=[FeatureDropout(0.02), BeneficialPerturbation(0.01, layers)])
    assert not torch.equal(run(network, *pair), attack(steps=3, surrogate=[FeatureDropout(0.02)])(network, *pair))
    assert hooks_of(network) == 0


@contextmanager
def watched(network):
    """A hook on every module: then BPFA hooks them, too, with torch's own rectifiers and a copy of what they put out."""
    with ExitStack() as stack:
        for module in network.modules():
            stack.enter_context(hook_on(module, lambda output: None))
        yield


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("layers", ["convolution", "normalization", "activation"])
@pytest.mark.parametrize("layout", ["ires", "incres", "resnet50"])
def test_what_is_quick_is_torchs_to_the_bit(layout, layers, copies, monkeypatch):
    torch.manual_seed(0)
    network = FaceEncoder(build_backbone(layout), name=layout, input_size=56)
    pair = pictures(2, 1, size=56, dtype=torch.float32), pictures(2, 2, size=56, dtype=torch.float32)
    parts = {"steps": 3, "inputs": [NoiseCopies(copies)] if copies > 1 else []}
    run = attack(surrogate=[BeneficialPerturbation(0.01, layers)], **parts)
    quick = run(network, *pair)
    assert not torch.equal(quick, attack(**parts)(network, *pair))
    monkeypatch.setattr(signs, "_is_packable", lambda like: False)
    with watched(network):
        assert torch.equal(quick, run(network, *pair))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("rectifier", [nn.ReLU, functools.partial(nn.LeakyReLU, 0.2)])
def test_rectifiers_of_any_kind_are_perturbed_without_another_map(rectifier, inplace, dtype):
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3), rectifier(inplace=inplace), nn.Conv2d(8, 8, 3), rectifier(inplace=inplace), nn.AdaptiveAvgPool2d(1)
    )
    network = FaceEncoder(body.append(nn.Flatten()), name="any", input_size=SIZE).to(dtype)
    pair = pictures(COUNT, 1, dtype=dtype), pictures(COUNT, 2, dtype=dtype)
    run = attack(steps=4, surrogate=[BeneficialPerturbation(0.05, "activation")])
    lean, peak = run(network, *pair), peak_bytes(lambda: run(network, *pair))
    with watched(network):
        assert torch.equal(lean, run(network, *pair)) and peak < peak_bytes(lambda: run(network, *pair))
    assert not torch.equal(lean, attack(steps=4)(network, *pair))


def test_two_parts_on_the_same_layers_add_up(encoder, pair):
    two = attack(surrogate=[BeneficialPerturbation(0.02), BeneficialPerturbation(0.03)])(encoder, *pair)
    assert same_share(two, attack(surrogate=[BPFA])(encoder, *pair)) > 0.999


def test_squeeze_and_excitation_is_among_the_convolutions_and_layers_can_be_named():
    network = FaceEncoder(build_backbone("irse"), name="irse", input_size=56)
    every, maps = (len(BeneficialPerturbation(squeeze_excite=gate).chosen(network)) for gate in (True, False))
    assert every > maps == len(network.convolutions())
    some = BeneficialPerturbation(names="shortcut").chosen(network)
    assert 0 < len(some) < maps and all("shortcut" in name for name, _ in some)


def test_an_onnx_network_is_perturbed_as_the_network_that_it_was(tmp_path):
    """On smooth layers of float32 the first two steps agree but where rounding decides a sign."""
    torch.manual_seed(0)
    network = FaceEncoder(build_backbone("mobile"), name="mobile", input_size=56)
    read = onnx_encoder(export_onnx(network, tmp_path / "mobile.onnx"))
    pair = pictures(2, 1, size=112, dtype=torch.float32), pictures(2, 2, size=112, dtype=torch.float32)
    run = attack(steps=2, surrogate=[BeneficialPerturbation(0.01, "activation")])
    assert len(run.surrogate[0].chosen(read)) == len(run.surrogate[0].chosen(network))
    assert same_share(run(read, *pair), run(network, *pair)) > 0.9
    conv = attack(steps=2, surrogate=[BeneficialPerturbation(0.01)])
    assert not torch.equal(conv(read, *pair), attack(steps=2)(read, *pair))


# ---------------------------------------------------------------- controls


LAYER = "backbone.units.0.residual.0"


def control(encoder, pair, direction, **options):
    part = BeneficialPerturbation(0.05, direction=direction, names=LAYER, **options)
    added, gradients = perturbations(encoder, pair, part, layer=LAYER, steps=3)
    return added[1] / 0.05, gradients[0], added[2] / 0.05


@pytest.mark.parametrize("direction", [name for name in DIRECTIONS if name not in ("own", "same")])
def test_controls_have_the_norm_of_the_sign(encoder, pair, direction):
    added, gradient, _ = control(encoder, pair, direction)
    torch.testing.assert_close(added.flatten(1).norm(dim=1), gradient.sign().flatten(1).norm(dim=1))


def test_controls_are_what_they_say(encoder, pair):
    own, gradient, _ = control(encoder, pair, "own")
    sign = gradient.sign()
    torch.testing.assert_close(own, sign)
    torch.testing.assert_close(control(encoder, pair, "other")[0], sign.roll(-1, 0))
    raw = control(encoder, pair, "raw")[0]
    cosine = nn.functional.cosine_similarity(raw.flatten(1), gradient.flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    for direction in ("random", "shuffled", "gaussian"):
        added, _, later = control(encoder, pair, direction)
        assert abs((added * sign).mean()) < 0.1 and abs((added * later).mean()) < 0.1  # unrelated, and new at each step
    shuffled = control(encoder, pair, "shuffled")[0]
    torch.testing.assert_close(shuffled.flatten(1).sort(1).values, sign.flatten(1).sort(1).values)
    assert set(control(encoder, pair, "random")[0].round().unique().tolist()) == {-1.0, 1.0}


def test_the_same_steps_gradient_is_exact(encoder, pair):
    part = BeneficialPerturbation(0.05, direction="same")
    layers = [module for _, module in part.chosen(encoder)]
    source, target = pair
    x, wanted = source.clone(), encoder(target)
    for _ in range(3):
        signs = []
        for perturbed in (False, True):
            outputs = []

            def hook(module, inputs, output, outputs=outputs, signs=signs, perturbed=perturbed):
                outputs.append(output + 0.05 * signs[len(outputs)] if perturbed else output * 1)
                return outputs[-1]

            handles = [layer.register_forward_hook(hook) for layer in layers]
            leaf = x.clone().requires_grad_()
            loss = (encoder(leaf) - wanted).square().sum()
            for handle in handles:
                handle.remove()
            gradient, *inner = torch.autograd.grad(loss, [leaf, *outputs])
            signs += [] if perturbed else [g.sign() for g in inner]
        x = torch.minimum(torch.maximum(x - STEP * gradient.sign(), source - EPS), source + EPS).clamp(0, 1)
    assert same_share(attack(steps=3, surrogate=[part])(encoder, *pair), x) > 0.999


def test_spread_scales_eta_by_each_layers_output(encoder, pair):
    plain = []
    handle = encoder.get_submodule(LAYER).register_forward_hook(lambda module, inputs, output: plain.append(output))
    encoder(pair[0])
    handle.remove()
    spread = plain[0].flatten(1).std(1, correction=0).view(-1, 1, 1, 1)
    added, gradient, _ = control(encoder, pair, "own", scale="spread")
    torch.testing.assert_close(added, gradient.sign() * spread)


# ---------------------------------------------------------------- dodging, errors


def test_dodging_starts_from_a_zero_gradient_at_random_and_counts_it(encoder, pair):
    result = attack(objective=Dodge("squared_l2"), surrogate=[BPFA]).run(encoder, pair[0])
    assert result.zero_gradients == COUNT
    assert (encoder(result.images) - encoder(pair[0])).norm(dim=1).min() > 0.01


def hooks_of(network) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


@pytest.mark.parametrize("layers", ["convolution", "normalization", "activation"])
def test_hooks_are_removed_also_after_an_error(encoder, pair, layers):
    part = BeneficialPerturbation(0.05, layers)
    attack(surrogate=[part])(encoder, *pair)
    assert hooks_of(encoder) == 0

    def fail(step, images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(surrogate=[part]).run(encoder, *pair, on_step=fail)
    assert hooks_of(encoder) == 0


@pytest.mark.parametrize(
    ("part", "images", "message"),
    [
        (BeneficialPerturbation(names="nothing"), COUNT, "names='nothing' matches nothing .*'tiny-0'.*backbone.conv1"),
        (BeneficialPerturbation(0.0, names="nothing"), COUNT, "matches nothing"),
        (BeneficialPerturbation(layers="activation"), COUNT, "layers='activation' .* there are: none"),
        (BeneficialPerturbation(direction="other"), 1, "another image.s gradient, but the batch holds one"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(part, images, message):
    network = tiny_encoder()
    network.register_forward_hook(lambda *_: pytest.fail("the network was run"))
    with pytest.raises(ValueError, match=message):
        attack(surrogate=[part])(network, pictures(images, 1), pictures(images, 2))


def test_a_batch_that_changes_size_is_an_error(encoder, pair):
    class Fewer(Impersonate):
        passes = 0

        def predict(self, encoder, images):
            type(self).passes += 1
            return encoder(images[: COUNT - 1] if self.passes > 1 else images)

        def loss(self, prediction, reference):
            return super().loss(prediction, reference[: len(prediction)])

    message = r"'backbone.stem' puts out \(3, .* 1 x 4 rows.*must not change during an attack"
    with pytest.raises(ValueError, match=message):
        attack(objective=Fewer(), surrogate=[BPFA])(encoder, *pair)
    assert hooks_of(encoder) == 0


def test_maps_that_change_size_are_an_error(pair):
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = FaceEncoder(body, name="any", input_size=SIZE).double()

    def grow(step, images):
        network.input_size = 2 * SIZE

    with pytest.raises(ValueError, match=r"should be \(4, 8, 14, 14\), as at the step before"):
        attack(surrogate=[BPFA]).run(network, *pair, on_step=grow)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BeneficialPerturbation(float("nan")), "eta must be a finite number, got nan"),
        (lambda: BeneficialPerturbation(float("inf")), "eta must be a finite number, got inf"),
        (lambda: BeneficialPerturbation("large"), "eta must be a finite number, got 'large'"),
        (lambda: BeneficialPerturbation(layers="stem"), "layers must be one of .* layer names goes into names"),
        (lambda: BeneficialPerturbation(direction="up"), "direction must be one of"),
        (lambda: BeneficialPerturbation(scale="none"), "scale must be one of"),
        (lambda: SpectrumCopies(0), "count, the number of copies"),
        (lambda: SpectrumCopies(rho=1.5), r"rho must lie in \[0, 1\], got 1.5"),
        (lambda: SpectrumCopies(rho=float("nan")), "rho must lie in"),
        (lambda: SpectrumCopies(sigma=16), "sigma must lie in .* 15 / 255"),
        (lambda: SpectrumCopies(gradient="both"), "gradient must be one of"),
        (lambda: Nesterov(-1.0), "mu must be finite and at least 0"),
        (lambda: Nesterov(norm="l3"), "norm must be one of"),
        (lambda: VarianceTuning(-1), "whole number of at least 0, got -1"),
        (lambda: VarianceTuning(2.5), "whole number of at least 0"),
        (lambda: VarianceTuning(beta=0.0), "beta must be finite and above 0"),
        (lambda: preset("fmd_bfpa"), "did you mean 'fmd_bpfa'"),
        (lambda: preset("fmd_bpfa", eta=float("nan")), "eta must be a finite number"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---------------------------------------------------------------- SSA


def test_the_transform_is_the_orthonormal_dct():
    images = pictures(2, 3)[:, :, :, :12]
    rows, columns = dct_matrix(16), dct_matrix(12)
    torch.testing.assert_close(rows @ rows.T, torch.eye(16, dtype=torch.float64))
    want = torch.from_numpy(dctn(images.numpy(), axes=(2, 3), norm="ortho"))
    torch.testing.assert_close(rows @ images @ columns.T, want)


@pytest.mark.parametrize("gradient", ["copy", "input"])
def test_spectrum_copies_are_the_formula(gradient):
    images = pictures(2, 3).requires_grad_()
    copies = SpectrumCopies(3, rho=0.4, sigma=0.1, gradient=gradient).bind(scope_of(images))(images, 0)
    generators, weights = scope_of(images).generators(), torch.randn(3, 2, 3, SIZE, SIZE, dtype=torch.float64)
    want = 0
    for (copy, share), weight in zip(copies, weights, strict=True):
        assert share == pytest.approx(1 / 3)
        for i, generator in enumerate(generators):
            noise, factor = torch.empty(3, SIZE, SIZE).double(), torch.empty(3, SIZE, SIZE).double()
            noise.normal_(0, 0.1, generator=generator)
            factor.uniform_(0.6, 1.4, generator=generator)
            moved = (images[i].detach() + noise).numpy()
            spectrum = dctn(moved, axes=(1, 2), norm="ortho") * factor.numpy()
            torch.testing.assert_close(copy[i].detach(), torch.from_numpy(idctn(spectrum, axes=(1, 2), norm="ortho")))
        found = torch.autograd.grad((copy * weight).sum(), images, retain_graph=True)[0]
        if gradient == "copy":
            torch.testing.assert_close(found, weight)  # as if the copy were the picture itself
        else:  # the same rescaling once more: the transform is symmetric
            back = dctn(weight[1].numpy(), axes=(1, 2), norm="ortho") * factor.numpy()
            torch.testing.assert_close(found[1], torch.from_numpy(idctn(back, axes=(1, 2), norm="ortho")))
        want = want + found
    assert want.shape == images.shape


def test_spectrum_differs_by_image_copy_and_step_and_takes_its_noise_from_eps():
    images = torch.full((2, 3, 64, 64), 0.5, dtype=torch.float64)
    bound = SpectrumCopies(2).bind(scope_of(images))
    drawn = [copy[i] for step in range(2) for copy, _ in bound(images, step) for i in range(2)]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    only_noise = SpectrumCopies(1, rho=0.0).bind(scope_of(images))(images, 0)[0][0]
    assert only_noise.std().item() == pytest.approx(EPS, rel=0.03)


def test_without_rescaling_the_picture_comes_back(encoder, pair):
    """Up to the rounding of the transform: rho so small that it changes nothing else."""
    copies = SpectrumCopies(3, rho=1e-15, sigma=0.0).bind(scope_of(pair[0]))(pair[0], 0)
    assert all((copy - pair[0]).abs().max() < 1e-12 for copy, _ in copies)
    got = attack(inputs=[SpectrumCopies(2, rho=1e-15, sigma=0.0)])(encoder, *pair)
    assert same_share(got, attack()(encoder, *pair)) > 0.999


# ---------------------------------------------------------------- NI and VT


def mean_abs(gradient):
    return gradient / gradient.abs().mean((1, 2, 3), keepdim=True)


def gradient_at(encoder, x, wanted):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad((encoder(leaf) - wanted).square().sum(), leaf)[0]


@pytest.mark.parametrize("clip", [True, False])
def test_nesterov_is_the_written_out_loop(encoder, pair, clip):
    source, target = pair
    x, total, wanted = source.clone(), torch.zeros_like(source), encoder(target)
    for _ in range(6):
        ahead = x - STEP * 0.9 * total
        if clip:
            ahead = torch.minimum(torch.maximum(ahead, source - EPS), source + EPS).clamp(0, 1)
        total = 0.9 * total + mean_abs(gradient_at(encoder, ahead, wanted))
        x = torch.minimum(torch.maximum(x - STEP * total.sign(), source - EPS), source + EPS).clamp(0, 1)
    got = attack(steps=6, gradient=[Nesterov(0.9, clip=clip)])(encoder, *pair)
    assert same_share(got, x) > 0.999
    assert same_share(got, attack(steps=6, gradient=[Momentum(0.9)])(encoder, *pair)) < 0.999


def test_the_look_ahead_stays_in_the_ball_and_leaves_it_without_clipping(encoder, pair):
    """With mu = 1 the momentum grows by about one at each step (sheet 5-bpfa, section 2)."""
    furthest = {}
    for clip in (True, False):
        seen = []

        class Recorded(Impersonate):
            def predict(self, encoder, images, seen=seen):
                seen.append((images.detach() - pair[0]).abs().max().item())
                return super().predict(encoder, images)

        attack(objective=Recorded(), steps=20, gradient=[Nesterov(clip=clip)])(encoder, *pair)
        furthest[clip] = max(seen)
    assert furthest[True] <= EPS + 1e-12 < 3 * EPS < furthest[False]


def test_variance_tuning_is_the_written_out_loop(encoder, pair):
    source, target = pair
    x, total, wanted, variance = source.clone(), 0, encoder(target), 0
    own = Scope(source, tuple("0123"), 0, "VarianceTuning/0")
    generators = own.generators()
    for _ in range(4):
        gradient = gradient_at(encoder, x, wanted)
        total = total + mean_abs(gradient + variance)
        around = 0
        for _ in range(3):
            noise = torch.empty_like(source)
            for row, generator in zip(noise, generators, strict=True):
                row.uniform_(-1.5 * EPS, 1.5 * EPS, generator=generator)
            around = around + gradient_at(encoder, x + noise, wanted)
        variance = around / 3 - gradient
        x = torch.minimum(torch.maximum(x - STEP * total.sign(), source - EPS), source + EPS).clamp(0, 1)
    run = attack(gradient=[VarianceTuning(3), Momentum()]).run(encoder, *pair)
    assert same_share(run.images, x) > 0.999
    assert (run.forwards, run.backwards) == (1 + 4 * 4, 4 * 4)


def test_a_neighbor_without_a_finite_gradient_is_an_error_that_names_the_image(encoder, pair):
    class Broken(Impersonate):
        passes = 0

        def loss(self, prediction, reference):
            type(self).passes += 1
            wrong = torch.tensor([1.0, torch.nan, 1.0, 1.0]) if self.passes == 2 else torch.ones(COUNT)
            return super().loss(prediction, reference) * wrong

    with pytest.raises(engine.NonFiniteGradient, match=r"1 of 4 images \(keys: 1\)"):
        attack(objective=Broken(), steps=2, gradient=[VarianceTuning(1), Momentum()])(encoder, *pair)


# ---------------------------------------------------------------- presets


def test_presets_of_the_paper():
    bases = ("mi", "di", "dfanet", "ssa", "fmd", "fmdn", "sni", "vmi")
    assert {*bases, *(f"{base}_bpfa" for base in ("fim", *bases))} <= set(PRESETS)
    for base in ("fim", *bases):
        plain, with_bpfa = preset(base, steps=9), preset(f"{base}_bpfa", steps=9, eta=0.002)
        assert dataclasses.replace(with_bpfa, surrogate=with_bpfa.surrogate[:-1]) == plain
        assert with_bpfa.surrogate[-1] == BeneficialPerturbation(0.002)
        assert with_bpfa.eps == 10 / 255 and with_bpfa.step_size == 1 / 255 and PRESETS[f"{base}_bpfa"].steps == 1500
    clean = FeatureDropout(0.05, target="clean")
    assert preset("fmdn_bpfa", drop=0.05).surrogate == (clean, BeneficialPerturbation(8e-4))
    assert preset("fmdn").inputs == (DiverseInput(),) and preset("fmdn").gradient == (Momentum(1.0),)
    assert preset("sni").gradient == (Nesterov(1.0),) and preset("sni").inputs == (ScaleCopies(5),)
    assert preset("vmi").gradient == (VarianceTuning(20, 1.5), Momentum(1.0))
    assert preset("ssa").inputs == (SpectrumCopies(20, 0.5),) and preset("ssa").gradient == ()
