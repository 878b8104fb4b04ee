"""ONNX networks as differentiable encoders and as black boxes."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from fa_utils.models import FaceEncoder, build_backbone
from fa_utils.models.onnx import (
    BlackBox,
    check_paths,
    check_signature,
    export_onnx,
    onnx_encoder,
    stated_size,
)

REAL = Path("/work/shared/real/networks")
REAL_NETWORKS = ["edgeface_xxs", "face_reid_0095", "mobileface_v2", "mobilefacenet_casia", "mobilefacenet_y1"]


def images(count: int = 2, size: int = 112) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def small_encoder(layout: str = "ires") -> FaceEncoder:
    torch.manual_seed(0)
    return FaceEncoder(build_backbone(layout, embedding=16), name=f"small-{layout}", input_size=56)


def run(path: Path, batch: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0])


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return export_onnx(small_encoder(), tmp_path_factory.mktemp("onnx") / "net.onnx")


# --- round trips


@pytest.mark.parametrize("layout", ["ires", "irse", "mobile", "incres", "resnet50"])
def test_round_trip_of_small_networks(layout, tmp_path):
    original = small_encoder(layout)
    path = export_onnx(original, tmp_path / "net.onnx")
    back = onnx_encoder(path)
    assert back.name == "net"
    torch.testing.assert_close(run(path, images()), original(images()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(back(images()), original(images()), rtol=1e-4, atol=1e-5)
    x, y = images().requires_grad_(), images().requires_grad_()
    (wanted,) = torch.autograd.grad(original(x)[:, 0].sum(), x)
    (got,) = torch.autograd.grad(back(y)[:, 0].sum(), y)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def graph_of(nodes: list, constants: dict[str, np.ndarray], shape=("batch", 3, 8, 8)) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ("batch", "d"))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def tiny_network() -> onnx.ModelProto:
    """BGR flip by a slice, PReLU, a squeeze-and-excitation gate, a residual sum, a reshape."""
    rng = np.random.default_rng(0)
    weights = {
        f"w{i}": rng.normal(0, 0.5, (4, c, k, k)).astype(np.float32)
        for i, c, k in ((0, 3, 3), (1, 4, 1), (2, 4, 1))
    }
    bounds = {"start": [-1], "end": [-4], "axis": [1], "step": [-1], "shape": [0, -1]}
    constants = weights | {name: np.array(value, np.int64) for name, value in bounds.items()}
    constants["slope"] = np.array([0.1, 0.7, -0.2, 0.25], np.float32).reshape(4, 1, 1)
    nodes = [
        helper.make_node("Slice", ["image", "start", "end", "axis", "step"], ["bgr"]),
        helper.make_node("Conv", ["bgr", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        helper.make_node("PRelu", ["c0", "slope"], ["p0"]),
        helper.make_node("GlobalAveragePool", ["p0"], ["pooled"]),
        helper.make_node("Conv", ["pooled", "w1"], ["c1"]),
        helper.make_node("Sigmoid", ["c1"], ["gate"]),
        helper.make_node("Mul", ["p0", "gate"], ["gated"]),
        helper.make_node("Conv", ["gated", "w2"], ["c2"]),
        helper.make_node("Add", ["c2", "p0"], ["sum"]),
        helper.make_node("Reshape", ["sum", "shape"], ["embedding"]),
    ]
    return graph_of(nodes, constants)


@pytest.fixture
def tiny(tmp_path) -> Path:
    onnx.save(tiny_network(), tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


def test_tidied_graph_computes_what_onnx_runtime_does(tiny):
    encoder = onnx_encoder(tiny, input_size=8)
    torch.testing.assert_close(encoder.features(images(3, 8)), run(tiny, images(3, 8)), rtol=1e-5, atol=1e-5)


def test_gates_are_not_among_the_convolutions(tiny):
    encoder = onnx_encoder(tiny, input_size=8)
    assert len(encoder.convolutions()) == 2
    assert len(encoder.convolutions(squeeze_excite=True)) == 3


def test_residual_branches_can_be_hooked(tiny):
    encoder = onnx_encoder(tiny, input_size=8)
    before = encoder.features(images(1, 8))
    ((_, unit),) = encoder.residual_units()
    seen = {}
    unit.shortcut.register_forward_hook(lambda m, i, out: seen.update(shortcut=out))
    unit.residual.register_forward_hook(lambda m, i, out: out * 0)
    without_residual = encoder.features(images(1, 8))
    assert torch.equal(without_residual, seen["shortcut"].flatten(1))
    assert not torch.allclose(without_residual, before)


def test_no_tensor_is_read_back_within_a_forward_pass(tiny, monkeypatch):
    encoder = onnx_encoder(tiny, input_size=8)

    def refuse(self, *args):
        raise AssertionError("a value was read back from the device")

    for name in ("tolist", "item", "numpy", "__bool__", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    encoder(images(1, 8))


def test_torchvision_stays_absent_after_the_conversion(exported):
    code = (
        "import importlib.util, sys\n"
        "absent = importlib.util.find_spec('torchvision') is None\n"
        "from fa_utils.models.onnx import onnx_encoder\n"
        f"onnx_encoder({str(exported)!r})\n"
        "assert not absent or not [m for m in sys.modules if m.startswith('torchvision')]\n"
        "assert not absent or importlib.util.find_spec('torchvision') is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- bad files


def test_a_missing_file_names_its_neighbours(exported):
    with pytest.raises(FileNotFoundError, match="net.onnx"):
        onnx_encoder(exported.with_name("nett.onnx"))


def test_a_damaged_file_is_an_error(exported, tmp_path):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(exported.read_bytes()[: exported.stat().st_size // 2])
    with pytest.raises(ValueError, match="not a valid ONNX network"):
        onnx_encoder(damaged)


def test_another_input_size_is_named(exported):
    with pytest.raises(ValueError, match=r"\('\?', 3, 112, 112\)"):
        onnx_encoder(exported, input_size=160)


def test_an_operation_without_gradient_support_is_named(tmp_path):
    nodes = [helper.make_node("Det", ["image"], ["embedding"])]
    onnx.save(graph_of(nodes, {}), tmp_path / "det.onnx")
    with pytest.raises(ValueError, match="cannot be made differentiable.*Det"):
        onnx_encoder(tmp_path / "det.onnx", input_size=8)


def test_an_output_that_is_no_embedding_is_refused(tmp_path):
    onnx.save(graph_of([helper.make_node("Relu", ["image"], ["embedding"])], {}), tmp_path / "map.onnx")
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\)"):
        onnx_encoder(tmp_path / "map.onnx", input_size=8)


def test_more_than_one_output_is_an_error_that_names_them(exported, tmp_path):
    model = onnx.load(exported)
    model.graph.output.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, ("batch", 3, 112, 112)))
    onnx.save(model, tmp_path / "two.onnx")
    for open_it in (onnx_encoder, lambda path: BlackBox(path, thresholds={})):
        with pytest.raises(ValueError, match=r"1 and 2.*outputs embedding \(\?, \?\), image \(\?, 3, 112, 112\)"):
            open_it(tmp_path / "two.onnx")


def test_an_empty_file_and_weights_in_other_files(exported, tmp_path):
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ValueError, match=r"empty \(0 bytes\)"):
        onnx_encoder(tmp_path / "empty.onnx")
    onnx.save(onnx.load(exported), tmp_path / "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(ValueError, match="weights in other files"):
        onnx_encoder(tmp_path / "outside.onnx")


def test_inputs_of_another_type_and_fixed_batches(tmp_path):
    model = tiny_network()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(ValueError, match="type FLOAT16"):
        check_signature(model, tmp_path, 8)
    model = tiny_network()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "four.onnx")
    with pytest.raises(ValueError, match="exactly 4 images at a time"):
        onnx_encoder(tmp_path / "four.onnx", input_size=8)


# --- as the field publishes them


def one_image_at_a_time(shape: list[int]) -> onnx.ModelProto:
    """A network whose file fixes the batch to one, in its input, its output and a reshape."""
    model = tiny_network()
    (old,) = [tensor for tensor in model.graph.initializer if tensor.name == "shape"]
    old.CopyFrom(numpy_helper.from_array(np.array(shape, np.int64), "shape"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model


@pytest.mark.parametrize("shape", [[1, -1], [1, 4 * 64], [-1, 4 * 64], [0, -1]])
def test_a_file_for_one_image_takes_more(shape, tiny, tmp_path):
    onnx.save(one_image_at_a_time(shape), tmp_path / "one.onnx")
    encoder, box = onnx_encoder(tmp_path / "one.onnx", input_size=8), BlackBox(tmp_path / "one.onnx", thresholds={}, input_size=8)
    torch.testing.assert_close(encoder.features(images(3, 8)), run(tiny, images(3, 8)), rtol=1e-5, atol=1e-5)
    assert check_paths(encoder, box) > 1 - 1e-6
    picture = encode(images(1, 8)[0])
    assert box.compare_many([(picture, picture)] * 3).shape == (3,)


def test_a_file_that_mixes_several_images_is_refused(tmp_path):
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["everything"], axes=[0, 1, 2, 3], keepdims=1),
        helper.make_node("Sub", ["image", "everything"], ["centered"]),
        helper.make_node("Flatten", ["centered"], ["embedding"]),
    ]
    onnx.save(graph_of(nodes, {}, shape=(1, 3, 8, 8)), tmp_path / "mixes.onnx")
    with pytest.raises(ValueError, match="one image at a time, and mixes several"):
        onnx_encoder(tmp_path / "mixes.onnx", input_size=8)
    nodes = [helper.make_node("Squeeze", ["image", "axis"], ["one"]), helper.make_node("Reshape", ["one", "row"], ["embedding"])]
    constants = {"axis": np.array([0]), "row": np.array([1, -1])}
    onnx.save(graph_of(nodes, constants, shape=(1, 3, 8, 8)), tmp_path / "squeeze.onnx")
    with pytest.raises(ValueError, match="one image at a time, and more cannot be had"):
        BlackBox(tmp_path / "squeeze.onnx", thresholds={}, input_size=8)


def test_preprocessing_outside_the_graph_on_both_paths(tiny):
    options = {"input_size": 8, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 1 / 255), "channels": "bgr"}
    encoder, box = onnx_encoder(tiny, **options), BlackBox(tiny, thresholds={}, **options)
    mean, std = (torch.tensor(options[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    fed = ((images(3, 8) - mean) / std).flip(1)
    torch.testing.assert_close(encoder.features(images(3, 8)), run(tiny, fed), rtol=1e-4, atol=1e-3)
    assert check_paths(encoder, box) > 1 - 1e-6
    plain = BlackBox(tiny, thresholds={}, input_size=8)
    with pytest.raises(ValueError, match="tiny: the differentiable network and ONNX Runtime disagree"):
        check_paths(encoder, plain)


def test_black_box_refuses_bad_preprocessing(tiny):
    with pytest.raises(ValueError, match="'rgb' or 'bgr'"):
        BlackBox(tiny, thresholds={}, input_size=8, channels="gbr")
    with pytest.raises(ValueError, match="std must be positive"):
        BlackBox(tiny, thresholds={}, input_size=8, std=0.0)
    with pytest.raises(ValueError, match="has its own mean"):
        BlackBox(small_encoder(), thresholds={}, mean=0.5)


def test_another_size_than_the_pictures(tmp_path):
    """A network of 160 pixels sees pictures of 112 enlarged, by the same rule on both paths."""
    torch.manual_seed(0)
    large = FaceEncoder(build_backbone("resnet50", embedding=16), name="large", input_size=56)
    path = export_onnx(large, tmp_path / "large.onnx", size=224)
    encoder, box = onnx_encoder(path, input_size=224), BlackBox(path, thresholds={}, input_size=224)
    files = [encode(image) for image in images(2)]
    rounded = (images(2) * 255).round() / 255
    a, b = encoder.embed(rounded)
    assert box.compare(*files) == pytest.approx(float(a @ b), abs=1e-5)
    with pytest.raises(ValueError, match="--input-size"):
        onnx_encoder(path)
    assert stated_size(path) == 224


def test_an_encoder_that_enlarges_is_exported_at_its_own_size():
    torch.manual_seed(0)
    encoder = FaceEncoder(build_backbone("ires", embedding=16), name="odd", input_size=160, mean=0.5, std=0.5)
    encoder.backbone = torch.nn.Sequential(torch.nn.AvgPool2d(20), torch.nn.Flatten())
    box = BlackBox(encoder, thresholds={})
    files = [encode(image) for image in images(2)]
    a, b = encoder.embed((images(2) * 255).round() / 255)
    assert box.input_size == 160 and box.compare(*files) == pytest.approx(float(a @ b), abs=1e-5)


def test_an_old_file_with_old_operations(tmp_path):
    """Opset 8, weights listed among the inputs, dropout and a gemm: what MXNet's exporter writes."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(0, 0.5, (4, 3, 3, 3)), "gain": np.ones(4), "bias": np.zeros(4), "mean": np.full(4, 0.1),
        "var": np.ones(4), "dense": rng.normal(0, 0.1, (5, 4 * 36)), "offset": np.zeros(5),
    }  # fmt: skip
    constants = {name: value.astype(np.float32) for name, value in constants.items()}
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "gain", "bias", "mean", "var"], ["n"]),
        helper.make_node("Dropout", ["n"], ["d"], ratio=0.4),
        helper.make_node("Flatten", ["d"], ["f"]),
        helper.make_node("Gemm", ["f", "dense", "offset"], ["embedding"], transB=1),
    ]
    model = graph_of(nodes, constants, shape=(1, 3, 8, 8))
    model.opset_import[0].version, model.ir_version = 8, 3
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, (1, 5)))
    for name, value in constants.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    onnx.save(model, tmp_path / "old.onnx")
    options = {"input_size": 8, "std": 1 / 255}
    encoder, box = onnx_encoder(tmp_path / "old.onnx", **options), BlackBox(tmp_path / "old.onnx", thresholds={}, **options)
    assert check_paths(encoder, box) > 1 - 1e-6


