"""Changes at the residual units of the surrogate: eroded gradients, skip-gradient decay, Ghost networks.

A residual unit computes y = s(x) + R(x), shortcut plus residual branch. Eroding leaves this sum as it is and scales the
gradient on the way back through one of the two branches; Ghost scales the shortcut itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fa_utils.attacks.engine import Scope, SurrogateState

BRANCHES = ("residual", "shortcut")


@dataclass(frozen=True)
class GradientEroding:
    """GE: in each residual unit, multiply the gradient through one branch by a random factor.

    Parameters
    ----------
    low, high : float
        The factor is uniform on [low, high], 0 < low <= high <= 1, drawn anew for each image, copy, unit and
        backward pass. At 1, 1 this is the plain attack, bit for bit; at low = high it is `SkipGradient`.
    branch : {"residual", "shortcut"}
        Which branch is eroded: the paper's GE(d) and GE(c).

    Raises
    ------
    ValueError
        For a range outside (0, 1] or an unknown branch; when the attack starts, for a network without residual units.

    Notes
    -----
    Zhou H. et al. (2023), section III-B and Fig. 1; range from their section IV-A, drawn for each image and backward pass (sheet
    4-gradient-eroding, items 3k and 3n). The forward pass is not touched, so embeddings are equal to the last bit.
    """

    low: float = 0.5
    high: float = 1.0
    branch: str = "residual"

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(f"low and high must satisfy 0 < low <= high <= 1, got {self.low!r} and {self.high!r}")
        if self.branch not in BRANCHES:
            raise ValueError(f"branch must be one of {BRANCHES}, got {self.branch!r}")

    @contextmanager
    def attach(self, encoder: nn.Module, scope: Scope) -> Iterator[SurrogateState]:
        state = _ErodingState(self, scope, residual_units(encoder, "gradient eroding"))
        with hooked(getattr(unit, self.branch) for unit in state.units) as hook:
            hook(state.scale_gradient)
            yield state


@dataclass(frozen=True)
class SkipGradient:
    """SGM: the gradient through every residual branch is multiplied by the constant ``gamma``.

    Parameters
    ----------
    gamma : float
        In (0, 1]; 1 is the plain attack, bit for bit.

    Notes
    -----
    Wu D. et al. (2020). They scale the backward of the ReLUs inside the branch and normalize by block; networks for
    faces have PReLUs, or none there, so the branch's output is where the gradient is scaled (sheet 4-gradient-eroding, section 6).
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma!r}")

    def attach(self, encoder: nn.Module, scope: Scope):
        return GradientEroding(self.gamma, self.gamma).attach(encoder, scope)


@dataclass(frozen=True)
class GhostNetwork:
    """Ghost: multiply every channel of each shortcut by a factor from [1 - spread, 1 + spread], new at each forward pass.

    Parameters
    ----------
    spread : float
        In [0, 1); 0 is the plain attack, bit for bit. The rule of its authors: so much that accuracy falls by a tenth.

    Raises
    ------
    ValueError
        For a spread outside [0, 1); when the attack starts, for a network without residual units.

    Notes
    -----
    Li et al. (2020), projections included; drawn for each image and copy rather than for the batch, so that results do not
    depend on it. The target is embedded by the unchanged network.
    """

    spread: float = 0.22

    def __post_init__(self) -> None:
        if not 0 <= self.spread < 1:
            raise ValueError(f"spread must lie in [0, 1), got {self.spread!r}")

    @contextmanager
    def attach(self, encoder: nn.Module, scope: Scope) -> Iterator[SurrogateState]:
        units = residual_units(encoder, "Ghost")
        if self.spread == 0:
            yield SurrogateState()
            return
        shortcuts = [unit.shortcut for unit in units]
        state = _GhostState(self, scope, shortcuts, channel_counts(encoder, shortcuts, scope.source[:1]))
        with hooked(shortcuts) as hook:
            hook(state.scale)
            yield state


