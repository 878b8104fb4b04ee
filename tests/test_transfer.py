"""Transfer studies: trials, their cache, the numbers made from them, and the rewritten benchmark."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from attack_networks import SIZE, tiny_encoder
from torch import nn

from fa_utils.attacks import Attack, DiverseInput, FeatureDropout, GridError, Impersonate, transfer
from fa_utils.attacks.rewrite import Partners, greedy_cover, partners_of, rewrite_benchmark
from fa_utils.attacks.transfer import (
    PairSet,
    Study,
    Trial,
    benchmark_pairs,
    network_name,
    open_network,
    run_trials,
    split_addresses,
)
from fa_utils.data import FaceSet, Pairs, to_float
from fa_utils.metrics import best_threshold, pair_similarity
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.onnx import export_onnx
from fa_utils.report import dfanet, talfw
from fa_utils.report.scores import measure_networks, score, thresholds_of


class Plain(nn.Module):
    """One convolution and a linear layer, exportable to ONNX."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.linear = nn.Linear(6 * (SIZE // 2) ** 2, 8)

    def forward(self, images):
        return self.linear(torch.tanh(self.conv(images)).flatten(1))


@pytest.fixture(scope="module")
def addresses(tmp_path_factory) -> list[str]:
    """Three networks as ONNX files that take pictures of 112 x 112."""
    folder, found = tmp_path_factory.mktemp("networks"), []
    for seed in range(3):
        torch.manual_seed(seed)
        encoder = FaceEncoder(Plain(), name=f"tiny{seed}", input_size=SIZE)
        found.append(str(export_onnx(encoder, folder / f"tiny{seed}.onnx")))
    return found


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 112, 112), dtype=np.uint8)


def six_pairs() -> PairSet:
    rows = np.arange(6)
    return PairSet(pictures(6), pictures(6, 1), rows, rows[::-1].copy(), rows, rows[::-1].copy(), "noise")


def trial(addresses, *, steps: int = 4, method: str = "DI", seed: int = 3, **looks) -> Trial:
    attack = Attack(objective=Impersonate(), steps=steps, inputs=[DiverseInput()], seed=seed)
    looks = looks or {"2": addresses[:2], str(steps): addresses}
    return Trial((addresses[0],), method, attack, tuple((int(k), tuple(v)) for k, v in looks.items()))


def test_rows_are_what_the_attack_and_the_judges_say(addresses):
    pairs = six_pairs()
    study = run_trials([trial(addresses)], pairs, cache=None, progress=False)
    assert len(study.frame) == 6 * 2 + 6 * 3
    surrogate, judge = (transfer.open_network(address) for address in addresses[:2])
    source, target = to_float(pairs.sources[pairs.source]), to_float(pairs.targets[pairs.target])
    crafted = trial(addresses).attack(surrogate, source, target)
    expected = pair_similarity(judge.embed(crafted), judge.embed(target))
    rows = study.frame[(study.frame["step"] == 4) & (study.frame["target"] == "tiny1")].sort_values("pair")
    np.testing.assert_allclose(rows["similarity"], expected, atol=1e-5)
    assert rows["source_id"].tolist() == pairs.source_id.tolist()
    assert study.costs.loc[0, ["forwards", "backwards", "steps", "queries"]].tolist() == [5, 4, 4, 0]


def test_a_look_at_step_0_is_the_unchanged_picture(addresses):
    looks = {"0": addresses[1:2], "4": addresses[1:2]}
    frame = run_trials([trial(addresses, **looks)], six_pairs(), cache=None, progress=False).frame
    assert (frame[frame["step"] == 0]["rmsd"] == 0).all()
    assert (frame[frame["step"] == 4]["rmsd"] > 1).all()


def test_results_depend_on_neither_unit_nor_cache_nor_company(addresses, tmp_path):
    pairs = six_pairs()
    alone = run_trials([trial(addresses)], pairs, cache=None, unit=6, progress=False).frame
    other = trial(addresses, method="other", seed=9)
    together = run_trials([other, trial(addresses)], pairs, cache=tmp_path, unit=2, progress=False)
    kept = run_trials([other, trial(addresses)], pairs, cache=tmp_path, unit=2, progress=False)
    pd.testing.assert_frame_equal(together.frame, kept.frame)
    pd.testing.assert_frame_equal(together.costs, kept.costs)
    mine = together.frame[together.frame["method"] == "DI"].reset_index(drop=True)
    keys = ["step", "target", "pair"]
    merged = alone.merge(mine, on=keys, suffixes=("", "_2"))
    assert len(merged) == len(alone)
    np.testing.assert_allclose(merged["similarity"], merged["similarity_2"], atol=0.02)  # rounding decides signs


