"""Chapter 1's study: variants of pictures, which of them are compared, and how claims follow from numbers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fa_utils.data import FaceSet
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.losses import LinearClassifier
from fa_utils.models.recipes import ATTRIBUTE_RECIPES
from fa_utils.report import (
    gender,
    gender_claims,
    gender_classifiers,
    gender_faces,
    gender_probes,
    gender_show,
    gender_verification,
)
from fa_utils.report.claims import FAILS, HOLDS
from fa_utils.report.gender_probes import BACKBONES, CLEAN, LARGE, PGD, SMALL, Measured, denoised, fgsm, rand
from fa_utils.report.results import results_frame

PEOPLE, EACH, DIM = 40, 5, 24
SHARED = {
    "faces": "procedural", "networks": "zoo", "profile": "test", "seeds": "0", "eps": 0.135, "steps": 1, "device": "cpu",
    "package_version": "0", "commit": "c", "date": "2026-01-01", "command": "x",
}  # fmt: skip


def invented(backbone, harm) -> Measured:
    """Embeddings around a center a person; ``harm(variant)`` is the spread that a variant adds. Everything attacked is fooled."""
    random = np.random.default_rng(0)
    identity = np.repeat(np.arange(PEOPLE), EACH)
    clean = random.normal(size=(PEOPLE, DIM))[identity] + 0.5 * random.normal(size=(len(identity), DIM))
    push = random.normal(size=clean.shape)  # one direction a picture: variants differ in how far they go
    found = Measured(identity, np.arange(len(identity)) % 2)
    attacked = [fgsm(eps) for eps in (*SMALL, *LARGE)]
    attacked += [gender_probes.control(kind, eps) for kind in ("untrained", "glasses") for eps in backbone.grid]
    attacked += [PGD, gender_probes.FULL, gender_probes.REACHING, gender_probes.SAME_L2]
    signs = [rand(eps) for eps in (*SMALL, *LARGE)] + [gender_probes.rand_blocks(eps) for eps in backbone.grid]
    signs += [gender_probes.RAND_L2, gender_probes.BLOCKS]
    for variant in (CLEAN, *attacked, *map(denoised, attacked), *signs):
        found.embedding[variant] = (clean + harm(variant) * push).astype(np.float32)
        found.correct[variant] = np.full(len(identity), variant not in attacked)
        found.rms[variant] = np.full(len(identity), 5.0)
    for name in (fgsm(backbone.grid[0]), fgsm(backbone.ball), PGD):
        found.correct[gender_probes.EIGHT_BITS.format(name)] = found.correct[name]
    return found


def eps_of(variant: str) -> float:
    numbers = [word for word in variant.split() if word[0].isdigit() and "." in word]
    return float(numbers[0]) if numbers else 0.0


def transfers(variant: str) -> float:
    """FGSM on gender spreads embeddings, the more the larger eps; denoising undoes half; nothing else does anything."""
    if variant.startswith("FGSM 0"):
        return 40 * eps_of(variant) if eps_of(variant) < 0.1 else 10 * eps_of(variant)
    return 0.5 * transfers(variant.removeprefix("denoised ")) if variant.startswith("denoised") else 0.0


def judged(name: str, harm) -> tuple[dict, list[dict]]:
    measured = invented(BACKBONES[name], harm)
    rows = gender_verification.backbone_rows((BACKBONES[name], measured, 100, 0))["rows"]
    rows += gender_verification.transfer_rows(measured, BACKBONES[name]) + gender_verification.bits_rows(measured, BACKBONES[name])
    return gender_claims.judge_effects(results_frame(rows, chapter=gender.CHAPTER, **SHARED)), rows


@pytest.fixture(scope="module")
def vgg():
    return judged("VGG16", transfers)


def test_a_transferring_attack_is_found(vgg):
    found, _ = vgg
    assert found[4].effect > 5 and found[4].verdict != FAILS
    assert found[5].effect > 5 and found[5].detail.count("AUC-DET: holds") == 2
    assert found[9].verdict == HOLDS  # PGD-ATK was made harmless
    assert found[10].verdict != HOLDS  # FGSM-variable was not


def test_a_harmless_attack_is_not_called_transferring():
    found, _ = judged("VGG16", lambda variant: 0.0)
    assert found[4].verdict != HOLDS and found[5].verdict != HOLDS
    # Differences of exactly zero get the width of what so many pairs could have missed: no proof of equality.
    assert found[9].verdict != FAILS and found[10].verdict != FAILS


def test_the_second_backbone_has_its_own_claims():
    found, _ = judged("ResNet50", lambda variant: 2 * transfers(variant) if variant.startswith("denoised") else 0.5 * transfers(variant))
    assert found[8].verdict == HOLDS  # random signs do nothing
    assert found[7].verdict in (HOLDS, "undecided") and found[7].effect > -1
    assert 6 not in found


def test_every_table_and_figure_is_fed(vgg):
    frame = results_frame(vgg[1], chapter=gender.CHAPTER, **SHARED)
    tables = set(frame["table"])
    assert {"fixed", "random", "variable", "Audit: subset", "Audit: size", "Audit: controls", "Audit: factorial", "Audit: 8 bits"} <= tables
    assert {f"claim {k}" for k in (4, 5, 6, 9, 10)} <= tables
    vgg16 = BACKBONES["VGG16"]
    for shown in (
        gender_show.error_table(vgg16, "fnmr", frame.iloc[:0], frame),
        gender_show.error_table(vgg16, "auc_det", frame.iloc[:0], frame),
        gender_show.counts_table(vgg16, "fixed", frame.iloc[:0], frame),
        gender_show.counts_table(vgg16, "variable", frame.iloc[:0], frame),
        gender_show.transfer_table("VGG16", frame.iloc[:0], frame),
        gender_show.frozen_table(frame, vgg16, caption="frozen"),
        gender_show.short_errors_table(frame, caption="short"),
        gender_show.audit_table(frame, "Audit: size", caption="sizes", names=gender_verification.SIZES),
        gender_show.bits_table(frame),
    ):
        assert "<table" in shown.html
    for figure in (gender_show.settings_figure(frame, "VGG16"), gender_show.excess_figure(frame, "VGG16"), gender_show.size_figure(frame)):
        assert figure.axes


def test_counts_are_those_of_all_comparisons(vgg):
    frame = results_frame(vgg[1], chapter=gender.CHAPTER, **SHARED)
    counts = frame[(frame["table"] == "fixed") & (frame["metric"] == "count") & (frame["x"] == SMALL[0])].set_index(["target", "far"])["value"]
    assert counts["CC", "mated"] == PEOPLE * EACH * (EACH - 1) / 2
    assert counts["CC", "non-mated"] == PEOPLE * (PEOPLE - 1) / 2 * EACH**2
    assert counts["CA", "mated"] == 2 * counts["AA", "mated"]


def test_the_frozen_threshold_is_that_of_the_clean_pictures(vgg):
    frame = results_frame(vgg[1], chapter=gender.CHAPTER, **SHARED)
    part = frame[(frame["table"] == "fixed") & (frame["x"] == SMALL[-1])].set_index(["target", "metric", "far"])["value"]
    frozen = gender_verification.FROZEN
    assert part["CC", "fnmr", gender_verification.OWN] == part["CC", "fnmr", frozen]
    assert part["CC", "fmr", frozen] <= 0.1
    assert part["AA", "fnmr", frozen] > part["CC", "fnmr", frozen]


def test_pictures_are_compared_at_the_eps_that_fooled_them():
    backbone = BACKBONES["VGG16"]
    measured = invented(backbone, transfers)
    right = measured.correct
    right[CLEAN][0] = False  # wrong from the start
    for eps in SMALL[2:]:
        right[fgsm(eps)][1] = True  # fooled by two of six
    right[fgsm(SMALL[0])][2] = True  # fooled by five
    chosen = gender_verification.compared_rows(measured, backbone)
    assert not any({0, 1} & set(rows) for rows in chosen.values())
    assert 2 not in chosen[fgsm(SMALL[0])] and 2 in chosen[fgsm(SMALL[1])]
    eps = gender_verification.chosen_eps(measured, backbone)
    assert eps[0] == -1 and eps[1] == 0 and eps[2] == 1 and eps[3] == 0  # the smallest that succeeds
    drawn = gender_verification.chosen_eps(measured, dataclasses.replace(backbone, smallest=False))
    assert drawn[0] == -1 and drawn[1] in (0, 1) and drawn[2] > 0 and len(set(drawn[3:])) == 6


def test_a_variable_picture_is_taken_at_its_own_eps():
    backbone = BACKBONES["VGG16"]
    measured = invented(backbone, transfers)
    choice = np.arange(len(measured)) % 6
    rows = np.array([3, 8, 10])
    taken = gender_verification.variable_embeddings(measured, backbone, choice, rows, clean_up=False)
    for row, embedding in zip(rows, taken, strict=True):
        assert np.array_equal(embedding, measured.embedding[fgsm(SMALL[choice[row]])][row])


def test_the_printed_claims_are_judged_from_the_cells():
    found = gender_claims.judge_printed()
    assert {number: evidence.verdict for number, evidence in found.items()} == dict.fromkeys((2, 3, 4, 5, 6, 7, 8), HOLDS)
    assert found[5].effect == pytest.approx(0.35)  # AUC-DET: 0.45 - 0.10 (sheet 1, item 3c)
    assert found[8].effect == pytest.approx(6.44)  # CA at 0.110: 8.51 - 2.07


def test_f1_is_that_of_scikit_learn():
    from sklearn.metrics import f1_score

    random = np.random.default_rng(1)
    labels, right = random.integers(0, 2, 60), random.random(60) < 0.7
    predicted = np.where(right, labels, 1 - labels)
    assert gender_verification.f1_scores(right, labels) == pytest.approx((f1_score(labels, predicted), f1_score(labels, predicted, average="macro")))
    assert gender_verification.f1_scores(np.zeros(4, bool), np.array([0, 1, 1, 0])) == (0.0, 0.0)


def test_all_versions_of_a_picture_go_to_one_side():
    rows = np.repeat(np.arange(20), 3)
    images = np.zeros((60, 3, 8, 8), np.uint8)
    found = gender_probes.Successes(images, images, np.zeros(60, int), rows, rows // 5, np.zeros(60), 20)
    learned, held = found.split(seed=1)
    assert not set(learned.row) & set(held.row) and len(learned) + len(held) == 60
    assert len(set(learned.row)) == 16


def test_an_unknown_backbone_is_named():
    with pytest.raises(ValueError, match="backbone 'VGG19' is unknown; known: VGG16, ResNet50"):
        gender_probes.find_backbone("VGG19")


@pytest.fixture
def tiny(monkeypatch):
    """Networks and faces small enough to attack in a test; two classes by brightness."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 8))
    classifier = FaceEncoder(body, name="tiny", input_size=16, classifier=LinearClassifier(8, 2))
    random = np.random.default_rng(0)
    images = random.integers(40, 216, (24, 3, 16, 16)).astype(np.uint8)
    with torch.no_grad():
        predicted = classifier.logits(torch.from_numpy(images).float() / 255).argmax(1).numpy()
    attributes = pd.DataFrame({"gender": predicted, "glasses": np.arange(24) % 2})
    faces = FaceSet(images, np.arange(24) // 4, attributes, "tiny")
    monkeypatch.setattr(gender_probes, "load_part", lambda *a, **k: faces)
    monkeypatch.setattr(gender_probes, "classifier_of", lambda name, device="cpu", faces="procedural": classifier)
    monkeypatch.setattr(gender_probes, "target_of", lambda name, device="cpu": classifier)
    return classifier, faces


def measure_one(plan, **options) -> Measured:
    (measured,) = gender_probes.measure(plan, progress=False, **options).values()
    return measured


def test_units_do_not_change_what_is_measured(tiny):
    plan = gender_probes.Plan(BACKBONES["VGG16"], 6, 4, audit=6)
    whole, parts = (measure_one(plan, people=people) for people in (6, 2))
    assert set(whole.embedding) == set(parts.embedding) and len(whole) == 24
    for variant in (fgsm(SMALL[0]), PGD, rand(SMALL[-1]), gender_probes.SAME_L2):
        assert np.allclose(whole.embedding[variant], parts.embedding[variant], atol=1e-5)


def test_sizes_are_as_the_audit_says(tiny):
    measured = measure_one(gender_probes.Plan(BACKBONES["VGG16"], 6, 4, audit=6), people=6)
    assert measured.rms[CLEAN].max() == 0
    assert np.allclose(measured.rms[fgsm(0.010)], 2.55, atol=0.01)
    assert measured.rms[gender_probes.FULL].max() <= 2.56  # ten steps of 0.001
    assert np.all(measured.rms[PGD] <= measured.rms[gender_probes.FULL] + 1e-6)
    same = [gender_probes.SAME_L2, gender_probes.RAND_L2, gender_probes.BLOCKS]
    for name in same:
        assert np.allclose(measured.rms[name], measured.rms[gender_probes.REACHING], rtol=1e-3)


def test_a_sweep_counts_pictures_at_each_eps(tiny):
    classifier, faces = tiny
    correct, people = gender_probes.sweep_correct(BACKBONES["VGG16"], (0.0, 0.3), identities=6, pictures=4)
    assert correct["none"].shape == (2, 24) and correct["none"][0].all()  # labels are the classifier's own answers
    assert correct["none"][1].mean() < 0.5 and np.array_equal(people, faces.identity)


def test_successes_are_right_before_and_wrong_after(tiny):
    classifier, faces = tiny
    found = gender_probes.collect_successes(dataclasses.replace(BACKBONES["VGG16"], grid=LARGE), "FGSM-fixed", identities=6)
    assert len(found) and set(found.eps) <= set(LARGE)
    with torch.no_grad():
        after = classifier.logits(torch.from_numpy(found.adversarial).float() / 255).argmax(1).numpy()
    assert (after != found.label).mean() > 0.95  # rounding to bytes may undo a few
    with pytest.raises(ValueError, match="'FGSM-fixed' or 'PGD-ATK'"):
        gender_probes.collect_successes(BACKBONES["VGG16"], "FGSM", identities=6)


# ---------------------------------------------------------------- photographs


def photographs(people: int = 24, *, glasses: bool = True, seed: int = 0) -> FaceSet:
    """Stand-ins for photographs: noise around a pattern a person, tinted by gender; two to seven pictures of each."""
    random = np.random.default_rng(seed)
    identity = np.repeat(np.arange(people), 2 + np.arange(people) // 2 % 6)
    gender_ = (np.arange(people) % 2)[identity]
    images = random.integers(60, 160, (people, 3, 14, 14)).repeat(4, 2).repeat(4, 3)[identity] + random.integers(-20, 20, (len(identity), 3, 56, 56))
    images[:, 0] += 60 * gender_[:, None, None]
    columns = {"gender": gender_.astype(np.int8)}
    if glasses:
        columns["glasses"] = (np.arange(len(identity)) % 4 == 0).astype(np.int8)
    return FaceSet(images.clip(0, 255).astype(np.uint8), identity, pd.DataFrame(columns), "tinted")


@pytest.fixture
def real(monkeypatch):
    """Let the address "there" lead to a set; call it with the set."""

    def lead(faces: FaceSet) -> str:
        for cached in (gender_faces._parts, gender_faces._labels):
            cached.cache_clear()
        monkeypatch.setattr(gender_faces, "load_faces", lambda address: faces)
        return "there"

    yield lead
    for cached in (gender_faces._parts, gender_faces._labels):
        cached.cache_clear()


def test_the_parts_share_nobody_and_part_b_has_the_most_pictures(real):
    faces = photographs()
    address = real(faces)
    rows, people = gender_faces.split_people(faces, gender_faces.gender_labels(faces))
    members = {part: set(faces.identity[kept]) for part, kept in rows.items()}
    assert {part: len(who) for part, who in members.items()} == {"A": 14, "C": 4, "B": 6}
    assert set.union(*members.values()) == set(range(24))
    count = np.bincount(faces.identity)
    for label in (0, 1):
        own = [i for i in range(24) if i % 2 == label]
        assert min(count[i] for i in members["B"] if i in own) >= max(count[i] for i in own if i not in members["B"])
    part = gender_faces.load_part(address, "B")
    assert np.array_equal(part.identity, np.sort(part.identity)) and set(part.identity) == set(range(6))
    assert part.attributes["gender"].groupby(part.identity).nunique().eq(1).all()
    few = gender_faces.load_part(address, "B", identities=4, pictures=3)
    assert np.array_equal(few.identity, np.repeat(np.arange(4), 3)) and few.attributes["gender"].mean() == 0.5
    again = gender_faces.split_people(faces, gender_faces.gender_labels(faces))[0]
    assert all(np.array_equal(rows[part], again[part]) for part in rows)
    assert sum(line["pictures"] for line in gender_faces.describe_parts(address)) == len(faces)


def test_a_person_has_one_label_and_ties_have_none():
    given = np.array([1, 1, 0, 0, 1, -1, -1, 0, -1], np.int8)
    faces = FaceSet(np.zeros((9, 3, 8, 8), np.uint8), np.array([5, 5, 5, 7, 7, 8, 8, 9, 9]), pd.DataFrame({"gender": given}))
    assert gender_faces.gender_labels(faces).tolist() == [1, 1, 1, -1, -1, -1, -1, 0, 0]


def test_what_a_dataset_lacks_is_named(real):
    faces = photographs()
    with pytest.raises(ValueError, match=r"'tinted' has no attribute 'gender'.*its attributes: glasses.*CelebA, LFW"):
        gender_faces.load_part(real(FaceSet(faces.images, faces.identity, faces.attributes[["glasses"]], faces.name)), "B")
    few = faces.subset(faces.identity < 10)
    with pytest.raises(ValueError, match=r"has 5 people with the gender label 1.*need 8 people of each label, two of them with 2 pictures"):
        gender_faces.load_part(real(few), "A")
    single = faces.subset(np.unique(faces.identity, return_index=True)[1])
    with pytest.raises(ValueError, match="0 of them with 2 pictures or more"):
        gender_faces.load_part(real(single), "A")
    address = real(photographs(glasses=False))
    part = gender_faces.load_part(address, "B", pictures=15)
    said = gender_faces.shortcomings(address, part, identities=40, pictures=15, glasses=False)
    assert [line.split()[0] for line in said] == ["Part", "6", "'tinted'"] and "the least 6" in said[1]
    assert gender_faces.shortcomings("procedural", part, identities=40, pictures=15, glasses=False) == []


def test_a_classifier_is_trained_on_photographs_once(real, tmp_path):
    faces = photographs(40)
    options = {"epochs": 4, "folder": tmp_path}
    path = gender_classifiers.train_classifier(faces, "vgg16", "gender", **options)
    assert path.parent == tmp_path and path.name.startswith("vgg16-tinted-gender-")
    figures = gender_classifiers.evaluate_classifier(gender_probes.classifier_of(str(path)), faces, "gender")
    assert figures["balanced_accuracy"] > 0.9
    written = path.stat().st_mtime_ns
    assert gender_classifiers.train_classifier(faces, "vgg16", "gender", **options) == path and path.stat().st_mtime_ns == written
    other = FaceSet(faces.images, faces.identity, faces.attributes.assign(gender=1 - faces.attributes["gender"]), faces.name)
    assert gender_classifiers.train_classifier(other, "vgg16", "gender", epochs=1, folder=tmp_path) != path
    with pytest.raises(ValueError, match="has no attribute 'beard'; it has gender, glasses"):
        gender_classifiers.train_classifier(faces, "vgg16", "beard", **options)
    assert "vgg16-celeba-gender" in ATTRIBUTE_RECIPES  # what training starts from


def test_the_study_on_photographs_with_other_networks(real, tmp_path):
    address = real(photographs(40, glasses=False))
    networks = "ires-webface-softmax, mobile-webface-softmax"
    options = {"epochs": 2, "folder": tmp_path, "progress": False}
    cast = gender_classifiers.make_cast(address, networks, backbones=["VGG16"], **options)
    backbone = cast["VGG16"]
    assert backbone.targets == ("ires-webface-softmax", "mobile-webface-softmax") and backbone.unrelated == ""
    rows = gender_classifiers.classifier_rows(backbone)
    measured = gender_probes.measure(gender_probes.Plan(backbone, 6, 4, audit=6), progress=False)
    assert list(measured) == list(backbone.targets)
    one, other = measured.values()
    assert one.correct is not other.correct and all(np.array_equal(one.correct[v], other.correct[v]) for v in one.correct)
    assert not np.array_equal(one.embedding[CLEAN], other.embedding[CLEAN])
    assert gender_probes.control("untrained", SMALL[0]) in one.embedding and not any("glasses" in v for v in one.embedding)
    for target, part in measured.items():
        part.embedding |= {denoised(v): e for v, e in part.embedding.items()}
        rows += gender_verification.recognizer_rows(part, target, n_resamples=20)
        rows += gender_verification.audit_rows(part, backbone.judged_by(target), n_resamples=20)
    frame = results_frame(rows, chapter=gender.CHAPTER, **SHARED | {"faces": "tinted", "networks": "onnx"})
    assert {"VGG16", "VGG16, ires-webface-softmax", "mobile-webface-softmax"} <= set(frame["source"])
    for shown in (
        gender_show.other_networks_table(frame, caption="networks"),
        gender_show.conclusion_table(frame),
    ):
        assert "<table" in shown.html
    assert len(gender_show.size_figure(frame).axes) == 2


def test_claims_are_judged_for_all_recognizers_and_for_each():
    rows = []
    for judge, harm in (("one", transfers), ("two", lambda variant: 0.0)):
        backbone = dataclasses.replace(BACKBONES["VGG16"], targets=(judge,))
        found = gender_verification.verify(invented(backbone, harm), backbone, n_resamples=20)
        rows += gender_verification.verification_rows(found) + gender_verification.effects(found)
    frame = results_frame(rows, chapter=gender.CHAPTER, **SHARED)
    each = gender_claims.judge_by_recognizer(frame)
    assert list(each) == ["one", "two"]
    assert each["one"][10].verdict != HOLDS and each["one"][5].effect > 5 and each["two"][5].verdict != HOLDS
    assert gender_claims.judge_effects(frame)[5].verdict != HOLDS  # it has to hold for all
    table = gender_show.recognizer_verdicts(frame, caption="each")
    assert list(table.frame.columns) == ["", "claim", "one", "two"]


def test_networks_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="networks = ' , '"):
        gender_classifiers.make_cast(networks=" , ")
    with pytest.raises(ValueError, match="is not in the zoo"):
        gender_classifiers.make_cast(networks="ires-webface-sofmax")
