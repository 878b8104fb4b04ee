"""Real faces by address: tiny trees of every layout, written here, and the real ones where they lie."""

import bz2
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fa_utils.data import FaceSet, dataset_name, datasets, load_benchmark, load_faces
from fa_utils.data import pictures as pictures_module
from fa_utils.data.aging import made_pairs
from fa_utils.models.zoo import gender_accuracy

REAL = Path(os.environ.get("FA_REAL", "/work/real"))
ATTRIBUTES = "Eyeglasses Male Young"


def picture(path, level=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 0, 255)).save(path)


def write_lfw(folder, size=(8, 8)):
    for k, name in enumerate(["Anna_0001", "Anna_0002", "Bob_0001", "Cem_0001"]):
        picture(folder / name[:-5] / f"{name}.png", 10 * k, size)
    (folder / "male_names.txt").write_text("Bob_0001.jpg\nCem_0001.jpg\n")
    (folder / "female_names.txt").write_text("Anna_0001.jpg\nCem_0001.jpg\n")
    (folder / "pairs.txt").write_text("1 1\nAnna 1 2\nAnna 1 Bob 1\n")


def write_celeba(folder, lists="."):
    for k in range(6):
        picture(folder / "img_align_celeba" / f"00000{k + 1}.jpg", 10 * k, (178, 218))
    names = [f"00000{k + 1}.jpg" for k in range(6)]
    parts = [lists, "Anno", "Eval"] if lists != "." else [".", ".", "."]
    places = [folder / part for part in parts[1:]]
    for place in places:
        place.mkdir(exist_ok=True)
    rows = "\n".join(f"{name} -1 {1 if k < 3 else -1}  1" for k, name in enumerate(names))
    (places[0] / "list_attr_celeba.txt").write_text(f"6\n{ATTRIBUTES}\n{rows}\n")
    (places[0] / "identity_CelebA.txt").write_text("".join(f"{name} {20 - k // 3}\n" for k, name in enumerate(names)))
    (places[1] / "list_eval_partition.txt").write_text("".join(f"{name} {k // 2}\n" for k, name in enumerate(names)))


def write_celebahq(folder, inner="CelebA-HQ-img"):
    for number in (0, 2, 10):
        picture(folder / inner / f"{number}.jpg", number, (64, 64))
    (folder / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "idx    orig_idx    orig_file\n0   119613   119614.jpg\n2   7   000008.jpg\n10   8   000009.jpg\n")
    (folder / "identity_CelebA.txt").write_text("000008.jpg 5\n000009.jpg 5\n119614.jpg 9\n000001.jpg 1\n")


def write_agedb(folder):
    for k, name in enumerate(["10_Zoe_20_f", "2_Adam West_61_m", "3_Adam West_30_m", "0_Zoe_55_f"]):
        picture(folder / f"{name}.jpg", 10 * k)


def write_colorferet(folder, suffix=".ppm.bz2"):
    for person, name in (("00001", "00001_930831_fa_a"), ("00001", "00001_930831_hl"), ("00002", "00002_940128_fb")):
        path = folder / ("dvd1" if person == "00001" else "dvd2") / "data/images" / person / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.new("RGB", (512, 768), (50, 60, 70)).save(file, format="png" if suffix == ".png" else "ppm")
        path.write_bytes(bz2.compress(file.getvalue()) if suffix.endswith("bz2") else file.getvalue())
    truth = folder / "dvd1/data/ground_truths/name_value/00001/00001.txt"
    truth.parent.mkdir(parents=True)
    truth.write_text("id=cfrS00001\ngender=Male\nyob=1943\nrace=White\n")


def write_casia(folder):
    for person in ("0000045", "0000099"):
        for number in ("001", "002"):
            picture(folder / person / f"{number}.jpg")


def write_folder(folder, table="image,Male,Age,Smiling,mood\na1.png,1,30,-1,calm\nben/b1.webp,-1,,1,\n"):
    for k, name in enumerate(["ann/a1.png", "ann/a2.bmp", "ben/b1.webp"]):
        picture(folder / name, 10 * k)
    if table:
        (folder / "attributes.csv").write_text(table)


