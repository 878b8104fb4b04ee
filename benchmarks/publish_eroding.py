"""Chapter 4's published numbers: run the study at size and write data/results/4-gradient-eroding-*.csv.

    python benchmarks/publish_eroding.py --faces procedural --pairs 100 --steps 50
    python benchmarks/publish_eroding.py --faces ../real --networks ../shared/real/networks --pairs 40 --steps 30 --sections main single --every-source

A run that was killed goes on where it was: finished attacks are kept in the cache. Nothing is written to
data/results before all is done. Only numbers are written, never a picture.
"""

import argparse
from dataclasses import replace

from fa_utils.attacks.transfer import PairSet, benchmark_pairs, open_network, procedural_pairs, run_trials
from fa_utils.data import dataset_name, load_benchmark, to_float
from fa_utils.memory import keep_freed_memory
from fa_utils.paths import CACHE
from fa_utils.report import eroding, eroding_probes
from fa_utils.report.results import write_results
from fa_utils.report.scores import join, measure_networks, score, thresholds_of
from publishing import made_by, make_parser, result_path

SECTIONS = ("main", "single", "ensemble", "training", "service", "audit")


def main() -> None:
    keep_freed_memory()
    options = parse()
    cast = eroding.make_cast(options.networks)
    steps = {"eps": options.eps / 255, "step_size": options.step_size / 255, "steps": options.steps}
    budget = eroding.Budget(**steps, seeds=tuple(range(options.seeds)))
    real = options.faces != "procedural"
    benchmark = load_benchmark("lfw", options.faces, identities=None if real else options.people)
    engine = {"workers": options.workers, "device": options.device}
    measured = measure_networks(cast.networks, benchmark, **engine)
    thresholds = thresholds_of(measured, faces=dataset_name(options.faces))
    print(measured.drop(columns="address").to_string(float_format="{:.4f}".format), flush=True)
    pairs = benchmark_pairs(*benchmark, options.pairs) if real else procedural_pairs(options.pairs)
    engine["unit"] = options.unit
    rows = study_rows(options, cast, budget, pairs, benchmark, measured, thresholds, engine)
    shared = made_by(options, seeds=budget.seeds, eps=budget.eps, steps=budget.steps)
    print(write_results(rows, result_path(options, eroding.PAPER), chapter=eroding.CHAPTER, **shared))


def study_rows(options, cast: eroding.Cast, budget, pairs: PairSet, benchmark, measured, thresholds, engine: dict) -> list[dict]:
    """The rows of the chosen sections; the differences behind the claims are taken from all of them together."""
    chosen, surrogate = options.sections, open_network(cast.main, options.device)
    mains = dict.fromkeys((cast.main, *(cast.singles if options.every_source else ())))
    casts = [replace(cast, main=name) for name in mains]
    trials = [trial for turned in casts for trial in eroding.main_trials(turned, budget)]
    trials += eroding.white_box_trials(cast, budget) if "training" in chosen else []
    if "single" in chosen and not options.every_source:  # which are among the main ones otherwise
        trials += eroding.single_trials(cast, budget)
    trials += eroding.ensemble_trials(cast, budget) if "ensemble" in chosen else []
    study = run_trials(trials, pairs, **engine)
    rows = [row for turned in casts for row in eroding.main_rows(study, thresholds, turned, budget)]
    if "single" in chosen:
        rows += eroding.single_rows(study, thresholds, cast, budget)
    if "ensemble" in chosen:
        rows += eroding.ensemble_rows(study, thresholds, cast, budget)
    if "training" in chosen:
        rows += eroding.training_rows(study, thresholds, measured, cast, budget, protocol=len(benchmark[1]))
    if "service" in chosen:
        rows += eroding.service_rows(study, thresholds, cast, budget)
        gallery = eroding_probes.enrolled(pairs, people=options.gallery)
        how = {"device": options.device, "unit": options.unit, "checkpoint": CACHE / "attacks"}
        rows += eroding_probes.identification_rows(cast, budget, pairs, gallery, **how)
    rows += eroding.effects(study, thresholds, cast, budget, mains=tuple(mains))
    if "audit" in chosen:
        ghosts = eroding_probes.ghost_rows(surrogate, benchmark)
        spread = eroding_probes.calibrated_spread(ghosts)
        controls = join(study, run_trials(eroding.audit_trials(cast, budget, spread=spread), pairs, **engine))
        scores = score(controls, thresholds)
        rows += ghosts + eroding.audit_rows(scores, cast, budget) + eroding.compute_rows(scores, cast, budget)
        sides = (pairs.sources[pairs.source[:24]], pairs.targets[pairs.target[:24]])
        rows += eroding_probes.spread_rows(surrogate, *(to_float(side).to(options.device) for side in sides), budget)
    return rows


def parse() -> argparse.Namespace:
    named = "zoo, ONNX files by commas (the first is the main surrogate), or their folder"
    parser = make_parser(__doc__, faces="procedural, or a folder of real faces", networks=named)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--step-size", type=float, default=1.0, help="in gray levels")
    parser.add_argument("--eps", type=float, default=20.4, help="in gray levels")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--people", type=int, default=None, help="of the procedural benchmark; all by default")
    parser.add_argument("--gallery", type=int, default=200, help="people that are enrolled")
    parser.add_argument("--every-source", action="store_true", help="Tables I and II from every surrogate of Fig. 2, too, not the main one only")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--unit", type=int, default=25, help="images crafted at once")
    return parser.parse_args()


if __name__ == "__main__":
    main()
