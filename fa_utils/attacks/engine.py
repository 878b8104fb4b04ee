"""The attack engine: one update rule, and parts that plug into it.

Every attack of the five papers is the same loop (sheets/common.md, section 1)::

    x <- clip_[0, 1] clip_[x0 - eps, x0 + eps] ( x - step * sign( Post( sum_k w_k grad L(T(x), F_k) ) ) )

``L`` is an *objective*, a per-image loss that the attacker minimises; ``T`` are *inputs*, transformed
copies of the picture; *surrogate* parts set hooks on the network ``F``; *gradient* parts are ``Post``. A
part is an immutable description. For each batch it is bound to fresh state, so one `Attack` serves many
units and networks.

Writing a part
--------------
Make a frozen dataclass (its repr is what a checkpoint is keyed by) with the one method of its slot:

* input: ``bind(scope) -> f``, where ``f(x, step)`` gives a list of ``(copy, weight)``, differentiable in
  ``x``;
* surrogate: ``attach(encoder, scope)``, a context manager that sets hooks, yields a `SurrogateState`, and
  removes the hooks on the way out, also after an error. Several copies of the pictures may pass at once: a hook
  then sees all pictures of the first copy, then all of the second, and so on;
* gradient: ``bind(scope) -> f``, where ``f(gradient, point)`` gives the next gradient. ``point`` is a
  `Point`: the images, the step, and the gradient at any other images. A look-ahead is a method ``look(x) ->
  x`` of ``f``; a method ``each(gradient)`` is applied to the gradient of each copy, before they are summed.

Draw random numbers from ``scope.generators()`` only: one generator per image, so that an image's result
depends neither on its batch nor on what other parts are switched on.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# The engine counts in grey levels: uint8 pictures, eps and steps of k/255 are then exact integers.
GREY = 255.0

# Most images that pass a network at once when an attack makes copies. Past some size more gain nothing, and memory runs out.
STACKED_ROWS = 256


class NonFiniteGradient(FloatingPointError):
    """The gradient of some images was NaN or infinite; ``keys`` names them."""

    def __init__(self, keys: Sequence[str], total: int):
        self.keys = tuple(keys)
        named = ", ".join(keys[:10]) + (", ..." if len(keys) > 10 else "")
        super().__init__(
            f"the gradient became NaN or infinite for {len(keys)} of {total} images (keys: {named}); "
            "check that the network gives finite embeddings for them"
        )


@dataclass(frozen=True)
class Scope:
    """What a part may know about the batch it is bound to.

    Attributes
    ----------
    source : Tensor
        The images before the attack, (B, 3, H, W) in [0, 1].
    keys : tuple of str
        One name per image; the random streams hang on it.
    seed : int
        The seed of the attack.
    label : str
        Which part this is; no two parts of an attack share it.
    eps, step_size : float
        The budget of the attack, on the scale of the images.
    """

    source: Tensor
    keys: tuple[str, ...]
    seed: int
    label: str
    eps: float = 10 / 255
    step_size: float = 1 / 255

    def generators(self, *, device: torch.device | str = "cpu") -> list[torch.Generator]:
        """One generator per image, seeded by (seed, part, key) and nothing else."""
        return [_generator(self.seed, self.label, key, device=device) for key in self.keys]


class SurrogateState:
    """A surrogate part at work on one network. The engine sets `enabled` around each pass."""

    enabled: bool = False
    on_target: bool = False  # whether the reference is embedded anew each step, by the same altered network
    rehearsals: int = 0  # passes, forward and backward, made for the part's sake before each one that counts

    def begin_step(self, step: int) -> None:
        """Called once before the passes of a step: draw what holds for this step."""

    def begin_pass(self, copies: int, first: int = 0) -> None:
        """Called before each pass of ``copies`` copies of all pictures: draw what holds for this pass only.

        ``first`` is the number of the first of them among all copies, counted from 0. What is drawn copy by copy does
        not depend on how many copies pass at once. Rehearsals belong to the pass that they come before.
        """


class Point(NamedTuple):
    """Where a gradient part stands: the images, the step, and the gradient at other images."""

    images: Tensor
    step: int
    gradient_at: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AttackResult:
    """Adversarial images and what they cost.

    Attributes
    ----------
    images : Tensor
        (B, 3, H, W) in [0, 1], within eps of the source.
    snapshots : dict of int to Tensor
        Images after the steps that were asked for.
    forwards, backwards : int
        Passes through one network per image, reference embeddings included.
    zero_gradients : int
        Random sign steps taken because a gradient was exactly zero, over all images and steps.
    """

    images: Tensor
    snapshots: dict[int, Tensor]
    forwards: int
    backwards: int
    zero_gradients: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Attack:
    """A gradient-sign attack within an L-infinity ball, assembled from parts.

    Parameters
    ----------
    objective : Objective
        The per-image loss that is minimised, e.g. ``Impersonate()``.
    eps : float
        Largest change of a pixel, in (0, 1]; ``10 / 255`` is ten grey levels.
    step_size : float
        Change of a pixel per step, in (0, 1].
    steps : int
        Number of steps, at least 1.
    inputs, surrogate, gradient : sequence of parts
        Transformed copies of the picture; hooks on the network; what happens to the gradient. In order.
    random_start : bool
        Start from a uniform draw in the ball rather than from the picture.
    early_stop : bool
        Leave an image as it is once it has reached the objective's goal (it is misclassified). The goal is read from the
        forward pass of the next step, so no pass is added. Needs an objective with a goal, no other parts, and one network.
    weights : sequence of float, optional
        Weight of each network of an ensemble; 1/K each by default.
    seed : int
        Seed of every random draw.

    Notes
    -----
    The engine computes in grey levels, so for pictures of k/255 and ``eps``, ``step_size`` of whole grey
    levels the result is exactly on that grid and rounding it to uint8 loses nothing.

    Examples
    --------
    >>> attack = Attack(objective=Impersonate(), eps=10 / 255, steps=100, gradient=[Momentum(1.0)])  #
    doctest: +SKIP >>> adversarial = attack(encoder, source, target)  # doctest: +SKIP
    """

    objective: Any
    eps: float = 10 / 255
    step_size: float = 1 / 255
    steps: int = 100
    inputs: Sequence[Any] = ()
    surrogate: Sequence[Any] = ()
    gradient: Sequence[Any] = ()
    random_start: bool = False
    early_stop: bool = False
    weights: Sequence[float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, method in (("inputs", "bind"), ("surrogate", "attach"), ("gradient", "bind")):
            object.__setattr__(self, name, _parts(name, getattr(self, name), method))
        if not hasattr(self.objective, "loss") and not hasattr(self.objective, "draw"):
            raise TypeError(f"objective must be an objective such as Impersonate(), got {self.objective!r}")
        _check_fraction("eps", self.eps)
        _check_fraction("step_size", self.step_size)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be a whole number of at least 1, got {self.steps!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}")
        if self.early_stop and (self.inputs or self.surrogate or self.gradient or not hasattr(self.objective, "reached")):
            raise ValueError(
                "early_stop reads the goal from the plain forward pass of a step: it needs an objective with a goal, such as "
                f"Misclassify(), and no other parts, got {self!r}"
            )
        if self.weights is not None:
            object.__setattr__(self, "weights", _check_weights(self.weights))

    def __repr__(self) -> str:
        shown = [f"objective={self.objective!r}", f"eps={_as_fraction(self.eps)}"]
        shown += [f"step_size={_as_fraction(self.step_size)}", f"steps={self.steps}"]
        for item in dataclasses.fields(self)[4:]:
            value = getattr(self, item.name)
            if value not in ((), None, False) or item.name == "seed":
                shown.append(f"{item.name}={list(value) if isinstance(value, tuple) else value!r}")
        return f"Attack({', '.join(shown)})"

    def __call__(
        self, encoder, source: Tensor, target: Tensor | None = None, *, labels=None, eps=None, keys=None
    ) -> Tensor:
        """Attack a batch; see `run` for the parameters. Returns images (B, 3, H, W) in [0, 1]."""
        return self.run(encoder, source, target, labels=labels, eps=eps, keys=keys).images

    def run(
        self,
        encoder: nn.Module | Sequence[nn.Module],
        source: Tensor,
        target: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        eps: Tensor | None = None,
        keys: Sequence[Hashable] | None = None,
        snapshots: Sequence[int] = (),
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> AttackResult:
        """Attack a batch of images.

        Parameters
        ----------
        encoder : FaceEncoder or sequence of FaceEncoder
            The surrogate; several make an ensemble, whose gradients are summed before the gradient parts.
        source, target : Tensor
            RGB in [0, 1], (B, 3, H, W), float32 or float64. Dodging needs no target.
        labels : Tensor, optional
            True classes, int64 (B,), for the objectives that take them (`Misclassify`, `ClubInformation`).
        eps : Tensor, optional
            A budget for each image, (B,) in (0, 1], in the place of the attack's; the step size is scaled alike.
        keys : sequence, optional
            A unique name for each image, on which its random draws hang; 0 ... B-1 by default.
        snapshots : sequence of int
            Steps after which to keep a copy of the images.
        on_step : callable, optional
            Called as ``on_step(step, images)`` after each step, steps counted from 1.

        Raises
        ------
        ValueError, TypeError
            For unusable images, keys or networks, before anything runs.
        NonFiniteGradient
            Naming the images whose gradient became NaN or infinite.
        """
        snapshots = check_snapshots(snapshots, self.steps)
        with ExitStack() as stack:
            run = self._bind(stack, encoder, source, target, labels, keys)
            ratio = None if eps is None else _check_budgets(eps, run.start) / self.eps
            return run.loop(snapshots, on_step, ratio)

    def sweep(
        self,
        encoder: nn.Module | Sequence[nn.Module],
        source: Tensor,
        epsilons: Sequence[float],
        target: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        keys: Sequence[Hashable] | None = None,
    ) -> Iterator[tuple[float, Tensor]]:
        """A one-step attack at many budgets, from one gradient an image: pairs of eps and images (B, 3, H, W).

        Each is bit for bit what `run` gives at that eps; an eps of 0 gives the source. Parameters as in `run`.

        Raises
        ------
        ValueError
            For an attack of several steps or with a random start, whose gradient depends on eps; for no eps, or one
            outside [0, 1].
        """
        if self.steps != 1 or self.random_start:
            raise ValueError(f"a sweep needs steps=1 and no random start, got steps={self.steps}, random_start={self.random_start}")
        levels = _check_sweep(epsilons)
        with ExitStack() as stack:
            run = self._bind(stack, encoder, source, target, labels, keys)
            sign = run.one_sign()
        for eps in levels:
            yield eps, run.moved(sign, eps)

    def _bind(self, stack: ExitStack, encoder, source, target, labels, keys) -> "_Run":
        """Check what is given and bind the parts to it; networks are frozen until ``stack`` closes."""
        encoders = as_encoders(encoder)
        source, target = _check_pair(source, target, device=device_of(encoders))
        if getattr(self.objective, "takes_labels", False):
            if target is not None:
                raise ValueError(f"{self.objective!r} takes labels and no target images")
            target = check_labels(labels, self.objective, len(source)).to(source.device)
        elif labels is not None:
            raise ValueError(f"{self.objective!r} takes no labels; pass labels to an objective such as Misclassify()")
        if self.early_stop and len(encoders) > 1:
            raise ValueError(f"early_stop needs a single network, got {len(encoders)}")
        keys = check_keys(keys, len(source))
        for network in encoders:
            stack.enter_context(frozen(network))
        return _Run(self, encoders, source, target, keys, stack)


@dataclass
class _Network:
    """One surrogate during a run: its weight, its hooks, and the objective's reference."""

    encoder: nn.Module
    weight: float
    states: list[SurrogateState]
    reference: Any = None

    def enable(self, flags: Sequence[bool]) -> None:
        for state, flag in zip(self.states, flags, strict=True):
            state.enabled = flag

    def begin_pass(self, copies: int, first: int) -> None:
        for state in self.states:
            state.begin_pass(copies, first)

    @property
    def rehearsals(self) -> int:
        return max((state.rehearsals for state in self.states), default=0)


