"""The signs of a tensor, kept in little room: taken, added to another tensor, and as the mask of a rectifier's backward.

Float32 tensors on the CPU are gone through once, which torch would do in two passes or three, and their signs take two
bits an entry. All others are left to torch, at a byte an entry, with the same results.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

WIDTH = 16  # entries that one pair of masks tells of
PART = 2**18  # fewest entries worth a thread of their own: handing over takes as long as these take


class ByteSigns:
    """Room for the signs of tensors of one shape, on any device: int8, as long as they are needed."""

    def __init__(self, like: Tensor):
        self.shape = like.shape
        self.signs: Tensor | None = None

    def take(self, values: Tensor) -> None:
        """Keep the signs -1, 0, 1 of a tensor, in place of those before."""
        self.signs = values.sign().to(torch.int8)

    def add_to(self, values: Tensor, size: float) -> None:
        """``values += size * signs``, and let go of the signs; nothing if there are none.

        In place and unseen by autograd: a constant to it. It still notices if it has kept what is written over.
        """
        if self.signs is not None:
            values.detach().add_(self.signs, alpha=size)
            self.signs = None

    def rectify_(self, values: Tensor, slope: float) -> None:
        """A (leaky) ReLU in place, of which is kept where it passed its input."""
        torch.nn.functional.leaky_relu_(values, slope) if slope else values.relu_()
        self.signs = values.le(0).logical_not_().to(torch.int8)  # so that NaN is among what passed

    def rectified(self, gradient: Tensor, slope: float, *, in_place: bool = False) -> Tensor:
        """The gradient on the way back through that ReLU: times ``slope`` where it did not pass its input.

        In place if nobody else reads that gradient.
        """
        return torch.where(self.signs > 0, gradient, slope * gradient if slope else 0.0)

    def drop(self) -> None:
        self.signs = None

    def tensor(self) -> Tensor | None:
        """The signs as int8; None if there are none."""
        return self.signs


class PackedSigns:
    """The same for dense float32 tensors on the CPU, of one memory layout as well: two bits an entry.

    Attributes
    ----------
    masks : Tensor or None
        Int16 (blocks, 2), in the order of the entries in memory: of each sixteen a bit for every one that is positive,
        and for every one that is negative.
    passed : Tensor or None
        Int16 (blocks,), the same for the entries that a rectifier passed.
    """

    def __init__(self, like: Tensor):
        self.shape, self.stride, self.count = like.shape, like.stride(), like.numel()
        self.loops, self.parts = _loops(), _parts(self.count)
        self.masks: Tensor | None = None
        self.passed: Tensor | None = None

    def fits(self, values: Tensor) -> bool:
        """Whether this is room for the signs of a tensor, in its layout."""
        return values.shape == self.shape and values.stride() == self.stride

    def take(self, values: Tensor) -> None:
        values = laid_out(values, self.stride)  # by a name, so that it lives until the loop is through
        if self.masks is None:
            self.masks = torch.empty(self.count // WIDTH + 1, 2, dtype=torch.int16)
        self._run(self.loops.sign, values.data_ptr(), self.masks)

    def add_to(self, values: Tensor, size: float) -> None:
        if self.masks is None:
            return
        if values.stride() == self.stride:
            self._run(self.loops.add, values.data_ptr(), self.masks, size)
            increment_version(values)
        else:
            values.detach().add_(self.tensor(), alpha=size)
        self.masks = None

    def rectify_(self, values: Tensor, slope: float) -> None:
        if self.passed is None:
            self.passed = torch.empty(self.count // WIDTH + 1, dtype=torch.int16)
        self._run(self.loops.rectify, values.data_ptr(), self.passed, slope)

    def rectified(self, gradient: Tensor, slope: float, *, in_place: bool = False) -> Tensor:
        gradient = laid_out(gradient, self.stride)
        out = gradient if in_place else torch.empty_like(gradient)
        self._run(self.loops.scale, gradient.data_ptr(), self.passed, slope, out.data_ptr())
        return out

    def drop(self) -> None:
        self.masks = None

    def tensor(self) -> Tensor | None:
        if self.masks is None:
            return None
        bits = self.masks[:, :, None].bitwise_right_shift(torch.arange(WIDTH, dtype=torch.int16)).bitwise_and_(1)
        return bits[:, 0].sub(bits[:, 1]).to(torch.int8).flatten().as_strided(self.shape, self.stride)

    def _run(self, loop: Callable, values: int, masks: Tensor, number: float = 0.0, out: int = 0) -> None:
        if len(self.parts) == 1:
            loop(values, masks.data_ptr(), number, out, self.count)
            return

        def part(start: int, count: int) -> None:
            loop(values + 4 * start, masks[start // WIDTH :].data_ptr(), number, out + 4 * start, count)

        mine, *others = self.parts
        waiting = [_threads(len(others)).submit(part, *bounds) for bounds in others]
        part(*mine)
        for other in waiting:
            other.result()


Signs = ByteSigns | PackedSigns


def room_for_signs(like: Tensor) -> Signs:
    """Room for the signs of tensors like this one, none taken yet."""
    return PackedSigns(like) if _is_packable(like) else ByteSigns(like)


def laid_out(values: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The same values in a memory layout, given by its strides; themselves if they have it."""
    return values if values.stride() == stride else values.new_empty_strided(values.shape, stride).copy_(values)


def _is_packable(values: Tensor) -> bool:
    dense = values.is_contiguous() or values.is_contiguous(memory_format=torch.channels_last)
    return values.dtype == torch.float32 and values.is_cpu and dense


def _parts(count: int) -> list[tuple[int, int]]:
    """Where the parts start that torch's number of threads go through at once, and how long they are."""
    blocks = count // WIDTH
    threads = max(1, min(torch.get_num_threads(), count // PART))
    starts = [WIDTH * (blocks * i // threads) for i in range(threads)]
    return [(start, end - start) for start, end in zip(starts, [*starts[1:], count])]


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)


@cache
def _loops():
    """They are compiled on first use: numba takes a second to import, which listing results should not pay."""
    from fa_utils.attacks import loops

    return loops
