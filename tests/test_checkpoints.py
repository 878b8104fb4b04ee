"""Public checkpoints: their key names, wrappers, and what is refused."""

import os
import pickle
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

from fa_utils.models import build_backbone
from fa_utils.models.backbones import FULL, public_keys
from fa_utils.models.checkpoints import fitting, load_checkpoint, preprocessing_of, read_checkpoint
from fa_utils.models.onnx import onnx_encoder
from fa_utils.models.weights import WeightsError, file_sha256

CASIA = Path("/work/shared/real/networks/mobilefacenet_casia.onnx")


def state_of(layout: str, embedding: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the public key names, without batch counters."""
    torch.manual_seed(seed)
    net = build_backbone(layout, "full", embedding)
    values = dict(zip(public_keys(net), net.state_dict().values(), strict=True))
    return {key: value for key, value in values.items() if not key.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def mobile() -> dict[str, torch.Tensor]:
    return state_of("mobile", 64)


@pytest.fixture(scope="module")
def wanted(mobile, tmp_path_factory) -> torch.Tensor:
    path = tmp_path_factory.mktemp("plain") / "net.pth"
    torch.save(mobile, path)
    return load_checkpoint(path, "mobile")(images())


def images(count: int = 2, size: int = 112) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


# --- what is read


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "lightning": lambda state: {"state_dict": prefixed(state, "model.backbone.")},
    "data parallel": lambda state: prefixed(state, "module."),
    "partial fc": lambda state: {"state_dict_backbone": prefixed(state, "module."), "state_dict_softmax_fc": {"weight": torch.ones(1)}},
    "with a head": lambda state: prefixed(state, "backbone.") | {"head.weight": torch.zeros(9, 64), "epoch": 3},
    "nested": lambda state: {"model": {"state_dict": state}},
    "half": lambda state: {key: value.half() for key, value in state.items()},
    "counters": lambda state: state | {"conv1.bn.num_batches_tracked": torch.tensor(7)},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_and_prefixes(case, mobile, wanted, tmp_path):
    encoder = load_checkpoint(saved(WRAPPED[case](mobile), tmp_path / "net.pt"), "mobile")
    tolerance = 1e-2 if case == "half" else 0
    torch.testing.assert_close(encoder(images()), wanted, rtol=0, atol=tolerance)
    assert encoder.name == "net" and encoder.residual_units()


def test_safetensors_and_old_files_of_torch(mobile, wanted, tmp_path):
    save_file({key: value.contiguous() for key, value in mobile.items()}, tmp_path / "net.safetensors")
    torch.save(mobile, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("net.safetensors", "old.pth"):
        assert torch.equal(load_checkpoint(tmp_path / name, "mobile")(images()), wanted)


def test_preprocessing_is_the_layouts_unless_given(mobile, tmp_path):
    path = saved(mobile, tmp_path / "net.pt")
    encoder = load_checkpoint(path, "mobile")
    assert encoder.input_size == 112 and encoder.mean.item() == encoder.std.item() == 0.5
    other = load_checkpoint(path, "mobile", name="bgr", std=0.25, channels="bgr")
    assert other.name == "bgr" and other.channels == "bgr" and other.std.item() == 0.25
    torch.testing.assert_close(preprocessing_of("incres").std * 255, 128.0)
    assert preprocessing_of("incres").input_size == 160
    with pytest.raises(ValueError, match="does not run on a batch of two images of 96 x 96"):
        load_checkpoint(path, "mobile", input_size=96)


def test_facenet_ignores_its_classification_layer_and_takes_160_pixels(tmp_path):
    state = state_of("incres") | {"logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    encoder = load_checkpoint(saved(state, tmp_path / "20180402-114759-vggface2.pt"), "incres")
    assert encoder.input_size == 160 and encoder(images()).shape == (2, 512)


@pytest.mark.parametrize("layout", ["ires18", "irse50"])
def test_residual_layouts_load(layout, tmp_path):
    encoder = load_checkpoint(saved({"state_dict": state_of(layout)}, tmp_path / "net.pt"), layout)
    assert encoder(images(1)).shape == (1, 512)


@pytest.mark.skipif(not CASIA.is_file(), reason="the real networks are not on this machine")
def test_a_real_checkpoint_equals_its_onnx_conversion(tmp_path):
    """The ONNX file was made from Xiaoccer's checkpoint and kept its key names."""
    tensors = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in onnx.load(CASIA).graph.initializer}
    state = {key.removeprefix("net."): value for key, value in tensors.items() if key.startswith("net.")}
    slopes = [value.flatten() for key, value in tensors.items() if "PRelu" in key]  # in the order of the layers
    prelus = [key for key in state_of("mobile96") if key not in state]
    state |= dict(zip(prelus, slopes, strict=True))
    encoder = load_checkpoint(saved({"iter": 1, "net_state_dict": prefixed(state, "module.")}, tmp_path / "068.ckpt"), "mobile96")
    torch.testing.assert_close(encoder(images()), onnx_encoder(CASIA)(images()), rtol=1e-4, atol=1e-5)


