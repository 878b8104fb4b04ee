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


class _LabeledObjective:
    """An objective of images with known classes; ``head`` reads them from the embedding, else the network's own classifier."""

    takes_labels: ClassVar[bool] = True

    def anchor(self, source: Tensor, labels: Tensor) -> Tensor:
        return labels

    def reference(self, encoder: nn.Module, labels: Tensor) -> Tensor:
        return labels

    def predict(self, encoder: nn.Module, images: Tensor) -> Tensor:
        logits = encoder.logits(images) if self.head is None else self.head(encoder(images))
        # One logit z of class 1 is two logits (0, z).
        return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


@dataclass(frozen=True)
class Misclassify(_LabeledObjective):
    """Maximize the cross-entropy of the true class: FGSM, one step of it; PGD, several.

    Parameters
    ----------
    head : nn.Module, optional
        Classifier of embeddings: (B, D) to logits (B, K), or (B, 1) for two classes. Without it the encoder's own.

    References
    ----------
    Goodfellow et al. (2015); Rezgui et al. (2022), section 4.2; Rezgui et al. (2024), eq. 3.
    """

    head: nn.Module | None = None

    def loss(self, prediction: Tensor, reference: Tensor) -> Tensor:
        return -nn.functional.cross_entropy(prediction, reference, reduction="none")

    def reached(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """Which images (B,) are misclassified."""
        return prediction.argmax(1) != reference


@dataclass(frozen=True)
class ClubInformation(_LabeledObjective):
    """Minimize the vCLUB estimate of the mutual information between embedding and class.

    The loss of image i is ``log q(y_i | f_i) - mean_j log q(y_j | f_i)``, the mean over the labels of the batch, its own
    included. With labels of one class it is constant and has no gradient, so such a batch is refused.

    Parameters
    ----------
    head : nn.Module
        The variational distribution q: embeddings (B, D) to logits (B, K).

    References
    ----------
    Rezgui et al. (2024), eq. 1 and 7; Cheng et al. (2020), CLUB; sheet 2-mi-privacy, items 3a and 3c.
    """

    head: nn.Module

    def loss(self, prediction: Tensor, reference: Tensor) -> Tensor:
        log_q = torch.log_softmax(prediction, dim=1)
        share = torch.bincount(reference, minlength=log_q.shape[1]).to(log_q) / len(reference)
        return log_q.gather(1, reference[:, None])[:, 0] - log_q @ share

    def check_labels(self, labels: Tensor) -> None:
        """Raise unless there are two classes or more: with one the estimate is constant."""
        found = labels.unique().tolist()
        if len(found) < 2:
            raise ValueError(
                f"all {len(labels)} labels of the batch are {found[0]}: the information estimate is constant and has no "
                "gradient; make batches that hold both classes"
            )


@dataclass(frozen=True)
class RandomSigns:
    """No objective: each pixel and channel moves up or down by chance, the same from step to step. No pass through a network.

    Parameters
    ----------
    mask : bool
        Multiply the signs by zeros and ones of equal chance, the literal reading of eq. 4 of Rezgui et al. (2024).
    block : int
        Side of the squares of pixels that share a sign. A network that averages ``block`` x ``block`` pixels first halves
        (or more) the size of signs that change from pixel to pixel, but not of these.

    References
    ----------
    RAND-ATK of Rezgui et al. (2022), section 5.6; RND-ATK of Rezgui et al. (2024), eq. 4; sheet 2-mi-privacy, item 3b.
    """

    mask: bool = False
    block: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise ValueError(f"block must be a whole number of at least 1 pixel, got {self.block!r}")

    def anchor(self, source: Tensor, target: Tensor | None) -> None:
        return None

    def reference(self, encoder: nn.Module, anchor: None) -> None:
        return None

    def draw(self, scope, step: int) -> Tensor:
        """Signs (B, 3, H, W) of -1 and 1, with ``mask`` also 0, from each image's own generator."""
        count, channels, height, width = scope.source.shape
        squares = (-(-height // self.block), -(-width // self.block))
        signs = torch.empty(count, channels, *squares, dtype=scope.source.dtype)
        for image, generator in zip(signs, scope.generators(), strict=True):
            image.random_(0, 2, generator=generator).mul_(2).sub_(1)
            if self.mask:
                image.mul_(torch.empty_like(image).random_(0, 2, generator=generator))
        if self.block > 1:
            signs = signs.repeat_interleave(self.block, 2).repeat_interleave(self.block, 3)[:, :, :height, :width]
        return signs.to(scope.source.device)


def _need_target(target: Tensor | None, name: str) -> Tensor:
    if target is None:
        raise ValueError(f"{name} needs target images, got None; pass attack(encoder, source, target)")
    return target
