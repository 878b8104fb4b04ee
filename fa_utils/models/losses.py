"""Training losses: pytorch-metric-learning's, with a margin that a schedule can move."""

import torch
from pytorch_metric_learning import distances, losses, miners
from pytorch_metric_learning.utils.common_functions import TorchInitWrapper
from torch import nn

from fa_utils.models.recipes import Recipe


class CosineClassifier(nn.Module):
    """Classification head on the hypersphere: ``scale * cos(feature, class)``.

    Parameters
    ----------
    dim, classes : int
        Length of a feature and number of identities.
    scale : float
        Inverse temperature of the logits.
    """

    def __init__(self, dim: int, classes: int, scale: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, dim))
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Raw backbone features (B, dim) to logits (B, classes)."""
        cosine = nn.functional.linear(nn.functional.normalize(features), nn.functional.normalize(self.weight))
        return self.scale * cosine


class LinearClassifier(nn.Module):
    """A fully connected layer from features to class logits, after a rectifier where the layout has one there.

    Parameters
    ----------
    dim, classes : int
        Length of a feature and number of classes.
    rectify : bool
        Apply a ReLU to the features first (VGG16).
    """

    def __init__(self, dim: int, classes: int, *, rectify: bool = False):
        super().__init__()
        self.rectify = rectify
        self.weight = nn.Parameter(torch.empty(classes, dim))
        self.bias = nn.Parameter(torch.zeros(classes))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Raw backbone features (B, dim) to logits (B, classes)."""
        features = nn.functional.relu(features) if self.rectify else features
        return nn.functional.linear(features, self.weight, self.bias)


class TrainingLoss(nn.Module):
    """Loss of a batch of raw features, with the margin of the moment.

    softmax is cross-entropy over ``scale * cos``: the normalized form trains in few epochs and is judged by
    the same cosine as verification. triplet is FaceNet's (squared distance of unit embeddings, semi-hard
    negatives of the batch). CosFace and ArcFace are softmax with a margin. linear is cross-entropy after a fully
    connected layer, for attributes of few classes.
    """

    def __init__(self, recipe: Recipe, *, dim: int, classes: int, rectify: bool = False):
        super().__init__()
        self.recipe = recipe
        self.miner = None
        if recipe.loss == "linear":
            self.loss = LinearClassifier(dim, classes, rectify=rectify)
            return
        # A short initial weight turns quickly: the gradient of a cosine goes with 1 / |w|.
        start = TorchInitWrapper(nn.init.normal_, std=0.01)
        head = {"num_classes": classes, "embedding_size": dim, "weight_init_func": start}
        if recipe.loss == "softmax":
            cosine = distances.CosineSimilarity()
            self.loss = losses.NormalizedSoftmaxLoss(**head, temperature=1 / recipe.scale, distance=cosine)
        elif recipe.loss == "cosface":
            self.loss = losses.CosFaceLoss(**head, margin=0.0, scale=recipe.scale)
        elif recipe.loss == "arcface":
            self.loss = losses.ArcFaceLoss(**head, margin=0.0, scale=recipe.scale)
        else:
            squared = distances.LpDistance(power=2)
            self.loss = losses.TripletMarginLoss(margin=recipe.margin, distance=squared)
            self.miner = miners.TripletMarginMiner(
                margin=recipe.margin, type_of_triplets="semihard", distance=squared
            )

    def forward(self, features: torch.Tensor, labels: torch.Tensor, progress: float) -> torch.Tensor:
        """Loss of features (B, dim) with labels (B,) when the share ``progress`` of training is done."""
        features = features.float()
        if self.recipe.loss == "linear":
            return nn.functional.cross_entropy(self.loss(features), labels)
        if self.recipe.loss in ("cosface", "arcface"):
            self.loss.margin = margin_at(self.recipe, progress)
        mined = self.miner(features, labels) if self.miner else None
        loss = self.loss(features, labels, mined)
        if self.recipe.spread:
            loss = loss + self.recipe.spread * squared_cosine_of_strangers(features, labels)
        return loss

    @torch.no_grad()
    def start_from(self, classes: torch.Tensor | None) -> None:
        """Take over the class weights (classes, dim) of an earlier softmax head of the same identities.

        Anything else (no head, a loss without classes, other identities) leaves the random start.
        """
        weight = getattr(self.loss, "W", None)
        if classes is not None and weight is not None and weight.shape == classes.t().shape:
            weight.copy_(classes.t())

    def classifier(self) -> CosineClassifier | LinearClassifier | None:
        """The head as a module of its own; None for a loss without classes or with a margin.

        A margin head is no probability model of its own training logits, and no attack here needs it.
        """
        if self.recipe.loss == "linear":
            return self.loss
        if self.recipe.loss != "softmax":
            return None
        dim, classes = self.loss.W.shape
        head = CosineClassifier(dim, classes, self.recipe.scale)
        head.weight.data.copy_(self.loss.W.detach().t())
        return head


def margin_at(recipe: Recipe, progress: float) -> float:
    """Margin of CosFace or ArcFace at a share of training: 0, a linear ramp, then ``recipe.margin``."""
    start, end = recipe.ramp
    return recipe.margin * min(1.0, max(0.0, (progress - start) / (end - start)))


def squared_cosine_of_strangers(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean squared cosine over the pairs of different identities in a batch; 0 where there are none."""
    unit = nn.functional.normalize(features)
    strangers = labels[:, None] != labels[None, :]
    total = ((unit @ unit.t()).square() * strangers).sum()
    return total / strangers.sum().clamp_min(1)
