"""What chapter 1 computes from its variants, and how tables, differences and claims come from it.

The same functions serve the notebook (live) and ``benchmarks/publish_gender.py`` (published).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fa_utils.attacks.craft import run_grid
from fa_utils.defenses.denoisers import DenoiserRecipe, train_denoiser
from fa_utils.metrics import Interval, two_way_bootstrap, wilson_interval
from fa_utils.report import gender_probes as probes
from fa_utils.report.gender_probes import Backbone, Measured, Successes
from fa_utils.report.gender_verification import ATTACKS, f1_scores, successes
from fa_utils.report.results import result_row

CHAPTER = "1_gender_transfer"
PAPER = "1-gender-transfer"
SWEEP = (
    0.005, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035, 0.040, 0.050, 0.060, 0.080, 0.100,
    0.110, 0.115, 0.120, 0.125, 0.130, 0.135, 0.150, 0.200, 0.300, 0.400, 0.550,
)  # fmt: skip
DEFENSES = {"PGD": "pixel", "FGD": "last_conv", "FC2GD": "fc2", "LGD": "logits"}
CORRECTED = "LGD, corrected batch norm"


# ---------------------------------------------------------------- denoisers


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the denoisers are trained; UDnCNN's published width is 64, and its batch norm's epsilon too."""

    width: int = 64
    epochs: int = 10
    batch: int = 16
    learning_rate: float = 1e-3
    most: int = 100_000  # pictures at most, evenly taken
    seed: int = 0

    def recipe(self, defense: str) -> DenoiserRecipe:
        """The recipe of a defense by the paper's name, or of `CORRECTED`."""
        loss = DEFENSES["LGD" if defense == CORRECTED else defense]
        return DenoiserRecipe(
            loss=loss,
            width=self.width,
            bn_eps=1e-5 if defense == CORRECTED else 64.0,
            epochs=self.epochs,
            batch=self.batch,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )


def wanted_denoisers(backbone: Backbone) -> list[tuple[str, str, str]]:
    """(backbone, attack, defense) of every denoiser of the paper; VGG16 has all of them, ResNet50 the LGD."""
    defenses = [*DEFENSES, CORRECTED] if backbone.name == "VGG16" else ["LGD"]
    return [(backbone.name, "FGSM-fixed", defense) for defense in defenses] + [(backbone.name, "PGD-ATK", "LGD")]


def train_all(
    wanted: Sequence[tuple[str, str, str]],
    learned: Mapping[tuple[str, str], Successes],
    training: Training,
    *,
    classifiers: Mapping[str, str],
    device: str = "cpu",
    workers: int = 1,
    progress: bool = True,
) -> dict[tuple[str, str, str], torch.nn.Module]:
    """Train every denoiser, ``workers`` at a time; finished ones come from the cache.

    Parameters
    ----------
    wanted : (backbone, attack, defense)
    learned : Successes by (backbone, attack)
        The training parts.
    classifiers : str by backbone
        The attacked classifiers, as `fa_utils.report.gender_probes.classifier_of` takes them.
    """
    specs = [
        (key, classifiers[key[0]], _some(learned[key[:2]], training.most), training, device) for key in wanted
    ]
    records = run_grid(specs, _train_one, workers=workers, progress=progress)
    return {key: record["denoiser"] for key, record in zip(wanted, records, strict=True)}


def _train_one(spec) -> dict:
    (_, _, defense), classifier, learned, training, device = spec
    classifier = probes.classifier_of(classifier, device)
    model = train_denoiser(
        training.recipe(defense), classifier, learned.clean, learned.adversarial, device=device, progress=False
    )
    return {"denoiser": model.cpu()}


def _some(successes: Successes, most: int) -> Successes:
    if len(successes) <= most:
        return successes
    return successes.take(np.linspace(0, len(successes) - 1, most).astype(int))


# ---------------------------------------------------------------- intervals by person


def share_interval(correct: np.ndarray, people: np.ndarray) -> Interval:
    """A share of pictures with an interval clustered by person; Wilson's over people where all agree."""
    correct = np.asarray(correct, dtype=float)
    if correct.ndim == 1 and correct.min() == correct.max() and correct.min() in (0.0, 1.0):
        count = len(np.unique(people))
        return wilson_interval(int(correct.min()) * count, count)
    return two_way_bootstrap(correct, people, people, seed=0)


# ---------------------------------------------------------------- classifier: sweep and denoisers


def sweep_rows(backbone: Backbone, epsilons: Sequence[float], correct: Mapping[str, np.ndarray], people: np.ndarray) -> list[dict]:
    """Figures 4 (VGG16), 6 (ResNet50) and 5 (with denoisers): accuracy at each eps in column ``x``."""
    rows = []
    for defense, values in correct.items():
        table = {"VGG16": "Fig. 4", "ResNet50": "Fig. 6"}[backbone.name] if defense == "none" else "Fig. 5"
        for eps, right in zip(epsilons, values, strict=True):
            place = {"table": table, "source": backbone.name, "method": defense, "x": eps}
            rows.append(result_row("accuracy", share_interval(right, people), len(right), **place))
    return rows