def test_a_finished_trial_is_not_run_again(addresses, tmp_path, monkeypatch):
    run_trials([trial(addresses)], six_pairs(), cache=tmp_path, progress=False)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]  # the units are tidied away
    monkeypatch.setattr(transfer, "_run_trial", lambda *_: pytest.fail("ran again"))
    run_trials([trial(addresses)], six_pairs(), cache=tmp_path, progress=False)


def test_the_digest_knows_everything_that_matters(addresses):
    pairs, base = six_pairs(), trial(addresses)
    changed = dataclasses.replace(pairs, sources=pictures(6, 5))
    variants = [
        transfer.trial_digest(base, pairs),
        transfer.trial_digest(trial(addresses, seed=4), pairs),
        transfer.trial_digest(trial(addresses, steps=5), pairs),
        transfer.trial_digest(dataclasses.replace(base, source=(addresses[1],)), pairs),
        transfer.trial_digest(base, changed),
    ]
    assert len(set(variants)) == len(variants)
    assert transfer.trial_digest(trial(addresses), six_pairs()) == variants[0]


def test_a_black_box_sees_what_the_encoder_sees_and_counts(addresses):
    looks = {"4": [addresses[1], transfer.BLACK_BOX + addresses[1]]}
    study = run_trials([trial(addresses, **looks)], six_pairs(), cache=None, progress=False)
    white, black = (part["similarity"].to_numpy() for _, part in study.frame.groupby("target", sort=False))
    np.testing.assert_allclose(white, black, atol=1e-4)
    assert study.costs.loc[0, "queries"] == 6


def test_a_failed_trial_is_named_after_the_others_ran(addresses):
    bad = dataclasses.replace(trial(addresses), source=("no-such-network",))
    with pytest.raises(GridError, match="no-such-network") as error:
        run_trials([bad, trial(addresses)], six_pairs(), cache=None, progress=False)
    assert "frame" in error.value.records[1]


def test_pairs_are_checked():
    with pytest.raises(ValueError, match="one length"):
        PairSet(pictures(1), pictures(1), np.arange(0), np.arange(0), np.arange(0), np.arange(0), "none")
    with pytest.raises(ValueError, match="points past"):
        PairSet(pictures(1), pictures(1), *[np.array([1])] * 4, "outside")


def small_benchmark() -> tuple[FaceSet, Pairs]:
    faces = FaceSet(pictures(8), np.repeat(np.arange(4), 2), name="small")
    a, b = [0, 2, 4, 6, 0, 2, 4, 1], [1, 3, 5, 7, 2, 4, 6, 7]
    same = np.array([True] * 4 + [False] * 4)
    return faces, Pairs(a=np.array(a), b=np.array(b), same=same, fold=np.array([0, 0, 1, 1] * 2))


def test_benchmark_pairs_are_impostors():
    faces, pairs = small_benchmark()
    chosen = benchmark_pairs(faces, pairs, 3)
    assert (chosen.source_id != chosen.target_id).all() and len(chosen) == 3
    for row in range(3):
        picture = chosen.sources[chosen.source[row]]
        position = int(np.flatnonzero((faces.images == picture).all(axis=(1, 2, 3)))[0])
        assert faces.identity[position] == chosen.source_id[row]
    with pytest.raises(ValueError, match="n_pairs = 5: small has 4"):
        benchmark_pairs(faces, pairs, 5)


# ---------------------------------------------------------------- the rewritten benchmark


def test_the_cover_is_greedy_and_covers():
    star = greedy_cover(np.array([0, 0, 0, 4]), np.array([1, 2, 3, 5]))
    assert star.tolist() == [0, 4]
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 40, (2, 120))
    cover = greedy_cover(a, b)
    assert (np.isin(a, cover) | np.isin(b, cover)).all()
    assert len(cover) < len(np.union1d(a, b))
    without = [np.delete(cover, place) for place in range(len(cover))]
    needed = [not (np.isin(a, rest) | np.isin(b, rest)).all() for rest in without]
    assert np.mean(needed) > 0.8  # hardly a picture is chosen in vain
    with pytest.raises(ValueError, match="one length"):
        greedy_cover(np.array([0]), np.array([1, 2]))


