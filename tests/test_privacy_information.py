"""The CLUB estimate against sums by hand and a known conditional; its training against autograd; what is refused."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fa_utils.privacy.information import ClubHead, club_estimate, information_per_image, train_club
from fa_utils.privacy.perceptron import _batches, seeded

LN = math.log


@pytest.fixture(scope="module")
def toy():
    """1,200 templates of 8 numbers, of which the first follows the label."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 1200)
    features = rng.normal(size=(1200, 8))
    features[:, 0] += 1.6 * (labels - 0.5)
    return torch.tensor(features, dtype=torch.float32), labels


def test_estimate_of_three_images_by_hand():
    # q(1 | f) = 3/4, 1/2, 1/5; labels 1, 0, 0; so two thirds of the labels are 0.
    q = torch.tensor([[1 / 4, 3 / 4], [1 / 2, 1 / 2], [4 / 5, 1 / 5]])
    labels = [1, 0, 0]
    expected = [
        LN(3 / 4) - (2 * LN(1 / 4) + LN(3 / 4)) / 3,
        0.0,
        LN(4 / 5) - (2 * LN(4 / 5) + LN(1 / 5)) / 3,
    ]
    np.testing.assert_allclose(information_per_image(torch.log, q, labels), expected, atol=1e-6)
    assert club_estimate(torch.log, q, labels) == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_estimate_is_equation_7_term_by_term(toy):
    features, labels = toy[0][:40], toy[1][:40]
    head = ClubHead(8)
    with torch.no_grad():
        log_q = F.log_softmax(head(features), 1).numpy()
    total = 0.0
    for i in range(40):
        total += log_q[i, labels[i]] - sum(log_q[i, labels[j]] for j in range(40)) / 40
    assert club_estimate(head, features, labels) == pytest.approx(total / 40, abs=1e-6)


def test_a_constant_head_knows_nothing(toy):
    assert club_estimate(lambda rows: torch.tensor([[0.3, -2.0]]).expand(len(rows), 2), *toy) == pytest.approx(0, abs=1e-9)


