"""Crafting in units: the same bytes whatever the units' fate, and clear errors when the disk fails."""

import errno
import os
import sys

import numpy as np
import pytest
import torch
from attack_networks import pictures, tiny_encoder

from fa_utils.attacks import Attack, Dodge, GridError, Impersonate, craft, preset, run_grid

STEPS = 4


def faces(count, seed):
    return (pictures(count, seed) * 255).round().to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder(dtype=torch.float32)


@pytest.fixture(scope="module")
def pair():
    return faces(7, 1), faces(7, 2)


@pytest.fixture(scope="module")
def attack():
    return preset("dfanet_di_m_fim", steps=STEPS)


class Killed(BaseException):
    """Stands for a signal: not an Exception, so that nothing may swallow it."""


def count_runs(monkeypatch, *, kill_at=None):
    calls, run = [], Attack.run

    def counted(self, *args, keys, **options):
        if len(calls) == kill_at:
            raise Killed
        calls.append(keys)
        return run(self, *args, keys=keys, **options)

    monkeypatch.setattr(Attack, "run", counted)
    return calls


def same(a, b):
    return (
        np.array_equal(a.images, b.images)
        and all(np.array_equal(a.snapshots[step], b.snapshots[step]) for step in a.snapshots)
        and (a.forwards, a.backwards, a.zero_gradients) == (b.forwards, b.backwards, b.zero_gradients)
    )


def options(**more):
    return {"unit": 3, "snapshots": (2,), "progress": False, **more}


def test_crafts_what_the_attack_makes(encoder, pair, attack):
    result = craft(attack, encoder, *pair, **options())
    assert result.images.dtype == np.uint8
    assert result.images.shape == result.snapshots[2].shape == (7, 3, 16, 16)
    assert (result.forwards, result.backwards, result.zero_gradients) == (2 * STEPS, STEPS, 0)
    source, target = (torch.from_numpy(images[3:6]).float() / 255 for images in pair)
    images = attack(encoder, source, target, keys=[3, 4, 5])
    assert np.array_equal(result.images[3:6], (images * 255).round().to(torch.uint8).numpy())
    assert np.abs(result.images.astype(int) - pair[0]).max() == STEPS


def test_goes_on_after_a_kill_to_the_same_bytes(encoder, pair, attack, tmp_path, monkeypatch):
    whole = craft(attack, encoder, *pair, **options())
    with monkeypatch.context() as patch:
        calls = count_runs(patch, kill_at=2)
        with pytest.raises(Killed):
            craft(attack, encoder, *pair, **options(checkpoint=tmp_path))
        assert len(calls) == 2
    with monkeypatch.context() as patch:
        calls = count_runs(patch)
        assert same(craft(attack, encoder, *pair, **options(checkpoint=tmp_path)), whole)
        assert calls == [("6",)]
    with monkeypatch.context() as patch:
        calls = count_runs(patch)
        assert same(craft(attack, encoder, *pair, **options(checkpoint=tmp_path)), whole)
        assert calls == []


def test_a_damaged_unit_is_crafted_anew(encoder, pair, attack, tmp_path, monkeypatch):
    whole = craft(attack, encoder, *pair, **options(checkpoint=tmp_path))
    units = sorted(tmp_path.glob("*/unit-*.npz"))
    assert len(units) == 3
    units[1].write_bytes(units[1].read_bytes()[:200])
    calls = count_runs(monkeypatch)
    assert same(craft(attack, encoder, *pair, **options(checkpoint=tmp_path)), whole)
    assert calls == [("3", "4", "5")]


