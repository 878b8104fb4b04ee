"""Changes to the surrogate network while it is attacked: hooks, set for a run and always removed."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fa_utils.attacks.engine import Scope, SurrogateState

LEVELS = 2**16  # a Bernoulli draw is one comparison of 16 random bits: p is met to 1.5e-5


@dataclass(frozen=True)
class FeatureDropout:
    """DFANet: an element-wise random mask on the output of every convolution, new at each step.

    Parameters
    ----------
    p : float
        Probability, in [0, 1), that an element is dropped; 0 is the plain attack, bit for bit.
    target : {"masked", "clean"}
        Whether the reference is embedded at each step under the very masks of the source, one forward pass
        more, or once by the unmasked network.
    rescale : bool
        Divide what is kept by 1 - p, as dropout layers do.
    frozen : bool
        Draw the masks once and keep them for all steps: a control.
    noise : {"bernoulli", "gaussian"}
        ``gaussian`` is multiplicative noise of the same mean and variance as the mask: a control.
    squeeze_excite : bool
        Also mask the 1x1 convolutions inside squeeze-and-excitation blocks.
    layers : str, optional
        Regular expression; only convolutions whose name it matches somewhere are masked.

    Notes
    -----
    Zhong and Deng (2021), eq. 13 and 14, o_i <- M_i * o_i with m ~ Bernoulli(1 - p): the paper's p_d is the
    rate of dropping (sheet 3-dfanet, item 3a), without rescaling (3c), with the target under the same masks
    (3d), per image (3e), before batch normalization, shortcuts and depth-wise convolutions included (3f).
    All masks of an image and step are one block of random numbers from the image's own generator.
    """

    p: float = 0.1
    target: str = "masked"
    rescale: bool = False
    frozen: bool = False
    noise: str = "bernoulli"
    squeeze_excite: bool = False
    layers: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise ValueError(f"p, the probability of dropping, must lie in [0, 1), got {self.p!r}")
        for name, accepted in (("target", ("masked", "clean")), ("noise", ("bernoulli", "gaussian"))):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {accepted}, got {getattr(self, name)!r}")

    @contextmanager
    def attach(self, encoder: nn.Module, scope: Scope) -> Iterator[SurrogateState]:
        if self.p == 0:
            yield SurrogateState()
            return
        convolutions = self._chosen(encoder)
        shapes = _output_shapes(encoder, convolutions, scope.source[:1])
        state = _MaskState(self, scope, shapes)
        hooks = [module.register_forward_hook(state.hook) for _, module in convolutions]
        try:
            yield state
        finally:
            for hook in hooks:
                hook.remove()

    def _chosen(self, encoder: nn.Module) -> list[tuple[str, nn.Module]]:
        found = encoder.convolutions(squeeze_excite=self.squeeze_excite)
        chosen = [(name, module) for name, module in found if re.search(self.layers or "", name)]
        if not chosen:
            names = ", ".join(name for name, _ in found[:8]) or "none"
            raise ValueError(f"layers={self.layers!r} matches no convolution; there are: {names}, ...")
        return chosen


class _MaskState(SurrogateState):
    """Masks of one network for one batch: a flat block per image, viewed layer by layer."""

    def __init__(self, part: FeatureDropout, scope: Scope, shapes: dict[nn.Module, torch.Size]):
        self.part = part
        self.on_target = part.target == "masked"
        device = scope.source.device
        self.generators = scope.generators(device=device)
        batch, total = len(scope.keys), sum(math.prod(shape) for shape in shapes.values())
        words = -(-total // 4)
        self.noise = torch.empty(batch, total, dtype=scope.source.dtype, device=device)
        self.words = torch.empty(batch, words, dtype=torch.int64, device=device)
        self.bits = self.words.view(torch.int16)[:, :total]
        self.masks = _views(self.noise, shapes)

    def begin_step(self, step: int) -> None:
        if step > 0 and self.part.frozen:
            return
        if self.part.noise == "gaussian":
            self._draw_gaussian()
        else:
            self._draw_bernoulli()
        if self.part.rescale:
            self.noise.div_(1 - self.part.p)

    def _draw_bernoulli(self) -> None:
        for row, generator in zip(self.words, self.generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        dropped = round(self.part.p * LEVELS) - LEVELS // 2
        torch.ge(self.bits, dropped, out=self.noise)

    def _draw_gaussian(self) -> None:
        p = self.part.p
        for row, generator in zip(self.noise, self.generators, strict=True):
            row.normal_(1 - p, math.sqrt(p * (1 - p)), generator=generator)

    def hook(self, module: nn.Module, inputs, output: Tensor) -> Tensor | None:
        if not self.enabled:
            return None
        mask = self.masks[module]
        if len(output) == len(mask):
            # In place: a convolution's backward does not read its output, so no activation is copied.
            return output.mul_(mask)
        return (output.view(-1, *mask.shape) * mask).flatten(0, 1)  # the same mask for each copy


def _views(noise: Tensor, shapes: dict[nn.Module, torch.Size]) -> dict[nn.Module, Tensor]:
    """Each layer's part of the flat block as (B, C, H, W), channels last in memory like the activations."""
    views, start = {}, 0
    for module, (channels, height, width) in shapes.items():
        size = channels * height * width
        block = noise[:, start : start + size].view(-1, height, width, channels)
        views[module] = block.permute(0, 3, 1, 2)
        start += size
    return views


@torch.no_grad()
def _output_shapes(encoder: nn.Module, convolutions, image: Tensor) -> dict[nn.Module, torch.Size]:
    """Shape (C, H, W) of each convolution's output, learnt from one image, in the given order."""
    shapes: dict[nn.Module, torch.Size] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output: shapes.__setitem__(module, output.shape[1:])
        )
        for _, module in convolutions
    ]
    try:
        encoder(image)
    finally:
        for hook in hooks:
            hook.remove()
    return {module: shapes[module] for _, module in convolutions if module in shapes}
