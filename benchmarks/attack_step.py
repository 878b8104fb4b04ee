"""What a step of an attack costs, and how that compares with torchattacks, on one network in one run.

    python benchmarks/attack_step.py [--network ires] [--batch 20] [--rounds 9] [--threads 1]

All contenders take turns, so a busy machine slows them alike; ratios are medians over the rounds of the ratio within
a round.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchattacks
from torch import Tensor, nn

from fa_utils.attacks import Attack, FeatureDropout, Impersonate, LabelDodge, Momentum
from fa_utils.models.backbones import build_backbone
from fa_utils.models.encoder import FaceEncoder

STEPS = 5


class Logits(nn.Module):
    """The classifier view of an encoder, which is what torchattacks attacks."""

    def __init__(self, encoder: FaceEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.logits(images)


def make_encoder(name: str, *, classes: int = 500) -> FaceEncoder:
    torch.manual_seed(0)
    return FaceEncoder(build_backbone(name), name=name, input_size=56, classifier=nn.Linear(128, classes))


def bare(encoder: FaceEncoder, images: Tensor) -> Callable[[], None]:
    """Forward and input gradient, and nothing else."""

    def step() -> None:
        for _ in range(STEPS):
            leaf = images.detach().requires_grad_(True)
            torch.autograd.grad(encoder(leaf).sum(), leaf)

    return step


def contenders(encoder: FaceEncoder, source: Tensor, target: Tensor) -> dict[str, Callable[[], object]]:
    """Each is ``STEPS`` steps on the whole batch; the one-off reference embedding is inside the timing."""
    common = {"eps": 10 / 255, "step_size": 1 / 255, "steps": STEPS}
    classifier = Logits(encoder).eval()
    labels = classifier(source).argmax(1)

    def ours(objective, *, surrogate=(), gradient=()):
        attack = Attack(objective=objective, surrogate=surrogate, gradient=gradient, **common)
        return lambda: attack.run(encoder, source, target)

    pgd = torchattacks.PGD(classifier, eps=10 / 255, alpha=1 / 255, steps=STEPS, random_start=False)
    mifgsm = torchattacks.MIFGSM(classifier, eps=10 / 255, alpha=1 / 255, steps=STEPS, decay=1.0)
    return {
        "bare forward + input gradient": bare(encoder, source),
        "FIM": ours(Impersonate()),
        "DFANet, clean target": ours(Impersonate(), surrogate=[FeatureDropout(0.1, target="clean")]),
        "DFANet, masked target": ours(Impersonate(), surrogate=[FeatureDropout(0.1)]),
        "PGD (label)": ours(LabelDodge()),
        "MI-FGSM (label)": ours(LabelDodge(), gradient=[Momentum(1.0)]),
        "torchattacks PGD": lambda: pgd(source, labels),
        "torchattacks MIFGSM": lambda: mifgsm(source, labels),
    }


def measure(functions: dict[str, Callable[[], object]], *, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each function in each round, one after the other, the order turned from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for name in names:
        functions[name]()
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            begin = time.perf_counter()
            functions[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="ires")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    encoder = make_encoder(options.network).to(options.device)
    source, target = (
        (torch.randint(0, 256, (options.batch, 3, 112, 112)) / 255).to(options.device) for _ in range(2)
    )
    functions = contenders(encoder, source, target)
    seconds = measure(functions, rounds=options.rounds, device=encoder.device)

    print(f"{options.network}, batch {options.batch}, {STEPS} steps, {options.threads} thread(s), {options.device}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"  {name:32} {1e3 * median / STEPS:8.2f} ms/step {options.batch * STEPS / median:9.1f} images-iterations/s")
    print("ratios (median over rounds)")
    for over, under, limit in (
        ("FIM", "bare forward + input gradient", "at most 1.05"),
        ("DFANet, clean target", "FIM", "at most 1.35"),
        ("DFANet, masked target", "FIM", "one forward pass more"),
        ("torchattacks PGD", "PGD (label)", "above 1: ours is faster"),
        ("torchattacks MIFGSM", "MI-FGSM (label)", "above 1: ours is faster"),
    ):
        print(f"  {over + ' / ' + under:52} {ratio(seconds, over, under):6.3f}   ({limit})")


if __name__ == "__main__":
    main()
