"""Chapter 5's study: who plays which part, what is run, and how claims follow from numbers."""

import dataclasses
import importlib

import numpy as np
import pandas as pd
import pytest
import torch
from attack_networks import pictures, residual_encoder
from torch import nn

from fa_utils.attacks import BeneficialPerturbation
from fa_utils.attacks.transfer import PairSet, Study, run_trials
from fa_utils.data import FaceSet, Pairs
from fa_utils.data.benchmarks import made_pairs
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.onnx import export_onnx
from fa_utils.paths import ROOT
from fa_utils.report import bpfa, bpfa_probes, bpfa_show
from fa_utils.report.bpfa import METHODS, PLUS, Budget, make_cast
from fa_utils.report.bpfa_pairs import (
    ANOTHER,
    BENCHMARKS,
    NO_SECOND,
    OWN,
    dodging_pairs,
    pairs_of,
    real_pools,
    slot,
)
from fa_utils.report.claims import FAILS, HOLDS, UNDECIDED
from fa_utils.report.results import read_results, result_row, results_frame, write_results
from fa_utils.report.scores import score

PAIRS = 60
SHARED = {
    "faces": "procedural", "networks": "zoo", "profile": "test", "seeds": "0", "eps": 0.04, "steps": 4, "device": "cpu",
    "package_version": "0", "commit": "c", "date": "2026-01-01", "command": "x",
}  # fmt: skip


@pytest.fixture(scope="module")
def cast():
    return make_cast("a.onnx,b.onnx,c.onnx")


@pytest.fixture(scope="module")
def budget():
    return Budget(steps=4, spectra=3, neighbors=2)


def invented(trials, gain) -> Study:
    """``gain(method, step)`` is the share of pairs that a method hits, the same pairs first."""
    frames = []
    for trial in trials:
        for step, judges in trial.looks:
            hit = np.arange(PAIRS) < round(PAIRS * gain(trial.method, step))
            for judge in judges:
                columns = {"source": trial.label, "method": trial.method, "seed": 0, "step": step, "pair": np.arange(PAIRS)}
                columns |= {"source_id": np.arange(PAIRS), "target_id": np.arange(PAIRS), "target": judge.split(".")[0]}
                frames.append(pd.DataFrame(columns | {"similarity": np.where(hit, 0.8, 0.2), "rmsd": 5.0}))
    return Study(pd.concat(frames, ignore_index=True), pd.DataFrame())


def thresholds_of(cast) -> pd.DataFrame:
    return pd.DataFrame({1e-3: 0.5, 1e-2: 0.5}, index=[name.split(".")[0] for name in cast.networks])


def judged(cast, budget, gain) -> dict:
    trials = bpfa.table_trials(cast, budget, METHODS) + bpfa.layer_trials(cast, budget) + bpfa.eta_controls(cast, budget)
    scores = score(invented(trials, gain), thresholds_of(cast))
    rows = [row for kind in ("single", "combined") for row in bpfa.transfer_effects(scores, cast, budget, "LFW", kind)]
    for section in (bpfa.order_effects, bpfa.eta_effects, bpfa.layer_effects):
        rows += section(scores, cast, budget)
    return bpfa.judge_effects(results_frame(rows, chapter=bpfa.CHAPTER, **SHARED))


def helpful(method: str, step: int) -> float:
    """BPFA helps, the weak methods most; the largest eta and APFA help less; hits grow with the steps."""
    if method.startswith("FMDN, eta"):
        return 0.35
    base = {"FIM": 0.1, "MI": 0.1, "FMD": 0.35}.get(method.removesuffix(PLUS).partition("+")[0], 0.3)
    more = {"FIM": 0.8, "MI": 0.8, "FMD": 0.6}.get(method.partition("+")[0], 0.4) if PLUS in method else 0.0
    return (base + more) * (1.0 if step == 4 else 0.3)


# ---------------------------------------------------------------- parts


