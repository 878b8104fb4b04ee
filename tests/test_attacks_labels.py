"""Attacks on classifiers with known labels: objectives, early stop, a budget for each image, sweeps over eps."""

import pytest
import torch
from torch import nn

from fa_utils.attacks import Attack, ClubInformation, DiverseInput, Misclassify, Momentum, RandomSigns, preset
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.losses import LinearClassifier


@pytest.fixture(scope="module")
def gender() -> FaceEncoder:
    """A small smooth classifier of two classes."""
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 8, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 12))
    return FaceEncoder(body, name="gender", input_size=16, classifier=LinearClassifier(12, 2))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(20, 236, (8, 3, 16, 16), generator=torch.Generator().manual_seed(1)).float() / 255


@pytest.fixture(scope="module")
def labels(gender, images) -> torch.Tensor:
    with torch.no_grad():
        predicted = gender.logits(images).argmax(1)
    mixed = predicted.clone()
    mixed[::2] = 1 - mixed[::2]  # both classes are among the labels
    assert len(mixed.unique()) == 2
    return mixed


def club_head(dim: int = 12) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(dim, 16), nn.ReLU(), nn.Linear(16, 2)).requires_grad_(False)


def test_fgsm_with_labels_is_one_sign_step_up_the_cross_entropy(gender, images, labels):
    leaf = images.clone().requires_grad_()
    slope = torch.autograd.grad(nn.functional.cross_entropy(gender.logits(leaf), labels, reduction="sum"), leaf)[0]
    expected = (images + 8 / 255 * slope.sign()).clamp(0, 1)
    found = preset("fgsm_label", eps=8 / 255).run(gender, images, labels=labels)
    assert torch.allclose(found.images, expected, atol=1e-6)
    assert (found.forwards, found.backwards) == (1, 1)


def test_one_logit_means_the_same_as_two(gender, images, labels):
    head = nn.Linear(12, 1).requires_grad_(False)
    two = nn.Linear(12, 2).requires_grad_(False)
    two.weight.data[0], two.bias.data[0] = 0, 0
    two.weight.data[1], two.bias.data[1] = head.weight[0], head.bias[0]
    one, other = (preset("fgsm_label", eps=4 / 255, objective=Misclassify(h))(gender, images, labels=labels) for h in (head, two))
    assert torch.equal(one, other)


def test_the_information_attack_is_cross_entropy_on_the_same_head(gender, images, labels):
    """Sheet 2-mi-privacy, item 3a: only the length of the gradient differs, image by image."""
    head = club_head()
    mutual = Attack(objective=ClubInformation(head), eps=4 / 255, step_size=4 / 255, steps=1)
    entropy = Attack(objective=Misclassify(head), eps=4 / 255, step_size=4 / 255, steps=1)
    moved = (mutual(gender, images, labels=labels) - images).sign(), (entropy(gender, images, labels=labels) - images).sign()
    assert (moved[0] == moved[1]).float().mean() > 0.999
    assert moved[0].abs().mean() > 0.9  # and it is not the idle agreement of zeros


def test_the_estimate_is_the_formula(gender, images, labels):
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(2))
    log_q = torch.log_softmax(logits, 1)
    expected = [log_q[i, labels[i]] - torch.stack([log_q[i, y] for y in labels]).mean() for i in range(8)]
    assert torch.allclose(ClubInformation(club_head()).loss(logits, labels), torch.stack(expected), atol=1e-6)


def test_a_batch_of_one_class_is_refused(gender, images):
    attack = Attack(objective=ClubInformation(club_head()), steps=1)
    with pytest.raises(ValueError, match="all 8 labels of the batch are 1.*both classes"):
        attack(gender, images, labels=torch.ones(8, dtype=torch.int64))


@pytest.mark.parametrize("eps", [0.0, 0.005, 3 / 255, 0.55, 1.0])
def test_a_sweep_gives_what_single_runs_give(gender, images, labels, eps):
    attack = preset("fgsm_label", eps=0.1)
    found = dict(attack.sweep(gender, images, [0.02, eps, 0.3], labels=labels))[eps]
    expected = preset("fgsm_label", eps=eps)(gender, images, labels=labels) if eps else images
    assert torch.equal(found, expected)