WRITERS = {"lfw": write_lfw, "celeba": write_celeba, "celebahq": write_celebahq, "agedb": write_agedb,
           "colorferet": write_colorferet, "casia": write_casia, "folder": write_folder}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "My Faces"


@pytest.fixture
def load(tmp_path, root):
    def load(faces=None, **options):
        return load_faces(faces or root, progress=False, cache=tmp_path / "cache", **options)
    return load


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_is_recognized_and_named(root, load, kind):
    root.mkdir()
    WRITERS[kind](root)
    assert datasets.find_dataset(root) == (kind, root)
    name = "my-faces" if kind == "folder" else kind
    assert dataset_name(str(root)) == dataset_name(f"{kind}:{root}") == name
    faces = load()
    assert faces.name == name and isinstance(faces.images, np.memmap) and len(faces) > 2
    for row, file in enumerate(faces.attributes["file"]):
        base = root / "lfw" if (root / "lfw").is_dir() else root
        assert (base / file).is_file() and faces.attributes["person"][row]


def test_lfw_has_genders_and_a_root_may_hold_other_sets_too(root, load):
    write_lfw(root / "lfw")
    write_folder(root / "celeba")
    faces = load()
    assert faces.name == "lfw" and faces.attributes["number"].tolist() == [1, 2, 1, 1]
    assert faces.attributes["gender"].tolist() == [0, -1, 1, -1] and faces.attributes["gender"].dtype == np.int8


def test_lfw_gender_list_with_an_absent_picture(root, load):
    write_lfw(root)
    (root / "male_names.txt").write_text("Bob_0001.jpg\nBob_0007.jpg\n")
    with pytest.raises(ValueError, match="male_names.txt line 2 names Bob_0007.jpg, which is not among"):
        load()
    (root / "male_names.txt").write_text("../Bob\n")
    with pytest.raises(ValueError, match="line 1 must name a picture"):
        load()


def test_lfw_without_lists_has_no_gender_and_made_pairs_need_people(root, load):
    write_lfw(root)
    for name in ("male_names.txt", "female_names.txt", "pairs.txt"):
        (root / name).unlink()
    assert "gender" not in load().attributes
    with pytest.raises(ValueError, match="1 of 3 people have two pictures"):
        load_benchmark("lfw", str(root), progress=False)


def test_originals_of_lfw_are_cropped(root, load):
    write_lfw(root, size=(250, 250))
    image = Image.new("RGB", (250, 250))
    image.paste((255, 255, 255), (60, 52, 125, 117))  # upper left quarter of the box
    image.save(root / "Anna" / "Anna_0001.png")
    faces = load()
    assert faces.images.shape[1:] == (3, 112, 112)
    assert (faces.images[0, 0, 2:54, 2:54] == 255).all() and (faces.images[0, 0, 58:, 58:] == 0).all()


def test_lfw_of_scikit_learn(tmp_path, load, monkeypatch):
    home = tmp_path / "sk" / "lfw_home"
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "sk"))
    calls = []

    def fetch(**options):
        calls.append(options)
        write_lfw(home / "lfw_funneled", size=(250, 250))
        (home / "lfw_funneled" / "pairs.txt").rename(home / "pairs.txt")

    monkeypatch.setattr("sklearn.datasets.fetch_lfw_people", fetch)
    assert dataset_name("lfw:sklearn") == "lfw" and not calls
    for _ in range(2):
        faces = load("lfw:sklearn")
        assert faces.name == "lfw" and faces.images.shape == (4, 3, 112, 112)
    assert len(calls) == 1
    pairs = load_benchmark("lfw", "lfw:sklearn", progress=False)[1]
    assert pairs.same.tolist() == [True, False]


def test_scikit_learn_offline_says_what_to_do(tmp_path, load, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))

    def fetch(**options):
        raise OSError("no route to host")

    monkeypatch.setattr("sklearn.datasets.fetch_lfw_people", fetch)
    with pytest.raises(OSError, match="cannot download LFW.*no route.*put lfw_funneled/Name"):
        load("lfw:sklearn")


