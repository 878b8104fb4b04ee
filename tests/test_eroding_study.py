"""Chapter 4's study: who plays which part, what is run, and how claims follow from numbers."""

import numpy as np
import pandas as pd
import pytest
import torch
from attack_networks import pictures, residual_encoder
from torch import nn

from fa_utils.attacks import GhostNetwork, GradientEroding, SkipGradient
from fa_utils.attacks.transfer import PairSet, Study
from fa_utils.data import FaceSet
from fa_utils.models.iresnet import SumUnit
from fa_utils.models.onnx import BlackBox
from fa_utils.models.recipes import ERODING_LIBRARY, RECIPES
from fa_utils.report import eroding, eroding_probes, eroding_show
from fa_utils.report.claims import FAILS, HOLDS, UNDECIDED
from fa_utils.report.eroding import BASES, GHOST, METHODS, OURS, RESIDUAL, SKIP, Budget, make_cast
from fa_utils.report.results import read_results, results_frame
from fa_utils.report.scores import significant

PAIRS = 60
SHARED = {
    "faces": "procedural", "networks": "zoo", "profile": "test", "seeds": "0", "eps": 0.08, "steps": 4, "device": "cpu",
    "package_version": "0", "commit": "c", "date": "2026-01-01", "command": "x",
}  # fmt: skip


@pytest.fixture(scope="module")
def cast():
    return make_cast("a.onnx,b.onnx,c.onnx,d.onnx")


@pytest.fixture(scope="module")
def budget():
    return Budget(steps=4)


def study_of(cast, budget, gain) -> Study:
    """An invented study: ``gain(base, variant)`` is the share of pairs that a method hits, the same pairs first."""
    trials = eroding.main_trials(cast, budget) + eroding.single_trials(cast, budget) + eroding.ensemble_trials(cast, budget)
    frames = []
    for trial in trials:
        base, _, rest = trial.method.partition("+")
        hit = np.arange(PAIRS) < round(PAIRS * gain(base, f"+{rest}" if rest else ""))
        for step, judges in trial.looks:
            for judge in judges:
                columns = {"source": trial.label, "method": trial.method, "seed": 0, "step": step, "pair": np.arange(PAIRS)}
                columns |= {"source_id": np.arange(PAIRS), "target_id": np.arange(PAIRS), "target": judge.split(".")[0]}
                frames.append(pd.DataFrame(columns | {"similarity": np.where(hit, 0.8, 0.2), "rmsd": 5.0}))
    return Study(pd.concat(frames, ignore_index=True), pd.DataFrame())


def thresholds_of(cast) -> pd.DataFrame:
    names = [name.split(".")[0] for name in cast.networks]
    return pd.DataFrame({1e-3: 0.5, "best": 0.1}, index=names)


def judged(cast, budget, gain):
    rows = eroding.effects(study_of(cast, budget, gain), thresholds_of(cast), cast, budget)
    return eroding.judge_effects(results_frame(rows, chapter=eroding.CHAPTER, **SHARED))


# ---------------------------------------------------------------- parts


def test_the_library_mirrors_the_papers():
    cast = make_cast("zoo")
    assert len(cast.library) == 15 and set(cast.library) == set(ERODING_LIBRARY.values()) <= set(RECIPES)
    assert cast.main in cast.ensemble and len(cast.ensemble) == 3 and not set(cast.held_out) & set(cast.ensemble)
    assert len({(r.layout, r.width) for r in map(RECIPES.get, cast.library)}) >= 8
    few = make_cast("zoo", library=7)
    assert set(few.library) < set(cast.library) and few.main == cast.main and set(few.held_out) <= set(few.library)