@dataclass
class _Cost:
    forwards: int = 0
    backwards: int = 0


class _Run:
    """One attack on one batch: the parts bound to it, and the loop."""

    def __init__(
        self, attack: Attack, encoders, source: Tensor, target: Tensor | None, keys, stack: ExitStack
    ):
        self.attack, self.keys, self.cost = attack, keys, _Cost()
        self.start = _to_grey(source)
        source = self.start / GREY  # what the network will see at step 0, to the last bit
        self.scope = Scope(source, keys, attack.seed, "engine", attack.eps, attack.step_size)
        self.anchor = attack.objective.anchor(source, target)
        self.inputs = [part.bind(scope) for part, scope in self._scoped(attack.inputs)]
        self.gradient = [part.bind(scope) for part, scope in self._scoped(attack.gradient)]
        self.each = [part.each for part in self.gradient if hasattr(part, "each")]
        weights = attack.weights or [1 / len(encoders)] * len(encoders)
        if len(weights) != len(encoders):
            raise ValueError(f"weights has {len(weights)} entries for {len(encoders)} networks")
        self.networks = [
            _Network(
                encoder,
                weight,
                [
                    stack.enter_context(part.attach(encoder, scope))
                    for part, scope in self._scoped(attack.surrogate, suffix=f"/{index}")
                ],
            )
            for index, (encoder, weight) in enumerate(zip(encoders, weights, strict=True))
        ]
        self.done: Tensor | None = None  # images that have reached the goal, with early_stop
        for network in self.networks:
            if not any(state.on_target for state in network.states):
                self._embed_reference(network)

    def _scoped(self, parts, *, suffix: str = "") -> Iterator[tuple[Any, Scope]]:
        """Parts with their scope; the label counts parts of the same kind only, so others do not shift it."""
        seen: dict[str, int] = {}
        for part in parts:
            kind = type(part).__name__
            seen[kind] = seen.get(kind, -1) + 1
            yield part, dataclasses.replace(self.scope, label=f"{kind}/{seen[kind]}{suffix}")

    @torch.no_grad()
    def _embed_reference(self, network: _Network) -> None:
        network.enable([state.on_target for state in network.states])
        network.reference = self.attack.objective.reference(network.encoder, self.anchor)
        # A reference that is given (labels) costs no pass.
        self.cost.forwards += network.reference is not self.anchor

    def one_sign(self) -> Tensor:
        """Sign of the first step's gradient, random where the gradient is exactly zero."""
        gradient, bad = self._direction(self.start / GREY, 0)
        self._require_finite(bad)
        idle = _all_zero(gradient)
        return torch.where(idle.view(-1, 1, 1, 1), _random_signs(self.scope), gradient.sign()) if idle.any() else gradient.sign()

    def moved(self, sign: Tensor, eps: float) -> Tensor:
        """The start moved by ``eps`` against ``sign``, in the order of operations of `loop`."""
        level = _whole(eps * GREY)
        lower, upper = (self.start - level).clamp_(min=0), (self.start + level).clamp_(max=GREY)
        return torch.maximum(torch.minimum(self.start.sub(sign, alpha=level), upper), lower) / GREY

    def _require_finite(self, bad: Tensor) -> None:
        broken_keys = [key for key, flag in zip(self.keys, bad.tolist(), strict=True) if flag]
        if broken_keys:
            raise NonFiniteGradient(broken_keys, len(self.keys))

    def loop(self, snapshots: frozenset[int], on_step, ratio: Tensor | None = None) -> AttackResult:
        """``ratio`` (B,) scales eps and step size image by image."""
        attack = self.attack
        eps, step_size = _whole(attack.eps * GREY), _whole(attack.step_size * GREY)
        if ratio is not None:
            ratio = ratio.to(self.start).view(-1, 1, 1, 1)
            eps = _whole_entries(ratio * eps)
        lower, upper = (self.start - eps).clamp_(min=0), (self.start + eps).clamp_(max=GREY)
        grey = self._begin(ratio, lower, upper)
        images = grey / GREY
        noise = _random_signs(self.scope)
        bad = torch.zeros(len(grey), dtype=torch.bool, device=grey.device)
        zeros = torch.zeros(len(grey), dtype=torch.int64, device=grey.device)
        kept: dict[int, Tensor] = {}
        for step in range(attack.steps):
            gradient, broken = self._direction(images, step)
            bad |= broken
            idle = _all_zero(gradient)
            if self.done is not None:
                idle &= ~self.done
            zeros += idle
            sign = gradient.sign()
            if idle.device.type != "cpu" or idle.any():  # elsewhere, a look would wait for the device
                sign = torch.where(idle.view(-1, 1, 1, 1), noise.roll(step, -1), sign)
            if ratio is not None:
                sign = sign * ratio
            if self.done is not None:
                sign = sign * ~self.done.view(-1, 1, 1, 1)
            grey.sub_(sign, alpha=step_size).clamp_(lower, upper)
            images = grey / GREY
            if step + 1 in snapshots:
                kept[step + 1] = images
            if on_step is not None:
                on_step(step + 1, images)
        self._require_finite(bad)
        return AttackResult(images, kept, self.cost.forwards, self.cost.backwards, int(zeros.sum()))

    def _begin(self, ratio: Tensor | None, lower: Tensor, upper: Tensor) -> Tensor:
        if not self.attack.random_start:
            return self.start.clone()
        eps = _whole(self.attack.eps * GREY)
        scope = dataclasses.replace(self.scope, label="random_start")
        draws = _per_image(scope, lambda out, generator: out.uniform_(-eps, eps, generator=generator))
        draws = draws if ratio is None else draws * ratio
        return (self.start + draws).clamp_(lower, upper)

    def _direction(self, images: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The gradient after all gradient parts, and which images had one that is not finite."""
        if hasattr(self.attack.objective, "draw"):  # a direction that no network is asked for
            drawn = self.attack.objective.draw(dataclasses.replace(self.scope, label="draw"), step)
            return drawn, torch.zeros(len(drawn), dtype=torch.bool, device=drawn.device)
        for network in self.networks:
            for state in network.states:
                state.begin_step(step)
            if any(state.on_target for state in network.states):
                self._embed_reference(network)
            network.enable([True] * len(network.states))
        where = images
        for part in self.gradient:
            where = part.look(where) if hasattr(part, "look") else where
        gradient = self._gradient_at(where, step)
        point = Point(images, step, lambda other: self._gradient_at(other, step))
        for part in self.gradient:
            gradient = part(gradient, point)
        return gradient, ~torch.isfinite(gradient.sum((1, 2, 3)))  # one NaN or infinity spoils a sum

    def _gradient_at(self, images: Tensor, step: int) -> Tensor:
        """Gradient of the summed objective with respect to ``images`` alone."""
        leaf = images.detach().requires_grad_(True)
        copies = [(leaf, 1.0)]
        for transform in self.inputs:
            copies = [(new, w * v) for copy, w in copies for new, v in transform(copy, step)]
        # The networks see the copies as leaves of their own, so only one network graph is alive at a time;
        # the cheap transformations are then pulled back.
        found = self._copy_gradients([copy.detach() for copy, _ in copies])
        if self.each:
            return self._sum_of_each(leaf, copies, found)
        if not self.inputs:
            return found[0]
        pulled = [gradient * weight for gradient, (_, weight) in zip(found, copies, strict=True)]
        return torch.autograd.grad([copy for copy, _ in copies], leaf, pulled)[0]

    def _copy_gradients(self, copies: list[Tensor]) -> list[Tensor]:
        """Gradient with respect to each copy; as many copies as `STACKED_ROWS` allows go through at once."""
        batch = len(copies[0])
        at_once = max(1, STACKED_ROWS // batch) if len({copy.shape for copy in copies}) == 1 else 1
        found: list[Tensor] = []
        for start in range(0, len(copies), at_once):
            part = copies[start : start + at_once]
            stacked = part[0] if len(part) == 1 else torch.cat(part)
            found += self._network_gradient(stacked.requires_grad_(True), len(part), start).split(batch)
        return found

    def _sum_of_each(self, leaf: Tensor, copies: list[tuple[Tensor, float]], found: list[Tensor]) -> Tensor:
        """Pull each copy's gradient back on its own, change it, and add up."""
        total = torch.zeros_like(leaf)
        for (copy, weight), gradient in zip(copies, found, strict=True):
            gradient = torch.autograd.grad(copy, leaf, gradient, retain_graph=True)[0]
            for change in self.each:
                gradient = change(gradient)
            total += gradient * weight
        return total

    def _network_gradient(self, leaf: Tensor, copies: int, first: int) -> Tensor:
        """Gradient with respect to ``copies`` copies of the pictures, one after the other in ``leaf``."""
        total = None
        for network in self.networks:
            network.begin_pass(copies, first)
            for _ in range(network.rehearsals):
                self._pass(network, leaf, copies)
            part = self._pass(network, leaf, copies)
            part = part if network.weight == 1 else part * network.weight
            total = part if total is None else total + part
        return total

    def _pass(self, network: _Network, leaf: Tensor, copies: int) -> Tensor:
        objective = self.attack.objective
        prediction = objective.predict(network.encoder, leaf)
        if self.attack.early_stop:
            reached = objective.reached(prediction.detach(), network.reference)
            self.done = reached if self.done is None else self.done | reached
        loss = objective.loss(prediction, _repeated(network.reference, copies))
        self.cost.forwards += copies
        self.cost.backwards += copies
        return torch.autograd.grad(loss.sum(), leaf)[0]


def _repeated(reference: Tensor, copies: int) -> Tensor:
    return reference if copies == 1 else reference.repeat(copies, *[1] * (reference.ndim - 1))


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and parameters without gradients, both put back on the way out."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    training = [module for module in network.modules() if module.training]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        for module in training:
            module.training = False
        yield network
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def _generator(seed: int, label: str, key: str, *, device: torch.device | str = "cpu") -> torch.Generator:
    digest = hashlib.sha256(f"{seed}|{label}|{key}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _per_image(scope: Scope, fill: Callable[[Tensor, torch.Generator], Any]) -> Tensor:
    """A tensor like ``scope.source``, each image filled from its own generator."""
    out = torch.empty(scope.source.shape, dtype=scope.source.dtype)
    for image, generator in zip(out, scope.generators(), strict=True):
        fill(image, generator)
    return out.to(scope.source.device).contiguous(memory_format=torch.channels_last)


def _random_signs(scope: Scope) -> Tensor:
    """Fixed random signs per image; rolled by the step they stand in for fresh ones."""
    scope = dataclasses.replace(scope, label="zero_gradient")
    signs = _per_image(scope, lambda out, generator: out.random_(0, 2, generator=generator))
    return signs.mul_(2).sub_(1)


def _all_zero(gradient: Tensor) -> Tensor:
    """Which images (B,) have an exactly zero gradient."""
    cancels = gradient.sum((1, 2, 3)) == 0
    if gradient.device.type == "cpu" and not cancels.any():
        return cancels  # the usual case, told by one cheap pass
    return cancels & (gradient.abs().sum((1, 2, 3)) == 0)


def _to_grey(images: Tensor) -> Tensor:
    """[0, 1] to grey levels, entries within rounding of a whole level put exactly on it; channels last."""
    grey = images.contiguous(memory_format=torch.channels_last) * GREY
    whole = grey.round()
    return torch.where((grey - whole).abs() < 1e-4, whole, grey)


def _whole(level: float) -> float:
    """A level within float64 rounding of a whole number, put exactly on it."""
    return float(round(level)) if abs(level - round(level)) < 1e-9 else level


def _whole_entries(levels: Tensor) -> Tensor:
    """As `_whole`, entry by entry of a float32 tensor."""
    whole = levels.round()
    return torch.where((levels - whole).abs() < 1e-4, whole, levels)


def _as_fraction(value: float) -> str:
    """``10/255`` for 10 / 255, else the number; either reads back to the same float."""
    level = Fraction(value * GREY).limit_denominator(1000)
    exact = level.denominator == 1 and level.numerator / 255 == value
    return f"{level.numerator}/255" if exact else repr(value)


def as_encoders(encoder) -> list[nn.Module]:
    encoders = list(encoder) if isinstance(encoder, (list, tuple, nn.ModuleList)) else [encoder]
    if not encoders:
        raise ValueError("encoder is an empty list; give one FaceEncoder or several")
    for item in encoders:
        if not isinstance(item, nn.Module):
            raise TypeError(f"encoder must be a FaceEncoder or a list of them, got {type(item).__name__}")
    if len({id(item) for item in encoders}) != len(encoders):
        raise ValueError("encoder holds the same network twice; use weights to count one more")
    return encoders


def device_of(encoders: Sequence[nn.Module]) -> torch.device:
    devices = {tensor.device for item in encoders for tensor in [*item.parameters(), *item.buffers()]}
    if len(devices) > 1:
        raise ValueError(f"the networks lie on several devices ({sorted(map(str, devices))})")
    return devices.pop() if devices else torch.device("cpu")


def _parts(slot: str, parts, method: str) -> tuple:
    if not isinstance(parts, (list, tuple)):
        raise TypeError(f"{slot} must be a list of parts, got {parts!r}; write {slot}=[...]")
    for part in parts:
        if isinstance(part, type) or not hasattr(part, method):
            raise TypeError(f"{slot} holds {part!r}, which is no part of this slot: it lacks {method!r}")
    return tuple(parts)


def _check_fraction(name: str, value: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:
        hint = f"; for {value} grey levels write {value} / 255" if number and 1 < value <= GREY else ""
        raise ValueError(f"{name} must lie in (0, 1], on the scale of the images, got {value!r}{hint}")


def _check_budgets(eps: Tensor, source: Tensor) -> Tensor:
    eps = torch.as_tensor(eps, dtype=torch.float64).to(source.device)
    if eps.shape != (len(source),):
        raise ValueError(f"eps must have the shape ({len(source)},), one budget an image, got {tuple(eps.shape)}")
    wrong = torch.nonzero(~((eps > 0) & (eps <= 1)))[:, 0].tolist()
    if wrong:
        raise ValueError(f"eps of image {wrong[0]} is {float(eps[wrong[0]])}: accepted is (0, 1], on the scale of the images")
    return eps


def _check_sweep(epsilons: Sequence[float]) -> list[float]:
    levels = [float(eps) for eps in epsilons]
    if not levels:
        raise ValueError("epsilons is empty; give at least one budget in [0, 1]")
    for eps in levels:
        if not 0 <= eps <= 1:  # also refuses NaN
            raise ValueError(f"epsilons holds {eps}: accepted is [0, 1], on the scale of the images")
    return levels


def check_labels(labels: Tensor | None, objective, count: int) -> Tensor:
    """Labels as int64 (count,), or an error that names what is wrong."""
    if labels is None:
        raise ValueError(f"{objective!r} needs labels, got None; pass labels=..., one class an image")
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (count,):
        raise ValueError(f"labels must be whole numbers of shape ({count},), got {labels.dtype} {tuple(labels.shape)}")
    labels = labels.to(torch.int64)
    if labels.min() < 0:
        raise ValueError(f"labels hold {int(labels.min())}; classes count from 0")
    if hasattr(objective, "check_labels"):
        objective.check_labels(labels)
    return labels


def _check_weights(weights: Sequence[float]) -> tuple[float, ...]:
    weights = tuple(float(weight) for weight in weights)
    if not weights or not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) == 0:
        raise ValueError(f"weights must be finite, not negative and not all zero, got {weights}")
    return weights


def check_images(name: str, images: Tensor) -> None:
    """Raise unless ``images`` is a float tensor (B, 3, H, W) in [0, 1] with at least one image."""
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(images).__name__}; to_float makes one")
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {images.dtype}; to_float converts bytes")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{name} must have shape (B, 3, H, W), got {tuple(images.shape)}")
    if images.numel() == 0:
        raise ValueError(f"{name} is empty, shape {tuple(images.shape)}; give at least one image")
    low, high = (float(value) for value in torch.aminmax(images))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} holds NaN or infinite pixels; images must lie in [0, 1]")
    if low < 0 or high > 1:
        hint = "; divide by 255" if low >= 0 and 1.5 < high <= GREY else ""
        raise ValueError(f"{name} must lie in [0, 1], but its pixels range over [{low:g}, {high:g}]{hint}")