@pytest.mark.parametrize("lists", [".", "Anno"])
def test_celeba(root, load, lists):
    write_celeba(root, lists)
    faces = load()
    table = faces.attributes
    assert faces.images.shape == (6, 3, 112, 112) and faces.images[3, 0, 50, 50] == pytest.approx(30, abs=2)
    assert table["person"].tolist() == ["20"] * 3 + ["19"] * 3 and faces.identity.tolist() == [1, 1, 1, 0, 0, 0]
    assert table["split"].tolist() == ["train", "train", "val", "val", "test", "test"]
    assert table["gender"].tolist() == [1, 1, 1, 0, 0, 0] and "male" not in table
    assert table["young"].tolist() == [1] * 6
    assert table["glasses"].tolist() == table["eyeglasses"].tolist() == [0] * 6
    assert table["file"][0] == "img_align_celeba/000001.jpg"


def test_celeba_crop_is_the_box_that_is_stated(root, load):
    write_celeba(root)
    image = Image.new("RGB", (178, 218))
    image.paste((255, 255, 255), (30, 57, 147, 174))
    for k in range(6):
        image.save(root / "img_align_celeba" / f"00000{k + 1}.jpg", quality=100, subsampling=0)
    assert load().images[:, :, 2:-2, 2:-2].min() > 240


@pytest.mark.parametrize("name", ["identity_CelebA.txt", "list_attr_celeba.txt", "list_eval_partition.txt"])
def test_celeba_lacks_a_list(root, load, name):
    write_celeba(root)
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing: looked for it in .*Anno.*Eval"):
        load()


@pytest.mark.parametrize("name, old, new, message", [
    ("list_attr_celeba.txt", "6\n", "7\n", "announces 7 pictures; it has 6"),
    ("list_attr_celeba.txt", "6\n", "six\n", "must begin with the number of pictures"),
    ("list_attr_celeba.txt", "000002.jpg -1 1  1", "000002.jpg -1 1", "line 4 must give a picture and 3 values, it gives 2"),
    ("list_attr_celeba.txt", "000002.jpg -1 1", "000002.jpg -1 2", "gives 000002.jpg the value '2'"),
    ("list_attr_celeba.txt", "000002.jpg", "000009.jpg", "do not name the same pictures: 000002.jpg .* 2 such"),
    ("identity_CelebA.txt", "000002.jpg", "../000002.jpg", "line 2 names '../000002.jpg', which is no path inside"),
    ("identity_CelebA.txt", "000002.jpg", "/etc/000002.jpg", "line 2 names '/etc/000002.jpg'"),
    ("identity_CelebA.txt", "000002.jpg", "000001.jpg", "line 2 names 000001.jpg a second time"),
    ("list_eval_partition.txt", "000006.jpg 2", "000006.jpg 3", "line 6 gives 000006.jpg the value '3'; expected is one of 0 .train"),
])
def test_bad_lists_of_celeba(root, load, name, old, new, message):
    write_celeba(root)
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load()


def test_celeba_picture_without_identity(root, load):
    write_celeba(root)
    picture(root / "img_align_celeba/000007.jpg", size=(178, 218))
    with pytest.raises(ValueError, match="does not name 000007.jpg, which lies in .*; 1 such"):
        load()