def sweep_effects(backbone: Backbone, epsilons: Sequence[float], correct: np.ndarray, people: np.ndarray) -> list[dict]:
    """Claim 1: what lies outside the paper's range is less vulnerable."""
    eps, right = np.asarray(epsilons), correct.astype(float)
    inside = np.isin(eps, backbone.grid)
    if backbone.name == "VGG16":
        gap = right[eps >= 0.04].mean(0) - right[inside].mean(0)
        name = "VGG16: from 0.040 on, minus 0.010 to 0.035"
    else:
        lowest = int(np.argmin(np.where(inside, np.inf, right.mean(1))))
        gap = right[lowest] - right[inside].mean(0)
        name = f"ResNet50: {eps[lowest]:.3f}, the lowest outside, minus 0.110 to 0.135"
    return [_difference("claim 1", "accuracy", gap, people, method=name, source=backbone.name)]


def _difference(table: str, metric: str, gap: np.ndarray, people: np.ndarray, **place) -> dict:
    interval = two_way_bootstrap(gap, people, people, seed=0)
    return result_row(f"{metric}_difference", interval, len(gap), table=table, **place)


def sets_rows(backbone: Backbone, learned: Mapping[str, Successes], held: Mapping[str, Successes], measured: Measured) -> list[dict]:
    """Tables 1 and 2: pictures in the sets."""
    table = {"VGG16": "Table 1", "ResNet50": "Table 2"}[backbone.name]
    rows = []
    for attack in ATTACKS:
        place = {"table": table, "source": backbone.name, "method": attack}
        if attack in learned:
            rows.append(result_row("count", len(learned[attack]), learned[attack].images, target="C_AdvTrain/C_CleanTrain", **place))
            rows.append(result_row("count", len(held[attack]), held[attack].images, target="C_AdvTest/C_CleanTest", **place))
        hits = successes(measured, backbone, attack)
        rows.append(result_row("count", int(hits.sum()), len(measured), target="B_Trans", **place))
        people = len(np.unique(measured.identity[hits.any(0)]))
        rows.append(result_row("count", people, len(measured), target="B_Trans, identities", **place))
    return rows


def defense_correct(
    backbone: Backbone, held: Successes, denoisers: Mapping[str, torch.nn.Module], *, identities: int, pictures: int, device: str = "cpu"
) -> dict[str, dict[str, np.ndarray]]:
    """Is the classifier right, by images ("adversarial C_test", "clean B") and defense? With ``label`` and ``people`` beside."""
    classifier = probes.classifier_of(backbone.classifier, device)
    faces = probes.load_part(backbone.faces, "B", identities=identities, pictures=pictures)
    sets = {
        "clean B": (faces.images, probes.gender_of(faces).numpy(), faces.identity),
        "adversarial C_test": (held.adversarial, held.label, held.person),
    }
    found = {}
    for name, (images, labels, people) in sets.items():
        found[name] = {"label": labels, "people": people}
        for defense, model in {"none": None, **denoisers}.items():
            parts = []
            for rows in probes._batches(len(images)):
                batch, truth = torch.from_numpy(np.array(images[rows])).to(device).float() / 255, torch.from_numpy(labels[rows])
                batch = batch if model is None else probes.clean_up(model.to(device), batch)
                parts.append(probes.is_correct(classifier, batch, truth))
            found[name][defense] = np.concatenate(parts)
    return found


def defense_rows(found: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict]:
    """Tables 3 (accuracy) and 4 (F1, label 1 positive; macro average in ``far``'s place is spelled out)."""
    rows = []
    for images, values in found.items():
        labels, people = values["label"], values["people"]
        for defense in [name for name in values if name not in ("label", "people")]:
            place = {"source": "VGG16", "method": defense, "target": images}
            right = values[defense]
            rows.append(result_row("accuracy", share_interval(right, people), len(right), table="Table 3", **place))
            one, macro = f1_scores(right, labels)
            rows.append(result_row("f1", one, len(right), table="Table 4", **place))
            rows.append(result_row("f1", macro, len(right), table="Table 4, macro", **place))
    return rows


def defense_effects(found: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict]:
    """Claims 2 and 3: which denoiser is better on attacked and on clean pictures."""
    comparisons = {
        ("claim 2", "adversarial C_test"): [("FGD", "PGD"), ("FC2GD", "PGD"), ("LGD", "PGD"), ("FC2GD", "FGD"), ("FC2GD", "LGD")],
        ("claim 3", "clean B"): [("PGD", "LGD"), ("LGD", "FC2GD"), ("FC2GD", "FGD")],
        ("Audit: batch norm", "adversarial C_test"): [(CORRECTED, "LGD")],
        ("Audit: batch norm", "clean B"): [(CORRECTED, "LGD")],
    }
    rows = []
    for (table, images), pairs in comparisons.items():
        values = found[images]
        for better, worse in pairs:
            gap = values[better].astype(float) - values[worse]
            place = {"method": f"{better} minus {worse}", "source": "VGG16", "target": images}
            rows.append(_difference(table, "accuracy", gap, values["people"], **place))
    return rows
