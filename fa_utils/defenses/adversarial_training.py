"""Adversarial training: fine-tune a network on feature-level adversarial examples of its own.

Half of each batch of training pictures is replaced by adversarial examples with their true labels, so that the network
learns to put a picture where its person is, whatever it was pushed to. The examples are FIM's for the defended network
of Zhong and Deng (2021), Table VI, and a short corrasion attack's for the two of Zhou H. et al. (2023), Table V.
"""

import argparse
import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from fa_utils.attacks.presets import corrasion
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.recipes import RECIPES, Recipe, nearest
from fa_utils.models.train import train_network
from fa_utils.paths import WEIGHTS


def _fine_tuned(start: str, name: str, **options) -> Recipe:
    base = {"learning_rate": 0.02, "keep_classifier": False} | options
    return dataclasses.replace(RECIPES[start], name=name, start=start, **base)


RECIPE = _fine_tuned("ires-webface-softmax", "ires-webface-adversarial", epochs=3, seed=11)
DEFENDED = {
    recipe.name: recipe
    for recipe in (
        RECIPE,
        _fine_tuned("mobile-webface-softmax", "mobile-webface-corrasion", epochs=2, seed=31),
        _fine_tuned("ires-webface-cosface", "ires-webface-corrasion", epochs=2, seed=32),
    )
}


def train_adversarially(
    faces, *, eps: float = 10 / 255, steps: int | None = None, out: str | Path = WEIGHTS, recipe=RECIPE, **options
) -> FaceEncoder:
    """Fine-tune a network of the zoo on adversarial examples and write its weights.

    Parameters
    ----------
    faces : FaceSet
        Training pictures, of the identities that the start was trained on.
    eps : float
        Largest change of a pixel on the scale [0, 1].
    steps : int, optional
        Iterations an example: by default 3 of FIM, or 2 of corrasion, whose iterations cost three passes each.
    out : path
        Folder of the weight files.
    recipe : Recipe
        What to train; its ``start`` is the undefended network. A name that ends in ``-corrasion`` says which examples.
    **options
        Further options of :func:`~fa_utils.models.train.train_network`.

    Raises
    ------
    ValueError
        If eps is not in (0, 1] or steps is below 1.
    """
    attack, usual = (corrasion_examples, 2) if recipe.name.endswith("-corrasion") else (impersonations, 3)
    steps = usual if steps is None else steps
    if not 0 < eps <= 1:
        raise ValueError(f"eps is {eps}, must lie in (0, 1]; grey levels are written 10 / 255")
    if steps < 1:
        raise ValueError(f"steps is {steps}, must be 1 or more")
    return train_network(recipe, faces, out=out, perturb=half_adversarial(attack, eps=eps, steps=steps), **options)


def half_adversarial(attack: Callable, *, eps: float, steps: int) -> Callable:
    """A perturbation of batches: adversarial examples and, to keep the accuracy on clean pictures, as many clean ones."""

    def perturb(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
        half = len(images) // 2
        return torch.cat([attack(backbone, images[:half], eps=eps, steps=steps), images[half:]])

    return perturb


class _TrainingView(nn.Module):
    """A backbone in training as the attack engine wants it: pictures in [0, 1] in, unit embeddings out."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.backbone(2 * pictures - 1))


def corrasion_examples(backbone: nn.Module, images: torch.Tensor, *, eps: float, steps: int) -> torch.Tensor:
    """Short corrasion attacks on network inputs, each towards the next picture of the batch.

    Parameters
    ----------
    backbone, images, eps : as in `impersonations`.
    steps : int
        Iterations of 1.5 eps / steps, with three copies each. The smoothing window is half as wide as on full pictures,
        as network inputs have half their side.
    """
    pictures = ((images + 1) / 2).clamp(0, 1)
    seed = zlib.crc32(pictures.cpu().numpy().tobytes())  # fresh noise for each batch, the same again after a resume
    attack = corrasion(eps=eps, step_size=min(1.0, 1.5 * eps / steps), steps=steps, kernel=7, seed=seed)
    return 2 * attack(_TrainingView(backbone), pictures, pictures.roll(1, 0)) - 1


def impersonations(backbone: nn.Module, images: torch.Tensor, *, eps: float, steps: int) -> torch.Tensor:
    """FIM examples of network inputs, each towards the next picture of the batch.

    Works below the encoder, at the side and in the range [-1, 1] that the network sees, where ``eps`` is
    twice as long. Batch statistics are frozen meanwhile, and parameters receive no gradient.

    Parameters
    ----------
    backbone : nn.Module
        Network in training; left in the mode that it came in.
    images : torch.Tensor, (n, 3, side, side)
        Network inputs in [-1, 1].
    eps : float
        Largest change on the scale [0, 1].
    steps : int
        Iterations of 1.5 eps / steps.
    """
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        target = nn.functional.normalize(backbone(images)).roll(1, 0)
    radius, adversarial = 2 * eps, images
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_()
        with torch.enable_grad():
            similarity = (nn.functional.normalize(backbone(adversarial)) * target).sum()
        (gradient,) = torch.autograd.grad(similarity, adversarial)
        moved = adversarial.detach() + 1.5 * radius / steps * gradient.sign()
        adversarial = (images + (moved - images).clamp(-radius, radius)).clamp(-1, 1)
    backbone.train(training)
    return adversarial


def main(argv: list[str] | None = None) -> None:
    """``python -m fa_utils.defenses.adversarial_training [NAME]``: train a defended network and write its row of the zoo table."""
    from fa_utils.data import load_benchmark, load_domain
    from fa_utils.models.zoo import evaluate_network, register

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", nargs="?", default=RECIPE.name, help=f"one of {', '.join(DEFENDED)}")
    options = parser.parse_args(argv)
    if options.name not in DEFENDED:
        parser.error(f"network {options.name!r} is no defended one{nearest(options.name, DEFENDED)}")
    recipe = DEFENDED[options.name]
    encoder = train_adversarially(load_domain(recipe.domain), recipe=recipe)
    print(register(WEIGHTS / f"{recipe.name}.safetensors", evaluate_network(encoder, load_benchmark())))


if __name__ == "__main__":
    main()
