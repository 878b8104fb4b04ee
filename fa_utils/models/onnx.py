"""ONNX networks: as a differentiable encoder, and as a black box behind a byte interface."""

import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import torch
from onnx.external_data_helper import uses_external_data
from PIL import Image
from torch import fx, nn

from fa_utils.models.encoder import CHANNEL_ORDERS, FaceEncoder, per_channel, resize
from fa_utils.models.onnx_graph import tidy
from fa_utils.models.weights import write_atomically

PICTURE_FORMATS = ("PNG", "JPEG")
MODERN = 13  # version of the operations to which older files are translated where they cannot be converted
SAME = 1e-4  # two ways to compute an embedding agree when their cosine is at least 1 - SAME


# --- a differentiable encoder


def onnx_encoder(
    path: str | Path,
    *,
    name: str | None = None,
    input_size: int = 112,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    channels: str = "rgb",
) -> FaceEncoder:
    """A `FaceEncoder` whose backbone is the network in an ONNX file, differentiable in the images.

    Parameters
    ----------
    path : file with one input (B, 3, H, W), float32, and one output (B, D). A file for one image at a time (B is
        written out as 1) is taken too where its graph allows more.
    name : how tables call it; the file's stem unless given.
    input_size : side in pixels of the input; checked against the file where that states it.
    mean, std, channels : preprocessing outside the graph (see `FaceEncoder`); the defaults are none, for
        graphs that take RGB in [0, 1] and preprocess inside.

    Returns
    -------
    FaceEncoder with convolutions as `torch.nn.Conv2d`. Each sum of a branch with its own input is a residual
    unit, with (identity) submodules ``residual`` and ``shortcut`` right before the sum.

    Raises
    ------
    FileNotFoundError : no such file.
    ValueError : not an ONNX network, weights in other files, other inputs or outputs than above, an operation that
        cannot be converted, or an output that is not a finite (B, D).
    """
    path = Path(path)
    model = read_onnx(path, input_size)
    net = convert(model, path)
    encoder = FaceEncoder(
        net, name=name or path.stem, input_size=input_size, mean=mean, std=std, channels=channels
    )
    probe(encoder, path)
    return encoder


def read_onnx(path: Path, input_size: int) -> onnx.ModelProto:
    """The checked network of a file: one image input, one output, any number of images."""
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.onnx"))
        raise FileNotFoundError(f"no ONNX file {path}; that folder has: {', '.join(near) or 'none'}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); copy it again")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf and the file system each have exceptions of their own
        raise ValueError(f"{path} is not a valid ONNX network: {error}") from error
    refuse_external_weights(model, path)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker has several exceptions
        raise ValueError(f"{path} is not a valid ONNX network: {error}") from error
    check_signature(model, path, input_size)
    return with_free_batch(model, path, input_size)


def refuse_external_weights(model: onnx.ModelProto, path: Path) -> None:
    """A checksum of the file must cover the weights: results are kept under it."""
    outside = [tensor.name for tensor in model.graph.initializer if uses_external_data(tensor)]
    if outside:
        raise ValueError(
            f"{path} keeps {len(outside)} weights in other files ({outside[0]}, ...); one file is wanted: "
            "onnx.save(onnx.load(OLD), NEW) writes it"
        )


def image_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The one input that is not a weight (old files list those among the inputs)."""
    constants = {tensor.name for tensor in model.graph.initializer}
    (image,) = [value for value in model.graph.input if value.name not in constants]
    return image


def sizes(value: onnx.ValueInfoProto) -> list[int]:
    """The shape that a file states for an input or output; 0 where a size is free."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def stated_size(path: str | Path) -> int | None:
    """The side in pixels that an ONNX file states for its input; None where it is free or not square."""
    model = onnx.load(path, load_external_data=False)
    shape = sizes(image_input(model))
    return shape[3] or None if len(shape) == 4 and shape[2] == shape[3] else None