def test_partners_and_their_signs():
    _, pairs = small_benchmark()
    assert sorted(partners_of(np.array([2]), pairs)[0]) == [(0, 1), (3, -1), (4, 1)]


def test_the_partners_objective_is_the_signed_sum_of_distances():
    encoder = tiny_encoder()
    images = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64)
    others = torch.rand(3, 2, 3, SIZE, SIZE, dtype=torch.float64)
    sign = torch.tensor([[1.0, -1.0], [-1.0, 0.0], [1.0, 1.0]])
    objective = Partners("x", others, sign)
    reference = objective.reference(encoder, objective.anchor(images, None))
    loss = objective.loss(objective.predict(encoder, images), reference)
    distance = torch.stack([(encoder(images) - encoder(other)).norm(dim=1) for other in others])
    torch.testing.assert_close(loss, (sign * distance).sum(0))


def test_a_rewritten_benchmark_moves_pairs_the_wrong_way(addresses):
    faces, pairs = small_benchmark()
    attack = Attack(objective=Impersonate(), eps=10 / 255, steps=6, surrogate=[FeatureDropout(0.1, target="clean")])
    attacked, chosen = rewrite_benchmark(faces, pairs, attack, addresses[:2], unit=3, cache=None, progress=False)
    kept = np.setdiff1d(np.arange(len(faces)), chosen)
    assert (attacked.images[kept] == faces.images[kept]).all()
    change = np.abs(attacked.images[chosen].astype(int) - faces.images[chosen])
    assert change.max() <= 6 and (change.max(axis=(1, 2, 3)) > 0).all()
    encoder = transfer.open_network(addresses[0])
    before, after = (pair_similarity((e := encoder.embed(f))[pairs.a], e[pairs.b]) for f in (faces, attacked))
    assert (after - before)[~pairs.same].mean() > 0 > (after - before)[pairs.same].mean()


