"""The engine: its update rule, invariants of sheets/common.md section 4, its guards, and its errors."""

import pickle

import pytest
import torch
from attack_networks import SIZE, pictures, tiny_encoder

from fa_utils.attacks import (
    Attack,
    DiverseInput,
    DiverseResize,
    Dodge,
    FeatureDropout,
    Impersonate,
    LabelDodge,
    LabelImpersonate,
    Momentum,
    NonFiniteGradient,
    preset,
)

EVERYTHING = {"inputs": [DiverseInput()], "surrogate": [FeatureDropout(0.2)], "gradient": [Momentum()]}


def attack(**options) -> Attack:
    return Attack(**{"objective": Impersonate(), "steps": 8, **options})


def plain_loop(encoder, source, target, *, steps, eps=10, step_size=1):
    """The update rule written out, in grey levels."""
    with torch.no_grad():
        reference = encoder(target)
    grey = source * 255
    for _ in range(steps):
        images = (grey / 255).requires_grad_(True)
        (encoder(images) - reference).norm(dim=1).sum().backward()
        grey = grey - step_size * images.grad.sign()
        grey = torch.minimum(torch.maximum(grey, source * 255 - eps), source * 255 + eps).clamp(0, 255)
    return grey / 255


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


@pytest.fixture(scope="module")
def pair():
    return pictures(7, 1), pictures(7, 2)


def test_plain_attack_is_the_update_rule(encoder, pair):
    assert torch.equal(attack(steps=15)(encoder, *pair), plain_loop(encoder, *pair, steps=15))


@pytest.mark.parametrize(
    "neutral",
    [
        {"surrogate": [FeatureDropout(0.0)]},
        {"inputs": [DiverseInput(p=0.0)]},
        {"inputs": [DiverseResize(p=0.0)]},
        {"gradient": [Momentum(0.0)]},
        {"weights": [1.0]},
    ],
)
def test_neutral_settings_give_the_plain_attack_bit_for_bit(pair, neutral):
    encoder = tiny_encoder(dtype=torch.float32)
    pair = [images.float() for images in pair]
    assert torch.equal(attack(**neutral)(encoder, *pair), attack()(encoder, *pair))
    assert not torch.equal(attack(**EVERYTHING)(encoder, *pair), attack()(encoder, *pair))


def test_neutral_dropout_costs_nothing(encoder, pair):
    neutral = attack(surrogate=[FeatureDropout(0.0)]).run(encoder, *pair)
    assert (neutral.forwards, neutral.backwards) == (9, 8)


