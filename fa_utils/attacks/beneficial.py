"""BPFA: perturbations of the surrogate's feature maps that work against the attack, made of earlier gradients.

The attacker lowers the loss by changing the picture; the perturbation raises it by changing the maps, so that every
step meets a harder network. The gradients come from a backward pass that is made anyway: no further pass is needed.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fa_utils.attacks.engine import Scope, SurrogateState
from fa_utils.attacks.eroding import hooked
from fa_utils.attacks.signs import PackedSigns, Signs, laid_out, room_for_signs
from fa_utils.models.inception_resnet import BasicConv

LAYERS = ("convolution", "normalization", "activation")
DIRECTIONS = ("own", "same", "raw", "random", "other", "shuffled", "gaussian")
SCALES = ("absolute", "spread")

# Gates' sigmoids are not among them: they act on channel means. The Inception-ResNet's `BasicConv` ends in its ReLU.
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, BasicConv)

# Layers whose backward does not read their output: it is perturbed in place, and no map is kept twice.
REWRITABLE = (nn.Conv2d, nn.BatchNorm2d, nn.PReLU)


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

    Of a gradient only the signs are kept (`fa_utils.attacks.signs`), and let go of as they are used. The backward of a
    ReLU or LeakyReLU reads its own output, which then could not be perturbed in place: while the attack runs it reads
    where the output was positive, with the same gradients to the bit.
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
        state = _PerturbationState(self, scope, {module: name for name, module in layers})
        with _perturbing(state, modules):
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


class _PerturbationState(SurrogateState):
    """The places that are perturbed: for each layer, each call of it in a pass, since a module may be used more than once."""

    def __init__(self, part: BeneficialPerturbation, scope: Scope, names: dict[nn.Module, str]):
        self.part, self.scope, self.names = part, scope, names
        self.batch = len(scope.keys)
        self.rehearsals = 1 if part.direction == "same" else 0
        self.places: dict[nn.Module, list[_Place]] = {module: [] for module in names}
        self.streams: dict[int, list[torch.Generator]] = {}
        self.copies = range(1)

    def begin_pass(self, copies: int, first: int = 0) -> None:
        self.copies = range(first, first + copies)
        for places in self.places.values():
            for place in places:
                place.passed = False
                if self.part.direction == "same":
                    place.drop()

    def perturbed(self, module: nn.Module, output: Tensor, rewritable: bool) -> Tensor:
        if not self.enabled or not output.requires_grad:
            return output
        if not rewritable or output._is_view():  # autograd loses track of a view that is written over behind its back
            output = output.clone()
        place = self.next_place(module, output)
        place.perturb(output)
        output.grad_fn.register_prehook(place.before)  # takes less time than a hook on the tensor
        return output

    def next_place(self, module: nn.Module, output: Tensor) -> "_Place":
        """Where this pass is now: the first of the module's places that it has not gone through."""
        places = self.places[module]
        for place in places:
            if not place.passed:
                break
        else:
            place = _Place(self, self.names[module], output.stride())
            places.append(place)
        place.passed = True
        return place

    def signs(self) -> dict[str, Tensor]:
        """What is kept for the next pass, by the name of the layer: int8, (B, C, H, W), of its first copy and call."""
        return {places[0].name: signs for places in self.places.values() if places and (signs := places[0].signs()) is not None}

    def room(self, copy: int, rows: Tensor) -> "Signs | _Altered":
        """Room for what one place keeps of one copy's gradient."""
        if self.part.direction in ("own", "same") and self.part.scale == "absolute":
            return room_for_signs(rows)
        return _Altered(self, copy, rows)

    def by_copy(self, place: "_Place", rows: Tensor) -> Iterable[tuple[int, Tensor]]:
        """The rows of each copy in this pass, with its number."""
        copies = len(self.copies)
        if rows.shape[0] != copies * self.batch:
            raise place.changed_size(rows, f"{copies} x {self.batch} rows, copies times pictures")
        if copies == 1:  # it is called at every layer, so this counts
            return ((self.copies[0], rows),)
        return zip(self.copies, rows.detach().split(self.batch), strict=True)

    def generators(self, copy: int) -> list[torch.Generator]:
        """A stream for each image and copy, so that it does not matter which copies pass together."""
        if copy not in self.streams:
            keys = ("all images",) if self.part.direction == "shuffled" else self.scope.keys
            scope = dataclasses.replace(self.scope, keys=keys, label=f"{self.scope.label}/copy {copy}")
            self.streams[copy] = scope.generators()
        return self.streams[copy]


