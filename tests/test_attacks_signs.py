"""Signs in little room: the compiled loops against torch, entry by entry."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from fa_utils.attacks import signs
from fa_utils.attacks.signs import ByteSigns, PackedSigns, room_for_signs

SPECIAL = [0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, float("inf"), -float("inf")]
SIZES = [1, 7, 8, 15, 16, 17, 31, 32, 33, 1000]


def numbers(count: int, seed: int = 0) -> torch.Tensor:
    """Of all magnitudes, a quarter of them zeros and other edges."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator) * 10 ** torch.randint(-30, 30, (count,), generator=generator)
    edges = torch.tensor(SPECIAL).repeat(count)[torch.randperm(count, generator=generator)]
    return torch.where(torch.rand(count, generator=generator) < 0.25, edges, values)


def taken(values: torch.Tensor) -> PackedSigns:
    room = room_for_signs(values)
    assert isinstance(room, PackedSigns)
    room.take(values)
    return room


@pytest.mark.parametrize("count", SIZES)
def test_signs_are_torchs(count):
    values = numbers(count)
    assert torch.equal(taken(values).tensor(), values.sign().to(torch.int8))


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("size", [8e-4, -0.3])
def test_adding_is_torchs_to_the_bit_and_done_once(count, size):
    values, point = numbers(count), torch.randn(count)
    room, want = taken(values), point.add(values.sign(), alpha=size)
    room.add_to(point, size)
    assert torch.equal(point, want) and room.tensor() is None
    room.add_to(point, size)
    assert torch.equal(point, want)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("slope", [0.0, 0.25])
@pytest.mark.parametrize("kind", [PackedSigns, ByteSigns])
def test_rectifiers_are_torchs_to_the_bit_both_ways(kind, count, slope):
    values, gradient = numbers(count), numbers(count, seed=1)
    leaf = values.clone().requires_grad_()
    want = nn.functional.leaky_relu(leaf, slope) if slope else leaf.relu()
    room, got = kind(values), values.clone()
    room.rectify_(got, slope)
    assert torch.equal(got, want)
    assert torch.equal(room.rectified(gradient, slope), torch.autograd.grad(want, leaf, gradient)[0])


@pytest.mark.parametrize("count", [5, 16, 40])
@pytest.mark.parametrize("slope", [0.0, 0.25])
@pytest.mark.parametrize("kind", [PackedSigns, ByteSigns])
def test_rectifiers_let_nan_through_so_that_it_is_noticed(kind, count, slope):
    values = torch.full((count,), float("nan"))
    room = kind(values)
    room.rectify_(values, slope)
    assert values.isnan().all() and room.rectified(values, slope).isnan().all()


LAYOUTS = {
    "rows": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "some channels of more": lambda x: x.contiguous(memory_format=torch.channels_last)[:, 2:7],
    "one number for all": lambda x: x[:1, :1, :1, :1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", ["rows", "channels last"])
def test_any_layout_of_memory(target, layout):
    """Signs are taken of gradients and added to maps, whose layouts need not be the same."""
    values = LAYOUTS[layout](torch.randn(3, 9, 5, 4))
    maps = LAYOUTS[target](torch.randn(values.shape))
    room, want = room_for_signs(maps), maps.add(values.sign(), alpha=0.1)
    room.take(values)
    assert torch.equal(room.tensor(), values.sign().to(torch.int8))
    other = maps.contiguous() + 0
    room.add_to(maps, 0.1)
    assert torch.equal(maps, want)
    room.take(values)
    room.add_to(other, 0.1)
    assert torch.equal(other, want)
    room.rectify_(maps, 0.2)
    assert torch.equal(room.rectified(values, 0.2), torch.where(want > 0, values, 0.2 * values))


@pytest.mark.parametrize("values", [torch.randn(4, dtype=torch.float64), torch.randn(4).bfloat16(), torch.randn(4, 4)[:, 1]])
def test_the_rest_is_left_to_torch(values):
    room, want = room_for_signs(values), values.add(values.sign(), alpha=0.5)
    assert isinstance(room, ByteSigns)
    room.take(values)
    room.add_to(values, 0.5)
    assert torch.equal(values, want) and room.tensor() is None


@pytest.mark.parametrize("kind", [PackedSigns, ByteSigns])
def test_autograd_notices_when_what_it_has_kept_is_written_over(kind):
    leaf = torch.randn(40, requires_grad=True)
    kept = leaf.exp()  # its backward reads its output
    room = kind(kept)
    room.take(leaf.detach())
    room.add_to(kept, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


def test_threads_share_the_work(monkeypatch):
    monkeypatch.setattr(signs, "PART", 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for count in (95, 96, 1000, 1008):
        values, point = numbers(count), torch.randn(count)
        want = point.add(values.sign(), alpha=0.1)
        for _ in range(20):
            room = taken(values)
            assert len(room.parts) == min(3, count // 32) and torch.equal(room.tensor(), values.sign().to(torch.int8))
        room.add_to(point, 0.1)
        assert torch.equal(point, want)
        room.rectify_(point, 0.25)
        assert torch.equal(point, nn.functional.leaky_relu(want, 0.25))
        assert torch.equal(room.rectified(values, 0.25), torch.where(want > 0, values, 0.25 * values))


def test_nothing_is_compiled_before_it_is_needed():
    code = "import sys, fa_utils.attacks; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
