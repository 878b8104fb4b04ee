"""Chapter 5's published numbers: calibrate eta, run the study at size and write data/results/5-bpfa-procedural.csv.

    python benchmarks/publish_bpfa.py --pairs 20 --steps 100 --spectra 3 --neighbors 2 --workers 1

A run that was killed goes on where it was: finished attacks are kept in the cache. Nothing is written to
data/results before all is done. Only numbers are written, never a picture.
"""

import argparse
import dataclasses
import shlex
import sys

from fa_utils.attacks.transfer import open_network, run_trials
from fa_utils.data import load_benchmark
from fa_utils.memory import keep_freed_memory
from fa_utils.paths import RESULTS
from fa_utils.report import bpfa, bpfa_probes
from fa_utils.report.results import provenance, write_results
from fa_utils.report.scores import measure_networks, score, thresholds_of


def main() -> None:
    keep_freed_memory()
    options = parse()
    cast = bpfa.make_cast()
    budget = bpfa.Budget(
        eps=options.eps / 255,
        step_size=options.step_size / 255,
        steps=options.steps,
        spectra=options.spectra,
        neighbors=options.neighbors,
        seeds=tuple(range(options.seeds)),
    )
    engine = {"workers": options.workers, "device": options.device}
    benchmark = load_benchmark("lfw", identities=options.people)
    measured = measure_networks(cast.networks, benchmark, **engine)
    thresholds = thresholds_of(measured)
    print(measured.drop(columns="address").to_string(float_format="{:.4f}".format), flush=True)
    engine["unit"] = options.unit
    rows = eta_rows(cast, budget, thresholds, options.calibration, engine)
    budget = dataclasses.replace(budget, etas=bpfa.calibrated(rows))
    print("eta:", dict(budget.etas), flush=True)
    rows += study_rows(cast, budget, thresholds, options, engine)
    shared = provenance(
        faces="procedural",
        networks="zoo",
        profile=options.profile,
        seeds=budget.seeds,
        eps=budget.eps,
        steps=budget.steps,
        device=options.device,
        command=shlex.join(["python", "benchmarks/publish_bpfa.py", *sys.argv[1:]]),
    )
    print(write_results(rows, RESULTS / "5-bpfa-procedural.csv", chapter=bpfa.CHAPTER, **shared))


def eta_rows(cast: bpfa.Cast, budget: bpfa.Budget, thresholds, count: int, engine: dict) -> list[dict]:
    """Fig. 3, on pairs that are not reported."""
    calibration = bpfa.pairs_of("LFW", count, calibration=True)
    return bpfa.eta_rows(score(run_trials(bpfa.eta_trials(cast, budget), calibration, **engine), thresholds), cast, budget)


def study_rows(cast: bpfa.Cast, budget: bpfa.Budget, thresholds, options, engine: dict) -> list[dict]:
    """All tables, claims and audits."""
    rows, scores = [], {}
    for name in bpfa.BENCHMARKS:
        pairs = bpfa.pairs_of(name, options.pairs)
        rows += dodging_rows(cast, budget, thresholds, name, pairs, engine)
        methods = options.methods if name == "LFW" else options.second
        if not methods:
            continue
        trials = bpfa.table_trials(cast, budget, methods)
        if name == "LFW":
            first = pairs
            trials += bpfa.layer_trials(cast, budget) + bpfa.eta_controls(cast, budget) + bpfa.audit_trials(cast, budget)
        trials.sort(key=lambda trial: budget.copies(trial.method))  # the cheap ones first, in case there is no time for all
        scores[name] = score(run_trials(trials, pairs, **engine), thresholds)
        for kind in ("single", "combined"):
            rows += bpfa.transfer_rows(scores[name], cast, budget, name, kind)
            rows += bpfa.transfer_effects(scores[name], cast, budget, name, kind)
    for section in (bpfa.order_effects, bpfa.eta_effects, bpfa.layer_rows, bpfa.layer_effects, bpfa.curve_rows):
        rows += section(scores["LFW"], cast, budget)
    for section in (bpfa.audit_rows, bpfa.compute_rows, bpfa.deviation_rows):
        rows += section(scores["LFW"], cast, budget)
    rows += bpfa_probes.loss_rows(open_network(cast.encoders[0], options.device), first, budget, count=len(first))
    rows += bpfa_probes.memory_rows(cast, budget, first, device=options.device)
    return rows + bpfa_probes.cost_rows(cast, budget, first, count=20, rounds=6, device=options.device)


def dodging_rows(cast: bpfa.Cast, budget: bpfa.Budget, thresholds, name: str, pairs, engine: dict) -> list[dict]:
    """Tables VII and VIII on one benchmark, judged by the own and by another picture."""
    rows = []
    for picture in (bpfa.OWN, bpfa.ANOTHER):
        dodged = run_trials(bpfa.dodging_trials(cast, budget), bpfa.dodging_pairs(name, pairs, picture), **engine)
        scores = score(dodged, thresholds, at=bpfa.DODGING, dodging=True)
        rows += bpfa.dodging_rows(scores, cast, budget, name, picture)
        rows += bpfa.dodging_effects(scores, cast, budget, name, picture)
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="of each benchmark")
    parser.add_argument("--calibration", type=int, default=16, help="pairs of other people that eta is calibrated on, up to 100")
    parser.add_argument("--steps", type=int, default=100)
    every = {"default": list(bpfa.METHODS), "choices": bpfa.METHODS}
    parser.add_argument("--methods", nargs="+", help="on the first benchmark; FIM, MI, FMD and FMDN must be among them", **every)
    parser.add_argument("--second", nargs="*", help="methods on the second benchmark; with none only dodging", **every)
    parser.add_argument("--step-size", type=float, default=1.0, help="in gray levels")
    parser.add_argument("--eps", type=float, default=10.0, help="in gray levels")
    parser.add_argument("--spectra", type=int, default=20, help="copies of SSA")
    parser.add_argument("--neighbors", type=int, default=20, help="neighbors of VT")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--people", type=int, default=None, help="of the benchmark; all by default")
    parser.add_argument("--profile", default="published", help="name of this size in the results")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--unit", type=int, default=25, help="images crafted at once")
    return parser.parse_args()


if __name__ == "__main__":
    main()
