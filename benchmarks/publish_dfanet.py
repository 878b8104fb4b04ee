"""Chapter 3's published numbers: run the transfer study at size and write data/results/3-dfanet-*.csv.

    python benchmarks/publish_dfanet.py --faces procedural --pairs 100 --steps 100
    python benchmarks/publish_dfanet.py --faces ../real --networks ../shared/real/networks --pairs 100 --steps 50

A run that was killed goes on where it was: finished attacks are kept in the cache. Nothing is written to
data/results before all is done. Only numbers are written, never a picture.
"""

import argparse

from fa_utils.attacks.rewrite import rewrite_benchmark
from fa_utils.attacks.transfer import PairSet, benchmark_pairs, procedural_pairs, run_trials
from fa_utils.data import FaceSet, Pairs, dataset_name, load_benchmark
from fa_utils.memory import keep_freed_memory
from fa_utils.models.recipes import RECIPES
from fa_utils.report import dfanet, talfw
from fa_utils.report.results import result_row, write_results
from fa_utils.report.scores import FAR_TEXT, join, measure_networks, score, thresholds_of
from publishing import made_by, make_parser, result_path

SECTIONS = ("transfer", "label", "rates", "ensembles", "audit", "talfw")


def main() -> None:
    keep_freed_memory()
    options = parse()
    cast = dfanet.make_cast(options.networks)
    budget = dfanet.Budget(
        eps=options.eps / 255,
        steps=options.steps,
        short=min(13, options.steps),
        drop=options.drop,
        seeds=tuple(range(options.seeds)),
    )
    real = options.faces != "procedural"
    benchmark = load_benchmark("lfw", options.faces, identities=None if real else options.people)
    engine = {"workers": options.workers, "device": options.device}
    measured = measure_networks(cast.networks, benchmark, **engine)
    thresholds = thresholds_of(measured, faces=dataset_name(options.faces))
    print(measured.drop(columns="address").to_string(float_format="{:.4f}".format), flush=True)

    pairs = benchmark_pairs(*benchmark, options.pairs) if real else procedural_pairs(options.pairs)
    rows = network_rows(measured, benchmark)
    engine["unit"] = options.unit
    rows += study_rows(options.sections, cast, budget, pairs, thresholds, options.rates, options.methods, engine)
    if "talfw" in options.sections:
        small = benchmark if real else load_benchmark("lfw", identities=options.talfw_people)
        rows += talfw_rows(cast, budget, small, engine)
    shared = made_by(options, seeds=budget.seeds, eps=budget.eps, steps=budget.steps)
    print(write_results(rows, result_path(options, "3-dfanet"), chapter=dfanet.CHAPTER, **shared))


def parse() -> argparse.Namespace:
    parser = make_parser(
        __doc__, faces="procedural, or a folder of real faces", networks="zoo, a folder of ONNX files, or files by commas"
    )
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the random methods")
    parser.add_argument("--eps", type=float, default=10, help="budget in grey levels")
    parser.add_argument("--drop", type=float, help="one drop rate for all; the paper's by architecture unless given")
    parser.add_argument("--rates", type=float, nargs="+", default=[0, 0.0125, 0.025, 0.05, 0.1, 0.2])
    parser.add_argument("--methods", nargs="+", choices=dfanet.METHODS, default=list(dfanet.METHODS))
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS[:-1]))
    parser.add_argument("--people", type=int, help="people of the procedural benchmark; all 1500 unless given")
    parser.add_argument("--talfw-people", type=int, default=200, help="people of the procedural TALFW")
    parser.add_argument("--unit", type=int, default=20, help="pictures attacked at once")
    return parser.parse_args()


def network_rows(measured, benchmark: tuple[FaceSet, Pairs]) -> list[dict]:
    """Table A2: accuracy and thresholds."""
    rows, count = [], len(benchmark[1])
    for name, row in measured.iterrows():
        place = {"table": "Table A2", "source": name, "target": "LFW"}
        rows.append(result_row("accuracy", row["accuracy"], count, **place))
        for far, text in FAR_TEXT.items():
            if row[far] == row[far]:  # nan: not resolved
                rows.append(result_row("threshold", row[far], count, far=text, **place))
    return rows


def study_rows(sections, cast, budget, pairs: PairSet, thresholds, rates, methods, engine: dict) -> list[dict]:
    """Every table, figure, difference and control that the sections ask for."""
    curve = sorted({*range(1, 31), *range(30, budget.steps + 1, 5), budget.steps} & set(range(1, budget.steps + 1)))
    study = run_trials(dfanet.transfer_trials(cast, budget, methods=methods, curve=curve), pairs, **engine)
    scores = score(study, thresholds)
    rows = dfanet.transfer_rows(scores, cast, budget)
    rows += dfanet.curve_rows(scores, cast, curve) + dfanet.distance_rows(study, cast)
    rows += dfanet.transfer_effects(scores, cast, budget)
    if "label" in sections:
        label = score(run_trials(dfanet.label_trials(cast, budget), pairs, **engine), thresholds)
        rows += dfanet.label_rows(label, cast, budget) + dfanet.label_effects(label, cast, budget)
    if "rates" in sections:
        more = run_trials(dfanet.rate_trials(cast, budget, rates), pairs, **engine)
        both = score(join(study, more), thresholds)
        rows += dfanet.rate_rows(both, cast, budget, rates) + dfanet.rate_effects(both, cast, budget, rates)
    if "ensembles" in sections and cast.held_out:
        ensembles = run_trials(dfanet.ensemble_trials(cast, budget), pairs, **engine)
        rows += dfanet.ensemble_rows(ensembles, thresholds, budget)
        rows += dfanet.ensemble_effects(ensembles, thresholds, budget)
    if "audit" in sections:
        controls = join(study, run_trials(dfanet.audit_trials(cast, budget), pairs, **engine))
        rows += dfanet.audit_rows(score(controls, thresholds), controls, cast, budget)
    return rows


def talfw_rows(cast, budget, benchmark: tuple[FaceSet, Pairs], engine: dict) -> list[dict]:
    """Table VI and claim 9: the benchmark rewritten by an ensemble, at a reduced budget."""
    faces, pairs = benchmark
    surrogates = cast.ensembles[0] if cast.ensembles else cast.networks[:1]
    attacked, chosen = rewrite_benchmark(faces, pairs, dfanet.rewriting_attack(budget, surrogates), surrogates, **engine)
    judges = {key: engine[key] for key in ("workers", "device")}
    zoo = cast.main in RECIPES  # the adversarially trained network knows rendered faces only
    defended = talfw.DEFENDED if zoo and talfw.has_defended_network() else None
    frame = talfw.verify(cast.networks, cast.main, faces, attacked, pairs, defended=defended, **judges)
    rows = talfw.accuracy_rows(frame, faces, pairs) + talfw.accuracy_effects(frame, faces, pairs)
    return rows + talfw.deviation_rows(faces, attacked, chosen)


if __name__ == "__main__":
    main()
