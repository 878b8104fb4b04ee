"""Chapter 5's published numbers: calibrate eta, run the study at size and write data/results/5-bpfa-*.csv.

    python benchmarks/publish_bpfa.py --pairs 20 --steps 100 --spectra 3 --neighbors 2 --workers 1
    python benchmarks/publish_bpfa.py --pairs 20 --only-cost
    python benchmarks/publish_bpfa.py --faces ../real --networks ../shared/real/networks --pairs 40 --calibration 12 --steps 50 \\
        --methods FIM MI DI DFANet FMD FMDN --sections eta dodging layers

A run that was killed goes on where it was: finished attacks are kept in the cache. Nothing is written to
data/results before all is done. Only numbers are written, never a picture. With --only-cost nothing but memory and time
is measured, at the eta of the file that is there, and takes the place of the file's; its other rows stay as they are.
"""

import argparse
import dataclasses

import pandas as pd

from fa_utils.attacks.transfer import open_network, run_trials
from fa_utils.data import dataset_name, load_benchmark
from fa_utils.memory import keep_freed_memory
from fa_utils.report import bpfa, bpfa_probes
from fa_utils.report.bpfa_pairs import BENCHMARKS, FIRST, Pools, procedural_pools, real_pools
from fa_utils.report.results import read_results, write_results
from fa_utils.report.scores import measure_networks, score, thresholds_of
from publishing import made_by, make_parser, result_path

NEEDED = {  # section beside the tables of transfer -> the methods that it compares with
    "eta": {"FMDN"},
    "dodging": set(),
    "layers": {"FMDN"},
    "audit": {"MI", "FMD"},
    "loss": set(),
    "cost": set(),
}
COST = {"memory", "overhead", "cost"}  # what the section cost measures


def main() -> None:
    keep_freed_memory()
    options = parse()
    cast = bpfa.make_cast(options.networks)
    budget = bpfa.Budget(
        eps=options.eps / 255,
        step_size=options.step_size / 255,
        steps=options.steps,
        spectra=options.spectra,
        neighbors=options.neighbors,
        drop=options.drop,
        seeds=tuple(range(options.seeds)),
    )
    name = dataset_name(options.faces)
    real = name != "procedural"
    engine = {"workers": options.workers, "device": options.device}
    benchmark = load_benchmark("lfw", options.faces, identities=None if real else options.people)
    how = {"calibration": options.calibration}
    pools = real_pools(*benchmark, options.pairs, **how) if real else procedural_pools(options.pairs, **how)
    print(pools.note, flush=True)
    path = result_path(options, bpfa.PAPER)
    shared = {"chapter": bpfa.CHAPTER, **made_by(options, seeds=budget.seeds, eps=budget.eps, steps=budget.steps)}
    if options.only_cost:
        print(write_results(with_new_cost(read_results(path), cast, budget, pools, options.device), path, **shared))
        return
    measured = measure_networks(cast.networks, benchmark, **engine)
    thresholds = thresholds_of(measured, faces=name)
    print(measured.drop(columns="address").to_string(float_format="{:.4f}".format), flush=True)
    engine["unit"] = options.unit
    rows = eta_rows(cast, budget, thresholds, pools, engine)
    budget = dataclasses.replace(budget, etas=bpfa.calibrated(rows))
    print("eta:", dict(budget.etas), flush=True)
    rows += study_rows(cast, budget, thresholds, options, pools, engine)
    print(write_results(rows, path, **shared))


def with_new_cost(published: pd.DataFrame, cast: bpfa.Cast, budget: bpfa.Budget, pools: Pools, device: str) -> list[dict]:
    """Published rows, each with what it says of its making, but memory and time measured now."""
    budget = dataclasses.replace(budget, etas=bpfa.calibrated(published.to_dict("records")))
    others = published[~published["metric"].isin(COST)]
    return others.to_dict("records") + cost_rows(cast, budget, pools, device)


def cost_rows(cast: bpfa.Cast, budget: bpfa.Budget, pools: Pools, device: str) -> list[dict]:
    rows = bpfa_probes.memory_rows(cast, budget, pools.first, device=device)
    return rows + bpfa_probes.cost_rows(cast, budget, pools.first, count=20, rounds=60, device=device)


def eta_rows(cast: bpfa.Cast, budget: bpfa.Budget, thresholds, pools: Pools, engine: dict) -> list[dict]:
    """Fig. 3, on pairs that are not reported."""
    study = run_trials(bpfa.eta_trials(cast, budget), pools.calibration, **engine)
    return bpfa.eta_rows(score(study, thresholds), cast, budget)


