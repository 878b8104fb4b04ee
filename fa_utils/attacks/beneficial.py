"""BPFA: perturbations of the surrogate's feature maps that work against the attack, made of earlier gradients.

The attacker lowers the loss by changing the picture; the perturbation raises it by changing the maps, so that every
step meets a harder network. The gradients come from a backward pass that is made anyway: no further pass is needed.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fa_utils.attacks.engine import Scope, SurrogateState
from fa_utils.attacks.eroding import hooked
from fa_utils.models.inception_resnet import BasicConv

LAYERS = ("convolution", "normalization", "activation")
DIRECTIONS = ("own", "same", "raw", "random", "other", "shuffled", "gaussian")
SCALES = ("absolute", "spread")

# Gates' sigmoids are not among them: they act on channel means. The Inception-ResNet's `BasicConv` ends in its ReLU.
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, BasicConv)

# Layers whose backward does not read their output: it is perturbed in place, and no map is kept twice.
REWRITABLE = (nn.Conv2d, nn.BatchNorm2d, nn.PReLU)


def _pack_nonzero(values: Tensor) -> tuple[torch.dtype, Tensor]:
    """Where values are not zero, a byte an entry.

    To booleans and viewed as bytes: on the CPU several times faster than a comparison, and than widening booleans.
    """
    return values.dtype, values.to(torch.bool).view(torch.uint8)


def _pack_positive(values: Tensor) -> tuple[torch.dtype, Tensor]:
    return _pack_nonzero(values.relu())


def _unpack(packed: tuple[torch.dtype, Tensor]) -> Tensor:
    dtype, ones = packed
    return ones.to(dtype)


def _rewritable_forward(module: nn.Module):
    """The layer's forward pass, after which its output may be written over; None for layers that are no rectifiers.

    Autograd keeps ones and zeros for the values: whether they are positive is all that the backward reads of them.
    """
    before, rectify, pack = None, type(module).forward.__get__(module), _pack_nonzero
    if isinstance(module, BasicConv):
        before, rectify = nn.Sequential(module.conv, module.bn), Tensor.relu_
    elif isinstance(module, nn.LeakyReLU) and module.negative_slope >= 0:
        pack = _pack_positive
    elif not isinstance(module, nn.ReLU):
        return None

    def forward(x: Tensor) -> Tensor:
        if before is not None:
            x = before(x)
        with saved_tensors_hooks(pack, _unpack):
            return rectify(x)

    return forward


@contextmanager
def _rewritable(modules: Iterable[nn.Module]) -> Iterator[set[nn.Module]]:
    """The rectifiers among the modules, whose output may be written over until the way out."""
    forwards = {module: forward for module in modules if (forward := _rewritable_forward(module)) is not None}
    try:
        for module, forward in forwards.items():
            module.forward = forward  # shadows the class's
        yield set(forwards)
    finally:
        for module in forwards:
            vars(module).pop("forward", None)


@dataclass(frozen=True)
class BeneficialPerturbation:
    """BPFA: add ``eta * sign(G)`` to the output of each chosen layer, G the loss's gradient there at the step before.

    Parameters
    ----------
    eta : float
        Size of the perturbation on the scale of the feature maps, finite. Positive raises the attacker's loss (BPFA),
        negative lowers it (APFA); 0 is the plain attack, bit for bit.
    layers : {"convolution", "normalization", "activation"}
        Which outputs are perturbed: of all `torch.nn.Conv2d`, of all `torch.nn.BatchNorm2d`, or of all activations.
    names : str, optional
        Regular expression; only layers whose name it matches somewhere.
    squeeze_excite : bool
        Whether the 1x1 convolutions inside squeeze-and-excitation blocks are among the convolutions.
    direction : {"own", "same", "raw", "random", "other", "shuffled", "gaussian"}
        ``own`` is the paper's. ``same`` takes the gradient of the very same step, by a forward and a backward pass
        more. The others are controls: the gradient itself at the norm of its sign; its sign times random signs; the
        sign of the next image in the batch (whose results then depend on the batch); the sign, its entries permuted at
        random, anew at each step and alike for all images; Gaussian noise of the same norm.
    scale : {"absolute", "spread"}
        ``spread`` multiplies eta by the standard deviation of the layer's unperturbed output, per image, as it was at
        the first step: one eta for layers and networks of any scale.

    Raises
    ------
    ValueError
        For an eta that is not finite or an unknown option; when the attack starts, for layers that match nothing and
        for ``other`` with a single image; during the attack, if the batch or a map changes size.

    Notes
    -----
    Zhou F. et al. (2023), eq. 14 and algorithm 1 (sheet 5-bpfa, section 2). Nothing is added at the first step, and
    where the gradient is exactly zero. The reference is embedded by the unperturbed network. Several copies of the
    picture have a gradient each (item 3c); a second pass of a copy within a step, as for variance tuning, uses what the
    pass before left. After `FeatureDropout` in the list of surrogate parts the masked output is perturbed (item 3e),
    before it the output is perturbed and then masked.

    A gradient is let go of as it is used, while the pass fills the memory, so the peak hardly rises. The backward of a
    ReLU or LeakyReLU reads its own output, which then could not be perturbed in place: while the attack runs, autograd
    keeps the signs for it, a byte an entry, with the same gradients to the bit.
    """

    eta: float = 8e-4
    layers: str = "convolution"
    names: str | None = None
    squeeze_excite: bool = True
    direction: str = "own"
    scale: str = "absolute"

    def __post_init__(self) -> None:
        number = isinstance(self.eta, (int, float)) and not isinstance(self.eta, bool)
        if not number or not math.isfinite(self.eta):
            raise ValueError(f"eta must be a finite number, got {self.eta!r}")
        for name, accepted in (("layers", LAYERS), ("direction", DIRECTIONS), ("scale", SCALES)):
            if getattr(self, name) not in accepted:
                hint = "; a pattern of layer names goes into names" if name == "layers" else ""
                raise ValueError(f"{name} must be one of {accepted}, got {getattr(self, name)!r}{hint}")

    @contextmanager
    def attach(self, encoder: nn.Module, scope: Scope) -> Iterator[SurrogateState]:
        layers = self.chosen(encoder)
        if self.direction == "other" and len(scope.keys) < 2:
            raise ValueError("direction='other' takes another image's gradient, but the batch holds one image only")
        if self.eta == 0:
            yield SurrogateState()
            return
        modules = [module for _, module in layers]
        with _rewritable(modules) as rewritable, hooked(modules) as hook:
            state = _PerturbationState(self, scope, {module: name for name, module in layers}, rewritable)
            hook(state.hook)
            yield state

    def chosen(self, encoder: nn.Module) -> list[tuple[str, nn.Module]]:
        """The layers of a network that are perturbed, by name.

        Raises
        ------
        ValueError
            If there is none.
        """
        if self.layers == "convolution":
            found = encoder.convolutions(squeeze_excite=self.squeeze_excite)
        else:
            kind = nn.BatchNorm2d if self.layers == "normalization" else ACTIVATIONS
            found = [pair for pair in encoder.backbone.named_modules(prefix="backbone") if isinstance(pair[1], kind)]
        chosen = [(name, module) for name, module in found if re.search(self.names or "", name)]
        if not chosen:
            names = ", ".join(name for name, _ in found[:8]) or "none"
            network = getattr(encoder, "name", type(encoder).__name__)
            raise ValueError(
                f"layers={self.layers!r} with names={self.names!r} matches nothing in network {network!r}; "
                f"there are: {names}"
            )
        return chosen


# A layer, and which call of it in this pass: a module may be used more than once.
_Place = tuple[nn.Module, int]


class _PerturbationState(SurrogateState):
    """For each layer and each copy of the pictures, the gradient that the last backward pass left there."""

    def __init__(
        self, part: BeneficialPerturbation, scope: Scope, names: dict[nn.Module, str], rewritable: set[nn.Module]
    ):
        self.part, self.scope, self.names, self.rewritable = part, scope, names, rewritable
        self.batch = len(scope.keys)
        self.rehearsals = 1 if part.direction == "same" else 0
        self.gradients: dict[tuple[_Place, int], Tensor] = {}
        self.spreads: dict[tuple[_Place, int], Tensor] = {}
        self.streams: dict[int, list[torch.Generator]] = {}
        self.copies = range(1)
        self.calls: dict[nn.Module, int] = defaultdict(int)

    def begin_pass(self, copies: int, first: int = 0) -> None:
        self.copies = range(first, first + copies)
        self.calls.clear()
        if self.part.direction == "same":
            self.gradients.clear()
        elif self.part.direction != "raw":
            self._shrink()

    def _shrink(self) -> None:
        """Keep no more than signs, a byte each, of the copies that wait while others pass."""
        for (place, copy), gradient in self.gradients.items():
            if copy not in self.copies and gradient.is_floating_point():
                self.gradients[place, copy] = gradient.sign().to(torch.int8)

    def hook(self, module: nn.Module, inputs, output: Tensor) -> Tensor | None:
        if not self.enabled or not output.requires_grad:
            return None
        place = (module, self.calls[module])
        self.calls[module] += 1
        # The perturbation is a constant to the gradient, so where it is added in place autograd need not see it.
        plain = output.detach()
        parts = self._by_copy(place, plain)
        found = [self._take(place, copy, rows) for copy, rows in parts]
        if isinstance(module, REWRITABLE) or module in self.rewritable:
            for direction, (_, rows) in zip(found, parts, strict=True):
                if direction is not None:
                    rows.add_(direction, alpha=self.part.eta)
        elif any(direction is not None for direction in found):
            output = output.add(_joined(found, plain), alpha=self.part.eta)
        output.register_hook(partial(self._keep, place))
        return output

    def _take(self, place: _Place, copy: int, rows: Tensor) -> Tensor | None:
        """What is to be added to one copy's rows, up to eta; its gradient is let go of. None at the first step."""
        if self.part.scale == "spread" and (place, copy) not in self.spreads:
            self.spreads[place, copy] = _per_row(rows.flatten(1).std(1, correction=0), rows)
        gradient = self.gradients.pop((place, copy), None)
        if gradient is None:
            return None
        if gradient.shape != rows.shape:
            raise self._changed_size(place, rows, f"{tuple(gradient.shape)}, as at the step before")
        direction = self._direction(gradient, copy)
        return direction * self.spreads[place, copy] if self.part.scale == "spread" else direction

    def _keep(self, place: _Place, gradient: Tensor) -> None:
        self.calls.clear()  # the forward pass is over
        for copy, rows in self._by_copy(place, gradient):
            self.gradients[place, copy] = rows

    def _by_copy(self, place: _Place, rows: Tensor) -> list[tuple[int, Tensor]]:
        """The rows of each copy in this pass, with its number."""
        copies = len(self.copies)
        if len(rows) != copies * self.batch:
            raise self._changed_size(place, rows, f"{copies} x {self.batch} rows, copies times pictures")
        if copies == 1:  # it is called at every layer, so this counts
            return [(self.copies[0], rows)]
        return list(zip(self.copies, rows.split(self.batch), strict=True))

    def _changed_size(self, place: _Place, rows: Tensor, expected: str) -> ValueError:
        return ValueError(
            f"layer {self.names[place[0]]!r} puts out {tuple(rows.shape)}, but there should be {expected}: "
            "the batch and the size of the maps must not change during an attack with beneficial perturbations"
        )

    def _direction(self, gradient: Tensor, copy: int) -> Tensor:
        """What the paper, or a control in its place, makes of a gradient."""
        if self.part.direction == "raw":
            return _at_norm(gradient, gradient.sign())
        sign = _sign(gradient)
        match self.part.direction:
            case "other":
                return sign.roll(-1, 0)
            case "random":
                return sign * self._drawn(copy, sign, lambda row, own: row.random_(0, 2, generator=own)).mul_(2).sub_(1)
            case "gaussian":
                return _at_norm(self._drawn(copy, sign, lambda row, own: row.normal_(generator=own)), sign)
            case "shuffled":
                order = torch.randperm(sign[0].numel(), generator=self._generators(copy)[0])
                return sign.flatten(1)[:, order.to(sign.device)].view(sign.shape)
        return sign

    def _drawn(self, copy: int, like: Tensor, fill) -> Tensor:
        """Random numbers in the shape of ``like``, each row from its image's own generator."""
        out = torch.empty(like.shape, dtype=self.scope.source.dtype)
        for row, generator in zip(out, self._generators(copy), strict=True):
            fill(row, generator)
        return out.to(like.device)

    def _generators(self, copy: int) -> list[torch.Generator]:
        """A stream for each image and copy, so that it does not matter which copies pass together."""
        if copy not in self.streams:
            keys = ("all images",) if self.part.direction == "shuffled" else self.scope.keys
            scope = dataclasses.replace(self.scope, keys=keys, label=f"{self.scope.label}/copy {copy}")
            self.streams[copy] = scope.generators()
        return self.streams[copy]


def _joined(found: list[Tensor | None], like: Tensor) -> Tensor:
    """The directions of all copies, one after the other as in the pass; zero where there is none."""
    if len(found) == 1:
        return found[0]
    empty = like.new_zeros(len(like) // len(found), *like.shape[1:])
    return torch.cat([empty if direction is None else direction for direction in found])


def _sign(gradient: Tensor) -> Tensor:
    """The sign of a gradient that nobody reads any more, written over it where no two entries share their memory.

    Layers that are summed share one gradient tensor; the sign of a sign is itself.
    """
    dense = gradient.is_contiguous() or gradient.is_contiguous(memory_format=torch.channels_last)
    return gradient.sign_() if dense else gradient.sign()


def _at_norm(values: Tensor, like: Tensor) -> Tensor:
    """Rows scaled to the L2 norm of the rows of ``like``; zero stays zero."""
    wanted, norm = (torch.linalg.vector_norm(x.flatten(1).to(values.dtype), dim=1) for x in (like, values))
    return values * _per_row(wanted / norm.masked_fill(norm == 0, 1.0), values)


def _per_row(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers (B,) in a shape that multiplies the rows of ``like``."""
    return numbers.view(-1, *[1] * (like.ndim - 1))
