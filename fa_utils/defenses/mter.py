"""Margin-based triplet embedding regularization (MTER): the robust targets of the paper on BPFA, Tables V, VI and VIII.

Zhong and Deng (2019) fine-tune a network on its own loss and a triplet hinge: a picture pushed towards another person's
embedding must stay nearer to its own picture than to that person's. Numbers are those of their code: steps of one grey level
on 1 - cosine, at most ten, no bound but the grey scale; margin 0.2 on Euclidean distances of unit embeddings.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.recipes import RECIPES, Recipe, nearest
from fa_utils.models.train import bf16_pays, train_network
from fa_utils.paths import WEIGHTS

GREY_LEVEL = 2 / 255  # on the scale [-1, 1] of network inputs


def _fine_tuned(start: str, seed: int, **options) -> Recipe:
    base = {"learning_rate": 0.02, "epochs": 1, "keep_classifier": False} | options
    name = f"{start.rpartition('-')[0]}-mter"
    return dataclasses.replace(RECIPES[start], name=name, start=start, seed=seed, **base)


DEFENDED = {
    recipe.name: recipe
    for recipe in (
        _fine_tuned("incres-webface-softmax", 41),
        _fine_tuned("mobile-webface-softmax", 42),
        _fine_tuned("irse-webface-softmax", 43),
        _fine_tuned("ir20-ms1m-arcface", 44),
    )
}
# ArcFace at scale 32 outweighs the term: at 1, white-box hits stayed at 96% of 24 calibration pairs.
HINGE_WEIGHT = {"ir20-ms1m-mter": 5.0}


def train_mter(
    faces,
    *,
    recipe: Recipe,
    margin: float = 0.2,
    weight: float = 1.0,
    rounds: int = 10,
    share: float = 0.25,
    out: str | Path = WEIGHTS,
    bf16: bool | None = None,
    **options,
) -> FaceEncoder:
    """Fine-tune a network of the zoo with the triplet hinge and write its weights.

    Parameters
    ----------
    faces : FaceSet
        Training pictures, of the identities that the start was trained on.
    recipe : Recipe
        What to train, such as one of ``DEFENDED``; its ``start`` is the undefended network.
    margin, weight
        As in `triplet_regularizer`.
    rounds, share
        As in `with_adversaries`.
    out : path
        Folder of the weight files.
    bf16, **options
        Further options of :func:`~fa_utils.models.train.train_network`.

    Raises
    ------
    ValueError
        For a number out of its range.
    """
    perturb = with_adversaries(rounds=rounds, share=share, bf16=bf16)
    regularize = triplet_regularizer(margin=margin, weight=weight)
    return train_network(recipe, faces, out=out, perturb=perturb, regularize=regularize, bf16=bf16, **options)


def with_adversaries(
    *, rounds: int = 10, tolerance: float = 0.1, share: float = 0.25, bf16: bool | None = None
) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """For ``train_network(perturb=...)``: batches with adversaries of their first pictures appended.

    Each is pushed towards the next picture, the last of them towards the first. Nothing is random.

    Parameters
    ----------
    rounds, tolerance
        As in `adversaries`.
    share : float in (0, 1]
        Part of a batch that adversaries are made of, two pictures at least; the original takes all.
    bf16 : bool, optional
        bfloat16 autocast while they are made; by default where it is faster.

    Raises
    ------
    ValueError
        For an argument out of its range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, must lie in (0, 1]")
    _check_attack(rounds, tolerance)

    def perturb(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
        first = images[: max(2, round(share * len(images)))]
        lower = bf16_pays(backbone, images.device) if bf16 is None else bf16
        with torch.autocast(images.device.type, torch.bfloat16, enabled=lower):
            pushed = adversaries(backbone, first, first.roll(-1, 0), rounds=rounds, tolerance=tolerance)
        return torch.cat([images, pushed])

    return perturb


def triplet_regularizer(
    *, margin: float = 0.2, weight: float = 1.0
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """For ``train_network(regularize=...)``: the hinge over the batches of `with_adversaries`.

    A picture whose next one is of the same person is left out. All three corners of a triplet receive a gradient.

    Parameters
    ----------
    margin : float in [0, 2)
        By how much nearer the own picture must be; distances of unit embeddings lie in [0, 2].
    weight : float above 0
        Of the term. The original adds it plainly, at 1.

    Raises
    ------
    ValueError
        For an argument out of its range; from the term itself for features without adversaries.
    """
    if not 0 <= margin < 2:
        raise ValueError(f"margin is {margin}, must lie in [0, 2): unit embeddings are no farther than 2 apart")
    if not 0 < weight < math.inf:
        raise ValueError(f"weight is {weight}, must be finite and above 0")

    def regularize(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        batch, count = len(labels), len(features) - len(labels)
        if not 2 <= count <= batch:
            raise ValueError(f"{len(features)} features of {batch} pictures: train with perturb=with_adversaries(...)")
        source, own = features[:count].float(), labels[:count]
        hinge = triplet_hinge(features[batch:].float(), source, source.roll(-1, 0), margin=margin)
        strangers = own != own.roll(-1)
        return weight * (hinge * strangers).sum() / strangers.sum().clamp_min(1)

    return regularize


def triplet_hinge(adversarial: torch.Tensor, source: torch.Tensor, target: torch.Tensor, *, margin: float) -> torch.Tensor:
    """max(0, d(adversarial, source) - d(adversarial, target) + margin) for each row of raw features (n, dim).

    d is the Euclidean distance of the features made unit vectors, in [0, 2].
    """
    adversarial, source, target = (nn.functional.normalize(part) for part in (adversarial, source, target))
    gap = (adversarial - source).norm(dim=1) - (adversarial - target).norm(dim=1)
    return (gap + margin).clamp_min(0)


def adversaries(
    backbone: nn.Module, images: torch.Tensor, targets: torch.Tensor, *, rounds: int = 10, tolerance: float = 0.1
) -> torch.Tensor:
    """Pictures pushed towards the embeddings of others, a grey level a round.

    Parameters
    ----------
    backbone : nn.Module
        Network in training; left in the mode that it came in, its parameters without gradient.
    images, targets : torch.Tensor, (n, 3, side, side)
        Network inputs in [-1, 1]. The results are clipped to that box, and lie at most ``rounds`` grey levels off.
    rounds : int
        Most steps of sign.
    tolerance : float in [0, 2)
        They end when no picture is farther than this from its target, as 1 - cosine.

    Raises
    ------
    ValueError
        If rounds is below 1 or tolerance out of its range.
    """
    _check_attack(rounds, tolerance)
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        target = nn.functional.normalize(backbone(targets).float())
    pushed = images
    for _ in range(rounds):
        pushed = pushed.detach().requires_grad_()
        with torch.enable_grad():
            distance = 1 - (nn.functional.normalize(backbone(pushed).float()) * target).sum(1)
        if distance.max() <= tolerance:
            break
        (gradient,) = torch.autograd.grad(distance.sum(), pushed)
        pushed = (pushed.detach() - GREY_LEVEL * gradient.sign()).clamp(-1, 1)
    backbone.train(training)
    return pushed.detach()


def _check_attack(rounds: int, tolerance: float) -> None:
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, must be 1 or more")
    if not 0 <= tolerance < 2:
        raise ValueError(f"tolerance is {tolerance}, must lie in [0, 2): it is a 1 - cosine")


def main(argv: list[str] | None = None) -> None:
    """``python -m fa_utils.defenses.mter NAME``: train a robust network and write its row of the zoo table."""
    from fa_utils.data import load_benchmark, load_domain
    from fa_utils.models.zoo import evaluate_network, register

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", help=f"one of {', '.join(DEFENDED)}")
    options = parser.parse_args(argv)
    if options.name not in DEFENDED:
        parser.error(f"network {options.name!r} is no robust one{nearest(options.name, DEFENDED)}")
    recipe = DEFENDED[options.name]
    encoder = train_mter(load_domain(recipe.domain), recipe=recipe, weight=HINGE_WEIGHT.get(recipe.name, 1.0))
    print(register(WEIGHTS / f"{recipe.name}.safetensors", evaluate_network(encoder, load_benchmark())))


if __name__ == "__main__":
    main()