class _Place:
    """One call of one layer in a pass, with what the last backward pass left of the gradient there, copy by copy."""

    def __init__(self, state: _PerturbationState, name: str, stride: tuple[int, ...]):
        self.state, self.name, self.stride = state, name, stride
        self.passed = False  # by the forward pass, and not yet by the backward pass
        self.kept: dict[int, Signs | _Altered] = {}
        self.rectifier: PackedSigns | None = None

    def room_for_rectifier(self, x: Tensor) -> Signs:
        """Room for where a rectifier passed its input: the same at each step, if it is small."""
        if self.rectifier is not None and self.rectifier.fits(x):
            return self.rectifier
        room = room_for_signs(x)
        self.rectifier = room if isinstance(room, PackedSigns) else None
        return room

    def perturb(self, output: Tensor) -> None:
        for copy, rows in self.state.by_copy(self, output):
            kept = self.kept.get(copy)
            if kept is None:
                self.kept[copy] = self.state.room(copy, rows)
            elif kept.shape != rows.shape:
                raise self.changed_size(rows, f"{tuple(kept.shape)}, as at the step before")
            else:
                kept.add_to(rows, self.state.part.eta)

    def keep(self, gradient: Tensor) -> Tensor:
        self.passed = False
        gradient = laid_out(gradient, self.stride)  # once, here, for whoever reads it further down
        for copy, rows in self.state.by_copy(self, gradient):
            self.kept[copy].take(rows)
        return gradient

    def before(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Hook before the backward pass through the layer."""
        gradient = self.keep(gradients[0])
        return None if gradient is gradients[0] else (gradient, *gradients[1:])

    def drop(self) -> None:
        for kept in self.kept.values():
            kept.drop()

    def signs(self) -> Tensor | None:
        return self.kept[min(self.kept)].tensor() if self.kept else None

    def changed_size(self, rows: Tensor, expected: str) -> ValueError:
        return ValueError(
            f"layer {self.name!r} puts out {tuple(rows.shape)}, but there should be {expected}: "
            "the batch and the size of the maps must not change during an attack with beneficial perturbations"
        )


class _Altered:
    """In the place of plain signs: what a control makes of the gradient, or signs on the scale of the layer."""

    def __init__(self, state: _PerturbationState, copy: int, rows: Tensor):
        self.state, self.direction, self.copy, self.shape = state, state.part.direction, copy, rows.shape
        self.spread = _per_row(rows.detach().flatten(1).std(1, correction=0), rows) if state.part.scale == "spread" else 1
        self.gradient: Tensor | None = None

    def take(self, gradient: Tensor) -> None:
        # A clone: behind this layer the gradient may be written over.
        self.gradient = gradient.clone() if self.direction == "raw" else gradient.sign().to(torch.int8)

    def add_to(self, rows: Tensor, size: float) -> None:
        if self.gradient is not None:
            rows.detach().add_(self._made_of(self.gradient) * self.spread, alpha=size)
            self.drop()

    def drop(self) -> None:
        self.gradient = None

    def tensor(self) -> Tensor | None:
        return None if self.gradient is None else self.gradient.sign().to(torch.int8)

    def _made_of(self, sign: Tensor) -> Tensor:
        """Of the sign of a gradient; of the gradient itself if raw."""
        match self.direction:
            case "raw":
                return _at_norm(sign, sign.sign())
            case "other":
                return sign.roll(-1, 0)
            case "random":
                return sign * self._drawn(sign, lambda row, own: row.random_(0, 2, generator=own)).mul_(2).sub_(1)
            case "gaussian":
                return _at_norm(self._drawn(sign, lambda row, own: row.normal_(generator=own)), sign)
            case "shuffled":
                order = torch.randperm(sign[0].numel(), generator=self.state.generators(self.copy)[0])
                return sign.flatten(1)[:, order.to(sign.device)].view(sign.shape)
        return sign

    def _drawn(self, like: Tensor, fill) -> Tensor:
        """Random numbers in the shape of ``like``, each row from its image's own generator."""
        out = torch.empty(like.shape, dtype=self.state.scope.source.dtype)
        for row, generator in zip(out, self.state.generators(self.copy), strict=True):
            fill(row, generator)
        return out.to(like.device)


@contextmanager
def _perturbing(state: _PerturbationState, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Perturb the output of each module until the way out.

    By a forward pass in place of the module's own, which costs less than a forward hook; by a hook where others have
    been there before, so that it comes after them.
    """
    alone = [module for module in modules if not module._forward_hooks and "forward" not in vars(module)]
    others = [module for module in modules if module not in set(alone)]
    try:
        for module in alone:
            module.forward = _perturbed_forward(state, module)  # shadows the class's
        with hooked(others) as hook:
            hook(lambda module, inputs, output: state.perturbed(module, output, isinstance(module, REWRITABLE)))
            yield
    finally:
        for module in alone:
            vars(module).pop("forward", None)
        state.places.clear()  # they refer to the state: at once, and not when Python looks for cycles


def _perturbed_forward(state: _PerturbationState, module: nn.Module) -> Callable[[Tensor], Tensor]:
    plain, slope = module.forward, 0.0
    if isinstance(module, BasicConv):

        def before(x: Tensor) -> Tensor:
            return module.bn(module.conv(x))

    elif isinstance(module, nn.ReLU) or isinstance(module, nn.LeakyReLU) and module.negative_slope >= 0:
        before, slope = (lambda x: x) if module.inplace else torch.clone, getattr(module, "negative_slope", 0.0)
    else:
        rewritable = isinstance(module, REWRITABLE)
        return lambda x: state.perturbed(module, plain(x), rewritable)

    def forward(x: Tensor) -> Tensor:
        if not state.enabled or not x.requires_grad:
            return plain(x)
        x = before(x)
        return _PerturbedRectifier.apply(x, slope, state.next_place(module, x))

    return forward


class _PerturbedRectifier(torch.autograd.Function):
    """A (leaky) ReLU in place whose output is perturbed in place, too: the backward does not read it, as torch's does."""

    @staticmethod
    def forward(ctx, x: Tensor, slope: float, place: _Place) -> Tensor:
        ctx.mark_dirty(x)
        ctx.slope, ctx.place, ctx.passed = slope, place, place.room_for_rectifier(x)
        ctx.passed.rectify_(x, slope)
        place.perturb(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        kept = ctx.place.keep(gradient)
        return ctx.passed.rectified(kept, ctx.slope, in_place=kept is not gradient), None, None


def _at_norm(values: Tensor, like: Tensor) -> Tensor:
    """Rows scaled to the L2 norm of the rows of ``like``; zero stays zero."""
    wanted, norm = (torch.linalg.vector_norm(x.flatten(1).to(values.dtype), dim=1) for x in (like, values))
    return values * _per_row(wanted / norm.masked_fill(norm == 0, 1.0), values)


def _per_row(numbers: Tensor, like: Tensor) -> Tensor:
    """Numbers (B,) in a shape that multiplies the rows of ``like``."""
    return numbers.view(-1, *[1] * (like.ndim - 1))