def test_a_sweep_asks_for_one_gradient(gender, images, labels):
    passes = []
    hook = gender.backbone.register_forward_hook(lambda *_: passes.append(1))
    try:
        list(preset("fgsm_label").sweep(gender, images, [0.01 * k for k in range(1, 30)], labels=labels))
    finally:
        hook.remove()
    assert len(passes) == 1


def test_a_zero_gradient_moves_at_random_in_a_sweep_as_in_a_run(images):
    flat = FaceEncoder(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), name="flat", input_size=16, classifier=LinearClassifier(4, 2))
    for parameter in flat.parameters():
        parameter.data.zero_()
    labels = torch.zeros(8, dtype=torch.int64)
    attack = preset("fgsm_label", eps=0.1)
    swept = dict(attack.sweep(flat, images, [0.1], labels=labels))[0.1]
    assert torch.equal(swept, attack(flat, images, labels=labels))
    assert not torch.equal(swept, images)


@pytest.mark.parametrize("wrong", [[], [1.5], [-0.1], [float("nan")]])
def test_a_sweep_names_a_wrong_eps(gender, images, labels, wrong):
    with pytest.raises(ValueError, match="epsilons"):
        list(preset("fgsm_label").sweep(gender, images, wrong, labels=labels))


def test_a_sweep_of_several_steps_is_refused(gender, images, labels):
    with pytest.raises(ValueError, match="steps=1"):
        list(preset("pgd_atk").sweep(gender, images, [0.1], labels=labels))


def test_early_stop_leaves_an_image_at_its_first_misclassification(gender, images):
    with torch.no_grad():
        labels = gender.logits(images).argmax(1)
    attack = preset("pgd_atk", eps=0.2, step_size=0.004, steps=40)
    result = attack.run(gender, images, labels=labels, snapshots=range(1, 41))
    path = torch.stack([images] + [result.snapshots[step] for step in range(1, 41)])
    with torch.no_grad():
        wrong = torch.stack([gender.logits(step).argmax(1) != labels for step in path])
    stopped = 0
    for i in range(len(images)):
        hits = wrong[:, i].nonzero()
        if len(hits) and hits[0] < 39:
            first = int(hits[0])
            assert torch.equal(path[first, i], path[-1, i]), "it moved on after it was misclassified"
            assert not torch.equal(path[first - 1, i], path[first, i])
            stopped += 1
    assert stopped >= 2
    assert result.zero_gradients == 0


def test_an_image_that_is_wrong_from_the_start_is_not_touched(gender, images):
    with torch.no_grad():
        labels = 1 - gender.logits(images).argmax(1)
    assert torch.equal(preset("pgd_atk")(gender, images, labels=labels), images)


def test_without_early_stop_the_same_attack_goes_on(gender, images):
    with torch.no_grad():
        labels = 1 - gender.logits(images).argmax(1)
    moved = preset("pgd_atk", early_stop=False)(gender, images, labels=labels)
    assert 0 < (moved - images).abs().max() <= 0.010 + 1e-6  # ten steps of 0.001, never the ball of 0.035 (sheet 1, item 3b)
    assert (moved - images).abs().max() > 0.0099


def test_early_stop_does_not_depend_on_the_batch(gender, images):
    with torch.no_grad():
        labels = gender.logits(images).argmax(1)
    attack = preset("pgd_atk", eps=0.2, step_size=0.01, steps=20)
    whole = attack(gender, images, labels=labels)
    single = torch.cat([attack(gender, images[i : i + 1], labels=labels[i : i + 1], keys=[i]) for i in range(len(images))])
    assert (whole - single).abs().max() < 1e-5