def _check_pair(source: Tensor, target: Tensor | None, *, device) -> tuple[Tensor, Tensor | None]:
    check_images("source", source)
    if target is None:
        return source.detach().to(device), None
    check_images("target", target)
    if target.shape != source.shape:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, source {tuple(source.shape)}: not the same"
        )
    if target.dtype != source.dtype:
        raise TypeError(f"target is {target.dtype}, source {source.dtype}; they must be equal")
    # The target goes through the same rounding as the source, so equal pictures are at distance 0.
    return source.detach().to(device), _to_grey(target.detach().to(device)) / GREY


def check_keys(keys: Sequence[Hashable] | None, count: int) -> tuple[str, ...]:
    keys = tuple(str(key) for key in (range(count) if keys is None else keys))
    if len(keys) != count:
        raise ValueError(f"keys has {len(keys)} entries for {count} images; give one per image")
    if len(set(keys)) != count:
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"keys must be unique, but {double!r} occurs more than once")
    return keys


def check_snapshots(snapshots: Sequence[int], steps: int) -> frozenset[int]:
    for step in snapshots:
        if isinstance(step, bool) or int(step) != step or not 1 <= step <= steps:
            raise ValueError(f"snapshots holds {step!r}; accepted are whole steps from 1 to {steps}")
    return frozenset(int(step) for step in snapshots)