def test_estimate_bounds_the_information_of_a_known_conditional():
    # A bit that is right with probability 0.8: I = ln 2 - H(0.8).
    n, right = 1000, 0.8
    labels = np.repeat([0, 1], n // 2)
    bit = labels.copy()
    bit[:100] = 1  # 100 of 500 each
    bit[500:600] = 0
    features = torch.tensor(bit, dtype=torch.float32)[:, None]
    information = LN(2) + right * LN(right) + (1 - right) * LN(1 - right)
    true_head = lambda rows: torch.log(torch.where(rows > 0, torch.tensor([0.2, 0.8]), torch.tensor([0.8, 0.2])))  # noqa: E731
    exact = club_estimate(true_head, features, labels)
    assert exact == pytest.approx(right * LN(right / 0.2) - 0.5 * LN(right / 0.2), abs=1e-6)  # E log q - E E log q, by hand
    assert exact > information + 0.1
    trained = train_club(features, labels, iterations=600, batch=500, hidden=16, learning_rate=1e-2)[600]
    assert club_estimate(trained, features, labels) == pytest.approx(exact, abs=0.02)


def test_training_finds_the_label_and_not_noise(toy):
    features, labels = toy
    head = train_club(features[:800], labels[:800], iterations=400)[400]
    told = club_estimate(head, features[800:], labels[800:])
    assert told > 0.2
    shuffled = np.random.default_rng(0).permutation(labels[800:])
    assert abs(club_estimate(head, features[800:], shuffled)) < 0.15 < told


def test_estimate_falls_along_its_gradient(toy):
    features, labels = toy
    head = train_club(features, labels, iterations=300)[300]
    assert not any(weight.requires_grad for weight in head.parameters()) and not head.training
    leaf = features.clone().requires_grad_()
    information_per_image(head, leaf, labels).mean().backward()
    start = club_estimate(head, features, labels)
    values = [club_estimate(head, features - eps * leaf.grad.sign(), labels) for eps in (0.05, 0.1, 0.2)]
    assert start > values[0] > values[1] > values[2]


def test_gradient_has_the_sign_of_the_cross_entropys_on_the_same_head(toy):
    """Sheet 2, row 3a: less information and more cross-entropy are one direction."""
    features, labels = toy[0][:64], torch.tensor(toy[1][:64])
    head = train_club(*toy, iterations=200)[200]
    leaf = features.clone().requires_grad_()
    (information,) = torch.autograd.grad(information_per_image(head, leaf, labels).sum(), leaf)
    (entropy,) = torch.autograd.grad(F.cross_entropy(head(leaf), labels, reduction="sum"), leaf)
    assert (information.sign() == -entropy.sign()).float().mean() == 1


@pytest.mark.parametrize("batch", [32, 5000])
def test_training_is_adam_on_the_cross_entropy(toy, batch):
    features, labels = toy[0][:200], toy[1][:200]
    ours = train_club(features, labels, iterations=25, batch=batch, hidden=12, seed=4)[25]
    theirs = seeded(lambda: ClubHead(8, hidden=12), 4)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    for rows in _batches(200, 25, min(batch, 200), 4):
        adam.zero_grad()
        F.cross_entropy(theirs(features[rows]), torch.tensor(labels)[rows]).backward()
        adam.step()
    for one, other in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(one, other.detach(), atol=2e-6, rtol=0)


def test_batches_walk_through_all_rows():
    batches = _batches(10, 5, 4, seed=0)
    assert batches.shape == (5, 4)
    assert sorted(batches.flatten()[:10].tolist()) == sorted(batches.flatten()[10:].tolist()) == list(range(10))


def test_a_checkpoint_is_a_shorter_training(toy):
    heads = train_club(*toy, iterations=60, checkpoints=(20, 40))
    assert list(heads) == [20, 40, 60]
    short = train_club(*toy, iterations=40)[40]
    assert all(torch.equal(a, b) for a, b in zip(heads[40].parameters(), short.parameters()))
    assert not torch.equal(heads[20].inner.weight, heads[60].inner.weight)


def test_seed_decides_and_leaves_torchs_numbers_alone(toy):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, two, other = (train_club(*toy, iterations=30, seed=seed)[30].inner.weight for seed in (5, 5, 6))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("labels, message", [
    (np.zeros(6, int), r"both present: found 0 \(6 rows\)"),
    ([0, 1, 2, 2, 0, 1], r"found 0 \(2 rows\), 1 \(2 rows\), 2 \(2 rows\)"),
    ([0, 1, 0], r"shape \(6,\), one entry a row of features, got \(3,\)"),
])
@pytest.mark.parametrize("act", [lambda x, y: train_club(x, y, iterations=1), lambda x, y: club_estimate(ClubHead(4), x, y)])
def test_labels_are_checked(labels, message, act):
    with pytest.raises(ValueError, match=message):
        act(torch.ones(6, 4), labels)


def test_features_are_checked():
    bad = torch.ones(6, 4)
    bad[2, 1], bad[5, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="2 of 6 rows: 2, 5"):
        train_club(bad, [0, 1] * 3)
    with pytest.raises(ValueError, match="at least one row"):
        train_club(torch.ones(0, 4), [])
    with pytest.raises(ValueError, match="at least one row"):
        club_estimate(ClubHead(4), torch.ones(4), [0, 1, 0, 1])


@pytest.mark.parametrize("options, message", [
    ({"iterations": 0}, "iterations = 0"),
    ({"batch": 0}, "batch = 0"),
    ({"learning_rate": 0.0}, "learning_rate = 0"),
    ({"iterations": 5, "checkpoints": (3, 6, 0)}, r"1 to 5, the iterations, got \[6, 0\]"),
])
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        train_club(torch.ones(4, 2), [0, 1, 0, 1], **options)