def test_a_list_that_is_no_text(root, load):
    write_celeba(root)
    (root / "identity_CelebA.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="identity_CelebA.txt is no text in UTF-8"):
        load()


def test_a_crop_wants_the_shape_that_it_is_stated_for(root, load):
    write_celeba(root)
    picture(root / "img_align_celeba/000004.jpg", size=(100, 100))
    with pytest.raises(ValueError, match="000004.jpg is 100 x 100; the crop .* 178 x 218"):
        load()


@pytest.mark.parametrize("inner", ["CelebA-HQ-img", "."])
def test_celebahq(root, load, inner):
    write_celebahq(root, inner)
    (root / "list_eval_partition.txt").write_text("000008.jpg 0\n000009.jpg 2\n119614.jpg 1\n")
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text("2\nMale Eyeglasses\n0.jpg  1 -1\n10.jpg -1 1\n")
    faces = load()
    assert faces.images.shape == (3, 3, 112, 112)
    assert faces.attributes["person"].tolist() == ["9", "5", "5"]
    assert faces.attributes["original"].tolist() == ["119614.jpg", "000008.jpg", "000009.jpg"]
    assert faces.attributes["split"].tolist() == ["val", "train", "test"]
    assert faces.attributes["gender"].tolist() == [1, -1, 0] and faces.attributes["glasses"].tolist() == [0, -1, 1]


def test_celebahq_needs_identities(root, load):
    write_celebahq(root)
    (root / "identity_CelebA.txt").write_text("000008.jpg 5\n000009.jpg 5\n")
    with pytest.raises(ValueError, match="does not name 119614.jpg"):
        load()
    (root / "identity_CelebA.txt").unlink()
    with pytest.raises(FileNotFoundError, match="identity_CelebA.txt is missing"):
        load()


@pytest.mark.parametrize("old, new, message", [
    ("idx", "number", "line 1 must name the columns"),
    ("2   7", "two   7", "line 3 must give"),
    ("2   7", "0   7", "line 3 names 0 a second time"),
    ("000009.jpg", "../000009.jpg", "line 4 names"),
    ("\n10   8   000009.jpg", "", "does not name 10.jpg"),
])
def test_bad_mapping_of_celebahq(root, load, old, new, message):
    write_celebahq(root)
    path = root / "CelebA-HQ-to-CelebA-mapping.txt"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load()


def test_agedb(root, load):
    write_agedb(root)
    faces = load()
    assert faces.attributes["file"].tolist()[0] == "0_Zoe_55_f.jpg"  # by number, not by letter
    assert faces.attributes["person"].tolist() == ["Zoe", "Adam West", "Adam West", "Zoe"]
    assert faces.attributes["age"].tolist() == [55, 61, 30, 20] and faces.attributes["gender"].tolist() == [0, 1, 1, 0]


def test_agedb_picture_of_another_name(root, load):
    write_agedb(root)
    picture(root / "holiday.jpg")
    with pytest.raises(ValueError, match="holiday.jpg is not named as AgeDB names.*1 such"):
        load()


AGEDB_PAIRS = "0_Zoe_55_f.jpg 10_Zoe_20_f.jpg 1\n0_Zoe_55_f.jpg 3_Adam West_30_m.jpg 0\n".replace("Adam West", "Adam_West") * 5


def test_agedb_pairs_from_the_list(root, load):
    write_agedb(root)
    for path in root.glob("*Adam*"):
        path.rename(root / path.name.replace(" ", "_"))
    (root / "agedb_30_pairs.txt").write_text(AGEDB_PAIRS)
    _, pairs = load_benchmark("lfw", str(root), progress=False)
    assert pairs.same.tolist() == [True, False] * 5 and pairs.fold.tolist() == list(range(10))
    for text, message in ((AGEDB_PAIRS[:-2], "line 10 must be 'file_a file_b same'"), ("x y 1\n", "10 folds of equal length; it has 1"),
                          (AGEDB_PAIRS.replace("10_Zoe", "11_Zoe", 1), "line 1 names 11_Zoe_20_f.jpg, which is not among"),
                          (AGEDB_PAIRS.replace(" 1\n", " 0\n", 1), "line 1 says same = 0, but shows Zoe and Zoe")):
        (root / "agedb_30_pairs.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_benchmark("lfw", str(root), progress=False)


def test_agedb_pairs_made_thirty_years_apart(root):
    for person in range(20):
        for k, age in enumerate((20, 40, 60)):
            picture(root / f"{3 * person + k}_P{person}_{age}_m.jpg")
    faces, pairs = load_benchmark("agedb", str(root), progress=False)
    age = faces.attributes["age"].to_numpy()
    assert (np.abs(age[pairs.a] - age[pairs.b]) >= 30).all() and np.bincount(pairs.fold).tolist() == [4] * 10


@pytest.mark.parametrize("suffix", [".ppm", ".ppm.bz2", ".png"])
def test_colorferet(root, load, suffix):
    write_colorferet(root, suffix)
    faces = load()
    assert faces.images.shape == (3, 3, 112, 112) and faces.images[2, :, 9, 9].tolist() == [50, 60, 70]
    table = faces.attributes
    assert table["person"].tolist() == ["00001", "00001", "00002"] and table["pose"].tolist() == ["fa", "hl", "fb"]
    assert table["gender"].tolist() == [1, 1, -1] and table["age"].tolist()[:2] == [50, 50] and np.isnan(table["age"][2])


def test_colorferet_verifies_frontal_pictures(root):
    for person in range(1, 9):
        for date, pose in (("930831", "fa"), ("930831", "fb"), ("930831", "pl")):
            picture(root / f"dvd1/data/images/0000{person}/0000{person}_{date}_{pose}.png", size=(32, 48))
    faces, pairs = load_benchmark("lfw", str(root), progress=False)
    assert set(faces.attributes["pose"].to_numpy()[np.union1d(pairs.a, pairs.b)]) == {"fa", "fb"}


def test_bad_ground_truth_and_doubles_of_colorferet(root, load):
    write_colorferet(root)
    truth = root / "dvd1/data/ground_truths/name_value/00001/00001.txt"
    truth.write_text("gender=Male\nyob=unknown\n")
    with pytest.raises(ValueError, match="00001.txt gives yob = 'unknown'"):
        load()
    truth.write_text("gender=Yes\n")
    with pytest.raises(ValueError, match="00001.txt gives the gender 'yes'"):
        load()
    picture(root / "dvd1/data/images/00001/00001_930831_fa_a.png", size=(512, 768))
    with pytest.raises(ValueError, match="two files for one picture"):
        load()


def test_damaged_bz2_is_named(root, load):
    write_colorferet(root)
    path = root / "dvd2/data/images/00002/00002_940128_fb.ppm.bz2"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="1 of 3 .*00002_940128_fb.ppm.bz2 cannot be decoded"):
        load()


def test_casia_wants_folders_of_digits(root, load):
    write_casia(root)
    assert load().attributes["person"].tolist() == ["0000045"] * 2 + ["0000099"] * 2
    picture(root / "Anna" / "001.jpg")
    with pytest.raises(ValueError, match="Anna/001.jpg does not lie in a folder of digits"):
        load(f"casia:{root}")


def test_folder_with_a_table(root, load):
    write_folder(root)
    table = load().attributes
    assert table["file"].tolist() == ["ann/a1.png", "ann/a2.bmp", "ben/b1.webp"]
    assert table["gender"].tolist() == [1, -1, 0] and table["gender"].dtype == np.int8
    assert table["smiling"].tolist() == [0, -1, 1] and table["mood"].tolist() == ["calm", "", ""]
    assert table["age"][0] == 30 and table["age"].isna().tolist() == [False, True, True]


@pytest.mark.parametrize("column, values, expected", [
    ("gender", "m,F", [1, 0]), ("Gender", "male,female", [1, 0]), ("Male", "0,1", [0, 1]), ("male", "-1,", [0, -1]),
    ("Eyeglasses", "-1,1", [0, 1]), ("score", "-1,0.5", [-1, 0.5]),
])
def test_codings_of_a_table(root, load, column, values, expected):
    first, second = values.split(",")
    write_folder(root, f"image,{column}\na1.png,{first}\na2.bmp,{second}\n")
    name = "gender" if column.lower() == "male" else column.lower()
    assert load().attributes[name].tolist()[:2] == expected


@pytest.mark.parametrize("table, message", [
    ("file,Male\na1.png,1\n", "must have a column 'image'"),
    ("image,Male,male\na1.png,1,1\n", "no name twice"),
    ("image,Male,gender\na1.png,1,m\n", "both 'Male' and 'gender'"),
    ("", r"column 'image'.*it has \[\]"),
    ('image,Male\na1.png,"1\n', "no table that can be read"),
    ("image,Male\na1.png,1,2,3\na2.bmp,1\n", "line 2 has 4 fields; the header names 2 columns"),
    ("image,Male\nzoe.png,1\na1.png,1\nyan.png,1\n", "line 2 names zoe.png, which is not in the folder; 2 such lines"),
    ("image,Male\n../a1.png,1\n", r"line 2 names '\.\./a1.png', which is no path inside the folder"),
    ("image,Male\n/etc/passwd,1\n", "line 2 names '/etc/passwd'"),
    ("image,Male\nC:\\\\a1.png,1\n", "line 2 names 'C:"),
    ("image,Male\na1.png,1\nann/a1.png,1\n", "line 3 names ann/a1.png a second time"),
    ("image,Male\na1.png,perhaps\n", "line 2 gives the gender 'perhaps'"),
    ("image,Male\na1.png,-1\na2.bmp,0\n", "line 3 gives the gender '0'; expected is one coding"),
    ("image,age\na1.png,old\n", "line 2 gives the age 'old'"),
])
def test_bad_tables(root, load, table, message):
    write_folder(root, None)
    (root / "attributes.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        load()


def test_a_bare_name_that_two_people_have(root, load):
    write_folder(root, "image,Male\na1.png,1\n")
    picture(root / "ben" / "a1.png")
    with pytest.raises(ValueError, match="names a1.png, which 2 identities have; write identity/a1.png"):
        load()


def test_pictures_beside_the_identities(root, load):
    write_folder(root)
    picture(root / "me.jpg")
    with pytest.raises(ValueError, match="1 pictures beside the folders of identities, first me.jpg"):
        load()


def test_damaged_pictures_are_all_named_after_one_pass(tmp_path, root, load):
    for k in range(15):
        picture(root / f"p{k:02d}" / "x.png", k, (16, 16))
    intact = (root / "p00/x.png").read_bytes()
    for k in range(1, 13):
        (root / f"p{k:02d}" / "x.png").write_bytes(b"" if k % 2 else intact[:50])
    with pytest.raises(ValueError, match="12 of 15 pictures .*p01/x.png cannot.*p10/x.png cannot.*; and 2 more") as error:
        load()
    assert "p11/x.png" not in str(error.value)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
    with pytest.warns(UserWarning, match="12 of 15 pictures .* left out: p01/x.png.*p10/x.png and 2 more"):
        faces = load(damaged="skip")
    assert faces.attributes["person"].tolist() == ["p00", "p13", "p14"] and faces.identity.tolist() == [0, 1, 2]
    assert faces.images[:, 0, 0, 0].tolist() == [0, 13, 14] and isinstance(faces.images, np.memmap)
    with pytest.raises(ValueError, match="12 of 15"):  # what a pass with skip left in the cache hides no damage
        load()
    with pytest.warns(UserWarning, match="12 of 15"):
        load(damaged="skip")
    for k in range(1, 13):
        (root / f"p{k:02d}" / "x.png").write_bytes(intact)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load(damaged="skip")) == len(load()) == 15


def test_first_and_every_picture_damaged(root, load):
    write_folder(root, None)
    (root / "ann/a1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="1 of 3"):
        load()
    for path in root.glob("*/*"):
        path.write_bytes(b"")
    for damaged in ("error", "skip"):
        with pytest.raises(ValueError, match="3 of 3"):
            load(damaged=damaged)


def test_missing_pictures_count_as_damaged(root, load):
    write_celeba(root)
    (root / "img_align_celeba/000002.jpg").unlink()
    with pytest.raises(ValueError, match="1 of 6 pictures of celeba .*000002.jpg is missing"):
        load()
    with pytest.warns(UserWarning, match="1 of 6"):
        assert len(load(damaged="skip")) == 5


def test_pictures_of_different_sizes(tmp_path, root, load):
    write_folder(root)
    picture(root / "ben" / "b1.webp", size=(9, 8))
    for damaged in ("error", "skip"):
        with pytest.raises(ValueError, match="b1.webp is 9 x 8, but a1.png is 8 x 8; .*align them first"):
            load(damaged=damaged)
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_decodes_once_with_a_crop_too(root, load, monkeypatch):
    write_celeba(root)
    first = load()
    monkeypatch.setattr(pictures_module, "read_picture", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(load().images, first.images)


def test_a_picture_that_links_elsewhere_is_read(tmp_path, root, load):
    write_folder(root, None)
    picture(tmp_path / "elsewhere.png", 99)
    (root / "ben" / "b2.png").symlink_to(tmp_path / "elsewhere.png")
    assert load().images[3, 0, 0, 0] == 99


@pytest.mark.parametrize("faces, message", [
    ("{0}/nowhere", "there is no such folder.*Expected is 'procedural'.*celeba: img_align_celeba"),
    ("{0}", r"it holds notes.txt, sub/\..*folder: identity/image.jpg"),
    ("lfw:{0}/nowhere", "there is no folder .*pairs.txt"),
    ("lfw:", "there is no folder ''"),
    ("agedb:{0}", "no pictures of AgeDB"),
    ("celeba:{0}", "no pictures of CelebA in"),
    ("colorferet:{0}", "no pictures of Color FERET"),
    ("casia:{0}", "no pictures in"),
    ("lfw:{0}", "no LFW pictures"),
    ("celebahq:{0}", "no pictures of CelebA-HQ"),
])
def test_wrong_layouts_say_what_was_expected_and_found(root, load, faces, message):
    (root / "sub").mkdir(parents=True)
    (root / "notes.txt").write_text("x")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        load(faces.format(root))


def test_unknown_kinds_and_options(root, load):
    with pytest.raises(ValueError, match="no kind 'celebhq'; did you mean 'celebahq'"):
        load("celebhq:/data")
    with pytest.raises(ValueError, match="damaged = 'ignore': either 'error' or 'skip'"):
        load(damaged="ignore")
    with pytest.raises(ValueError, match="load_domain"):
        load("procedural")
    write_folder(root / "procedural")
    with pytest.raises(ValueError, match="rename the folder"):
        dataset_name(root / "procedural")


def test_procedural_has_a_name_too():
    assert dataset_name("procedural") == "procedural"


@pytest.mark.parametrize("people, pictures, folds, per_fold", [(40, 3, 10, 12), (4, 2, 2, 2), (7, 2, 3, 2), (1200, 2, 10, 100)])
def test_made_pairs_take_what_the_people_allow(people, pictures, folds, per_fold):
    identity = np.repeat(np.arange(people), pictures)
    pairs = made_pairs(np.append(identity, 10_000 + np.arange(50)))  # and fifty with one picture
    assert np.bincount(pairs.fold).tolist() == [2 * per_fold] * folds
    assert pairs.same.mean() == 0.5 and max(pairs.a.max(), pairs.b.max()) < len(identity)
    np.testing.assert_array_equal(identity[pairs.a] == identity[pairs.b], pairs.same)
    members = [set(identity[pairs.a[pairs.fold == fold]]) for fold in range(folds)]
    assert not members[0] & members[1]


def test_made_pairs_of_a_large_set_are_quick_and_bounded():
    identity = np.repeat(np.arange(3000), 60)
    pairs = made_pairs(identity)
    assert len(pairs) == 6000 and len(np.unique(identity[np.union1d(pairs.a, pairs.b)])) <= 1000


def test_gender_accuracy_leaves_out_what_is_unknown():
    gender = np.tile([0, 1], 40)
    embeddings = torch.tensor(2.0 * gender[:, None] - 1).float()
    embeddings[::5] *= -1  # what is unknown would be read wrong
    unknown = np.where(np.arange(80) % 5 == 0, -1, gender)
    images = np.zeros((80, 3, 1, 1), np.uint8)
    def faces(labels):
        return FaceSet(images, np.arange(80), pd.DataFrame({"gender": labels}))

    assert gender_accuracy(embeddings, faces(unknown)) == 1
    assert gender_accuracy(embeddings, faces(gender)) < 0.9
    assert np.isnan(gender_accuracy(embeddings, faces(np.full(80, -1))))
    assert np.isnan(gender_accuracy(embeddings, faces(np.zeros(80, int))))


@pytest.mark.skipif(not (REAL / "lfw" / "male_names.txt").exists(), reason=f"no real LFW at {REAL}; set FA_REAL")
def test_real_lfw():
    assert dataset_name(str(REAL)) == dataset_name(str(REAL / "lfw")) == "lfw"
    faces, pairs = load_benchmark("ignored", str(REAL), progress=False)
    assert faces.images.shape == (13233, 3, 112, 112) and len(pairs) == 6000
    assert np.bincount(faces.attributes["gender"] + 1).tolist() == [8, 2962, 10263]


@pytest.mark.skipif(not (REAL / "celeba" / "attributes.csv").exists(), reason=f"no real CelebA at {REAL}; set FA_REAL")
def test_real_celeba_subset():
    faces, pairs = load_benchmark("ignored", str(REAL / "celeba"), progress=False)
    assert faces.name == "celeba" and faces.images.shape == (5089, 3, 112, 112) and len(set(faces.identity)) == 284
    assert len(pairs) == 6000 and np.bincount(pairs.fold).tolist() == [600] * 10
    assert {"gender", "glasses", "eyeglasses", "young"} <= set(faces.attributes)
    assert set(faces.attributes["gender"]) == {0, 1}