@pytest.mark.parametrize("gradient", [(), [Momentum()]])
def test_distances_agree_for_one_picture_and_one_network(encoder, pair, gradient):
    results = [
        attack(objective=Impersonate(distance), gradient=[Momentum(0.0)])(encoder, *pair)
        for distance in ("l2", "squared_l2", "cosine")
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_distances_differ_for_an_ensemble(pair):
    ensemble = [tiny_encoder(1), tiny_encoder(2)]
    l2, squared = (attack(objective=Impersonate(d))(ensemble, *pair) for d in ("l2", "squared_l2"))
    assert not torch.equal(l2, squared)


def test_ensemble_sums_weighted_gradients(pair):
    first, second = tiny_encoder(1), tiny_encoder(2)
    plain = attack(gradient=[Momentum()])
    assert torch.equal(
        attack(weights=[1, 0], gradient=[Momentum()])([first, second], *pair), plain(first, *pair)
    )
    mixed = plain.run([first, second], *pair)
    for other in (first, second):
        assert not torch.equal(mixed.images, plain(other, *pair))
        distance = (other(mixed.images) - other(pair[1])).norm(dim=1)
        assert (distance < (other(pair[0]) - other(pair[1])).norm(dim=1)).all()
    assert (mixed.forwards, mixed.backwards) == (2 + 16, 16)


@pytest.mark.parametrize("steps", [13, 400])
def test_uint8_pictures_stay_on_the_grid(steps):
    encoder = tiny_encoder(dtype=torch.float32)
    source, target = pictures(4, 1, dtype=torch.float32), pictures(4, 2, dtype=torch.float32)
    result = attack(steps=steps, gradient=[Momentum()])(encoder, source, target)
    stored = (result * 255).round()
    assert torch.equal(stored / 255, result)  # rounding to uint8 loses nothing, however many steps
    change = (stored - (source * 255).round()).abs()
    assert change.max() == 10
    assert result.min() >= 0
    assert result.max() <= 1


def test_stays_in_the_ball_off_the_grid(encoder):
    source, target = torch.rand(2, 3, 3, SIZE, SIZE, dtype=torch.float64).unbind()
    result = attack(eps=0.02, step_size=0.007, random_start=True)(encoder, source, target)
    assert (result - source).abs().max() <= 0.02 + 1e-12
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize(
    "parts",
    [
        {},
        EVERYTHING,
        {"inputs": [DiverseResize(p=0.5)], "random_start": True},
        {"surrogate": [FeatureDropout(0.1, noise="gaussian", target="clean", rescale=True)]},
        {"surrogate": [FeatureDropout(0.1, frozen=True)], "inputs": [DiverseInput(p=0.5)]},
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_results_do_not_depend_on_the_batch(encoder, pair, parts, batch):
    run = attack(**parts)
    keys = [f"pair-{i}" for i in range(7)]
    whole = run(encoder, *pair, keys=keys)
    order = [4, 0, 6, 2, 1, 5, 3]
    for start in range(0, 7, batch):
        chosen = order[start : start + batch]
        some = run(encoder, pair[0][chosen], pair[1][chosen], keys=[keys[i] for i in chosen])
        assert torch.equal(some, whole[chosen])


def test_other_parts_do_not_shift_a_stream(encoder, pair):
    """A dropout draws the same masks alone, beside an input part, and beside other kinds of parts."""
    drawn = []

    class Spy(FeatureDropout):
        def attach(self, encoder, scope):
            drawn.append(scope.generators()[0].initial_seed())
            return super().attach(encoder, scope)

    for others in ({}, {"inputs": [DiverseInput()], "gradient": [Momentum()], "random_start": True}):
        attack(surrogate=[Spy(0.1)], **others)(encoder, *pair)
    assert drawn[0] == drawn[1]
    attack(surrogate=[Spy(0.1), Spy(0.1)])(encoder, *pair)
    assert drawn[2] == drawn[0]
    assert drawn[3] != drawn[0]


def test_seeds_and_keys_matter(encoder, pair):
    base = attack(**EVERYTHING)(encoder, *pair)
    assert torch.equal(base, attack(**EVERYTHING)(encoder, *pair))
    assert not torch.equal(base, attack(seed=1, **EVERYTHING)(encoder, *pair))
    assert not torch.equal(base, attack(**EVERYTHING)(encoder, *pair, keys=range(1, 8)))


@pytest.mark.parametrize("distance", ["l2", "squared_l2", "cosine"])
@pytest.mark.parametrize("gradient", [(), (Momentum(),), (Momentum(norm="l2"),)])
def test_dodging_from_itself_takes_one_random_sign_step(pair, distance, gradient):
    encoder = tiny_encoder(dtype=torch.float32)
    source = pair[0].float()
    result = attack(objective=Dodge(distance), gradient=gradient).run(encoder, source, snapshots=[1])
    first = ((result.snapshots[1] - source) * 255).round()
    assert result.zero_gradients == len(source)
    assert first.abs().max() == 1
    assert not torch.equal(first[0], first[1])
    assert result.images.isfinite().all()
    assert ((encoder(result.images) - encoder(source)).norm(dim=1) > 0.1).all()


def test_a_gradient_that_stays_zero_neither_freezes_nor_becomes_nan(encoder, pair):
    class Flat(Impersonate):
        def loss(self, prediction, reference):
            return 0 * prediction.sum(dim=1)

    result = attack(objective=Flat(), gradient=[Momentum()]).run(encoder, *pair, snapshots=[1, 2])
    assert result.zero_gradients == 8 * 7
    assert result.images.isfinite().all()
    assert not torch.equal(result.snapshots[1], result.snapshots[2])


def test_a_non_finite_gradient_names_the_images(encoder, pair):
    class Broken(Impersonate):
        def loss(self, prediction, reference):
            return super().loss(prediction, reference) * torch.tensor(
                [1, 1, float("nan"), 1, 1, float("inf"), 1]
            )

    keys = [f"face-{i}" for i in range(7)]
    with pytest.raises(NonFiniteGradient, match="2 of 7 images.*face-2, face-5") as caught:
        attack(objective=Broken(), gradient=[Momentum()])(encoder, *pair, keys=keys)
    assert caught.value.keys == ("face-2", "face-5")


def test_cost_is_counted(encoder, pair):
    def cost(**options):
        result = attack(**options).run(encoder, *pair)
        return result.forwards, result.backwards

    assert cost() == (1 + 8, 8)
    assert cost(surrogate=[FeatureDropout(0.1, target="clean")]) == (1 + 8, 8)
    assert cost(surrogate=[FeatureDropout(0.1, target="masked")]) == (8 + 8, 8)


def test_snapshots_and_steps_seen_on_the_way(encoder, pair):
    seen = {}
    result = attack(**EVERYTHING).run(
        encoder, *pair, snapshots=(3, 8), on_step=lambda step, images: seen.update({step: images.clone()})
    )
    assert list(seen) == list(range(1, 9))
    assert sorted(result.snapshots) == [3, 8]
    assert torch.equal(result.snapshots[3], seen[3])
    assert torch.equal(result.snapshots[8], result.images)
    assert torch.equal(seen[3], attack(**{**EVERYTHING, "steps": 3})(encoder, *pair))


def test_network_is_put_back_as_it_was(encoder, pair):
    network = tiny_encoder(5)
    network.train()
    network.backbone.norm.eval()
    network.backbone.linear.weight.requires_grad_(True)
    before = network.backbone.norm.running_mean.clone()
    attack(**EVERYTHING)(network, *pair)
    assert network.training
    assert network.backbone.conv1.training
    assert not network.backbone.norm.training
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["backbone.linear.weight"]
    assert network.backbone.linear.weight.grad is None
    assert torch.equal(before, network.backbone.norm.running_mean)


def test_inputs_are_left_alone(encoder, pair):
    source, target = pair[0].clone(), pair[1].clone()
    attack(**EVERYTHING)(encoder, source, target)
    assert torch.equal(source, pair[0])
    assert torch.equal(target, pair[1])
    assert not source.requires_grad


def test_label_attacks_reach_for_the_predicted_label(encoder, pair):
    label = encoder.logits(pair[1]).argmax(1)
    loss = torch.nn.functional.cross_entropy
    images = attack(objective=LabelImpersonate())(encoder, *pair)
    assert loss(encoder.logits(images), label) < loss(encoder.logits(pair[0]), label)
    own = encoder.logits(pair[0]).argmax(1)
    images = attack(objective=LabelDodge())(encoder, pair[0])
    assert loss(encoder.logits(images), own) > loss(encoder.logits(pair[0]), own)


def test_pickles_and_reads_well():
    run = preset("dfanet_di_m_fim", seed=3)
    assert pickle.loads(pickle.dumps(run)) == run
    assert repr(run).startswith(
        "Attack(objective=Impersonate(distance='l2'), eps=10/255, step_size=1/255, steps=1500,"
    )
    assert "gradient=[Momentum(mu=1.0, norm='mean_abs')], seed=3)" in repr(run)
    assert "eps=0.03," in repr(attack(eps=0.03))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": 10}, ValueError, r"eps must lie in \(0, 1\].*got 10; for 10 grey levels write 10 / 255"),
        ({"eps": 0}, ValueError, "eps must lie in"),
        ({"eps": float("nan")}, ValueError, "eps must lie in"),
        ({"eps": "0.1"}, ValueError, "eps must lie in"),
        ({"step_size": -1 / 255}, ValueError, "step_size must lie in"),
        ({"steps": 0}, ValueError, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 1.5}, ValueError, "steps must be a whole number"),
        ({"seed": "x"}, ValueError, "seed must be a whole number"),
        ({"weights": [1, float("inf")]}, ValueError, "weights must be finite"),
        ({"weights": [0, 0]}, ValueError, "weights must be finite"),
        ({"gradient": Momentum()}, TypeError, r"gradient must be a list of parts.*write gradient=\[...\]"),
        ({"gradient": [DiverseInput]}, TypeError, "is no part of this slot"),
        ({"inputs": [FeatureDropout()]}, TypeError, "is no part of this slot"),
        ({"objective": "impersonate"}, TypeError, "objective must be an objective such as Impersonate"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        attack(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FeatureDropout(1.0), r"must lie in \[0, 1\), got 1.0"),
        (lambda: FeatureDropout(float("nan")), r"must lie in \[0, 1\), got nan"),
        (lambda: FeatureDropout(target="wrong"), "target must be one of"),
        (lambda: FeatureDropout(noise="uniform"), "noise must be one of"),
        (lambda: DiverseInput(p=1.5), r"p must lie in \[0, 1\], got 1.5"),
        (lambda: DiverseInput(affine=(0.2, 0.1)), "affine must be a pair"),
        (lambda: DiverseResize(scale=(0.9, 1.2)), "scale must be a pair.*<= 1"),
        (lambda: Momentum(-1), "mu must be finite and at least 0"),
        (lambda: Momentum(norm="linf"), "norm must be one of"),
        (lambda: Impersonate("cosin"), "did you mean 'cosine'"),
    ],
)
def test_bad_parts(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x * 255, ValueError, r"source must lie in \[0, 1\].*divide by 255"),
        (lambda x: x - 0.5, ValueError, r"source must lie in \[0, 1\]"),
        (lambda x: x.where(x != x[2, 0, 0, 0], torch.nan), ValueError, "source holds NaN"),
        (
            lambda x: (x * 255).to(torch.uint8),
            TypeError,
            "source must be float32 or float64, got torch.uint8",
        ),
        (lambda x: x.numpy(), TypeError, "source must be a torch tensor, got ndarray"),
        (lambda x: x[0], ValueError, r"source must have shape \(B, 3, H, W\), got \(3, 16, 16\)"),
        (lambda x: x[:, :1], ValueError, r"source must have shape \(B, 3, H, W\)"),
        (lambda x: x[:0], ValueError, "source is empty"),
        (lambda x: x[:3], ValueError, r"target has shape \(7, 3, 16, 16\), source \(3, 3, 16, 16\)"),
        (lambda x: x.float(), TypeError, "target is torch.float64, source torch.float32"),
    ],
)
def test_bad_images(encoder, pair, change, error, message):
    with pytest.raises(error, match=message):
        attack()(encoder, change(pair[0]), pair[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": [1, 2]}, "keys has 2 entries for 7 images"),
        ({"keys": [0, 1, 2, 3, 4, 5, 5]}, "keys must be unique, but '5'"),
        ({"snapshots": [9]}, "snapshots holds 9; accepted are whole steps from 1 to 8"),
    ],
)
def test_bad_run(encoder, pair, options, message):
    with pytest.raises(ValueError, match=message):
        attack().run(encoder, *pair, **options)


def test_bad_networks(encoder, pair):
    with pytest.raises(ValueError, match="empty list"):
        attack()([], *pair)
    with pytest.raises(ValueError, match="same network twice"):
        attack()([encoder, encoder], *pair)
    with pytest.raises(TypeError, match="got str"):
        attack()("ires", *pair)
    with pytest.raises(ValueError, match="weights has 2 entries for 1 networks"):
        attack(weights=[0.5, 0.5])(encoder, *pair)
    with pytest.raises(ValueError, match="Impersonate needs target images"):
        attack()(encoder, pair[0])