# --- what does not fit


def test_a_mismatch_counts_and_lists_keys_and_shapes(mobile, tmp_path):
    broken = dict(mobile)
    for key in [key for key in mobile if key.startswith("conv_34.")][:7]:
        del broken[key]
    broken |= {"arcface.kernel": torch.zeros(2, 2), "conv1.conv.weight": torch.zeros(32, 3, 3, 3)}
    with pytest.raises(ValueError, match="not of the layout 'mobile'") as caught:
        load_checkpoint(saved(broken, tmp_path / "net.pt"), "mobile")
    message = str(caught.value)
    assert "7 missing: conv_34.conv.conv.weight, " in message and message.count("conv_34.") == 5
    assert "1 unexpected: arcface.kernel" in message
    assert "conv1.conv.weight: (32, 3, 3, 3) instead of (64, 3, 3, 3)" in message


def test_heads_are_unexpected_where_nothing_is_ignored(mobile, tmp_path):
    path = saved(mobile | {"head.weight": torch.zeros(9, 64)}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="1 unexpected: head.weight"):
        load_checkpoint(path, "mobile", ignore=())


def test_the_right_layout_is_offered(mobile, tmp_path):
    path = saved(prefixed(mobile, "module."), tmp_path / "net.pt")
    with pytest.raises(ValueError, match="These keys are of the layout mobile$"):
        load_checkpoint(path, "mobile96")
    with pytest.raises(ValueError, match="no public layout 'mobil'.*Did you mean 'mobile'"):
        load_checkpoint(path, "mobil")


def test_every_layout_knows_its_own_keys():
    for layout in FULL:
        if f"{layout}50" in FULL:
            continue
        with torch.device("meta"):
            keys = public_keys(build_backbone(layout, "full", 32))
        state = {key: torch.empty(shape, device="meta") for key, shape in keys.items()}
        assert fitting(state) == [layout]


def test_two_networks_in_one_checkpoint_are_not_guessed_at(mobile, tmp_path):
    both = prefixed(mobile, "student.") | mobile
    with pytest.raises(ValueError, match="unexpected: student"):
        load_checkpoint(saved(both, tmp_path / "net.pt"), "mobile")


def test_a_key_that_would_stand_there_twice(mobile, tmp_path):
    twice = prefixed(mobile, "module.") | {"bn.bias": mobile["bn.bias"]}
    with pytest.raises(ValueError, match="has both bn.bias and module.bn.bias"):
        load_checkpoint(saved(twice, tmp_path / "net.pt"), "mobile")


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(2)], {}, {"state_dict": {"a": 1}}])
def test_a_file_without_weights(content, tmp_path):
    with pytest.raises(ValueError, match="holds no state dict"):
        load_checkpoint(saved(content, tmp_path / "net.pt"), "mobile")


def test_weights_that_are_not_finite(mobile, tmp_path):
    path = saved(mobile | {"bn.bias": torch.full((64,), torch.nan)}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="not a finite"):
        load_checkpoint(path, "mobile")


# --- what is refused


class Program:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_a_checkpoint_with_code_is_refused_and_the_code_does_not_run(kind, mobile, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "net.pt"
    content = {"state_dict": mobile, "extra": Program(mark)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Program(mark), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(WeightsError, match=r"refused: it wants to call posix.mkdir, and loading it could run code"):
        load_checkpoint(path, "mobile")
    assert not mark.exists()


def test_a_whole_module_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="refused: it wants to call torch.nn.modules.linear.Linear"):
        read_checkpoint(saved(torch.nn.Linear(2, 2), tmp_path / "net.pt"))


def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="TorchScript"):
        read_checkpoint(tmp_path / "net.pt")


def test_missing_empty_truncated_and_foreign_files(mobile, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_checkpoint(tmp_path / "absent.pt")
    for name in ("zip.pt", "old.pt", "net.safetensors", "text.pt"):
        path = tmp_path / name
        path.touch()
        with pytest.raises(WeightsError, match=r"empty \(0 bytes\)"):
            read_checkpoint(path)
    torch.save(mobile, tmp_path / "zip.pt")
    torch.save(mobile, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(mobile, tmp_path / "net.safetensors")
    (tmp_path / "text.pt").write_text("<html>Quota exceeded</html>" * 20)
    for path in sorted(tmp_path.iterdir()):
        for part in (0.999, 0.5, 0.001):
            whole = path.read_bytes()
            path.write_bytes(whole[: max(1, int(part * len(whole)))])
            with pytest.raises(WeightsError, match="damaged|refused"):
                read_checkpoint(path)
            path.write_bytes(whole)


def test_a_wrong_checksum(mobile, tmp_path):
    path = saved(mobile, tmp_path / "net.pt")
    assert load_checkpoint(path, "mobile", sha256=file_sha256(path).upper())
    with pytest.raises(WeightsError, match=f"sha256 {file_sha256(path)}, expected {'0' * 64}"):
        load_checkpoint(path, "mobile", sha256="0" * 64)