def test_the_four_encoders_are_the_papers():
    cast = make_cast()
    assert len(cast.encoders) == 4 and set(cast.robust) <= set(cast.encoders)
    assert len(make_cast(encoders=2).encoders) == 2
    for source in cast.encoders:
        assert len(cast.black_box(source)) == 3 and (source, source) not in cast.black_box(source)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_cast("a.onnx"), "at least 2 different networks"),
        (lambda: make_cast("a.onnx,a.onnx"), "at least 2 different networks"),
        (lambda: make_cast(encoders=5), "encoders = 5: from 2 to 4"),
        (lambda: Budget(etas={"a": float("nan")}).attack("FIM+BPFA", "a.onnx"), "eta must be a finite number"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_attacks_are_the_presets_at_the_budget(budget):
    with_eta = dataclasses.replace(budget, etas={"a": 0.005})
    attack = with_eta.attack("FMDN" + PLUS, "a.onnx", seed=3)
    assert attack.surrogate[-1] == BeneficialPerturbation(0.005) and (attack.steps, attack.seed) == (4, 3)
    assert with_eta.attack("FMDN" + PLUS, "b.onnx").surrogate[-1].eta == bpfa.ETA
    assert not any(isinstance(part, BeneficialPerturbation) for part in budget.attack("FMDN", "a.onnx").surrogate)
    assert budget.attack("SSA", "a.onnx").inputs[0].count == 3 and budget.attack("VMI", "a.onnx").gradient[0].count == 2


def test_every_method_costs_what_is_said(budget):
    encoder, source, target = residual_encoder(), pictures(2, 1), pictures(2, 2)
    for method in bpfa.both(METHODS):
        result = budget.attack(method, "a.onnx").run(encoder, source, target)
        assert result.forwards + result.backwards == 2 * budget.copies(method) * budget.steps + 1, method


def test_dodging_compares_with_the_own_picture_or_with_another_of_the_same_person():
    pairs = pairs_of("CelebA-HQ", 3)
    own, another = (dodging_pairs("CelebA-HQ", pairs, picture) for picture in (OWN, ANOTHER))
    assert np.array_equal(own.targets[own.target], own.sources[own.source]) and np.array_equal(own.target_id, own.source_id)
    assert np.array_equal(another.target_id, another.source_id) and np.array_equal(another.sources, own.sources)
    assert not any(np.array_equal(*two) for two in zip(another.targets[another.target], own.targets[own.target], strict=True))
    with pytest.raises(ValueError, match="not the first pictures of the people of 'celebahq'"):
        dodging_pairs("CelebA-HQ", dataclasses.replace(pairs, sources=pairs.sources[::-1]), ANOTHER)


def test_the_dodging_attacker_knows_the_attacked_picture_only(budget):
    encoder, source, another = residual_encoder(), pictures(2, 1), pictures(2, 2)
    attack = budget.attack("FMDN", "a.onnx", objective=bpfa.DodgeOwn(distance="squared_l2"))
    assert torch.equal(attack(encoder, source, another), attack(encoder, source, source))


def test_tables_of_dodging_have_the_papers_names_where_it_has_them():
    assert bpfa.dodging_table("LFW", OWN) == "Table VII" and bpfa.dodging_table("LFW", OWN, robust=True) == "Table VIII"
    names = {bpfa.dodging_table(b, p, robust=r) for b in BENCHMARKS for p in (OWN, ANOTHER) for r in (False, True)}
    assert len(names) == 8 and slot("CelebA-HQ") == "CelebA-HQ"
    assert slot("celeba") == "LFW" and bpfa.dodging_table("celeba", OWN) == "Table VII"  # photographs stand in the place of the first


def test_a_dodging_hit_is_a_rejection(cast, budget):
    study = invented(bpfa.dodging_trials(cast, budget), lambda method, step: 0.25)
    rate = {dodging: score(study, thresholds_of(cast), at=1e-2, dodging=dodging).hit_rate.mean().mean() for dodging in (True, False)}
    assert rate[False] == pytest.approx(0.25) and rate[True] == pytest.approx(0.75)


def test_eta_is_the_positive_one_of_highest_similarity():
    def row(source, eta, similarity):
        return {"metric": "similarity", "method": "MI+BPFA", "source": source, "x": eta, "value": similarity}

    rows = [row("a", 1e-1, 0.99) | {"method": "FMDN+BPFA"}, row("a", -1e-3, 0.9), row("a", 0.0, 0.8), row("a", 1e-3, 0.5), row("a", 1e-2, 0.6), row("b", 1e-3, 0.1)]
    assert bpfa.calibrated(rows) == {"a": 1e-2, "b": 1e-3}


def test_calibration_runs_mi_everywhere_and_the_papers_figure_from_its_network(cast, budget):
    runs = bpfa.eta_runs(cast)
    assert {source for source, base, _ in runs if base == "FMDN"} == {cast.encoders[1]}
    for source in cast.encoders:
        assert [eta for at, base, eta in runs if (at, base) == (source, "MI")] == [eta for eta in cast.etas if eta >= 0]
    rows = bpfa.eta_rows(score(invented(bpfa.eta_trials(cast, budget), lambda method, step: 0.6 if "0.0004" in method else 0.5), thresholds_of(cast)), cast, budget)
    assert bpfa.calibrated(rows) == dict.fromkeys(["a", "b", "c"], 4e-4)
    gains = {(row["method"], row["source"], row["x"]): row["value"] for row in rows if row["table"] == "Fig. 3, gain"}
    assert gains["MI+BPFA", "a", 4e-4] == pytest.approx(0.06) and gains["MI+BPFA", "a", 8e-4] == 0


# ---------------------------------------------------------------- Fig. 4


@pytest.mark.parametrize(("steps", "looks"), [(2, (1, 2)), (4, (1, 2, 4)), (100, (1, 2, 5, 10, 20, 50, 100)), (30, (1, 2, 5, 10, 20, 30))])
def test_the_curve_is_looked_at_in_even_ratios_and_at_the_end(steps, looks):
    assert Budget(steps=steps).looks == looks


def test_slope_weights_find_the_slope_per_doubling():
    steps = (1, 2, 5, 10, 100)
    values = 3.0 + 0.7 * np.log2(steps)
    assert bpfa.slope_weights(steps) @ values == pytest.approx(0.7) and bpfa.slope_weights(steps).sum() == pytest.approx(0)


def test_only_the_first_encoders_fmdn_is_looked_at_along_the_way(cast, budget):
    for trial in bpfa.table_trials(cast, budget, METHODS):
        along = trial.source == ("a.onnx",) and trial.method.startswith("FMDN")
        assert [step for step, _ in trial.looks] == (list(budget.looks) if along else [budget.steps]), trial.label


def test_growth_that_stops_does_not_show_in_the_late_slope(cast):
    budget = Budget(steps=100)
    trials = [trial for trial in bpfa.table_trials(cast, budget, ["FMD", "FMDN", "FIM", "MI"])]
    scores = score(invented(trials, lambda method, step: 0.2 + (0.4 if PLUS in method else 0.2) * min(1.0, step / 10)), thresholds_of(cast))
    rows = {(row["table"], row["method"].partition(":")[0]): row for row in bpfa.order_effects(scores, cast, budget) if row["metric"] == "hit_rate_difference"}
    assert [name for table, name in rows if table == "claim 3"] == ["half of"]  # methods that were not run are left out
    for name in ("FMDN", "FMDN+BPFA", "gap"):
        assert rows["claim 7", name]["ci_low"] > 0 and rows["Fig. 4, late", name]["value"] == pytest.approx(0, abs=1e-9)
    curve = [row["value"] for row in bpfa.curve_rows(scores, cast, budget) if row["metric"] == "hit_rate" and row["method"] == "FMDN"]
    assert len(curve) == len(budget.looks) and curve[-1] == curve[-2] > curve[0]


# ---------------------------------------------------------------- claims


def test_claims_hold_where_the_numbers_say_so(cast, budget):
    found = judged(cast, budget, helpful)
    verdicts = {number: evidence.verdict for number, evidence in found.items()}
    # No pair tells the placements apart, but 60 pairs cannot show that they are within three points.
    assert verdicts == dict.fromkeys(range(1, 8), HOLDS) | {6: UNDECIDED}
    assert "McNemar with Holm: 54 cells up, 0 down" in found[1].detail


def test_claims_fail_where_the_numbers_say_so(cast, budget):
    found = judged(cast, budget, lambda method, step: 0.9 - helpful(method, step))
    assert {number for number, evidence in found.items() if evidence.verdict == FAILS} >= {1, 2, 3, 4, 5, 7}


def test_equal_methods_leave_claims_undecided(cast, budget):
    found = judged(cast, budget, lambda method, step: 0.5)
    assert found[1].verdict == UNDECIDED and found[5].verdict == UNDECIDED
    assert found[6].verdict == UNDECIDED and found[2].verdict == UNDECIDED  # no discordant pair is no proof of equality


def test_many_pairs_show_that_placements_are_alike():
    place = {"table": "claim 6", "metric": "hit_rate_difference", "method": "conv minus bn", "source": "all", "target": "mean"}
    row = place | {"value": 0.4, "ci_low": -0.8, "ci_high": 1.5}
    rows = pd.DataFrame([row | {"n_pairs": 1000}])
    assert bpfa.judge_effects(rows)[6].verdict == HOLDS


def test_rounding_does_not_decide_a_claim():
    place = {"table": "claim 4", "metric": "hit_rate_difference", "method": "a minus b", "source": "all", "target": "mean"}
    for low, verdict in ((8.7e-17, UNDECIDED), (1e-3, HOLDS)):
        rows = pd.DataFrame([place | {"value": 1.0, "ci_low": low, "ci_high": 2.0, "n_pairs": 20}])
        assert bpfa.judge_effects(rows)[4].verdict == verdict


def test_unlike_layers_are_not_similar(cast, budget):
    found = judged(cast, budget, lambda method, step: 0.8 if "(act)" in method else 0.5)
    assert found[6].verdict == FAILS


def test_printed_claims_agree_with_the_sheet():
    found = bpfa.judge_printed()
    assert {number: evidence.verdict for number, evidence in found.items()} == {
        1: HOLDS, 2: HOLDS, 3: HOLDS, 4: FAILS, 6: HOLDS, 9: HOLDS,
    }  # fmt: skip
    assert "376 of 376" in found[1].detail and found[1].effect == pytest.approx(0.1) and "5 of 12" in found[4].detail


# ---------------------------------------------------------------- probes


def test_the_walk_is_the_attack_and_the_perturbation_raises_the_loss(budget):
    encoder, source, target = residual_encoder(), pictures(3, 1), pictures(3, 2)
    longer = dataclasses.replace(budget, steps=5)
    plain, perturbed = bpfa_probes.walk(encoder, source, target, longer, 1e-3, steps=5)
    assert torch.equal(plain[0], perturbed[0]) and (perturbed[1:] > plain[1:]).all()
    seen = []
    attack = longer.attack("FIM" + PLUS, "a.onnx", eta=1e-3)
    attack.run(encoder, source, target, on_step=lambda step, images: seen.append(images.clone()))
    with torch.no_grad():
        wanted = encoder(target)
        losses = torch.stack([(encoder(images) - wanted).square().sum(1) for images in seen[:-1]])
    torch.testing.assert_close(plain[1:], losses, rtol=1e-6, atol=1e-9)
    without = bpfa_probes.walk(encoder, source, target, longer, 0.0, steps=5)
    torch.testing.assert_close(without[0], without[1], rtol=1e-9, atol=1e-12)


def test_feature_maps_show_a_two_valued_perturbation(budget):
    encoder = residual_encoder()
    maps = bpfa_probes.feature_maps(encoder, pictures(2, 1), pictures(2, 2), budget)
    assert {value.dtype for value in maps.values()} == {np.dtype(np.uint8)}
    assert all(len(np.unique(one)) <= 3 for one in maps["perturbation"])  # rounding may leave a zero
    assert not any(len(module._forward_hooks) for module in encoder.modules())


def test_the_spread_is_that_of_the_outputs():
    encoder, images = residual_encoder(), pictures(3, 1)
    before = bpfa_probes.median_spread(encoder, images)
    with torch.no_grad():
        for _, layer in encoder.convolutions(squeeze_excite=True):
            layer.weight.zero_()
            layer.bias is None or layer.bias.zero_()
    assert before > 0 and bpfa_probes.median_spread(encoder, images) == 0
    assert not any(len(module._forward_hooks) for module in encoder.modules())


def test_time_is_a_ratio_to_the_plain_step(cast, budget, monkeypatch):
    plain = iter(np.random.default_rng(0).uniform(1, 1.5, (100, 4)))  # seconds of four steps; those with BPFA take twice as long

    def seconds(attack, *_):
        seconds.last = seconds.last if attack.surrogate else next(plain)
        return seconds.last * (2 if attack.surrogate else 1)

    monkeypatch.setattr(bpfa_probes, "_step_seconds", seconds)
    monkeypatch.setattr(bpfa_probes, "open_network", lambda address, device: None)
    monkeypatch.setattr(bpfa_probes, "placements_of", lambda cast: dict.fromkeys(cast.encoders, tuple(bpfa.PLACEMENTS)))
    images = np.zeros((3, 3, 4, 4), np.uint8)
    pairs = PairSet(images, images, *[np.arange(3)] * 4, "test")
    rows = bpfa_probes.cost_rows(cast, budget, pairs)
    assert len(rows) == 9 and all(row["value"] == pytest.approx(2.0) for row in rows)
    assert all(row["ci_low"] == pytest.approx(2.0) == row["ci_high"] for row in rows)  # it is paired by the round
    frame = results_frame(rows, chapter=bpfa.CHAPTER, **SHARED)
    assert str(bpfa_show.cost_table(frame[:0], frame)).count("2.00 [2.00, 2.00]") == 9


# ---------------------------------------------------------------- tables and figures


def test_the_calibration_table_says_where_the_grid_ends(cast, budget):
    def gain(method, step):
        return {"0": 0.5, "0.0032": 0.8}.get(method.partition("eta ")[2], 0.4)

    rows = bpfa.eta_rows(score(invented(bpfa.eta_trials(cast, budget), gain), thresholds_of(cast)), cast, budget)
    frame = results_frame(rows, chapter=bpfa.CHAPTER, **SHARED)
    text = str(bpfa_show.eta_table(frame, {"a": 0.0064}, run="test"))
    assert "0.0032" in text and "yes" in text and " no" not in text and "0.5" in text and "+0.1800" in text
    bpfa_show.eta_figure(frame, "MI", chosen={"a": 0.0032})


def test_dodging_is_summed_up_beside_the_unattacked_pictures(cast, budget):
    rates = {"FMDN": 0.5, "FMDN" + PLUS: 0.25}  # of similarities above the threshold: not dodged
    study = invented(bpfa.dodging_trials(cast, budget), lambda method, step: rates[method] if step else 0.9)
    rows = bpfa.dodging_rows(score(study, thresholds_of(cast), at=1e-2, dodging=True), cast, budget, "CelebA-HQ", ANOTHER)
    frame = results_frame(rows, chapter=bpfa.CHAPTER, **SHARED)
    text = str(bpfa_show.dodging_summary(frame, frame[:0]))
    assert [number for number in text.split() if number in ("10.0", "50.0", "75.0")] == ["10.0", "50.0", "75.0"]
    assert "CelebA-HQ" in text and "another picture" in text


# ---------------------------------------------------------------- photographs and networks of one's own

PEOPLE, EACH = 12, 3


def photographs(name: str = "lfw") -> FaceSet:
    """Random pictures of twelve people, in place of a dataset."""
    images = np.random.default_rng(0).integers(0, 256, (PEOPLE * EACH, 3, 16, 16), dtype=np.uint8)
    return FaceSet(images, np.repeat(np.arange(PEOPLE), EACH), name=name)


def every_couple(faces: FaceSet) -> Pairs:
    """A protocol of all impostor pairs of the first pictures, and of one mated pair a person."""
    a, b = np.triu_indices(PEOPLE, 1)
    own = EACH * np.arange(PEOPLE)
    same = np.r_[np.zeros(len(a), bool), np.ones(PEOPLE, bool)]
    return Pairs(np.r_[EACH * a, own], np.r_[EACH * b, own + 1], same).check(faces)


@pytest.fixture(scope="module")
def own_networks(tmp_path_factory) -> str:
    """Two networks as ONNX files, with convolutions and activations but no normalization."""
    folder, files = tmp_path_factory.mktemp("networks"), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        layers = (nn.Conv2d(3, 6, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 6, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(96, 8))
        files.append(str(export_onnx(FaceEncoder(nn.Sequential(*layers), name=f"net{seed}", input_size=16), folder / f"net{seed}.onnx")))
    return ",".join(files)


def people_of(pairs: PairSet) -> set[int]:
    return {*pairs.source_id.tolist(), *pairs.target_id.tolist()}


def test_eta_is_calibrated_on_people_whom_no_table_has_where_there_are_enough():
    faces = photographs("celeba")
    pools = real_pools(faces, every_couple(faces), 2, calibration=2)
    assert list(pools.reported) == ["celeba"] and len(pools.first) == 2 and len(pools.calibration) == 2
    named = people_of(pools.first) | people_of(pools.dodging["celeba", OWN])
    assert not people_of(pools.calibration) & named and "of people who appear in no table" in pools.note
    for picture, pairs in pools.dodging.items():
        assert np.array_equal(pairs.source_id, pairs.target_id), picture
    own, another = pools.dodging["celeba", OWN], pools.dodging["celeba", ANOTHER]
    assert np.array_equal(own.sources[own.source], own.targets[own.target])
    assert np.array_equal(own.sources, another.sources) and not np.array_equal(own.targets, another.targets)


def test_with_few_people_the_calibration_shares_them_and_says_so():
    faces = photographs()
    pools = real_pools(faces, every_couple(faces), 20, calibration=6)
    assert list(pools.reported) == ["LFW"] and len(pools.calibration) == 6 and "since there are no others" in pools.note

    def couples(pairs):
        return {frozenset(both) for both in zip(pairs.source_id.tolist(), pairs.target_id.tolist(), strict=True)}

    assert not couples(pools.first) & couples(pools.calibration)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (66, r"n_pairs = 66: lfw has 66 impostor pairs of 12 people.*leave none to calibrate eta on; ask for fewer pairs, at most 65"),
        (67, "n_pairs = 67: lfw has 66 impostor pairs"),
        (0, "at least 1 is needed"),
    ],
)
def test_too_few_people_to_attack_and_to_calibrate_on(count, message):
    faces = photographs()
    with pytest.raises(ValueError, match=message):
        real_pools(faces, every_couple(faces), count)