def check_signature(model: onnx.ModelProto, path: Path, input_size: int) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    outputs = list(model.graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"{path} must have one input and one output, but has {len(inputs)} and {len(outputs)}: "
            f"inputs {in_words(inputs)}; outputs {in_words(outputs)}. onnx.utils.extract_model writes a file with "
            "the one that is the embedding"
        )
    shape = sizes(inputs[0])
    wanted = (0, 3, input_size, input_size)
    if len(shape) != 4 or any(size not in (0, want) for size, want in zip(shape[1:], wanted[1:], strict=True)):
        raise ValueError(
            f"{path} takes inputs of shape {tuple(size or '?' for size in shape)}, "
            f"but (any, 3, {input_size}, {input_size}) is wanted; pass its size as input_size (fa register: "
            "--input-size)"
        )
    if shape[0] > 1:
        raise ValueError(f"{path} takes exactly {shape[0]} images at a time; any number, or one, is wanted")
    kind = inputs[0].type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        kind = onnx.TensorProto.DataType.Name(kind)
        raise ValueError(f"{path} takes inputs of the type {kind}; FLOAT (32 bits) is wanted")


def in_words(values: Sequence[onnx.ValueInfoProto]) -> str:
    """Names and shapes, for an error: ``embedding (?, 512)``."""
    shapes = [", ".join(str(size or "?") for size in sizes(value)) for value in values]
    return ", ".join(f"{value.name} ({shape})" for value, shape in zip(values, shapes, strict=True)) or "none"


