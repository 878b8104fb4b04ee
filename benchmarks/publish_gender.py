"""Chapter 1's published numbers: attack, denoise and verify at size and write data/results/1-gender-transfer-procedural.csv.

    python benchmarks/publish_gender.py --identities 200 --workers 2

Nothing is written to data/results before all is done. Trained denoisers are kept in the cache. Only numbers are written,
never a picture.
"""

import argparse
import shlex
import sys

from fa_utils.attacks.craft import run_grid
from fa_utils.memory import keep_freed_memory
from fa_utils.paths import RESULTS
from fa_utils.report import gender, gender_probes, gender_verification
from fa_utils.report.gender_probes import BACKBONES
from fa_utils.report.results import provenance, write_results


def main() -> None:
    keep_freed_memory()
    options = parse()
    denoisers, learned, held = defend(options)
    rows, measured = [], {}
    for name, backbone in BACKBONES.items():
        defenses = {key[2]: model for key, model in denoisers.items() if key[:2] == (name, "FGSM-fixed")}
        rows += classifier_rows(backbone, defenses, held, options)
        plan = gender_probes.Plan(
            name, options.identities, options.pictures, audit=options.audit, fgsm_denoiser=defenses["LGD"],
            pgd_denoiser=denoisers[name, "PGD-ATK", "LGD"], device=options.device, seed=options.seed,
        )  # fmt: skip
        measured[name] = gender_probes.measure(plan, people=5, workers=options.workers)
        sets = [{attack: part[name, attack] for attack in ("FGSM-fixed", "PGD-ATK")} for part in (learned, held)]
        rows += gender.sets_rows(backbone, *sets, measured[name])
        print(name, "attacked", flush=True)
    specs = [(name, measured[name], options.resamples, options.seed) for name in BACKBONES]
    for record in run_grid(specs, gender_verification.backbone_rows, workers=options.workers):
        rows += record["rows"]
    shared = provenance(
        faces="procedural",
        networks="zoo",
        profile=options.profile,
        seeds=options.seed,
        eps=max(backbone.ball for backbone in BACKBONES.values()),
        steps=1,
        device=options.device,
        command=shlex.join(["python", "benchmarks/publish_gender.py", *sys.argv[1:]]),
    )
    print(write_results(rows, RESULTS / "1-gender-transfer-procedural.csv", chapter=gender.CHAPTER, **shared))


def defend(options) -> tuple[dict, dict, dict]:
    """Attack part C and train all denoisers."""
    learned, held = {}, {}
    for name, backbone in BACKBONES.items():
        for attack in ("FGSM-fixed", "PGD-ATK"):
            found = gender_probes.collect_successes(
                backbone, attack, identities=options.people_c, device=options.device, seed=options.seed
            )
            learned[name, attack], held[name, attack] = found.split(seed=options.seed)
            print(name, attack, len(found), "of", found.images, flush=True)
    training = gender.Training(
        width=options.width, epochs=options.epochs, batch=options.batch, learning_rate=options.learning_rate, most=options.most,
        seed=options.seed,
    )  # fmt: skip
    wanted = [key for backbone in BACKBONES.values() for key in gender.wanted_denoisers(backbone)]
    return gender.train_all(wanted, learned, training, device=options.device, workers=options.workers), learned, held


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=150, help="people of part B")
    parser.add_argument("--pictures", type=int, default=15, help="of each")
    parser.add_argument("--people-c", type=int, default=300, help="people of part C, five pictures each")
    parser.add_argument("--sweep", type=int, default=60, help="people of Figures 4 to 6")
    parser.add_argument("--audit", type=int, default=60, help="people of the audit")
    parser.add_argument("--resamples", type=int, default=100)
    parser.add_argument("--width", type=int, default=16, help="channels of the denoisers; published: 64")
    parser.add_argument("--epochs", type=int, default=2, help="of the denoisers")
    parser.add_argument("--batch", type=int, default=8, help="of the denoisers")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the denoisers")
    parser.add_argument("--most", type=int, default=8000, help="pictures that a denoiser learns from, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", default="published", help="name of this size in the results")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
