"""Chapter 2's published numbers: run the study at size and write data/results/2-mi-privacy-*.csv.

    python benchmarks/publish_privacy.py --images 1000 --grid fine --workers 2
    python benchmarks/publish_privacy.py --faces ../real/lfw --extractor a.onnx b.onnx --networks a.onnx,b.onnx --people 1000

A run that was killed goes on where it was: templates and probes are kept in the cache. Nothing is written to
data/results before an extractor's study is done; the rows of other extractors that the file has stay in it. Only numbers
are written, never a picture.
"""

import argparse
import time
from pathlib import Path

import pandas as pd

from fa_utils.memory import keep_freed_memory
from fa_utils.report import privacy, privacy_probes
from fa_utils.report.privacy_cases import (
    ATTACKS,
    DEFAULT,
    Errors,
    Plan,
    choose_optima,
    iterated,
    open_cases,
    read_clean,
    readers_of,
    sweep_attacks,
    whole_attacks,
)
from fa_utils.report.results import read_results, results_frame, write_results
from publishing import made_by, make_parser, result_path


def main() -> None:
    keep_freed_memory()
    options = parse()
    path = result_path(options, privacy.PAPER)
    for extractor in options.extractor:
        frame = publish(extractor, options)
        print(write_results(beside_others(frame, path), path), flush=True)


def publish(extractor: str, options) -> pd.DataFrame:
    """The study with one extractor."""
    plan = Plan(
        people=options.people,
        images=options.images,
        iterations=options.iterations,
        grid_name=options.grid,
        utility=tuple(options.utility),
        folds=options.folds,
        extractor=extractor,
        readers=readers_of(options.networks),
        faces=options.faces,
        pace=options.pace,
        seed=options.seed,
        device=options.device,
        workers=options.workers,
    )
    print(plan.networks, flush=True)
    rows = study_rows(plan, options.levels)
    shared = made_by(options, networks=plan.networks, seeds=plan.seed, eps=DEFAULT[-1], steps=1)
    frame = results_frame(rows, chapter=privacy.CHAPTER, **shared)
    for claim in privacy.make_claims(frame, None):
        print(claim.number, claim.published and (claim.published.verdict, claim.published.detail), flush=True)
    return frame


def beside_others(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows with those that a file has of other extractors."""
    kept = read_results(path)
    kept = kept[~kept["networks"].isin(frame["networks"])]
    return pd.concat([kept, frame], ignore_index=True) if len(kept) else frame


def study_rows(plan: Plan, levels: int) -> list[dict]:
    """All tables, claims and audits."""
    started = time.monotonic()

    def report(words: str) -> None:
        print(f"{time.monotonic() - started:7.0f} s  {words}", flush=True)

    cases = open_cases(plan, progress=False)
    report("estimators and classifiers")
    choose_optima(cases, plan, progress=False)
    report("eps*: " + "; ".join(f"{name} {case.optimum}" for name, case in cases.items()))
    sweep_attacks(cases, plan, ATTACKS, plan.epsilons, progress=False)
    report("Figures 3 and 4")
    trained = [iterated(steps) for steps in plan.checkpoints]
    sweep_attacks(cases, plan, trained, plan.few, progress=False)
    report("Figure 2")
    rows = read_clean(cases, plan, progress=False)
    for case in cases.values():
        rows += privacy.curve_rows(case, "Fig. 2", trained, plan.few)
        rows += privacy.curve_rows(case, "Fig. 3", ATTACKS, DEFAULT) + privacy.curve_rows(case, "Fig. 4", ATTACKS, plan.grid)
        rows += privacy.optimum_rows(case) + privacy.setting_effects(case, plan) + privacy.training_effects(case, plan, plan.few)
        rows += privacy_probes.mixture_rows(case, plan, progress=False) + privacy_probes.information_rows(case, plan)
    report("Figure 5, information")
    whole = whole_attacks(cases, plan, progress=False)
    report("attacks on all pictures")
    eliminations = privacy_probes.fit_eliminations(cases, plan, progress=False)
    report("IVE and Multi-IVE fitted")
    for name, case in cases.items():
        errors = Errors(case.benchmark)
        found = privacy_probes.eliminated(case, eliminations[name], plan, levels=levels, progress=False)
        rows += privacy.utility_rows(case, whole[name], errors) + privacy_probes.elimination_rows(case, found, errors)
        rows += privacy_probes.table_rows(case, whole[name], found, errors) + privacy.utility_effects(case, whole[name], errors)
        rows += privacy_probes.one_sided_rows(case, whole[name], errors)
        report(f"Table 2, {name}")
    rows += privacy_probes.audit_rows(cases, plan, progress=False)
    report("audit")
    return rows


def parse() -> argparse.Namespace:
    named = "others that read the attacked pictures: zoo, or addresses by commas"
    parser = make_parser(__doc__, faces="procedural, or real faces that have the label gender", networks=named)
    parser.add_argument("--extractor", nargs="+", default=[Plan().extractor], help="one or more, a study of each")
    parser.add_argument("--people", type=int, default=None, help="of each benchmark; all by default")
    parser.add_argument("--images", type=int, default=1500, help="of the balanced sets, at most")
    parser.add_argument("--iterations", type=int, default=15000, help="of the estimator")
    parser.add_argument("--grid", default="fine", help="steps of the sensitive range: quick, coarse, fine or full")
    parser.add_argument("--utility", type=float, nargs="+", default=[0.0012, 0.003, 0.006, 0.03, 0.3], help="eps for all pictures")
    parser.add_argument("--levels", type=int, default=10, help="numbers of elimination steps that are tried")
    parser.add_argument("--folds", type=int, default=10, help="of the verification protocol")
    parser.add_argument("--pace", type=int, default=1, help="published elimination steps that are taken at once")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
