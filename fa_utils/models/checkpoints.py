"""Public PyTorch checkpoints: weights under the key names of the public code, as a `FaceEncoder`.

A ``.pt`` file is a pickle, and a pickle can hold a program. Files are read with ``weights_only=True``, which takes
tensors and plain containers and refuses the rest; there is no way around it here.
"""

import functools
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fa_utils.models.backbones import FULL, build_backbone, load_public_state_dict, nearest, public_keys
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.weights import WeightsError, check_sha256

SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".bin", ".pkl")  # how files of torch.save are called
WRAPPERS = ("state_dict", "state_dict_backbone", "model_state_dict", "net_state_dict", "model", "backbone", "net")
HEADS = ("logits.", "head.")  # layers of the training loss, which an embedding does not need


class Preprocessing(NamedTuple):
    """What happens to RGB in [0, 1] before the network; see `FaceEncoder`."""

    input_size: int = 112
    mean: float | tuple[float, ...] = 0.5
    std: float | tuple[float, ...] = 0.5
    channels: str = "rgb"


FACENET = Preprocessing(160, 0.5, 128 / 255)  # (x - 127.5) / 128 on grey levels
SPHEREFACE = Preprocessing(112, 0.5, 128 / 255)
IMAGENET = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PREPROCESSING = {"mobile96": SPHEREFACE, "incres": FACENET, "resnet50": IMAGENET, "vgg16": IMAGENET}


def preprocessing_of(layout: str) -> Preprocessing:
    """What the public code of a layout does to its pictures: to [-1, 1], RGB, unless it is known to differ.

    Raises
    ------
    ValueError : unknown layout; the nearest known one is offered.
    """
    if layout not in FULL:
        raise ValueError(f"no public layout {layout!r}; known: {', '.join(FULL)}.{nearest(layout, FULL)}")
    return PREPROCESSING.get(layout, Preprocessing())


def load_checkpoint(
    path: str | Path,
    layout: str,
    *,
    sha256: str | None = None,
    name: str | None = None,
    input_size: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    channels: str | None = None,
    ignore: Sequence[str] = HEADS,
) -> FaceEncoder:
    """The network of a public checkpoint.

    Parameters
    ----------
    path : file of ``torch.save`` or safetensors: a state dict, bare or under one of `WRAPPERS`, its keys as they are
        or behind a common prefix such as ``module.`` or ``backbone.``.
    layout : a full-size layout of `build_backbone`, such as "ires50". The embedding's length is the checkpoint's.
    sha256 : checksum of the file, in hexadecimal, to be checked.
    name : how tables call it; the file's stem unless given.
    input_size, mean, std, channels : see `FaceEncoder`; those of the layout's public code (`preprocessing_of`)
        unless given. Authors differ here, and the file does not say: the accuracy on a benchmark does.
    ignore : beginnings of keys that are left out, the classification heads.

    Raises
    ------
    FileNotFoundError : no such file.
    WeightsError : an empty or damaged file, one with code inside, or another checksum.
    ValueError : unknown layout, keys or shapes that do not fit it, or a network that does not run.
    """
    from fa_utils.models.onnx import probe  # imports two large packages

    path = Path(path)
    given = {"input_size": input_size, "mean": mean, "std": std, "channels": channels}
    settings = preprocessing_of(layout)._asdict() | {key: value for key, value in given.items() if value is not None}
    state = read_checkpoint(path, sha256=sha256)
    encoder = FaceEncoder(fitted(layout, state, path, ignore), name=name or path.stem, **settings)
    probe(encoder, path)
    return encoder


# --- reading


def read_checkpoint(path: str | Path, *, sha256: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint file by key, floats as float32; executes nothing.

    Raises
    ------
    FileNotFoundError, WeightsError, ValueError : as `load_checkpoint`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if path.stat().st_size == 0:
        raise WeightsError(f"checkpoint {path} is empty (0 bytes); copy it again")
    if sha256 is not None:
        check_sha256(path, sha256)
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    tensors = unwrapped(content, path)
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"checkpoint {path} is damaged: {error}; copy it again") from error


