"""What a step of an attack costs, and how that compares with torchattacks, on one network in one run.

    python benchmarks/attack_step.py [--network ires] [--batch 20] [--rounds 25] [--threads 1] [--device cpu]
                                     [--only BPFA]

The cost of a step is the difference between a long and a short run, over the difference in steps, so that
one-off work (the reference embedding, the labels) is left out for everyone. All contenders take turns, so
that a busy machine slows them alike, and on the CPU it is processor time that counts, not time waiting for it.
Memory is the most that tensors took at once during three steps, above what they took before; network and pictures
are not counted, which would make every ratio look better.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchattacks
from torch import Tensor, nn

from fa_utils.attacks import (
    Attack,
    BeneficialPerturbation,
    DiverseInput,
    FeatureDropout,
    GhostNetwork,
    GradientEroding,
    Impersonate,
    LabelDodge,
    Momentum,
    NoiseCopies,
    SkipGradient,
    engine,
)
from fa_utils.memory import keep_freed_memory, peak_bytes
from fa_utils.models.backbones import build_backbone
from fa_utils.models.encoder import FaceEncoder

SHORT, LONG = 1, 6
MEMORY_STEPS = 3
BUDGET = {"eps": 10 / 255, "step_size": 1 / 255}
BARE = "bare forward + input gradient"
STACKED, LOOPED = "three noise copies, stacked", "three noise copies, looped"
BPFA = {layers: f"BPFA-FIM, {layers}" for layers in ("convolution", "normalization", "activation")}

RATIOS = (
    ("FIM", BARE, "at most 1.05"),
    ("DFANet-FIM, clean target", "FIM", "at most 1.35"),
    ("DFANet-FIM, masked target", "FIM", "one forward pass more"),
    ("GE-FIM", "FIM", "at most 1.08"),
    ("SGM-FIM", "FIM", "at most 1.08"),
    ("Ghost-FIM", "FIM", "at most 1.15"),
    *((name, "FIM", "at most 1.10") for name in BPFA.values()),
    (STACKED, LOOPED, "same result"),
    ("torchattacks PGD", "PGD (label)", "above 1: ours is faster"),
    ("torchattacks MIFGSM", "MI-FGSM (label)", "above 1: ours is faster"),
)

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

    def altered(part) -> Run:
        return ours(Impersonate(), surrogate=[part])

    def theirs(kind, **options) -> Run:
        return lambda steps: kind(classifier, steps=steps, **budget, **options)(source, labels)

    copies = ours(Impersonate(), inputs=[NoiseCopies(3)])
    return {
        BARE: bare,
        "FIM": ours(Impersonate()),
        "DI-M-FIM": ours(Impersonate(), inputs=[DiverseInput()], gradient=[Momentum()]),
        "DFANet-FIM, clean target": altered(FeatureDropout(0.1, target="clean")),
        "DFANet-FIM, masked target": altered(FeatureDropout(0.1)),
        "GE-FIM": altered(GradientEroding()),
        "SGM-FIM": altered(SkipGradient(0.5)),
        "Ghost-FIM": altered(GhostNetwork()),
        **{name: altered(BeneficialPerturbation(layers=layers)) for layers, name in BPFA.items()},
        STACKED: copies,
        LOOPED: one_copy_at_a_time(copies),
        "PGD (label)": ours(LabelDodge()),
        "MI-FGSM (label)": ours(LabelDodge(), gradient=[Momentum()]),
        "torchattacks PGD": theirs(torchattacks.PGD, random_start=False),
        "torchattacks MIFGSM": theirs(torchattacks.MIFGSM, decay=1.0),
    }


def one_copy_at_a_time(run: Run) -> Run:
    def looped(steps: int) -> object:
        rows, engine.STACKED_ROWS = engine.STACKED_ROWS, 1
        try:
            return run(steps)
        finally:
            engine.STACKED_ROWS = rows

    return looped


def measure(runs: dict[str, Run], *, rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds per step of each contender; they take turns, in an order that changes with the round.

    Of the rounds the lower quartile counts: what disturbs a run only ever makes it longer.
    """

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
    typical = {key: statistics.quantiles(values, n=4, method="inclusive")[0] for key, values in times.items()}
    return {name: (typical[name, LONG] - typical[name, SHORT]) / (LONG - SHORT) for name in runs}


def show_times(step: dict[str, float], batch: int) -> None:
    for name, seconds in step.items():
        print(f"  {name:32} {1e3 * seconds:8.2f} ms/step {batch / seconds:9.1f} images-iterations/s")
    print("ratios of time")
    for over, under, limit in RATIOS:
        if over in step and under in step:
            print(f"  {over + ' / ' + under:58} {step[over] / step[under]:6.3f}   ({limit})")


def show_memory(runs: dict[str, Run], device: torch.device) -> None:
    plain = peak_bytes(lambda: runs["FIM"](MEMORY_STEPS), device)
    print(f"ratios of peak memory, FIM {plain / 2**20:.1f} MiB")
    for name in BPFA.values():
        if name in runs:
            used = peak_bytes(lambda name=name: runs[name](MEMORY_STEPS), device)
            print(f"  {name + ' / FIM':58} {used / plain:6.3f}   (at most 1.05)")


def show_copies(runs: dict[str, Run]) -> None:
    """After one step; later ones differ where rounding decides a sign (shared/DESIGN.md)."""
    if STACKED in runs and LOOPED in runs:
        agree = (runs[STACKED](1) == runs[LOOPED](1)).float().mean().item()
        print(f"stacked and looped copies: {100 * agree:.3f} % of pixels are equal after one step")


def main() -> None:
    keep_freed_memory()  # as the commands do
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="ires")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=25, help="at least 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the names of contenders; FIM always runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    encoder = make_encoder(options.network).to(options.device)
    source, target = (
        (torch.randint(0, 256, (options.batch, 3, 112, 112)) / 255).to(options.device) for _ in range(2)
    )
    runs = contenders(encoder, source, target)
    runs = {name: run for name, run in runs.items() if name == "FIM" or any(part in name for part in options.only)}
    print(f"{options.network}, batch {options.batch}, {options.threads} thread(s), {options.device}")
    show_times(measure(runs, rounds=options.rounds, device=encoder.device), options.batch)
    show_memory(runs, encoder.device)
    show_copies(runs)


if __name__ == "__main__":
    main()