def with_free_batch(model: onnx.ModelProto, path: Path, input_size: int) -> onnx.ModelProto:
    """The same network for any number of images where the file says one; checked image by image."""
    if sizes(image_input(model))[0] == 0:
        return model
    free = onnx.ModelProto()
    free.CopyFrom(model)
    for value in (image_input(free), *free.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del free.graph.value_info[:]  # shapes in between, for one image
    free_reshapes(free)
    pictures = smooth_pictures(3, input_size)
    try:
        together = run_onnx(free, pictures)
        alone = np.concatenate([run_onnx(model, picture[None]) for picture in pictures])
    except Exception as error:  # ONNX Runtime has exceptions of its own, and a wrong shape fails in many ways
        raise ValueError(f"{path} is made for one image at a time, and more cannot be had from it: {error}") from error
    if together.shape != alone.shape or not np.allclose(together, alone, rtol=1e-3, atol=1e-4 * np.abs(alone).max()):
        raise ValueError(f"{path} is made for one image at a time, and mixes several when it gets them")
    return free


def free_reshapes(model: onnx.ModelProto) -> None:
    """Let reshapes of computed values to (1, ...) keep their first axis, whatever it is."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    values = [(node.output[0], entry) for node in graph.node if node.op_type == "Constant" for entry in node.attribute]
    constants |= {name: entry.t for name, entry in values if entry.name == "value"}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[0] in constants or node.input[1] not in constants:
            continue
        shape = onnx.numpy_helper.to_array(constants[node.input[1]]).copy()
        if len(shape) > 1 and shape[0] == 1 and not any(entry.name == "allowzero" and entry.i for entry in node.attribute):
            shape[0] = 0  # "as it is"
            name = f"{node.input[1]}_any_batch_{node.output[0]}"
            graph.initializer.append(onnx.numpy_helper.from_array(shape, name))
            node.input[1] = name


def run_onnx(model: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    session = open_session(model.SerializeToString())
    return session.run(None, {image_input(model).name: pictures})[0]


def smooth_pictures(count: int, size: int) -> np.ndarray:
    """Random pictures, float32 (count, 3, size, size) in [0, 1], whose colors and shapes differ as faces' do."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear").numpy()


def convert(model: onnx.ModelProto, path: Path) -> fx.GraphModule:
    with torchvision_stand_in():
        import onnx2torch
    failures = (NotImplementedError, RuntimeError, KeyError)
    try:
        return tidy(onnx2torch.convert(simplified(model)))
    except failures as error:
        if model.opset_import[0].version >= MODERN:
            raise ValueError(f"{path} cannot be made differentiable: onnx2torch says {error!r}") from error
    try:  # onnx2torch does not know the first versions of some operations
        return tidy(onnx2torch.convert(simplified(onnx.version_converter.convert_version(model, MODERN))))
    except failures as error:
        raise ValueError(f"{path} cannot be made differentiable: onnx2torch says {error!r}") from error


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network in the words that onnx2torch understands.

    PyTorch's exporter shares equal weights through Identity nodes, but onnx2torch looks for weights among the
    constants only; and it does not know that an empty name at the end of the inputs means "not given".
    """
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    constants = {tensor.name for tensor in plain.graph.initializer}
    aliases: dict[str, str] = {}
    nodes = []
    for node in plain.graph.node:
        inputs = [aliases.get(name, name) for name in node.input]
        if node.op_type == "Identity" and inputs[0] in constants:
            aliases[node.output[0]] = inputs[0]
            continue
        while inputs and not inputs[-1]:
            inputs.pop()
        del node.input[:]
        node.input.extend(inputs)
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del plain.graph.node[:]
    plain.graph.node.extend(kept)
    return plain


def probe(encoder: FaceEncoder, path: Path) -> None:
    """Embed two grey images: the batch size must be free and the output a finite matrix."""
    size = encoder.input_size
    try:
        with torch.no_grad():
            out = encoder.features(torch.full((2, 3, size, size), 0.5))
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not run on a batch of two images of {size} x {size}: {error}"
        ) from error
    if out.ndim != 2 or len(out) != 2 or not bool(out.isfinite().all()):
        raise ValueError(
            f"{path} gives an output of shape {tuple(out.shape)}, not a finite (2, D), for two images"
        )


@contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """Let ``import onnx2torch`` succeed where torchvision is not installed.

    onnx2torch imports torchvision at its top for two detection operations (non-maximum suppression and RoI
    align) that face networks lack, and our torch pin has no CPU build of torchvision. An empty module stands
    in during the import and is taken away at once, so that no other library takes torchvision for installed.
    Converting one of the two operations then fails when it is called.
    """
    if "onnx2torch" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        yield
        return

    def missing(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("this ONNX network has a detection operation that needs torchvision")

    package, ops = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
    ops.nms = ops.box_convert = ops.roi_align = missing
    package.ops = ops
    sys.modules.update({"torchvision": package, "torchvision.ops": ops})
    try:
        yield
    finally:
        del sys.modules["torchvision"], sys.modules["torchvision.ops"]


# --- export


def onnx_bytes(encoder: nn.Module, *, size: int = 112) -> bytes:
    """The encoder as an ONNX network: ``image`` (batch, 3, size, size) in [0, 1] to ``embedding``, normalised.

    Uses PyTorch's TorchScript exporter: the newer one takes seconds a network and logs about missing
    torchvision.
    """
    file = io.BytesIO()
    image = torch.zeros(2, 3, size, size, device=encoder.device)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecation, and shape checks that tracing turns into constants
        torch.onnx.export(
            encoder,
            (image,),
            file,
            input_names=["image"],
            output_names=["embedding"],
            dynamic_axes={"image": {0: "batch"}, "embedding": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    return file.getvalue()


def export_onnx(encoder: FaceEncoder, path: str | Path, *, size: int = 112) -> Path:
    """Write `onnx_bytes` to a file, whole or not at all; returns the path."""
    path = Path(path)
    write_atomically(path, onnx_bytes(encoder, size=size))
    return path


# --- a black box


class BlackBox:
    """A face-comparison service in miniature: encoded pictures in, one similarity out, queries counted.

    Stands for the commercial services of the papers. The network runs in ONNX Runtime, out of reach of
    gradients.

    Parameters
    ----------
    network : ONNX file, or a `FaceEncoder`, which is exported.
    thresholds : cosine similarities from which the service calls two faces the same, by false-accept rate.
    input_size : side in pixels to which pictures of other sizes are resized, as `FaceEncoder` does it; 112 unless
        given, or the side that the encoder wants where it would have to enlarge those.
    mean, std, channels : a file's preprocessing outside the graph, as in `onnx_encoder`; an encoder has its own.
    name : how tables call it; the encoder's name or the file's stem unless given.

    Attributes
    ----------
    queries : comparisons answered so far.
    thresholds : read-only, as given.

    Raises
    ------
    FileNotFoundError, ValueError : see `onnx_encoder`; also a threshold outside [-1, 1], or preprocessing for an
        encoder.
    """

    def __init__(
        self,
        network: str | Path | FaceEncoder,
        *,
        thresholds: Mapping[str | float, float],
        input_size: int | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        channels: str = "rgb",
        name: str | None = None,
    ) -> None:
        for rate, threshold in thresholds.items():
            if not -1 <= threshold <= 1:
                raise ValueError(
                    f"the threshold at false-accept rate {rate} must be a cosine, not {threshold}"
                )
        if channels not in CHANNEL_ORDERS:
            raise ValueError(f"channels must be 'rgb' or 'bgr', not {channels!r}")
        if isinstance(network, FaceEncoder):
            if (mean, std, channels) != (0.0, 1.0, "rgb"):
                raise ValueError(f"the encoder {network.name!r} has its own mean, std and channels; give none here")
            input_size = input_size or service_size(network)
            model, default_name = onnx_bytes(network, size=input_size), network.name
        else:
            input_size = input_size or 112
            model = read_onnx(Path(network), input_size).SerializeToString()
            default_name = Path(network).stem
        self._mean, self._std = per_channel(mean, "mean").numpy(), per_channel(std, "std").numpy()
        if not (self._std > 0).all():
            raise ValueError(f"std must be positive, not {std}")
        self._flipped = channels == "bgr"
        self.name = name or default_name
        self.thresholds = types.MappingProxyType(dict(thresholds))
        self.input_size = input_size
        self.queries = 0
        self._session = open_session(model)

    def compare(self, image_a: bytes, image_b: bytes) -> float:
        """Cosine similarity in [-1, 1] of the faces in two PNG or JPEG files; one query.

        Raises
        ------
        TypeError : not bytes.
        ValueError : damaged or not PNG or JPEG; the query is not counted.
        """
        return float(self.compare_many([(image_a, image_b)])[0])

    def compare_many(self, pairs: Iterable[tuple[bytes, bytes]], *, batch_size: int = 32) -> np.ndarray:
        """Cosine similarities (P,), float64, of many pairs of pictures; one query each.

        Raises
        ------
        TypeError, ValueError : as `compare`, naming the pair. Batches answered before it stay counted.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        scores: list[np.ndarray] = []
        remaining = enumerate(pairs)
        while batch := list(islice(remaining, batch_size)):
            first = self._embed([decode(a, self.input_size, f"image_a of pair {i}") for i, (a, _) in batch])
            second = self._embed([decode(b, self.input_size, f"image_b of pair {i}") for i, (_, b) in batch])
            scores.append((first * second).sum(1))
            self.queries += len(batch)
        if not scores:
            raise ValueError("there are no pairs to compare")
        return np.concatenate(scores)

    def _embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors (B, D), float64, of pictures (3, input_size, input_size) in [0, 1]."""
        images = (np.stack(pictures) - self._mean) / self._std
        if self._flipped:
            images = np.ascontiguousarray(images[:, ::-1])
        (features,) = self._session.run(None, {self._session.get_inputs()[0].name: images})
        features = features.astype(np.float64)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    def __repr__(self) -> str:
        return f"BlackBox({self.name!r}, queries={self.queries})"


def open_session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def service_size(encoder: FaceEncoder) -> int:
    """The side of the pictures that an exported encoder takes: 112, or its own where resizing cannot be exported."""
    return encoder.input_size if 112 % encoder.input_size else 112


def decode(picture: bytes, size: int, name: str) -> np.ndarray:
    """A PNG or JPEG file as float32 RGB (3, size, size) in [0, 1]."""
    if not isinstance(picture, (bytes, bytearray, memoryview)):
        raise TypeError(f"{name} must be the bytes of a PNG or JPEG file, not {type(picture).__name__}")
    try:
        with Image.open(io.BytesIO(picture), formats=PICTURE_FORMATS) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} is damaged or neither PNG nor JPEG ({len(picture)} bytes): {error}"
        ) from error
    image = pixels.transpose(2, 0, 1).astype(np.float32) / 255
    return image if image.shape[1:] == (size, size) else resize(torch.from_numpy(image)[None], size)[0].numpy()


def check_paths(encoder: FaceEncoder, box: BlackBox, *, count: int = 4) -> float:
    """The lowest cosine between the embeddings that the two ways give the same random pictures.

    Raises
    ------
    ValueError : it is below 1 - `SAME`: the conversion of the file, or the preprocessing of one way, is wrong.
    """
    pictures = smooth_pictures(count, box.input_size)
    differentiable = encoder.embed(torch.from_numpy(pictures)).double().numpy()
    lowest = float((differentiable * box._embed(pictures)).sum(1).min())
    if not lowest >= 1 - SAME:
        raise ValueError(
            f"{encoder.name}: the differentiable network and ONNX Runtime disagree, their embeddings of one picture "
            f"have a cosine of {lowest:.5f}; the file has an operation that onnx2torch converts wrongly"
        )
    return lowest