# --- black box


def encode(image: torch.Tensor, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def test_black_box_agrees_with_the_encoder_and_counts_queries():
    encoder = small_encoder()
    box = BlackBox(encoder, thresholds={1e-3: 0.4, "published": 0.5})
    rounded = (images(4) * 255).round() / 255
    files = [encode(image) for image in rounded]
    embedded = encoder.embed(rounded)
    assert box.compare(files[0], files[1]) == pytest.approx(float(embedded[0] @ embedded[1]), abs=1e-5)
    assert box.queries == 1
    scores = box.compare_many(zip(files[:3], files[1:], strict=True), batch_size=2)
    np.testing.assert_allclose(scores, (embedded[:3] * embedded[1:]).sum(1), atol=1e-5)
    assert box.queries == 4
    assert box.compare(files[0], files[0]) == pytest.approx(1.0, abs=1e-6)
    assert dict(box.thresholds) == {1e-3: 0.4, "published": 0.5}


def test_black_box_reads_files_and_any_picture_size(exported):
    box = BlackBox(exported, thresholds={1e-3: 0.4})
    flat = torch.linspace(0, 1, 64).expand(3, 64, 64)
    large = torch.linspace(0, 1, 224).expand(3, 224, 224)
    assert box.name == "net"
    assert box.compare(encode(flat, "JPEG"), encode(large)) > 0.99


def test_damaged_pictures_are_errors_that_cost_no_query(exported):
    box = BlackBox(exported, thresholds={})
    good = encode(images(1)[0])
    for bad in (b"", b"not a picture", good[:200], good[: len(good) // 2]):
        with pytest.raises(ValueError, match="image_b of pair 0 is damaged"):
            box.compare(good, bad)
    with pytest.raises(TypeError, match="image_a of pair 0 must be the bytes"):
        box.compare("face.png", good)
    with pytest.raises(ValueError, match="no pairs"):
        box.compare_many([])
    assert box.queries == 0


def test_black_box_thresholds_are_cosines_and_read_only(exported):
    with pytest.raises(ValueError, match="cosine"):
        BlackBox(exported, thresholds={1e-3: 40.0})
    box = BlackBox(exported, thresholds={1e-3: 0.4})
    with pytest.raises(TypeError):
        box.thresholds[1e-3] = 0.0


# --- the real networks


@pytest.mark.skipif(not REAL.is_dir(), reason="the real networks are not on this machine")
@pytest.mark.parametrize("name", REAL_NETWORKS)
def test_real_networks_convert_and_agree_with_onnx_runtime(name):
    encoder = onnx_encoder(REAL / f"{name}.onnx")
    x = images(2).requires_grad_()
    out = encoder(x)
    wanted = torch.nn.functional.normalize(run(REAL / f"{name}.onnx", images(2)))
    torch.testing.assert_close(out, wanted, rtol=1e-3, atol=1e-5)
    (grad,) = torch.autograd.grad(out[:, 0].sum(), x)
    assert grad.isfinite().all() and grad.abs().flatten(1).amax(1).min() > 0
    assert len(encoder.residual_units()) >= 8 and len(encoder.convolutions()) >= 19
    assert check_paths(encoder, BlackBox(REAL / f"{name}.onnx", thresholds={})) > 0.9999
