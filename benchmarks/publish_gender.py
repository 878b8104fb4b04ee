"""Chapter 1's published numbers: attack, denoise and verify at size and write data/results/1-gender-transfer-*.csv.

    python benchmarks/publish_gender.py --identities 150 --workers 2
    python benchmarks/publish_gender.py --faces ../real/celeba --networks ../shared/real/networks/edgeface_xxs.onnx,../shared/real/networks/mobileface_v2.onnx

Photographs are divided by person: part A trains the gender classifiers, part C the denoisers, part B is reported. Nothing is
written to data/results before all is done. Trained classifiers and denoisers are kept in the cache. Only numbers are written, never
a picture.
"""

import argparse
import time

import pandas as pd

from fa_utils.attacks.craft import run_grid
from fa_utils.memory import keep_freed_memory
from fa_utils.report import gender, gender_classifiers, gender_faces, gender_probes, gender_verification
from fa_utils.report.results import write_results
from publishing import made_by, make_parser, result_path


def main() -> None:
    keep_freed_memory()
    options = parse()
    options.pictures_c = options.pictures_c or (5 if options.faces == "procedural" else 20)
    engine = {"device": options.device, "workers": options.workers}
    if options.faces != "procedural":
        print(pd.DataFrame(gender_faces.describe_parts(options.faces, pictures=options.pictures)).to_string(index=False), flush=True)
    cast = gender_classifiers.make_cast(options.faces, options.networks, epochs=options.classifier_epochs, **engine)
    rows = []
    for backbone in cast.values():
        rows += gender_classifiers.classifier_rows(backbone, pictures=options.pictures, device=options.device)
    tell("classifiers", rows)
    denoisers, learned, held = defend(options, cast)
    tell("denoisers")
    specs = []
    for name, backbone in cast.items():
        defenses = {key[2]: model for key, model in denoisers.items() if key[:2] == (name, "FGSM-fixed")}
        rows += classifier_rows(backbone, defenses, held, options)
        tell(f"{name}: accuracies")
        plan = gender_probes.Plan(
            backbone, options.identities, options.pictures, audit=options.audit, fgsm_denoiser=defenses["LGD"],
            pgd_denoiser=denoisers[name, "PGD-ATK", "LGD"], device=options.device, seed=options.seed,
        )  # fmt: skip
        measured = gender_probes.measure(plan, people=5, workers=options.workers)
        first = next(iter(measured.values()))  # what the classifier says is the same for every face network
        sets = [{attack: part[name, attack] for attack in ("FGSM-fixed", "PGD-ATK")} for part in (learned, held)]
        rows += gender.sets_rows(backbone, *sets, first) + gender_verification.transfer_rows(first, backbone)
        rows += gender_verification.bits_rows(first, backbone)
        specs += [(backbone.judged_by(target), part, options.resamples, options.seed) for target, part in measured.items()]
        tell(f"{name}: attacked")
    if options.networks != "zoo":
        for backbone, part, resamples, seed in specs[: len(measured)]:
            rows += gender_verification.recognizer_rows(part, backbone.targets[0], n_resamples=resamples, seed=seed)
    for record in run_grid(specs, gender_verification.backbone_rows, workers=options.workers):
        rows += record["rows"]
    tell("verified")
    shared = made_by(options, seeds=options.seed, eps=max(backbone.ball for backbone in cast.values()), steps=1)
    print(write_results(rows, result_path(options, gender.PAPER), chapter=gender.CHAPTER, **shared))


def tell(stage: str, rows: list[dict] = ()) -> None:
    """Say which stage is over and when; and the accuracies among some rows."""
    print(f"[{time.process_time():.0f} s of processor time] {stage}", flush=True)
    for row in rows:
        print("  ", *(row[key] for key in ("source", "method", "metric")), f"{row['value']:.2f}", flush=True)


def defend(options, cast: dict) -> tuple[dict, dict, dict]:
    """Attack part C and train all denoisers."""
    learned, held = {}, {}
    where = {"identities": options.people_c, "pictures": options.pictures_c, "device": options.device, "seed": options.seed}
    for name, backbone in cast.items():
        for attack in ("FGSM-fixed", "PGD-ATK"):
            found = gender_probes.collect_successes(backbone, attack, **where)
            learned[name, attack], held[name, attack] = found.split(seed=options.seed)
            print(name, attack, len(found), "of", found.images, flush=True)
    training = gender.Training(
        width=options.width, epochs=options.epochs, batch=options.batch, learning_rate=options.learning_rate, most=options.most,
        seed=options.seed,
    )  # fmt: skip
    wanted = [key for backbone in cast.values() for key in gender.wanted_denoisers(backbone)]
    classifiers = {name: backbone.classifier for name, backbone in cast.items()}
    engine = {"device": options.device, "workers": options.workers}
    return gender.train_all(wanted, learned, training, classifiers=classifiers, **engine), learned, held


def classifier_rows(backbone, defenses: dict, held: dict, options) -> list[dict]:
    """Figures 4 to 6, Tables 3 and 4, claims 1 to 3."""
    where = {"pictures": options.pictures, "device": options.device}
    correct, people = gender_probes.sweep_correct(
        backbone, gender.SWEEP, identities=options.sweep, seed=options.seed, **where
    )
    rows = gender.sweep_rows(backbone, gender.SWEEP, correct, people)
    rows += gender.sweep_effects(backbone, gender.SWEEP, correct["none"], people)
    if backbone.name != "VGG16":
        return rows
    after, people = gender_probes.sweep_correct(
        backbone, gender.SWEEP[::2], identities=max(4, options.sweep // 4), denoisers=defenses, seed=options.seed, **where
    )
    rows += gender.sweep_rows(backbone, gender.SWEEP[::2], {k: v for k, v in after.items() if k != "none"}, people)
    defended = gender.defense_correct(backbone, held["VGG16", "FGSM-fixed"], defenses, identities=options.sweep, **where)
    return rows + gender.defense_rows(defended) + gender.defense_effects(defended)


def parse() -> argparse.Namespace:
    named = "zoo, or face networks by commas, which judge both backbones"
    parser = make_parser(__doc__, faces="procedural, or a folder of real faces with gender labels", networks=named)
    parser.add_argument("--classifier-epochs", type=int, default=gender_classifiers.EPOCHS, help="of the classifiers of real faces")
    parser.add_argument("--identities", type=int, default=150, help="people of part B, at most")
    parser.add_argument("--pictures", type=int, default=15, help="of each")
    parser.add_argument("--people-c", type=int, default=300, help="people of part C, at most")
    parser.add_argument("--pictures-c", type=int, help="of each; 5 of procedural people, 20 of real ones by default")
    parser.add_argument("--sweep", type=int, default=60, help="people of Figures 4 to 6")
    parser.add_argument("--audit", type=int, default=60, help="people of the audit")
    parser.add_argument("--resamples", type=int, default=100)
    parser.add_argument("--width", type=int, default=16, help="channels of the denoisers; published: 64")
    parser.add_argument("--epochs", type=int, default=2, help="of the denoisers")
    parser.add_argument("--batch", type=int, default=8, help="of the denoisers")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the denoisers")
    parser.add_argument("--most", type=int, default=8000, help="pictures that a denoiser learns from, at most")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
