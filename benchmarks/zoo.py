"""How hard the procedural faces are: four figures for each network of the zoo.

    python benchmarks/zoo.py --pairs 100 --steps 100 --out data/results/zoo-difficulty.csv

Accuracy on the LFW-like pairs (wanted: 97 to 99.7%), cosine threshold at FAR 1e-3 (below 0.5), accuracy at
which the gender-like attribute is read from embeddings (85 to 95%), and hits of DI-M-FIM at eps 10/255
(white-box above 95%, averaged over the other networks 10 to 90%). All are measured anew; nothing is taken
from the zoo table.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from fa_utils.attacks.presets import preset
from fa_utils.data import attack_pairs, load_benchmark, to_float, to_uint8
from fa_utils.memory import keep_freed_memory
from fa_utils.metrics import pair_similarity, two_way_bootstrap
from fa_utils.models.recipes import RECIPES
from fa_utils.models.zoo import evaluate_network, load_encoder, zoo_table
from fa_utils.report.results import provenance, result_row, write_results

EPS = 10 / 255
BATCH = 50


def main(argv: list[str] | None = None) -> int:
    keep_freed_memory()
    options = parse(argv)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    encoders = {name: load_encoder(name, device=options.device) for name in options.networks}
    benchmark = load_benchmark()
    pairs = attack_pairs(options.pairs)
    print(
        f"{len(benchmark[0])} pictures, {len(benchmark[1])} pairs; {options.pairs} attacked pairs, "
        f"{options.steps} steps, eps 10/255, FAR 1e-3"
    )
    figures = {name: evaluate_network(encoder, benchmark) for name, encoder in encoders.items()}
    print(f"{'network':24s} accuracy  threshold  gender  white-box  black-box  cosine    s", flush=True)
    rows = []
    for name in encoders:
        started = time.perf_counter()
        cells = transfer(name, encoders, figures, pairs, options)
        seconds = time.perf_counter() - started
        print(line(name, figures[name], cells, seconds), flush=True)
        rows += result_rows(name, figures[name], cells, pairs, len(benchmark[1]))
    if options.out:
        source = provenance(
            faces="procedural", networks="zoo", profile="benchmark", seeds=0, eps=EPS, steps=options.steps,
            device=options.device, command=" ".join(["python", "benchmarks/zoo.py", *(argv or sys.argv[1:])]),
        )  # fmt: skip
        print(write_results(rows, options.out, chapter="faces", table="difficulty", **source))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    known = [name for name in zoo_table().index if name in RECIPES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", default=known, metavar="NAME", help="default: all that are trained"
    )
    parser.add_argument("--pairs", type=int, default=100, help="attacked pairs")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="CSV file for the numbers")
    return parser.parse_args(argv)


def transfer(name: str, encoders: dict, figures: dict, pairs, options) -> dict[str, tuple]:
    """Attack on one network, judged by all: target network -> (similarities of the pairs, hits as 0/1)."""
    sources, targets, source_id, target_id = pairs
    attack = preset("di_m_fim", eps=EPS, steps=options.steps)
    adversarial = []
    for start in range(0, len(source_id), BATCH):
        keys = range(start, min(start + BATCH, len(source_id)))
        source, target = sources.batch(source_id[keys]), targets.batch(target_id[keys])
        device = options.device
        images = attack(encoders[name], source.to(device), target.to(device), keys=list(keys))
        # Pictures are judged as they would be stored, in whole grey levels.
        adversarial.append(to_float(to_uint8(images.cpu())))
    adversarial, goal = torch.cat(adversarial), targets.batch(target_id)
    cells = {}
    for other, encoder in encoders.items():
        similarity = pair_similarity(encoder.embed(adversarial), encoder.embed(goal))
        cells[other] = similarity, (similarity > figures[other]["threshold_far_1e-3"]).astype(float)
    return cells


def line(name: str, figures: dict, cells: dict, seconds: float) -> str:
    others = [cell for other, cell in cells.items() if other != name]
    black = sum(hits.mean() for _, hits in others) / len(others) if others else float("nan")
    cosine = sum(s.mean() for s, _ in others) / len(others) if others else float("nan")
    return (
        f"{name:24s} {100 * figures['accuracy']:7.2f}%  {figures['threshold_far_1e-3']:9.3f} "
        f"{100 * figures['gender_accuracy']:6.1f}% {100 * cells[name][1].mean():9.1f}% {100 * black:9.1f}% "
        f"{cosine:7.3f} {seconds:4.0f}"
    )


def result_rows(name: str, figures: dict, cells: dict, pairs, benchmark_pairs: int) -> list[dict]:
    rows = [
        result_row("accuracy", figures["accuracy"], benchmark_pairs, source=name, method="verification"),
        result_row("accuracy", figures["gender_accuracy"], benchmark_pairs, source=name, method="gender"),
        result_row("threshold", figures["threshold_far_1e-3"], benchmark_pairs, source=name, far="1e-3"),
    ]
    for other, (similarity, hits) in cells.items():
        cell = {"source": name, "target": other, "method": "DI-M-FIM"}
        for metric, values, far in (("hit_rate", hits, "1e-3"), ("similarity", similarity, "")):
            interval = two_way_bootstrap(values, pairs[2], pairs[3], seed=0)
            rows.append(result_row(metric, interval, len(values), far=far, **cell))
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