def study_rows(cast: bpfa.Cast, budget: bpfa.Budget, thresholds, options, pools: Pools, engine: dict) -> list[dict]:
    """The tables, claims and audits of the chosen sections."""
    chosen, rows, scores = options.sections, [], {}
    if "dodging" in chosen:
        rows += dodging_rows(cast, budget, thresholds, pools, engine)
    first, *_ = pools.reported
    for name, pairs in pools.reported.items():
        methods = options.methods if name == first else options.second
        if not methods:
            continue
        trials = bpfa.table_trials(cast, budget, methods)
        trials += section_trials(cast, budget, chosen) if name == first else []
        trials.sort(key=lambda trial: budget.copies(trial.method))  # the cheap ones first, in case there is no time for all
        scores[name] = score(run_trials(trials, pairs, **engine), thresholds)
        for kind in ("single", "combined"):
            rows += bpfa.transfer_rows(scores[name], cast, budget, name, kind)
            rows += bpfa.transfer_effects(scores[name], cast, budget, name, kind)
    found = scores[first]
    rows += bpfa.order_effects(found, cast, budget) + bpfa.curve_rows(found, cast, budget) + bpfa.compute_rows(found, cast, budget)
    if "eta" in chosen:
        rows += bpfa.eta_effects(found, cast, budget)
    if "layers" in chosen:
        rows += bpfa.layer_rows(found, cast, budget) + bpfa.layer_effects(found, cast, budget)
    if "audit" in chosen:
        rows += bpfa.audit_rows(found, cast, budget) + bpfa.deviation_rows(found, cast, budget)
    if "loss" in chosen:
        encoder = open_network(cast.encoders[0], options.device)
        rows += bpfa_probes.loss_rows(encoder, pools.first, budget, count=options.pairs, etas=cast.etas)
    if "cost" in chosen:
        rows += cost_rows(cast, budget, pools, options.device)
    return rows


def section_trials(cast: bpfa.Cast, budget: bpfa.Budget, chosen) -> list:
    """The attacks on the first benchmark beside those of the tables of transfer."""
    trials = []
    if "eta" in chosen:
        trials += bpfa.eta_controls(cast, budget)
    if "layers" in chosen:
        placements = bpfa.placements_of(cast)
        print(bpfa.left_out(placements), flush=True)
        trials += bpfa.layer_trials(cast, budget, placements)
    return trials + (bpfa.audit_trials(cast, budget) if "audit" in chosen else [])


def dodging_rows(cast: bpfa.Cast, budget: bpfa.Budget, thresholds, pools: Pools, engine: dict) -> list[dict]:
    """Tables VII and VIII on each benchmark, judged by the own and, where there is one, by another picture."""
    rows = []
    for (name, picture), pairs in pools.dodging.items():
        dodged = run_trials(bpfa.dodging_trials(cast, budget), pairs, **engine)
        scores = score(dodged, thresholds, at=bpfa.DODGING, dodging=True)
        rows += bpfa.dodging_rows(scores, cast, budget, name, picture)
        rows += bpfa.dodging_effects(scores, cast, budget, name, picture)
    return rows


def parse(arguments=None) -> argparse.Namespace:
    named = "zoo, addresses by commas (the first dodges, the second is audited), or a folder of ONNX files"
    parser = make_parser(__doc__, faces="procedural, or a folder of real faces, which are one benchmark", networks=named)
    parser.add_argument("--pairs", type=int, default=20, help="of each benchmark")
    parser.add_argument("--calibration", type=int, default=16, help="pairs of other people that eta is calibrated on")
    parser.add_argument("--steps", type=int, default=100)
    every = {"default": list(bpfa.METHODS), "choices": bpfa.METHODS}
    parser.add_argument("--methods", nargs="+", help="on the first benchmark, each with and without BPFA", **every)
    parser.add_argument("--second", nargs="*", help=f"methods on {' and '.join(set(BENCHMARKS) - {FIRST})}; with none only dodging", **every)
    parser.add_argument("--sections", nargs="*", choices=NEEDED, default=list(NEEDED), help="what is run beside the tables of transfer")
    parser.add_argument("--only-cost", action="store_true", help="measure memory and time again for the file that is there")
    parser.add_argument("--step-size", type=float, default=1.0, help="in gray levels")
    parser.add_argument("--eps", type=float, default=10.0, help="in gray levels")
    parser.add_argument("--spectra", type=int, default=20, help="copies of SSA")
    parser.add_argument("--neighbors", type=int, default=20, help="neighbors of VT")
    parser.add_argument("--drop", type=float, help="one drop rate for all; the paper's by architecture unless given")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--people", type=int, default=None, help="of the procedural benchmark; all by default")
    parser.add_argument("--unit", type=int, default=25, help="images crafted at once")
    options = parser.parse_args(arguments)
    if options.only_cost and not (path := result_path(options, bpfa.PAPER)).exists():
        parser.error(f"--only-cost renews the rows of a file, and there is no {path}")
    for section in options.sections:
        if missing := NEEDED[section] - set(options.methods):
            parser.error(f"--sections {section} compares with {' and '.join(sorted(missing))}; add it to --methods")
    return options


if __name__ == "__main__":
    main()