def test_early_stop_needs_a_goal_and_no_other_parts():
    with pytest.raises(ValueError, match="early_stop"):
        Attack(objective=RandomSigns(), early_stop=True)
    with pytest.raises(ValueError, match="early_stop"):
        Attack(objective=Misclassify(), inputs=[DiverseInput()], early_stop=True)
    with pytest.raises(ValueError, match="early_stop"):
        Attack(objective=Misclassify(), gradient=[Momentum(1.0)], early_stop=True)


def test_a_budget_for_each_image_is_that_of_single_runs(gender, images, labels):
    budgets = torch.tensor([0.01, 0.02, 3 / 255, 0.1, 0.2, 0.5, 1.0, 8 / 255], dtype=torch.float64)
    together = preset("fgsm_label", eps=0.035)(gender, images, labels=labels, eps=budgets)
    for i, budget in enumerate(budgets.tolist()):
        alone = preset("fgsm_label", eps=budget)(gender, images, labels=labels)[i]
        assert torch.allclose(together[i], alone, atol=1e-6)


@pytest.mark.parametrize(
    "eps, text", [([0.1] * 7, r"shape \(8,\)"), ([0.1] * 7 + [0.0], "image 7 is 0"), ([0.1] * 7 + [1.5], "image 7 is 1.5")]
)
def test_wrong_budgets_are_named(gender, images, labels, eps, text):
    with pytest.raises(ValueError, match=text):
        preset("fgsm_label")(gender, images, labels=labels, eps=torch.tensor(eps))


def test_random_signs_ask_no_network_and_hang_on_the_key(gender, images):
    attack = preset("rand_atk", eps=5 / 255)
    result = attack.run(gender, images, keys=list("abcdefgh"))
    assert (result.forwards, result.backwards, result.zero_gradients) == (0, 0, 0)
    change = (result.images - images) * 255
    assert torch.allclose(change.abs(), torch.full_like(change, 5.0), atol=1e-3)
    assert 0.4 < (change > 0).float().mean() < 0.6
    alone = attack(gender, images[3:4], keys=["d"])
    assert torch.equal(alone[0], result.images[3])
    swept = dict(attack.sweep(gender, images, [5 / 255], keys=list("abcdefgh")))[5 / 255]
    assert torch.equal(swept, result.images)


def test_a_mask_leaves_half_of_the_pixels(gender, images):
    change = preset("rand_atk", eps=5 / 255, objective=RandomSigns(mask=True))(gender, images) - images
    assert 0.45 < (change == 0).float().mean() < 0.55


def test_blocks_of_pixels_share_a_sign_and_survive_averaging(gender, images):
    fine, coarse = (preset("rand_atk", eps=5 / 255, objective=RandomSigns(block=b))(gender, images) - images for b in (1, 2))
    shrunk = [torch.nn.functional.avg_pool2d(255 * change, 2).square().mean().sqrt() for change in (fine, coarse)]
    assert abs(shrunk[1] - 5) < 0.01 and 2.2 < shrunk[0] < 2.8  # four independent signs: half the size is left
    odd = preset("rand_atk", eps=5 / 255, objective=RandomSigns(block=3))(gender, images) - images
    assert torch.equal(odd[:, :, 0].sign(), odd[:, :, 2].sign()) and odd.shape == images.shape
    with pytest.raises(ValueError, match="block must be"):
        RandomSigns(block=0)


@pytest.mark.parametrize(
    "labels, text",
    [
        (None, "needs labels"),
        (torch.zeros(7, dtype=torch.int64), r"shape \(8,\)"),
        (torch.zeros(8), "whole numbers"),
        (torch.full((8,), -1), "labels hold -1"),
    ],
)
def test_wrong_labels_are_named(gender, images, labels, text):
    with pytest.raises(ValueError, match=text):
        preset("fgsm_label")(gender, images, labels=labels)


def test_labels_for_an_objective_without_them_are_refused(gender, images, labels):
    with pytest.raises(ValueError, match="takes no labels"):
        preset("rand_atk")(gender, images, labels=labels)
    with pytest.raises(ValueError, match="no target images"):
        preset("fgsm_label")(gender, images, images, labels=labels)
