"""The renderer, its people, its domains and the cache."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from fa_utils.attacks.transfer import procedural_pairs
from fa_utils.data import (
    FIELDS,
    TRAITS,
    Conditions,
    attack_pairs,
    domain_table,
    load_benchmark,
    load_domain,
    protocol_pairs,
    render_pictures,
)
from fa_utils.data import domains as domains_module
from fa_utils.data.cache import cached_array
from fa_utils.data.people import sample_people, sample_pictures
from fa_utils.data.renderer import render

WHO, SAMPLE = np.repeat(np.arange(6), 3), np.tile(np.arange(3), 6)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(domains_module, "CACHE", tmp_path)
    return tmp_path


def test_forty_identity_parameters_and_more():
    assert len(TRAITS) >= 40 and sum(FIELDS.values()) >= 40


def test_pictures_do_not_depend_on_batch_or_order():
    whole = render_pictures("pool", WHO, SAMPLE, Conditions(), 64)
    order = np.random.default_rng(0).permutation(len(WHO))
    assert np.array_equal(render_pictures("pool", WHO[order], SAMPLE[order], Conditions(), 64), whole[order])
    assert np.array_equal(render_pictures("pool", WHO[4:5], SAMPLE[4:5], Conditions(), 64), whole[4:5])


def test_pictures_do_not_depend_on_threads():
    appearance, conditions, _ = sample_pictures("pool", WHO, SAMPLE, Conditions())
    before = torch.get_num_threads()
    try:
        pictures = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            pictures.append(render(torch.from_numpy(appearance), torch.from_numpy(conditions), 48))
        assert torch.equal(*pictures)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [32, 45, 112, 256])
def test_any_size(size):
    pictures = render_pictures("pool", WHO[:2], SAMPLE[:2], Conditions(), size)
    assert pictures.shape == (2, 3, size, size) and pictures.dtype == np.uint8
    assert pictures.std() > 20


def test_sizes_show_the_same_picture():
    quiet = Conditions(noise=0.0, jpeg=0.0, blur=0.0)
    small, large = (render_pictures("pool", WHO[:3], SAMPLE[:3], quiet, size).astype(float) for size in (56, 112))
    averaged = large.reshape(3, 3, 56, 2, 56, 2).mean((3, 5))
    assert np.abs(averaged - small).mean() < 4


@pytest.mark.parametrize("size", [31, 257, 112.0])
def test_size_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match="32 to 256"):
        render_pictures("pool", WHO[:1], SAMPLE[:1], Conditions(), size)


def test_pools_hold_different_people():
    first, second = (sample_people(pool, np.arange(50), Conditions()) for pool in ("webface/train", "webface/test"))
    distance = np.linalg.norm(first.fields[:, None] - second.fields[None], axis=-1)
    assert distance.min() > 3


def test_bone_stays_and_style_changes():
    appearance, _, _ = sample_pictures("pool", np.zeros(40, int), np.arange(40), Conditions())
    names = list(TRAITS)
    assert np.ptp(appearance[:, names.index("nose_width")]) == 0
    assert np.std(appearance[:, names.index("hair_length")]) > 0.3


def test_gender_shifts_distributions_with_overlap():
    people = sample_people("pool", np.arange(800), Conditions())
    jaw = people.traits[:, list(TRAITS).index("jaw_width")]
    one, other = jaw[people.gender == 1], jaw[people.gender == 0]
    assert one.mean() - other.mean() > 0.8
    assert (other > one.mean()).mean() > 0.02


def test_expression_and_pose_are_drawn_as_the_domain_says():
    appearance, still, _ = sample_pictures("pool", WHO, SAMPLE, Conditions(yaw=0, expression=0, glasses=0))
    names = domains_module.CONDITIONS
    assert not still[:, [names.index("yaw"), names.index("smile"), names.index("glasses")]].any()


def test_load_domain_caches_and_nests(cache):
    small = load_domain("webface", "test", identities=3, pictures=2, size=48, progress=False)
    large = load_domain("webface", "test", identities=5, pictures=4, size=48, progress=False)
    assert isinstance(small.images, np.memmap)
    assert np.array_equal(small.images, large.images[[0, 1, 4, 5, 8, 9]])
    assert {"gender", "age", "glasses"} <= set(small.attributes)
    files = sorted(p.name for p in (cache / "faces").glob("*.npy"))
    load_domain("webface", "test", identities=3, pictures=2, size=48, progress=False)
    assert sorted(p.name for p in (cache / "faces").glob("*.npy")) == files


def test_unknown_names_offer_the_nearest():
    with pytest.raises(KeyError, match="did you mean 'webface'"):
        load_domain("webfaces")
    with pytest.raises(ValueError, match="'lfw' has test"):
        load_domain("lfw", "train")
    with pytest.raises(ValueError, match="identities = 0"):
        load_domain("lfw", "test", identities=0)


def test_two_processes_render_one_set_once(tmp_path):
    code = (
        "from fa_utils.data import load_domain\n"
        "f = load_domain('webface', 'test', identities=4, pictures=3, size=48, progress=False)\n"
        "print(int(f.images.sum()))"
    )
    environment = {**os.environ, "FA_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    printed = {process.communicate(timeout=120)[0] for process in both}
    assert len(printed) == 1 and all(process.returncode == 0 for process in both)
    assert not list(tmp_path.rglob("*.part"))


def test_a_killed_render_leaves_nothing_that_could_be_taken_for_whole(tmp_path):
    path = tmp_path / "set.npy"
    code = (
        "import sys, time, pathlib\n"
        "from fa_utils.data.cache import cached_array\n"
        "def fill(out):\n"
        "    out[:1] = 7\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
        "cached_array(pathlib.Path(sys.argv[1]), (4, 5), fill)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists()
    started = time.monotonic()
    array = cached_array(path, (4, 5), lambda out: out.fill(3))
    assert time.monotonic() - started < 5 and (array == 3).all()


def test_an_error_while_rendering_leaves_nothing(tmp_path):
    def fails(out):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cached_array(tmp_path / "set.npy", (4,), fails)
    assert [p.suffix for p in tmp_path.iterdir()] == [".lock"]


def test_an_unwritable_cache_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="FA_CACHE"):
        cached_array(tmp_path / "file" / "set.npy", (4,), lambda out: None)


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OSError, match="MiB are needed"):
        cached_array(tmp_path / "set.npy", (2**50,), lambda out: None)
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob("*.part"))


def test_protocol_has_ten_disjoint_folds():
    identity = np.repeat(np.arange(300), 4)
    pairs = protocol_pairs(identity, per_fold=30)
    assert len(pairs) == 600 and pairs.same.sum() == 300
    assert np.array_equal(identity[pairs.a] == identity[pairs.b], pairs.same)
    seen = [set(identity[pairs.a[pairs.fold == k]]) | set(identity[pairs.b[pairs.fold == k]]) for k in range(10)]
    assert not any(seen[i] & seen[j] for i in range(10) for j in range(i))


def test_protocol_refuses_what_it_cannot_form():
    with pytest.raises(ValueError, match="cannot form 10 folds"):
        protocol_pairs(np.repeat(np.arange(12), 4))
    with pytest.raises(ValueError, match="per_fold = 300"):
        protocol_pairs(np.repeat(np.arange(40), 4))


def test_small_benchmark(cache):
    faces, pairs = load_benchmark(identities=30, progress=False)
    pairs.check(faces)
    assert len(set(pairs.fold.tolist())) == 10


def test_attack_pairs_are_distinct_and_disjoint_from_calibration():
    sources, targets, a, b = attack_pairs(250, progress=False)
    assert len(set(zip(a.tolist(), b.tolist(), strict=True))) == 250
    assert len(set(a[:100])) == len(set(b[:100])) == 100
    other = attack_pairs(3, calibration=True, progress=False)[0]
    assert not set(sources.identity) & set(other.identity)
    assert (sources.name, targets.name) == ("ms1m/test", "vggface2/test")
    with pytest.raises(ValueError, match="n_pairs = 0"):
        attack_pairs(0)


def test_attack_pairs_within_a_domain_share_nobody():
    parts = [attack_pairs(120, domain="celebahq", calibration=late, progress=False) for late in (False, True)]
    people = [faces.identity.tolist() for part in parts for faces in part[:2]]
    assert people == [list(range(first, first + 100)) for first in (0, 100, 200, 300)]
    assert {faces.name for part in parts for faces in part[:2]} == {"celebahq/test"}
    default = attack_pairs(120, progress=False)
    assert all(np.array_equal(*columns) for columns in zip(parts[0][2:], default[2:], strict=True))


def test_attack_pairs_within_a_domain_that_cannot():
    with pytest.raises(ValueError, match="'ms1m' has 200 test people, pairs within it need 400: take one of lfw, celeba, agedb, colorferet, celebahq"):
        attack_pairs(3, domain="ms1m")
    with pytest.raises(KeyError, match="did you mean 'celebahq'"):
        attack_pairs(3, domain="celebhq")


def test_procedural_pairs_within_a_domain():
    pairs = {name: procedural_pairs(5, domain=name, progress=False) for name in (None, "celebahq")}
    assert [p.name for p in pairs.values()] == ["procedural", "procedural celebahq"]
    assert len({p.digest for p in pairs.values()}) == 2 and len(pairs["celebahq"]) == 5


def test_the_second_benchmark_is_sharper_and_has_its_own_people(cache):
    table = domain_table()
    assert table["train people"]["celebahq"] == table["train people"]["lfw"] == 0
    assert all(table[column]["celebahq"] < table[column].drop(["celebahq", "colorferet"]).min() for column in ("noise", "jpeg", "blur", "yaw"))
    with pytest.raises(ValueError, match="'celebahq' has test"):
        load_domain("celebahq", "train")
    one, other = (load_domain(name, "test", identities=12, pictures=2, progress=False) for name in ("celebahq", "lfw"))
    assert not any(np.array_equal(a, b) for a in one.images for b in other.images)
    first, second = (sample_people(f"{name}/test", np.arange(400), Conditions()) for name in ("celebahq", "lfw"))
    assert np.linalg.norm(first.fields[:, None] - second.fields[None], axis=-1).min() > 3