def read_pickle(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript; both become errors
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it wants to call {found[1]}" if found else "it holds more than tensors"
        raise WeightsError(
            f"checkpoint {path} is refused: {what}, and loading it could run code. Ask its author for the weights "
            "alone (torch.save of a state dict, or safetensors)"
        ) from error
    except Exception as error:  # a damaged pickle or archive fails in many ways
        if "TorchScript" in str(error):
            raise WeightsError(
                f"checkpoint {path} is refused: it is a TorchScript program; a state dict is wanted"
            ) from error
        reason = " ".join(str(error).split()) or "it ends too early"
        raise WeightsError(
            f"checkpoint {path} is damaged or not a file of torch.save ({type(error).__name__}: {reason:.200}); "
            "copy it again"
        ) from error


def unwrapped(content: object, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint: the content itself, or what stands under one of `WRAPPERS`."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    keys = list(content) if isinstance(content, Mapping) else []
    tensors = {key: content[key] for key in keys if isinstance(key, str) and isinstance(content[key], torch.Tensor)}
    if not tensors:
        found = f"the keys {', '.join(map(str, keys[:5]))}" if keys else f"a {type(content).__name__}"
        raise ValueError(
            f"checkpoint {path} holds no state dict but {found}; wanted are tensors by key, bare or under "
            f"{', '.join(WRAPPERS)}"
        )
    return tensors


# --- fitting


def fitted(layout: str, state: Mapping[str, torch.Tensor], path: Path, ignore: Sequence[str] = HEADS) -> torch.nn.Module:
    """A network of the layout with these weights."""
    own = without_prefix(state, blueprint(layout))
    own = {key: value for key, value in own.items() if not key.startswith(tuple(ignore))}
    last = last_layer(layout)
    embedding = len(own[last]) if last in own and own[last].ndim else None
    net = build_backbone(layout, "full", embedding)
    try:
        load_public_state_dict(net, own)
    except ValueError as error:
        others = [other for other in fitting(state, ignore) if other not in (layout, f"{layout}50")]
        hint = f". These keys are of the layout {' or '.join(others)}" if others else ""
        raise ValueError(f"checkpoint {path} is not of the layout {layout!r}: {error}{hint}") from error
    return net


@functools.lru_cache(maxsize=32)
def blueprint(layout: str) -> dict[str, torch.Size]:
    """Public keys and shapes of a layout, without its weights and batch counters."""
    with torch.device("meta"):
        keys = public_keys(build_backbone(layout, "full"))
    return {key: shape for key, shape in keys.items() if not key.endswith("num_batches_tracked")}


def last_layer(layout: str) -> str:
    """The key of the weight whose first axis is the embedding."""
    return [key for key, shape in blueprint(layout).items() if len(shape) in (2, 4)][-1]


def without_prefix(state: Mapping[str, torch.Tensor], wanted: Mapping) -> dict[str, torch.Tensor]:
    """Keys without the prefix under which most of the wanted ones are found, if any; other keys as they are.

    Raises
    ------
    ValueError : a key would stand there twice.
    """
    prefixes = Counter()
    for key in state:
        parts = key.split(".")
        prefixes.update(".".join(parts[:i]) for i in range(len(parts)) if ".".join(parts[i:]) in wanted)
    best = max(prefixes, key=lambda prefix: (prefixes[prefix], -len(prefix)), default="")
    if 2 * prefixes[best] < len(wanted):  # another layout: some keys end alike
        return dict(state)
    start = f"{best}." if best else ""
    twice = [key for key in state if start and start + key in state]
    if twice:
        raise ValueError(f"the checkpoint has both {twice[0]} and {start}{twice[0]}; keep one of the two networks")
    return {key.removeprefix(start): value for key, value in state.items()}


def fitting(state: Mapping[str, torch.Tensor], ignore: Sequence[str] = HEADS) -> list[str]:
    """The layouts that have the keys of a state dict."""
    found = []
    for layout in FULL:
        own = {key for key in without_prefix(state, blueprint(layout)) if not key.startswith(tuple(ignore))}
        if {key for key in own if not key.endswith("num_batches_tracked")} == set(blueprint(layout)):
            found.append(layout)
    return [layout for layout in found if f"{layout}50" not in found]  # another name of that one