class _ErodingState(SurrogateState):
    """A factor for each row of the batch and each unit."""

    def __init__(self, part: GradientEroding, scope: Scope, units: Sequence[nn.Module]):
        self.part, self.units = part, units
        self.column = {getattr(unit, part.branch): i for i, unit in enumerate(units)}
        self.place = {"device": scope.source.device, "dtype": scope.source.dtype}
        self.generators = scope.generators() if part.low < part.high else []
        self.factors = torch.empty(0)

    def begin_pass(self, copies: int, first: int = 0) -> None:
        low, high = self.part.low, self.part.high
        if low == high:
            return
        draws = [torch.rand(copies, len(self.units), generator=generator) for generator in self.generators]
        factors = low + (high - low) * torch.stack(draws, 1).flatten(0, 1)  # rows: copy by copy, as in the pass
        self.factors = factors.to(**self.place, non_blocking=True)

    def scale_gradient(self, module: nn.Module, inputs, output: Tensor) -> Tensor | None:
        if not self.enabled or not output.requires_grad:
            return None
        # A view is a tensor of its own to the gradient: an identity shortcut's output is the unit's very input.
        view = output.view_as(output)
        factor = self.part.low
        if self.generators:
            factor = self.factors[:, self.column[module]].view(-1, *[1] * (output.ndim - 1))
        view.register_hook(lambda gradient: gradient * factor)
        return view


class _GhostState(SurrogateState):
    """Factors of one pass: for each row of the batch a flat list of channels, cut at the shortcuts."""

    def __init__(self, part: GhostNetwork, scope: Scope, shortcuts: Sequence[nn.Module], channels: Sequence[int]):
        self.part = part
        starts = [sum(channels[:i]) for i in range(len(channels))]
        self.columns = {module: slice(a, a + n) for module, a, n in zip(shortcuts, starts, channels, strict=True)}
        self.total = sum(channels)
        self.place = {"device": scope.source.device, "dtype": scope.source.dtype}
        self.generators = scope.generators()
        self.factors = torch.empty(0)

    def begin_pass(self, copies: int, first: int = 0) -> None:
        draws = [torch.rand(copies, self.total, generator=generator) for generator in self.generators]
        factors = 1 + self.part.spread * (2 * torch.stack(draws, 1).flatten(0, 1) - 1)
        self.factors = factors.to(**self.place, non_blocking=True)

    def scale(self, module: nn.Module, inputs, output: Tensor) -> Tensor | None:
        if not self.enabled:
            return None
        factors = self.factors[:, self.columns[module]]
        return output * (factors[:, :, None, None] if output.ndim == 4 else factors[:, None, :])


def residual_units(encoder: nn.Module, wanted_by: str) -> list[nn.Module]:
    """The residual units of a network.

    Raises
    ------
    ValueError
        If there is none, or a network file does not show where its branches are.
    """
    units = [unit for _, unit in encoder.residual_units()]
    if not units:
        name = getattr(encoder, "name", type(encoder).__name__)
        raise ValueError(
            f"network {name!r} has no residual unit that could be found, and {wanted_by} acts on residual units; "
            "use a residual network (IResNet, IR-SE, MobileFaceNet, Inception-ResNet, ResNet, ...)"
        )
    return units


@torch.no_grad()
def channel_counts(encoder: nn.Module, modules: Sequence[nn.Module], image: Tensor) -> list[int]:
    """Output channels of each module, learnt from one image: of maps (B, C, H, W) or tokens (B, N, C)."""
    found: dict[nn.Module, int] = {}
    with hooked(modules) as hook:
        hook(lambda module, inputs, output: found.__setitem__(module, output.shape[1 if output.ndim == 4 else -1]))
        encoder(image)
    return [found[module] for module in modules]


@contextmanager
def hooked(modules) -> Iterator:
    """A function that sets a forward hook on all modules; the hooks are gone on the way out."""
    modules, handles = list(modules), []
    try:
        yield lambda hook: handles.extend(module.register_forward_hook(hook) for module in modules)
    finally:
        for handle in handles:
            handle.remove()
