"""The user's networks file: what is accepted, what hangs on it, and the commands that write and show it."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fa_utils import cli
from fa_utils.attacks.engine import Attack
from fa_utils.attacks.objectives import Impersonate
from fa_utils.attacks.transfer import (
    BLACK_BOX,
    PairSet,
    Trial,
    network_name,
    network_sha256,
    open_network,
    run_trials,
    trial_digest,
)
from fa_utils.data import FaceSet, Pairs
from fa_utils.models import FaceEncoder, build_backbone
from fa_utils.models.backbones import public_keys
from fa_utils.models.onnx import export_onnx
from fa_utils.models.registry import Entry, RegistryError, register_network, registered
from fa_utils.models.weights import WeightsError, file_sha256
from fa_utils.models.zoo import zoo_table
from fa_utils.report.dfanet import PAPER_DROP, drop_rate
from fa_utils.report.scores import measure_networks, thresholds_of

REAL = Path("/work/shared/real/networks")
ZERO = "0" * 64


def tiny_onnx(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    return export_onnx(FaceEncoder(build_backbone("ires", embedding=16), name="tiny", input_size=56), path)


def checkpoint(path: Path) -> Path:
    torch.manual_seed(0)
    net = build_backbone("mobile", "full", 32)
    torch.save(dict(zip(public_keys(net), net.state_dict().values(), strict=True)), path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    tiny_onnx(folder / "net.onnx")
    checkpoint(folder / "mobile.pth")
    return folder


@pytest.fixture
def file(tmp_path, monkeypatch, source) -> Path:
    """The path of a networks file beside copies of two networks; does not exist yet."""
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("FA_NETWORKS", str(tmp_path / "networks.toml"))
    return tmp_path / "networks.toml"


def pictures(count: int = 4, size: int = 112) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def pairs() -> PairSet:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 112, 112), dtype=np.uint8)
    rows = np.array([0, 1])
    return PairSet(pixels, pixels[::-1].copy(), rows, rows, rows, rows, "noise")


# --- a name for a network


def test_registering_and_using_a_checkpoint(file):
    register_network("my-mobile", file.parent / "mobile.pth", layout="mobile", std=0.25, channels="bgr")
    (table,) = tomllib.loads(file.read_text()).values()
    assert table == {
        "path": "mobile.pth", "sha256": file_sha256(file.parent / "mobile.pth"), "layout": "mobile",
        "input_size": 112, "mean": 0.5, "std": 0.25, "channels": "bgr",
    }  # fmt: skip
    encoder = open_network("my-mobile")
    assert encoder.name == network_name("my-mobile") == "my-mobile"
    assert encoder.channels == "bgr" and encoder.std.item() == 0.25
    assert encoder(pictures()).shape == (4, 32)
    assert open_network("my-mobile") is encoder


def test_the_drop_rate_of_a_registered_network_is_that_of_its_layout(file):
    register_network("quick", file.parent / "mobile.pth", layout="mobile")
    assert (drop_rate("quick"), drop_rate("slow")) == (PAPER_DROP["mobile"], 0.1)


def test_registered_networks_attack_and_judge_also_as_black_boxes(file):
    register_network("my-onnx", file.parent / "net.onnx", mean=[0.1, 0.2, 0.3], std=(0.5, 0.5, 0.5), channels="bgr")
    register_network("my-mobile", file.parent / "mobile.pth", layout="mobile")
    names = ("my-onnx", "my-mobile")
    judges = (*names, *(BLACK_BOX + name for name in names))
    trial = Trial(("my-onnx",), "plain", Attack(objective=Impersonate(), steps=1), ((0, judges), (1, judges)))
    frame = run_trials([trial], pairs(), cache=None, progress=False).frame
    assert set(frame["target"]) == set(judges) and set(frame["source"]) == {"my-onnx"}
    scores = frame.pivot(index=["step", "pair"], columns="target", values="similarity")
    for name in names:
        np.testing.assert_allclose(scores[name], scores[BLACK_BOX + name], atol=1e-4)


def test_the_key_of_results_hangs_on_file_and_preprocessing(file):
    entry = register_network("mine", file.parent / "net.onnx")
    trial = Trial(("mine",), "plain", Attack(objective=Impersonate(), steps=1), ((0, ("mine",)),))
    before, sha256, encoder = trial_digest(trial, pairs()), network_sha256("mine"), open_network("mine")
    text = file.read_text()
    for old, new in (("mean = 0.0", "mean = 0.5"), ("std = 1.0", "std = 0.5"), ('"rgb"', '"bgr"'), (entry.sha256, ZERO)):
        assert old in text
        file.write_text(text.replace(old, new))
        assert network_sha256("mine") != sha256 and trial_digest(trial, pairs()) != before
    file.write_text(text.replace("mean = 0.0", "mean = 0.5"))
    assert not torch.allclose(open_network("mine")(pictures()), encoder(pictures()), atol=1e-3)
    file.write_text(text.replace("mean = 0.0\n", "mean = 0  # an integer, and a comment\n"))
    assert network_sha256("mine") == sha256
    file.write_text(f'[mine]\npath = "net.onnx"\nsha256 = "{entry.sha256}"\n')  # the defaults, unsaid
    assert network_sha256("mine") == sha256 and registered()["mine"] == entry
    assert replace(entry, name="other", path="/elsewhere").digest == entry.digest


def test_figures_are_measured_on_first_use_and_kept(file, tmp_path, monkeypatch):
    register_network("mine", file.parent / "net.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 112, 112), dtype=np.uint8)
    faces = FaceSet(pixels, np.arange(40) // 2, name="noise")
    a = np.arange(0, 40, 2)
    protocol = Pairs(a=np.tile(a, 2), b=np.concatenate([a + 1, (a + 2) % 40]), same=np.arange(40) < 20, fold=np.arange(40) % 2)
    folder = tmp_path / "figures"
    measured = measure_networks(["mine"], (faces, protocol), cache=folder, progress=False)
    assert measured.loc["mine", "address"] == "mine" and 0 <= measured.loc["mine", "accuracy"] <= 1
    assert np.isfinite(thresholds_of(measured).loc["mine", 1e-2]) and len(list(folder.iterdir())) == 1
    file.write_text(file.read_text().replace("mean = 0.0", "mean = 0.5"))
    again = measure_networks(["mine"], (faces, protocol), cache=folder, progress=False)
    assert len(list(folder.iterdir())) == 2 and again.loc["mine", 1e-2] != measured.loc["mine", 1e-2]
    monkeypatch.setattr("fa_utils.report.scores.open_network", lambda *_: pytest.fail("embedded again"))
    measure_networks(["mine"], (faces, protocol), cache=folder, progress=False)


def test_paths_are_relative_to_the_file_or_absolute(file, tmp_path_factory):
    far = tiny_onnx(tmp_path_factory.mktemp("far") / 'a "quoted" näme.onnx')
    register_network("far", far)
    register_network("near", file.parent / "net.onnx")
    written = {name: table["path"] for name, table in tomllib.loads(file.read_text()).items()}
    assert written == {"far": str(far), "near": "net.onnx"}
    assert open_network("far").name == "far" and open_network("near").name == "near"


def test_a_file_of_fa_train_can_have_a_name(file):
    name = zoo_table().index[0]
    path = Path(__file__).parents[1] / "data" / "weights" / zoo_table().loc[name, "file"]
    register_network("copy", path)
    torch.testing.assert_close(open_network("copy")(pictures(1)), open_network(name)(pictures(1)))
    with pytest.raises(RegistryError, match="'mean' is for public checkpoints"):
        register_network("copy", path, mean=0.5)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real networks are not on this machine")
def test_a_real_network_can_be_registered(file):
    register_network("y1", REAL / "mobilefacenet_y1.onnx")
    assert open_network("y1")(pictures(1)).shape == (1, 128)


# --- the file's text


def test_entries_are_exchanged_and_the_rest_of_the_file_stays(file):
    register_network("first", file.parent / "net.onnx")
    text = "# my networks\n\n" + file.read_text() + "\n# the best one\n[last]  # for now\n" + file.read_text().split("\n", 1)[1]
    file.write_text(text)
    register_network("first", file.parent / "net.onnx", mean=0.5)
    assert file.read_text() == text.replace("mean = 0.0", "mean = 0.5", 1)
    register_network("new", file.parent / "net.onnx")
    assert file.read_text().startswith(text.replace("mean = 0.0", "mean = 0.5", 1))
    assert list(registered()) == ["first", "last", "new"]
    assert sorted(path.name for path in file.parent.iterdir()) == ["mobile.pth", "net.onnx", "networks.toml"]


def test_what_cannot_be_exchanged_is_left_alone(file):
    entry = register_network("first", file.parent / "net.onnx")
    text = f'first = {{path = "net.onnx", sha256 = "{entry.sha256}"}}\n'
    file.write_text(text)
    with pytest.raises(RegistryError, match="take it out by hand|not TOML"):
        register_network("first", file.parent / "net.onnx", mean=0.5)
    assert file.read_text() == text


BAD = {
    "unknown key": ("[net]\npath = 'net.onnx'\nsha265 = 'ab'", r"network 'net': unknown key 'sha265'.*Did you mean 'sha256'"),
    "no path": (f"[net]\nsha256 = '{ZERO}'", "network 'net': the key 'path' is missing"),
    "no checksum": ("[net]\npath = 'net.onnx'", "network 'net': the key 'sha256' is missing"),
    "path": ("[net]\npath = 3", "key 'path': 3 is not the path"),
    "checksum": ("[net]\nsha256 = 'abc'", "key 'sha256': 'abc' is not a checksum of 64"),
    "layout": ("[net]\nlayout = 'ires500'", "key 'layout': 'ires500' is not a layout; .*Did you mean 'ires50'"),
    "mean": ("[net]\nmean = 127.5", "key 'mean': 127.5 is not .*127.5 grey levels are 0.5"),
    "two means": ("[net]\nmean = [0.5, 0.5]", "key 'mean'"),
    "nan": ("[net]\nmean = nan", "key 'mean'"),
    "true": ("[net]\nmean = true", "key 'mean'"),
    "std": ("[net]\nstd = 0", "key 'std': 0 is not"),
    "channels": ("[net]\nchannels = 'RGB'", "key 'channels': 'RGB' is not 'rgb' or 'bgr'"),
    "input size": ("[net]\ninput_size = 112.0", "key 'input_size': 112.0 is not a side"),
    "no table": ("net = 'net.onnx'", r"a table \[net\] with the keys path"),
    "sub-table": ("[net.more]\npath = 'x'", "unknown key 'more'"),
    "not TOML": ("[net\n", "networks.toml is not TOML"),
    "twice": ("[net]\n[net]\n", "networks.toml is not TOML"),
    "name": (f"['a b']\npath = 'x'\nsha256 = '{ZERO}'", "network 'a b': a name is made of letters"),
    "zoo": (f"[zoo]\npath = 'x.onnx'\nsha256 = '{ZERO}'", "the zoo has this name"),
    "of the zoo": (f"[ires-webface-softmax]\npath = 'x.onnx'\nsha256 = '{ZERO}'", "network 'ires-webface-softmax': the zoo has"),
    "layout of ONNX": (f"[net]\npath = 'x.onnx'\nsha256 = '{ZERO}'\nlayout = 'mobile'", "take the key 'layout' away"),
    "no layout": (f"[net]\npath = 'x.pt'\nsha256 = '{ZERO}'", "the checkpoint x.pt does not say its layout"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_an_error_that_names_file_network_and_key(case, file):
    text, message = BAD[case]
    file.write_text(text)
    for use in (registered, lambda: open_network("net"), lambda: network_sha256("ires-webface-softmax")):
        with pytest.raises(RegistryError, match=message) as caught:
            use()
        assert str(file) in str(caught.value)
    with pytest.raises(RegistryError):
        register_network("new", file.parent / "net.onnx")
    assert file.read_text() == text


# --- what is refused


REFUSED = {
    "a name of the zoo": ("ires-webface-softmax", "net.onnx", {}, "the zoo has this name"),
    "a bad name": ("a.onnx", "net.onnx", {}, "letters, digits"),
    "no file": ("new", "absent.onnx", {}, "no network"),
    "no network": ("new", "networks.png", {}, "ONNX file or a checkpoint"),
    "a bad value": ("new", "net.onnx", {"mean": 127.5}, "key 'mean': 127.5 is not"),
    "another size": ("new", "net.onnx", {"input_size": 160}, r"\('\?', 3, 112, 112\)"),
    "no layout": ("new", "mobile.pth", {}, "does not say its layout"),
    "another layout": ("new", "mobile.pth", {"layout": "mobile96"}, "not of the layout 'mobile96'"),
    "damaged": ("new", "half.onnx", {}, "not a valid ONNX network"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("there", [False, True])
def test_a_refused_network_leaves_nothing_behind(case, there, file):
    whole = (file.parent / "net.onnx").read_bytes()
    (file.parent / "half.onnx").write_bytes(whole[: len(whole) // 2])
    (file.parent / "networks.png").touch()
    before = f"[old]\npath = 'net.onnx'\nsha256 = '{ZERO}'\n"
    if there:
        file.write_text(before)
    listing = sorted(file.parent.iterdir())
    name, path, options, message = REFUSED[case]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        register_network(name, file.parent / path, **options)
    assert sorted(file.parent.iterdir()) == listing
    assert not there or file.read_text() == before


def test_a_changed_or_missing_file_is_an_error(file):
    register_network("mine", file.parent / "net.onnx")
    tiny_onnx(file.parent / "net.onnx", seed=1)
    file.write_text(file.read_text().replace("mean = 0.0", "mean = 0.25"))  # not opened before
    with pytest.raises(WeightsError, match="not the expected file: sha256"):
        open_network("mine")
    (file.parent / "net.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="the network 'mine' of .* is not there"):
        open_network("mine")


def test_unknown_names_and_bare_checkpoints(file):
    with pytest.raises(ValueError, match="'ires-webface-softmx' is not in the zoo; did you mean"):
        open_network("ires-webface-softmx")
    register_network("mine", file.parent / "net.onnx")
    for use in (open_network, network_sha256):
        with pytest.raises(ValueError, match=re.escape(f"'mina' is neither in the zoo nor in {file}; did you mean 'mine'")):
            use("mina")
    for use in (open_network, network_name, network_sha256):
        with pytest.raises(ValueError, match="does not say its layout: register it.*--layout LAYOUT"):
            use(str(file.parent / "mobile.pth"))


# --- commands


def test_the_commands(file, capsys):
    assert cli.main(["register", "mine", str(file.parent / "mobile.pth"), "--layout", "mobile", "--std", "128/255"]) == 0
    assert "mine is in" in capsys.readouterr().out
    assert registered()["mine"].std == 128 / 255
    assert cli.main(["register", "three", str(file.parent / "net.onnx"), "--mean", "0.1", "0.2", "0.3", "--channels", "bgr"]) == 0
    assert registered()["three"].mean == (0.1, 0.2, 0.3)
    (file.parent / "net.onnx").unlink()
    capsys.readouterr()
    assert cli.main(["networks"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"ires-webface-softmax +zoo .*ok", shown) and re.search(r"mine +own .*ok +mobile +112 +0.5", shown)
    assert re.search(r"three +own .*missing", shown)
    assert cli.main(["networks", "min"]) == 2 and "Did you mean 'mine'" in capsys.readouterr().err
    assert cli.main(["register", "mine", str(file.parent / "mobile.pth"), "--layout", "mobil"]) == 2
    assert "Did you mean 'mobile'" in capsys.readouterr().err
    assert cli.main(["register", "mine", str(file.parent / "absent.onnx")]) == 1


def test_the_command_measures_on_faces(file, capsys, monkeypatch):
    def benchmark(*, faces):
        pixels = np.random.default_rng(0).integers(0, 256, (24, 3, 112, 112), dtype=np.uint8)
        a = np.arange(0, 24, 2)
        same = np.arange(24) < 12
        return FaceSet(pixels, np.arange(24) // 2, name=faces), Pairs(a=np.tile(a, 2), b=np.r_[a + 1, (a + 2) % 24], same=same, fold=np.arange(24) % 2)

    monkeypatch.setattr("fa_utils.data.load_benchmark", benchmark)
    monkeypatch.setattr("fa_utils.report.scores.measure_networks.__kwdefaults__", {**measure_networks.__kwdefaults__, "cache": None})
    register_network("mine", file.parent / "net.onnx")
    assert cli.main(["networks", "mine", "--faces", "noise"]) == 0
    shown = capsys.readouterr().out
    assert "on noise: accuracy" in shown and re.search(r"mine +[01]\.\d{4}", shown)


def test_entries_are_what_their_keys_say(file):
    entry = register_network("mine", file.parent / "net.onnx")
    assert entry == Entry("mine", str(file.parent / "net.onnx"), entry.sha256, None, 112, 0.0, 1.0, "rgb")
    large = onnx.load(file.parent / "net.onnx")
    assert large.graph.input[0].type.tensor_type.shape.dim[2].dim_value == entry.input_size
