"""What the attacker minimises: one loss per image, on the embedding or on the surrogate's own classifier.

An objective says which images make its reference (`anchor`), what the network makes of them (`reference`),
what it reads from the attacked images (`predict`), and the loss between the two (`loss`).
"""

import difflib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

DISTANCES = ("l2", "squared_l2", "cosine")


def embedding_distance(a: Tensor, b: Tensor, *, kind: str) -> Tensor:
    """Distance between unit embeddings (B, D), per image (B,).

    ``cosine`` is computed as half the squared distance: equal to 1 - a.b for unit vectors, but without
    cancellation, and its gradient, like that of the other two, is exactly zero where a equals b.
    """
    gap = a - b
    if kind == "l2":
        return torch.linalg.vector_norm(gap, dim=1)
    squared = gap.square().sum(dim=1)
    return squared if kind == "squared_l2" else squared / 2


@dataclass(frozen=True)
class _FeatureObjective:
    distance: str = "l2"
    sign: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            near = difflib.get_close_matches(str(self.distance), DISTANCES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"distance must be one of {DISTANCES}, got {self.distance!r}{hint}")

    def reference(self, encoder: nn.Module, images: Tensor) -> Tensor:
        return encoder(images)

    def predict(self, encoder: nn.Module, images: Tensor) -> Tensor:
        return encoder(images)

    def loss(self, prediction: Tensor, reference: Tensor) -> Tensor:
        return self.sign * embedding_distance(prediction, reference, kind=self.distance)


@dataclass(frozen=True)
class Impersonate(_FeatureObjective):
    """Bring the embedding close to the target's: minimise d(F(x), F(x_t)).

    Parameters
    ----------
    distance : {"l2", "squared_l2", "cosine"}
        For one picture and one network all three give the same signs; over several copies or networks L2
        weighs each by one over its distance.

    References
    ----------
    FFM and FIM of Zhong and Deng (2021), eq. 9 to 12; sign convention: sheet 3-dfanet, item 3b.
    """

    def anchor(self, source: Tensor, target: Tensor | None) -> Tensor:
        return _need_target(target, "Impersonate")


@dataclass(frozen=True)
class Dodge(_FeatureObjective):
    """Drive the embedding away from another picture of the same person, or without a target from its own.

    Parameters
    ----------
    distance : {"l2", "squared_l2", "cosine"}
        The distance that is maximised. Without a target it starts at exactly zero, where no direction is
        better than another: the engine takes one random sign step and counts it.
    """

    sign: ClassVar[float] = -1.0

    def anchor(self, source: Tensor, target: Tensor | None) -> Tensor:
        return source if target is None else target


class _LabelObjective:
    def reference(self, encoder: nn.Module, images: Tensor) -> Tensor:
        return encoder.logits(images).argmax(dim=1)

    def predict(self, encoder: nn.Module, images: Tensor) -> Tensor:
        return encoder.logits(images)


@dataclass(frozen=True)
class LabelImpersonate(_LabelObjective):
    """Minimise the cross-entropy to the label that the surrogate's classifier gives the target.

    Needs an encoder that kept its classification head. FTGSM and ITGSM of Zhong and Deng (2021), eq. 2 and 4.
    """

    def anchor(self, source: Tensor, target: Tensor | None) -> Tensor:
        return _need_target(target, "LabelImpersonate")

    def loss(self, prediction: Tensor, reference: Tensor) -> Tensor:
        return nn.functional.cross_entropy(prediction, reference, reduction="none")


@dataclass(frozen=True)
class LabelDodge(_LabelObjective):
    """Maximise the cross-entropy to the label that the surrogate's classifier gives the source.

    The untargeted objective of FGSM and PGD, with the surrogate's own prediction for the label.
    """

    def anchor(self, source: Tensor, target: Tensor | None) -> Tensor:
        return source

    def loss(self, prediction: Tensor, reference: Tensor) -> Tensor:
        return -nn.functional.cross_entropy(prediction, reference, reduction="none")


def _need_target(target: Tensor | None, name: str) -> Tensor:
    if target is None:
        raise ValueError(f"{name} needs target images, got None; pass attack(encoder, source, target)")
    return target