def test_without_a_second_picture_dodging_is_judged_by_the_own_one():
    faces = photographs()
    pools = real_pools(faces, every_couple(faces).negatives(), 3)
    assert list(pools.dodging) == [("LFW", OWN)] and NO_SECOND in pools.note
    own = pools.dodging["LFW", OWN]
    assert np.array_equal(own.target_id, own.source_id) and np.array_equal(own.source_id, pools.first.source_id)


def test_protocols_without_a_list_serve_too():
    faces = photographs("mine")
    pools = real_pools(faces, made_pairs(faces.identity), 4)
    assert len(pools.first) == 4 and len(pools.calibration) >= 1


def test_a_network_that_lacks_a_kind_of_layer_is_left_out_and_named(own_networks):
    cast = make_cast(own_networks)
    placements = bpfa.placements_of(cast)
    assert set(placements.values()) == {("conv", "act")}
    assert "net1 has no normalizations; net2 has no normalizations" in bpfa.left_out(placements)
    assert "no normalizations" in bpfa_show.placed_note(cast)
    assert {trial.method for trial in bpfa.layer_trials(cast, Budget(steps=2), placements)} == {"FMDN+BPFA(act)"}
    assert bpfa.left_out({"a.onnx": ("conv", "bn", "act")}) == ""


