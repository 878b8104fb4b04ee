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
import onnxruntime
import torch
from PIL import Image
from torch import fx, nn

from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.onnx_graph import tidy
from fa_utils.models.weights import write_atomically

PICTURE_FORMATS = ("PNG", "JPEG")


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
    path : file with one input (B, 3, H, W) and one output (B, D).
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
    ValueError : not an ONNX network, other inputs or outputs than above, an operation that cannot be
        converted, or an output that is not a finite (B, D).
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
    """The checked network of a file: one image input, one output."""
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.onnx"))
        raise FileNotFoundError(f"no ONNX file {path}; that folder has: {', '.join(near) or 'none'}")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, the checker and the file system each have exceptions of their own
        raise ValueError(f"{path} is not a valid ONNX network: {error}") from error
    check_signature(model, path, input_size)
    return model


def check_signature(model: onnx.ModelProto, path: Path, input_size: int) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise ValueError(
            f"{path} must have one input and one output, but has {len(inputs)} and {len(model.graph.output)}"
        )
    shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]  # 0 where the size is free
    wanted = (0, 3, input_size, input_size)
    if len(shape) != 4 or any(size not in (0, want) for size, want in zip(shape, wanted, strict=True)):
        raise ValueError(
            f"{path} takes inputs of shape {tuple(size or '?' for size in shape)}, "
            f"but (any, 3, {input_size}, {input_size}) is wanted; pass its size as input_size"
        )


def convert(model: onnx.ModelProto, path: Path) -> fx.GraphModule:
    with torchvision_stand_in():
        import onnx2torch
    try:
        return tidy(onnx2torch.convert(simplified(model)))
    except (NotImplementedError, RuntimeError, KeyError) as error:
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
    network : ONNX file that takes RGB in [0, 1], or a `FaceEncoder`, which is exported.
    thresholds : cosine similarities from which the service calls two faces the same, by false-accept rate.
    input_size : side in pixels to which pictures of other sizes are resized.
    name : how tables call it; the encoder's name or the file's stem unless given.

    Attributes
    ----------
    queries : comparisons answered so far.
    thresholds : read-only, as given.

    Raises
    ------
    FileNotFoundError, ValueError : see `onnx_encoder`; also a threshold outside [-1, 1].
    """

    def __init__(
        self,
        network: str | Path | FaceEncoder,
        *,
        thresholds: Mapping[str | float, float],
        input_size: int = 112,
        name: str | None = None,
    ) -> None:
        for rate, threshold in thresholds.items():
            if not -1 <= threshold <= 1:
                raise ValueError(
                    f"the threshold at false-accept rate {rate} must be a cosine, not {threshold}"
                )
        if isinstance(network, FaceEncoder):
            model, default_name = onnx_bytes(network, size=input_size), network.name
        else:
            model = read_onnx(Path(network), input_size).SerializeToString()
            default_name = Path(network).stem
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

    def _embed(self, pictures: list[np.ndarray]) -> np.ndarray:
        images = np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255
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


def decode(picture: bytes, size: int, name: str) -> np.ndarray:
    """A PNG or JPEG file as uint8 RGB (size, size, 3)."""
    if not isinstance(picture, (bytes, bytearray, memoryview)):
        raise TypeError(f"{name} must be the bytes of a PNG or JPEG file, not {type(picture).__name__}")
    try:
        with Image.open(io.BytesIO(picture), formats=PICTURE_FORMATS) as image:
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} is damaged or neither PNG nor JPEG ({len(picture)} bytes): {error}"
        ) from error
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)