def test_verification_before_and_after(addresses):
    faces, pairs = small_benchmark()
    darker = FaceSet(faces.images // 2, faces.identity, name="darker")
    frame = talfw.verify(addresses[:2], addresses[0], faces, darker, pairs, progress=False)
    assert set(frame["system"]) == {"tiny0", "tiny1", *talfw.FILTERS}
    rows = pd.DataFrame(talfw.accuracy_rows(frame, faces, pairs))
    assert len(rows) == 2 * 5 and rows["value"].between(0, 100).all()
    effects = pd.DataFrame(talfw.accuracy_effects(frame, faces, pairs)).set_index("method")["value"]
    accuracy = rows.set_index(["method", "target"])["value"]
    assert effects["tiny0: LFW minus TALFW"] == pytest.approx(accuracy["tiny0", "LFW"] - accuracy["tiny0", "TALFW"])


def test_a_shortened_protocol_keeps_folds_kinds_and_pictures():
    identity = np.repeat(np.arange(20), 2)
    faces = FaceSet(np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(3, 1), identity, name="numbered")
    mated = np.arange(0, 40, 2)
    a, b = np.concatenate([mated, mated]), np.concatenate([mated + 1, (mated + 2) % 40])
    same, fold = np.repeat([True, False], 20), np.tile(np.repeat(np.arange(5), 4), 2)
    pairs = Pairs(a, b, same, fold)
    few, kept = talfw.shortened(faces, pairs, 20)
    kept.check(few)
    assert pd.crosstab(kept.fold, kept.same).eq(2).all(axis=None) and kept.same.size == 20
    assert len(few) == len(np.union1d(kept.a, kept.b)) < len(faces)
    named = few.images[kept.a, 0, 0, 0], few.images[kept.b, 0, 0, 0]  # the same pictures as before
    assert set(zip(*named, strict=True)) <= set(zip(a, b, strict=True))
    assert talfw.shortened(faces, pairs, 40) == (faces, pairs)


# ---------------------------------------------------------------- numbers and claims


def invented_study(gain: float, *, n_pairs: int = 40) -> tuple[Study, dfanet.Cast, dfanet.Budget]:
    """Similarities in which each better method is better by ``gain``, with noise."""
    cast = dfanet.make_cast("a.onnx, b.onnx, c.onnx")
    budget = dfanet.Budget(steps=20, short=13)
    rng, rows = np.random.default_rng(1), []
    base = rng.normal(0.4 - 2.5 * gain, 0.1, n_pairs)  # so that each method hits some
    for level, method in enumerate(("FIM", "M-FIM", "DI-M-FIM", "DFANet-FIM", "DFANet-M-FIM", "DFANet-DI-M-FIM")):
        for source in "abc":
            for step in (13, 20):
                for target in "abc":
                    similarity = base + gain * level + rng.normal(0, 0.01, n_pairs)
                    columns = {"source": source, "method": method, "seed": 0, "step": step, "target": target}
                    people = {"pair": np.arange(n_pairs), "source_id": np.arange(n_pairs), "target_id": np.arange(n_pairs)}
                    rows.append(pd.DataFrame({**columns, **people, "similarity": similarity, "rmsd": 5.0}))
    return Study(pd.concat(rows, ignore_index=True), pd.DataFrame()), cast, budget


def thresholds() -> pd.DataFrame:
    return pd.DataFrame({far: 0.4 for far in (1e-2, 1e-3, 1e-4)}, index=list("abc"))


@pytest.mark.parametrize(("gain", "verdict"), [(0.05, "holds"), (-0.05, "fails"), (0.0, "undecided")])
def test_claims_follow_the_numbers(gain, verdict):
    study, cast, budget = invented_study(gain)
    scores = score(study, thresholds())
    rows = dfanet.transfer_effects(scores, cast, budget)
    frame = pd.DataFrame(rows).fillna({"source": "", "far": "", "target": ""}).assign(far="")
    found = dfanet.judge_effects(frame)
    assert found[1].verdict == verdict
    assert found[2].verdict == verdict


def test_hit_rates_are_shares_above_the_threshold():
    study, cast, budget = invented_study(0.02)
    scores = score(study, thresholds())
    rows = pd.DataFrame(dfanet.transfer_rows(scores, cast, budget))
    cell = rows[(rows["method"] == "M-FIM") & (rows["source"] == "a") & (rows["target"] == "b") & (rows["table"] == "Networks")]
    frame = study.frame
    part = frame[(frame["method"] == "M-FIM") & (frame["source"] == "a") & (frame["target"] == "b") & (frame["step"] == 20)]
    assert cell.set_index("metric").loc["hit_rate", "value"] == pytest.approx(100 * (part["similarity"] > 0.4).mean())
    assert cell.set_index("metric").loc["similarity", "value"] == pytest.approx(part["similarity"].mean())


def test_seeds_are_averaged_within_a_pair():
    study, *_ = invented_study(0.0)
    again = study.frame.assign(seed=1, similarity=study.frame["similarity"] + 0.1)
    both = score(Study(pd.concat([study.frame, again]), pd.DataFrame()), thresholds())
    one = score(study, thresholds())
    np.testing.assert_allclose(both.similarity, one.similarity + 0.05)


def test_an_unresolved_threshold_is_an_error():
    study, *_ = invented_study(0.0)
    broken = thresholds()
    broken.loc["b", 1e-3] = np.nan
    with pytest.raises(ValueError, match="no threshold at FAR 0.001 for b"):
        score(study, broken)
    with pytest.raises(ValueError, match="at = 'best': the thresholds have the columns 0.01, 0.001, 0.0001"):
        score(study, thresholds(), at="best")
    with pytest.raises(ValueError, match="no 'best' threshold for c"):
        score(study, thresholds().assign(best=[0.1, 0.1, np.nan]), at="best")


def test_hits_can_be_judged_at_the_threshold_of_highest_accuracy():
    study, *_ = invented_study(0.0)
    limits = thresholds().assign(best=[0.3, 0.4, 0.5])
    found = score(study, limits, at="best")
    for name, limit in limits["best"].items():
        cell = ("a", "FIM", 20, name)
        np.testing.assert_array_equal(found.hit_rate[cell], found.similarity[cell] > limit)
    pd.testing.assert_frame_equal(found.similarity, score(study, limits).similarity)


def test_printed_claims_agree_with_the_sheet():
    printed = dfanet.judge_printed()
    assert {number: evidence.verdict for number, evidence in printed.items()} == {
        1: "holds", 2: "holds", 3: "fails", 4: "fails", 8: "holds", 9: "holds",
    }  # fmt: skip
    assert "178 of 180" in printed[3].detail  # sheet 3-dfanet, section 5, item 3: false in 2 cells
    assert printed[1].effect == pytest.approx(0.51)
    assert printed[8].effect == pytest.approx(1.8, abs=0.02)


def test_the_cast():
    cast = dfanet.make_cast()
    assert len(cast.networks) == 10 and len(dfanet.transfer_cells(cast)) == 36
    assert all(cast.held_out not in ensemble for ensemble in cast.ensembles)
    own = dfanet.make_cast("x.onnx, y.onnx, z.onnx, w.onnx")
    assert own.held_out == "w.onnx" and all("w.onnx" not in ensemble for ensemble in own.ensembles)
    assert network_name("/some/where/x.onnx") == "x"
    for wrong in ("x.onnx", "x.onnx,x.onnx", ""):
        with pytest.raises(ValueError, match="networks = "):
            dfanet.make_cast(wrong)


def test_drop_rates_are_the_papers():
    expected = {"mobile-webface-softmax": 0.025, "incres-webface-softmax": 0.05, "irse-webface-softmax": 0.1, "x.onnx": 0.1}
    assert {name: dfanet.drop_rate(name) for name in expected} == expected
    assert dfanet.drop_rate("/a/mobilefacenet_y1.onnx") == 0.025


def test_steps_below_the_baselines_are_refused():
    with pytest.raises(ValueError, match="steps = 5: at least 13"):
        dfanet.Budget(steps=5)


def test_two_copies_with_one_draw_are_the_plain_attack():
    encoder = tiny_encoder()
    source, target = torch.rand(2, 2, 3, SIZE, SIZE, dtype=torch.float64)
    plain = Attack(objective=Impersonate(), steps=2)
    twice = dataclasses.replace(plain, inputs=[dfanet.Copies(2)])
    assert torch.equal(twice(encoder, source, target), plain(encoder, source, target))
    assert twice.run(encoder, source, target).backwards == 2 * plain.run(encoder, source, target).backwards


def test_networks_are_measured_once(addresses, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    faces = FaceSet(pictures(60), np.repeat(np.arange(20), 3), name="noise")
    a, b = rng.integers(0, 60, (2, 40))
    a, b = a[a != b], b[a != b]
    same = faces.identity[a] == faces.identity[b]
    same_a = np.arange(0, 60, 3)
    pairs = Pairs(
        a=np.concatenate([a[~same], same_a]),
        b=np.concatenate([b[~same], same_a + 1]),
        same=np.array([False] * int((~same).sum()) + [True] * 20),
        fold=np.arange(int((~same).sum()) + 20) % 2,
    )
    first = measure_networks(addresses, (faces, pairs), cache=tmp_path, progress=False)
    assert first.index.tolist() == ["tiny0", "tiny1", "tiny2"]
    assert (first[1e-2] < first[1e-3]).all() and first[1e-4].isna().all()
    embeddings = open_network(addresses[0]).embed(faces)
    similarity = pair_similarity(embeddings[pairs.a], embeddings[pairs.b])
    assert first.loc["tiny0", "best"] == best_threshold(similarity, pairs.same)
    pd.testing.assert_frame_equal(thresholds_of(first), first[[1e-2, 1e-3, 1e-4, "best"]])
    monkeypatch.setattr("fa_utils.report.scores.open_network", lambda *_: pytest.fail("embedded again"))
    pd.testing.assert_frame_equal(first, measure_networks(addresses, (faces, pairs), cache=tmp_path, progress=False))


def test_networks_are_split_at_commas_or_taken_from_a_folder(tmp_path):
    assert split_addresses(" x.onnx, my-r50 ") == ("x.onnx", "my-r50")
    with pytest.raises(ValueError, match="there is no ONNX file in this folder"):
        split_addresses(str(tmp_path))
    for name in ("b.onnx", "a.onnx", "notes.txt"):
        (tmp_path / name).touch()
    assert split_addresses(str(tmp_path)) == (f"{tmp_path}/a.onnx", f"{tmp_path}/b.onnx")
    for wrong in ("", "a.onnx,", "a.onnx,b/a.onnx"):
        with pytest.raises(ValueError, match="at least 1 different networks by commas"):
            split_addresses(wrong)