def test_own_networks_have_a_finer_grid_of_eta(cast):
    assert cast.etas == bpfa.FINE_ETAS and make_cast().etas == bpfa.ETAS
    assert make_cast("mobile-webface-softmax,irse-webface-softmax").etas == bpfa.ETAS
    assert 0.0 in cast.etas and len(cast.etas) == len(bpfa.ETAS) and min(eta for eta in cast.etas if eta > 0) < 1e-5


def test_the_study_runs_on_photographs_with_own_networks(own_networks, tmp_path):
    faces, budget = photographs(), Budget(steps=2, spectra=2, neighbors=1)
    pools = real_pools(faces, every_couple(faces), 3, calibration=3)
    cast = dataclasses.replace(make_cast(own_networks), etas=(-1e-4, 0.0, 1e-5, 1e-4))
    limits = pd.DataFrame({1e-3: 0.5, 1e-2: 0.4}, index=["net1", "net2"])

    def found(trials, pairs, **how):
        return score(run_trials(trials, pairs, cache=None, progress=False), limits, **how)

    rows = bpfa.eta_rows(found(bpfa.eta_trials(cast, budget), pools.calibration), cast, budget)
    budget = dataclasses.replace(budget, etas=bpfa.calibrated(rows))
    assert set(budget.etas) == {"net1", "net2"}
    trials = bpfa.table_trials(cast, budget, ["FIM", "MI", "FMD", "FMDN"]) + bpfa.eta_controls(cast, budget)
    scores = found(trials + bpfa.layer_trials(cast, budget, bpfa.placements_of(cast)), pools.first)
    for kind in ("single", "combined"):
        rows += bpfa.transfer_rows(scores, cast, budget, "LFW", kind) + bpfa.transfer_effects(scores, cast, budget, "LFW", kind)
    for section in (bpfa.order_effects, bpfa.curve_rows, bpfa.eta_effects, bpfa.layer_rows, bpfa.layer_effects):
        rows += section(scores, cast, budget)
    for (name, picture), pairs in pools.dodging.items():
        dodged = found(bpfa.dodging_trials(cast, budget), pairs, at=bpfa.DODGING, dodging=True)
        rows += bpfa.dodging_rows(dodged, cast, budget, name, picture) + bpfa.dodging_effects(dodged, cast, budget, name, picture)
    rows += bpfa_probes.memory_rows(cast, budget, pools.first, count=2) + bpfa_probes.cost_rows(cast, budget, pools.first, count=2)
    frame = results_frame(rows, chapter=bpfa.CHAPTER, **(SHARED | {"faces": "lfw", "networks": "onnx"}))
    assert {method for method in frame.loc[frame["table"] == "claim 6", "method"]} == {"conv minus act"}
    assert {"Table I", "Table III", "Table VII", "Table VII, another picture", "Table IX"} <= set(frame["table"])
    assert not {"Table II", "Table IV", "Table V", "Table VIII"} & set(frame["table"])
    text = "\n".join(map(str, bpfa_show.photograph_tables(frame)))
    assert "paper" in text and "net1" in text and "FaceNet" not in text  # of other networks the paper says nothing
    assert "benchmark" in text and "LFW" in text
    judged = [claim.number for claim in bpfa.make_claims(frame, None, printed=False) if claim.published]
    assert judged == [1, 2, 3, 4, 5, 6, 7, 9, 10]
    assert "–" in str(bpfa_show.memory_table(frame[:0], frame)) and "–" in str(bpfa_show.cost_table(frame[:0], frame))


