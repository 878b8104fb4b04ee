"""LFW read from its standard folder: small trees written here, and the real one where it lies."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fa_utils.data import pictures
from fa_utils.data.lfw import load_lfw

REAL = Path(os.environ.get("FA_LFW", "/work/real"))  # a reader's own copy; the last test is skipped without
PAIRS = "2\t1\nAnna\t1\t2\nAnna\t1\tBob_de_Vries\t3\nCem\t1\t2\nBob_de_Vries\t3\tCem\t2\n"


def write_tree(folder, *, suffix=".png", pairs=PAIRS, size=(8, 6)):
    """Seven pictures of four people; picture k is uniformly of level 10 k, in order of name and number."""
    names = ["Anna_0001", "Anna_0002", "Bob_de_Vries_0003", "Bob_de_Vries_0010",
             "Cem_0001", "Cem_0002", "Dora_0001"]
    for k, name in enumerate(names):
        path = folder / name[:-5] / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * k, 0, 255)).save(path)
    if pairs is not None:
        (folder / "pairs.txt").write_text(pairs)


@pytest.fixture
def load(tmp_path):
    def load(root=tmp_path, **options):
        return load_lfw(root, cache=tmp_path / "cache", progress=False, **options)
    return load


@pytest.mark.parametrize("inner", ["lfw", "."])
@pytest.mark.parametrize("beside", [False, True])
def test_reads_pictures_and_pairs(tmp_path, load, inner, beside):
    root = tmp_path / "root"
    write_tree(root / inner)
    if beside:
        (root / inner / "pairs.txt").rename((root / inner).resolve().parent / "pairs.txt")
    faces, pairs = load(root.resolve())
    assert faces.images.shape == (7, 3, 6, 8) and isinstance(faces.images, np.memmap)
    assert faces.images[:, 0, 2, 3].tolist() == [0, 10, 20, 30, 40, 50, 60]  # red first: RGB
    assert (faces.images[:, 2] == 255).all()
    assert faces.identity.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert faces.attributes["person"].tolist()[2:4] == ["Bob_de_Vries"] * 2
    assert faces.attributes["number"].tolist() == [1, 2, 3, 10, 1, 2, 1]
    assert (pairs.a.tolist(), pairs.b.tolist()) == ([0, 0, 4, 2], [1, 2, 5, 5])
    assert pairs.same.tolist() == [True, False, True, False] and pairs.fold.tolist() == [0, 0, 1, 1]


def test_jpeg_and_gray_pictures_become_rgb(tmp_path, load):
    write_tree(tmp_path, suffix=".jpg")
    Image.new("L", (8, 6), 77).save(tmp_path / "Anna" / "Anna_0001.jpg")
    assert (load()[0].images[0] == 77).all()


def test_subset_keeps_only_pictures_of_pairs(tmp_path, load):
    write_tree(tmp_path)
    all_faces, all_pairs = load()
    faces, pairs = load(subset=True)
    assert len(faces) == 5 and faces.attributes["person"].tolist().count("Bob_de_Vries") == 1
    for side in ("a", "b"):
        expected = all_faces.images[getattr(all_pairs, side)]
        np.testing.assert_array_equal(faces.images[getattr(pairs, side)], expected)


def test_decodes_once_and_again_after_a_change(tmp_path, load, monkeypatch):
    write_tree(tmp_path)
    load()
    decoded = []
    read = pictures.read_picture
    monkeypatch.setattr(pictures, "read_picture", lambda path, *crop: decoded.append(path) or read(path, *crop))
    load()
    assert len(decoded) == 1  # the first picture, for its size
    Image.new("RGB", (8, 6), (200, 0, 0)).save(tmp_path / "Cem" / "Cem_0002.png", compress_level=0)
    assert (load()[0].images[5, 0] == 200).all()


def test_other_files_are_no_pictures(tmp_path, load):
    write_tree(tmp_path)
    (tmp_path / "Anna" / "notes.txt").write_text("x")
    (tmp_path / "Anna" / "Bob_0001.png").write_text("x")
    assert len(load()[0]) == 7


def test_missing_folder_and_pairs_are_named(tmp_path, load):
    with pytest.raises(FileNotFoundError, match="nowhere/lfw/Name/Name_0001.jpg.*no such folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "celeba").mkdir()
    with pytest.raises(FileNotFoundError, match=r"it holds \['celeba'\]"):
        load()
    write_tree(tmp_path / "lfw", pairs=None)
    with pytest.raises(FileNotFoundError, match="pairs.txt of LFW is missing.*10 folds of 300"):
        load()


@pytest.mark.parametrize("pairs, message", [
    ("", "line 1 must give"),
    ("Anna 1 2\n", "line 1 must give"),
    ("2 1\nAnna 1 2\n", "4 lines; it has 1"),
    (PAIRS.replace("Cem\t1\t2", "Cem\t1\t7"), r"pair 3 \('Cem 1 7'\) names picture 7 of Cem.*Cem_0007.jpg"),
    (PAIRS.replace("\tCem\t2", "\tZoe\t2"), "picture 2 of Zoe"),
    (PAIRS.replace("Cem\t1\t2", "Cem\t1"), "pair 3 .* must be a mated pair"),
    (PAIRS.replace("Anna\t1\tBob_de_Vries\t3", "Anna\t1\t2"), "pair 2 .* must be an impostor pair"),
    (PAIRS.replace("\tBob_de_Vries\t3\nCem", "\tAnna\t2\nCem"), "names one person twice"),
    (PAIRS.replace("Cem\t1\t2", "Cem\tone\t2"), "must be a mated pair"),
])
def test_bad_pairs_are_named(tmp_path, load, pairs, message):
    write_tree(tmp_path, pairs=pairs)
    with pytest.raises(ValueError, match=message):
        load()


def test_damaged_or_odd_pictures_are_named_and_nothing_is_left(tmp_path, load):
    write_tree(tmp_path)
    path = tmp_path / "Cem" / "Cem_0001.png"
    intact = path.read_bytes()
    path.write_bytes(intact[:40])
    with pytest.raises(ValueError, match="Cem_0001.png cannot be decoded"):
        load()
    Image.new("RGB", (9, 6)).save(path)
    with pytest.raises(ValueError, match="Cem_0001.png is 9 x 6, but Anna_0001.png is 8 x 6"):
        load()
    assert not list((tmp_path / "cache").glob("*.npy")) and not list((tmp_path / "cache").glob("*.part"))
    path.write_bytes(intact)
    assert len(load()[0]) == 7


def test_a_picture_stored_twice_is_an_error(tmp_path, load):
    write_tree(tmp_path)
    Image.new("RGB", (8, 6)).save(tmp_path / "Anna" / "Anna_0001.jpg")
    with pytest.raises(ValueError, match="two files for one picture"):
        load()


def test_unwritable_cache_is_named(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cannot write the cache"):
        load_lfw(tmp_path, cache=tmp_path / "cache", progress=False)


@pytest.mark.skipif(not (REAL / "lfw" / "pairs.txt").exists(), reason=f"no real LFW at {REAL}; set FA_LFW")
def test_real_lfw_has_its_known_counts(tmp_path):
    faces, pairs = load_lfw(REAL, subset=True, progress=False)
    assert faces.images.shape == (7701, 3, 112, 112)
    assert len(set(faces.attributes["person"])) == 4281
    assert np.bincount(pairs.fold).tolist() == [600] * 10
    assert np.bincount(pairs.fold[pairs.same]).tolist() == [300] * 10
