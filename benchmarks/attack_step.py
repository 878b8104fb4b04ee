"""What a step of an attack costs, and how that compares with torchattacks, on one network in one run.

    python benchmarks/attack_step.py [--network ires] [--batch 20] [--rounds 25] [--threads 1] [--device cpu]

The cost of a step is the difference between a long and a short run, over the difference in steps, so that
one-off work (the reference embedding, the labels) is left out for everyone. All contenders take turns, so
that a busy machine slows them alike, and on the CPU it is processor time that counts, not time waiting for it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchattacks
from torch import Tensor, nn

from fa_utils.attacks import Attack, DiverseInput, FeatureDropout, Impersonate, LabelDodge, Momentum
from fa_utils.models.backbones import build_backbone
from fa_utils.models.encoder import FaceEncoder

SHORT, LONG = 1, 6
BUDGET = {"eps": 10 / 255, "step_size": 1 / 255}
BARE = "bare forward + input gradient"

Run = Callable[[int], object]  # takes the number of steps


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


def contenders(encoder: FaceEncoder, source: Tensor, target: Tensor) -> dict[str, Run]:
    classifier = Logits(encoder).eval()
    labels = classifier(source).argmax(1)
    budget = {"eps": 10 / 255, "alpha": 1 / 255}

    def bare(steps: int) -> None:
        for _ in range(steps):
            leaf = source.detach().requires_grad_(True)
            torch.autograd.grad(encoder(leaf).sum(), leaf)

    def ours(objective, **parts) -> Run:
        parts.update(BUDGET, objective=objective)
        return lambda steps: Attack(steps=steps, **parts)(encoder, source, target)

    def theirs(kind, **options) -> Run:
        return lambda steps: kind(classifier, steps=steps, **budget, **options)(source, labels)

    return {
        BARE: bare,
        "FIM": ours(Impersonate()),
        "DI-M-FIM": ours(Impersonate(), inputs=[DiverseInput()], gradient=[Momentum()]),
        "DFANet-FIM, clean target": ours(Impersonate(), surrogate=[FeatureDropout(0.1, target="clean")]),
        "DFANet-FIM, masked target": ours(Impersonate(), surrogate=[FeatureDropout(0.1)]),
        "PGD (label)": ours(LabelDodge()),
        "MI-FGSM (label)": ours(LabelDodge(), gradient=[Momentum()]),
        "torchattacks PGD": theirs(torchattacks.PGD, random_start=False),
        "torchattacks MIFGSM": theirs(torchattacks.MIFGSM, decay=1.0),
    }


def measure(runs: dict[str, Run], *, rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds per step of each contender; they take turns, in an order that changes with the round."""

    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def seconds(run: Run, steps: int) -> float:
        begin = clock()
        run(steps)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - begin

    for run in runs.values():
        run(SHORT)
    times: dict[tuple[str, int], list[float]] = {(name, n): [] for name in runs for n in (SHORT, LONG)}
    for turn in range(rounds):
        order = list(times)
        shift = 5 * turn % len(order)
        for name, steps in order[shift:] + order[:shift]:
            times[name, steps].append(seconds(runs[name], steps))
    typical = {key: statistics.median(values) for key, values in times.items()}
    return {name: (typical[name, LONG] - typical[name, SHORT]) / (LONG - SHORT) for name in runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="ires")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    encoder = make_encoder(options.network).to(options.device)
    source, target = (
        (torch.randint(0, 256, (options.batch, 3, 112, 112)) / 255).to(options.device) for _ in range(2)
    )
    step = measure(contenders(encoder, source, target), rounds=options.rounds, device=encoder.device)

    print(f"{options.network}, batch {options.batch}, {options.threads} thread(s), {options.device}")
    for name, seconds in step.items():
        print(f"  {name:32} {1e3 * seconds:8.2f} ms/step {options.batch / seconds:9.1f} images-iterations/s")
    print("ratios")
    for over, under, limit in (
        ("FIM", BARE, "at most 1.05"),
        ("DFANet-FIM, clean target", "FIM", "at most 1.35"),
        ("DFANet-FIM, masked target", "FIM", "one forward pass more"),
        ("torchattacks PGD", "PGD (label)", "above 1: ours is faster"),
        ("torchattacks MIFGSM", "MI-FGSM (label)", "above 1: ours is faster"),
    ):
        print(f"  {over + ' / ' + under:52} {step[over] / step[under]:6.3f}   ({limit})")


if __name__ == "__main__":
    main()
