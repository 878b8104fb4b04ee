"""Adversarial training: fine-tune a network on feature-level adversarial examples of its own.

The defense of Zhong and Deng 2021, Table VI: training pictures are replaced by FIM examples with their
true labels, so that the network learns to put a picture where its person is, whatever it was pushed to.
"""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.recipes import RECIPES
from fa_utils.models.train import train_network
from fa_utils.paths import WEIGHTS

RECIPE = dataclasses.replace(
    RECIPES["ires-webface-softmax"],
    name="ires-webface-adversarial",
    start="ires-webface-softmax",
    learning_rate=0.02,
    epochs=3,
    seed=11,
    keep_classifier=False,
)


def train_adversarially(
    faces, *, eps: float = 10 / 255, steps: int = 3, out: str | Path = WEIGHTS, recipe=RECIPE, **options
) -> FaceEncoder:
    """Fine-tune a network of the zoo on FIM examples and write its weights.

    Parameters
    ----------
    faces : FaceSet
        Training pictures, of the identities that the start was trained on.
    eps : float
        Largest change of a pixel on the scale [0, 1].
    steps : int
        FIM iterations an example; each costs a forward and a backward pass of half a batch.
    out : path
        Folder of the weight files.
    recipe : Recipe
        What to train; its ``start`` is the undefended network.
    **options
        Further options of :func:`~fa_utils.models.train.train_network`.

    Raises
    ------
    ValueError
        If eps is not in (0, 1] or steps is below 1.
    """
    if not 0 < eps <= 1:
        raise ValueError(f"eps is {eps}, must lie in (0, 1]; grey levels are written 10 / 255")
    if steps < 1:
        raise ValueError(f"steps is {steps}, must be 1 or more")

    def half_adversarial(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
        # The clean half keeps the accuracy on clean pictures.
        half = len(images) // 2
        return torch.cat([impersonations(backbone, images[:half], eps=eps, steps=steps), images[half:]])

    return train_network(recipe, faces, out=out, perturb=half_adversarial, **options)


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


def main() -> None:
    """``python -m fa_utils.defenses.adversarial_training``: train the defended network and write its row of the zoo table."""
    from fa_utils.data import load_benchmark, load_domain
    from fa_utils.models.zoo import evaluate_network, register

    encoder = train_adversarially(load_domain(RECIPE.domain))
    print(register(WEIGHTS / f"{RECIPE.name}.safetensors", evaluate_network(encoder, load_benchmark())))


if __name__ == "__main__":
    main()