def test_a_surrogate_never_judges_itself(cast, budget):
    trials = eroding.main_trials(cast, budget) + eroding.ensemble_trials(cast, budget)
    for trial in trials + eroding.audit_trials(cast, budget, spread=0.4):
        assert not {judge for _, judges in trial.looks for judge in judges} & set(trial.source)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_cast("a.onnx,b.onnx"), "at least 3 different networks"),
        (lambda: make_cast("a.onnx,b.onnx,a.onnx"), "at least 3 different networks"),
        (lambda: make_cast("zoo", library=3), "library = 3: from 7 to 15"),
        (lambda: Budget(low=0.9, high=0.5).attack("MI", RESIDUAL), "0 < low <= high <= 1"),
        (lambda: Budget(spread=1.0).attack("MI", GHOST), "spread must lie"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_attacks_are_the_presets_at_the_budget(budget):
    attack = Budget(steps=7, low=0.3).attack("SI", RESIDUAL, seed=5)
    assert (attack.steps, attack.seed, attack.surrogate) == (7, 5, (GradientEroding(0.3, 1.0),))
    assert budget.attack("DI", GHOST).surrogate == (GhostNetwork(0.22),)
    assert budget.attack("DI", SKIP).surrogate[0].branch == "shortcut"
    assert not budget.attack(OURS).surrogate


def test_one_seed_is_enough_where_nothing_is_drawn():
    budget = Budget(seeds=(0, 1, 2))
    assert budget.seeds_of("MI", random=False) == (0,)
    assert budget.seeds_of("MI", random=True) == budget.seeds_of("DI", random=False) == (0, 1, 2)


def test_every_method_of_the_study_costs_what_is_said():
    encoder, source, target = residual_encoder(), pictures(2, 1), pictures(2, 2)
    for base in METHODS:
        result = Budget(steps=3).attack(base).run(encoder, source, target)
        assert result.forwards + result.backwards == eroding.passes(base, 3)


# ---------------------------------------------------------------- claims


def test_claims_hold_where_the_numbers_say_so(cast, budget):
    share = {"": 0.2, GHOST: 0.25, SKIP: 0.4, RESIDUAL: 0.7}
    found = judged(cast, budget, lambda base, variant: share[variant] + (0.25 if base == OURS else 0.0))
    assert {number: evidence.verdict for number, evidence in found.items()} == dict.fromkeys(range(1, 8), HOLDS)
    assert found[1].effect == pytest.approx(50) and found[6].effect == pytest.approx(75, abs=1)
    assert "McNemar with Holm: 15 cells up, 0 down" in found[1].detail


def test_claims_fail_where_the_numbers_say_so(cast, budget):
    share = {"": 0.7, GHOST: 0.7, SKIP: 0.4, RESIDUAL: 0.2}
    found = judged(cast, budget, lambda base, variant: share[variant] - (0.15 if base == OURS else 0.0))
    assert {evidence.verdict for evidence in found.values()} == {FAILS}


def test_equal_methods_leave_claims_undecided(cast, budget):
    found = judged(cast, budget, lambda base, variant: 0.5)
    assert {number for number, evidence in found.items() if evidence.verdict == UNDECIDED} == {1, 2, 3, 4, 5, 7}
    assert found[6].verdict == FAILS  # a lead of zero is surely below the advertised one


def test_a_run_without_a_section_does_not_speak_to_its_claims(cast, budget):
    study = study_of(cast, budget, lambda base, variant: 0.5)
    main = study.frame[study.frame["source"] == "a"]
    frame = main[~main["method"].str.contains("GE|Ghost")]
    rows = eroding.effects(Study(frame, study.costs), thresholds_of(cast), cast, budget)
    assert {row["table"] for row in rows} == {"claim 5"}
    assert eroding.judge_effects(pd.DataFrame()) == {}


def test_mcnemar_counts_pairs_and_holm_corrects_over_cells(cast, budget):
    # 5 discordant pairs of 60: p = 1/16 in each cell; 12 of them: p = 1/2048, still below 0.05 / 15.
    for discordant, sure in ((5, 0), (12, 15)):
        share = {"": 0.5, GHOST: 0.5, SKIP: 0.5, RESIDUAL: 0.5 + discordant / PAIRS}
        study = study_of(cast, budget, lambda base, variant, share=share: share[variant])
        rows = results_frame(eroding.effects(study, thresholds_of(cast), cast, budget), chapter="c", **SHARED)
        counts = significant(rows[rows["table"] == "claim 1"])
        assert counts["cells"].sum() == counts["positive"].sum() == 15
        assert counts["significantly positive"].sum() == sure and counts["significantly negative"].sum() == 0


def test_both_thresholds_are_in_the_tables(cast, budget):
    rows = eroding.main_rows(study_of(cast, budget, lambda base, variant: 0.5), thresholds_of(cast), cast, budget)
    frame = results_frame(rows, chapter="c", **SHARED)
    hits = frame[frame["metric"] == "hit_rate"]
    assert hits[hits["far"] == "1e-3"]["value"].unique() == pytest.approx([50])
    assert hits[hits["far"] == "best"]["value"].unique() == pytest.approx([100])
    assert (frame["target"] == "mean").any() and len(frame[frame["metric"] == "similarity"]["far"].unique()) == 1


def test_printed_claims_agree_with_the_sheet():
    found = eroding.judge_printed()
    verdicts = {number: evidence.verdict for number, evidence in found.items()}
    assert verdicts == {1: HOLDS, 2: FAILS, 3: FAILS, 4: HOLDS, 5: HOLDS, 6: FAILS, 7: HOLDS, 8: HOLDS}
    assert "54 of 60" in found[3].detail and "118 of 120" in found[2].detail
    assert found[1].effect == pytest.approx(0.75) and found[7].effect == pytest.approx(4.6, abs=0.05)


# ---------------------------------------------------------------- probes


def test_constant_factors_have_no_spread_and_random_ones_average_to_them():
    encoder, source, target = residual_encoder(), pictures(3, 1), pictures(3, 2)
    constant = eroding_probes.gradient_draws(encoder, SkipGradient(0.75), source, target, draws=2)
    assert torch.equal(constant[0], constant[1])
    draws = eroding_probes.gradient_draws(encoder, GradientEroding(0.5, 1.0), source, target, draws=400)
    assert not torch.equal(draws[0], draws[1])
    # GE(d) is SGM with the mean factor plus noise: the mean over draws comes close.
    far = (draws[0] - constant[0]).norm() / constant[0].norm()
    near = (draws.mean(0) - constant[0]).norm() / constant[0].norm()
    assert near < 0.15 * far and near < 0.02


def test_the_four_panels_of_figure_1():
    class OneUnit(nn.Module):
        def __init__(self):
            super().__init__()
            double = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.constant_(double.weight, 2.0)
            self.unit = SumUnit(double, nn.Identity())

        def residual_units(self):
            return [("unit", self.unit)]

        def forward(self, x):
            return self.unit(x)

    network, x = OneUnit(), torch.ones(1, 1, 1, 1)
    assert eroding_probes.value_and_slope(network, None, x) == (3.0, 3.0)
    assert eroding_probes.value_and_slope(network, GradientEroding(0.5, 0.5, "shortcut"), x) == (3.0, 2.5)
    assert eroding_probes.value_and_slope(network, GradientEroding(0.5, 0.5), x) == (3.0, 2.0)
    value, slope = eroding_probes.value_and_slope(network, GhostNetwork(0.2), x)
    assert value == slope != 3.0 and 2.8 <= value <= 3.2


def test_the_spread_of_ghost_is_calibrated_by_accuracy():
    def row(spread, accuracy):
        return {"metric": "accuracy", "x": spread, "value": accuracy}

    clean = row(0.0, 98.0)
    assert eroding_probes.calibrated_spread([clean, row(0.2, 95.0), row(0.4, 88.0), row(0.6, 70.0)]) == 0.4
    assert eroding_probes.calibrated_spread([clean, row(0.2, 97.0), row(0.9, 96.0)]) == 0.9


def pair_set(count: int) -> PairSet:
    images = np.zeros((count, 3, 16, 16), np.uint8)
    rows = np.arange(count)
    return PairSet(images, images, rows, rows, rows, rows, "test")


def test_the_gallery_holds_another_picture_of_each_source():
    gallery = eroding_probes.enrolled(pair_set(5), people=8)
    assert len(gallery) == 8 and set(range(5)) < set(gallery.identity)
    from fa_utils.data import attack_pairs

    sources = attack_pairs(5, progress=False)[0]
    for who in range(5):
        assert not np.array_equal(gallery.images[gallery.identity == who][0], sources.images[who])
    with pytest.raises(ValueError, match="people = 3: from 5, the sources, to 200"):
        eroding_probes.enrolled(pair_set(5), people=3)


def test_identification_finds_the_most_similar_and_counts_queries():
    images = (255 * pictures(4, 1)).round().byte().numpy()
    gallery = FaceSet(images, np.array([7, 8, 9, 10]))
    service = BlackBox(residual_encoder(dtype=torch.float32), thresholds={}, input_size=16)
    assert eroding_probes.identify(service, images[[2, 0]], gallery).tolist() == [9, 7]
    assert service.queries == 8


def test_the_cells_of_every_attack_are_in_the_study(cast, budget):
    methods = {trial.method for trial in eroding.main_trials(cast, budget)}
    assert methods == {base + variant for base in BASES for variant in ("", GHOST, SKIP, RESIDUAL)} | {OURS, OURS + RESIDUAL}


def test_tables_of_a_run_with_several_surrogates():
    rows = read_results(chapter=eroding.CHAPTER)
    rows = rows[(rows["faces"] == "lfw") & (rows["target"] == "mean") & (rows["far"] == "1e-3")]
    surrogates = list(rows.loc[rows["table"] == "Table II", "source"].unique())
    table = eroding_show.surrogates_table(rows, caption="").frame.set_index(["attack", "surrogate with"])
    assert list(table.columns) == ["paper", *surrogates] and len(table) == 4 * len(eroding.BASES) + 2
    gains = eroding_show.gains_table(rows, 3, eroding.GHOST, caption="").frame.set_index("attack")
    assert list(gains.columns) == surrogates and list(gains.index) == list(eroding.BASES)
    for name in surrogates:  # the difference of the means is the mean of the differences
        eroded, ghost = (float(table.at[("DI", variant), name].split()[0]) for variant in ("GE(d)", "Ghost"))
        assert float(gains.at["DI", name].split()[0]) == pytest.approx(eroded - ghost, abs=0.11)