def test_checkpoints_are_kept_apart_by_all_that_matters(encoder, pair, attack, tmp_path):
    source, target = pair
    other = source.copy()
    other[6, 2, 15, 15] ^= 1
    tweaked = tiny_encoder(dtype=torch.float32)
    with torch.no_grad():
        tweaked.backbone.linear.bias[0] += 1e-6
    shifted = tiny_encoder(dtype=torch.float32)
    shifted.mean += 1e-3
    craft(attack, encoder, source, target, **options(checkpoint=tmp_path))
    variants = [
        (preset("dfanet_di_m_fim", steps=STEPS, seed=1), encoder, source, target, {}),
        (preset("dfanet_di_m_fim", steps=STEPS, eps=9 / 255), encoder, source, target, {}),
        (preset("dfanet_di_m_fim", steps=STEPS, drop=0.11), encoder, source, target, {}),
        (attack, tweaked, source, target, {}),
        (attack, shifted, source, target, {}),
        (attack, encoder, other, target, {}),
        (attack, encoder, source, other, {}),
        (attack, encoder, source, target, {"keys": range(1, 8)}),
        (attack, encoder, source, target, {"unit": 4}),
        (attack, encoder, source, target, {"snapshots": ()}),
    ]
    for count, (how, network, a, b, more) in enumerate(variants, start=2):
        craft(how, network, a, b, **options(checkpoint=tmp_path, **more))
        assert len(list(tmp_path.iterdir())) == count


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(
    encoder, pair, attack, tmp_path, monkeypatch
):
    module = sys.modules["fa_utils.attacks.craft"]
    replace = os.replace
    made = []

    def full(source, target):
        made.append(target)
        if len(made) == 3:  # the probe and the first unit fit
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.raises(OSError, match=r"could not write .*unit-00001.npz: no space left.*goes on from there"):
        craft(attack, encoder, *pair, **options(checkpoint=tmp_path))
    assert [path.name for path in tmp_path.glob("*/*")] == ["unit-00000.npz"]


def test_a_folder_that_cannot_be_written_is_found_before_the_work(
    encoder, pair, attack, tmp_path, monkeypatch
):
    calls = count_runs(monkeypatch)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write checkpoints to .*; give a writable folder"):
        craft(attack, encoder, *pair, **options(checkpoint=tmp_path / "file"))
    assert calls == []


def test_dodging_needs_no_target(encoder, pair):
    result = craft(Attack(objective=Dodge(), steps=2), encoder, pair[0], progress=False)
    assert result.zero_gradients == 7


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"source": np.zeros((2, 3, 16, 16), np.float32)},
            TypeError,
            "source must be a uint8 array.*got float32",
        ),
        ({"source": [1]}, TypeError, "source must be a uint8 array.*got list"),
        ({"target": faces(6, 2)}, ValueError, r"target has shape \(6, 3, 16, 16\), source \(7, 3, 16, 16\)"),
        ({"source": faces(7, 1)[:0]}, ValueError, "source is empty"),
        ({"source": faces(7, 1)[0]}, ValueError, r"source must have shape \(N, 3, H, W\)"),
        ({"unit": 0}, ValueError, "unit must be a whole number of at least 1, got 0"),
        ({"snapshots": (STEPS + 1,)}, ValueError, "snapshots holds 5"),
        ({"keys": [1]}, ValueError, "keys has 1 entries for 7 images"),
    ],
)
def test_bad_input(encoder, pair, attack, change, error, message):
    given = {"source": pair[0], "target": pair[1], "progress": False, **change}
    with pytest.raises(error, match=message):
        craft(attack, encoder, **given)


def halve(spec):
    if spec % 2:
        raise ValueError(f"{spec} is odd")
    return {"half": spec // 2, "threads": torch.get_num_threads()}


def test_grid_keeps_order():
    assert [record["half"] for record in run_grid([4, 2, 8], halve, progress=False)] == [2, 1, 4]


def test_grid_in_processes_of_one_thread():
    records = run_grid([4, 2], halve, workers=2, progress=False)
    assert [(record["spec"], record["half"], record["threads"]) for record in records] == [
        (4, 2, 1),
        (2, 1, 1),
    ]


def test_grid_goes_on_after_a_failure_and_names_it():
    with pytest.raises(
        GridError, match="2 of 4 runs failed:\n1: ValueError: 1 is odd\n3: ValueError: 3 is odd"
    ) as caught:
        run_grid([1, 2, 3, 4], halve, progress=False)
    assert [record.get("half") for record in caught.value.records] == [None, 1, None, 2]
    assert "Traceback" in caught.value.records[0]["error"]


@pytest.mark.parametrize(
    ("arguments", "message"), [(([], halve), "specs is empty"), (([1], halve), "workers")]
)
def test_bad_grid(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_grid(*arguments, workers=0 if arguments[0] else 1)


def test_impersonation_comes_closer(encoder, pair):
    """End to end: the stored bytes are nearer to the target than the source was."""
    result = craft(Attack(objective=Impersonate(), steps=10), encoder, *pair, progress=False)
    before, after, goal = (
        encoder(torch.from_numpy(x).float() / 255) for x in (pair[0], result.images, pair[1])
    )
    assert ((after - goal).norm(dim=1) < (before - goal).norm(dim=1)).all()