def test_methods_that_were_not_run_are_left_out(cast):
    budget = Budget(steps=4)
    scores = score(invented(bpfa.table_trials(cast, budget, ["FIM", "DI"]), lambda method, step: 0.5), thresholds_of(cast))
    assert bpfa.order_effects(scores, cast, budget) == [] and bpfa.curve_rows(scores, cast, budget) == []
    rows = bpfa.transfer_rows(scores, cast, budget, "celeba", "single")
    assert {row["table"] for row in rows} == {"Table I"} and {row["method"] for row in rows} == {"FIM", "FIM+BPFA", "DI", "DI+BPFA"}


# ---------------------------------------------------------------- the script that publishes


@pytest.fixture(scope="module")
def publish():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("publish_bpfa")


def test_a_section_needs_the_methods_that_it_compares_with(publish, capsys):
    options = publish.parse(["--methods", "FIM", "MI", "--sections", "dodging", "loss"])
    assert options.sections == ["dodging", "loss"] and publish.parse(["--sections"]).sections == []
    with pytest.raises(SystemExit):
        publish.parse(["--methods", "FIM", "MI", "--sections", "layers"])
    assert "--sections layers compares with FMDN; add it to --methods" in capsys.readouterr().err


def test_only_the_cost_is_measured_again(publish, monkeypatch, tmp_path):
    published = read_results(ROOT / "data" / "results" / "5-bpfa-procedural.csv")
    cost = published["metric"].isin(["memory", "overhead", "cost"])

    def measured(cast, budget, pools, device):
        assert dict(budget.etas) == bpfa.calibrated(published.to_dict("records"))
        return [result_row("cost", 1.01, 20, table="Cost", source="a", method="FIM+BPFA(conv)", target=device)]

    monkeypatch.setattr(publish, "cost_rows", measured)
    rows = publish.with_new_cost(published, bpfa.make_cast("zoo"), bpfa.Budget(), None, "cpu")
    path = write_results(rows, tmp_path / "now.csv", chapter=bpfa.CHAPTER, **(SHARED | {"command": "again"}))
    found = read_results(path)
    pd.testing.assert_frame_equal(found[found["command"] != "again"].reset_index(drop=True), published[~cost].reset_index(drop=True))
    assert found[found["command"] == "again"]["value"].tolist() == [1.01]


def test_there_must_be_a_file_to_renew(publish, tmp_path, capsys):
    with pytest.raises(SystemExit):
        publish.parse(["--only-cost", "--out", str(tmp_path / "none.csv")])
    assert "there is no" in capsys.readouterr().err
