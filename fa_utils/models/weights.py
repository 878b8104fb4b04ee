"""Weight files: float16 safetensors with the recipe inside and a checksum outside.

safetensors hold numbers only, so that reading a file from elsewhere executes nothing.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

REMEDY = "Restore the file (git checkout, or copy it again), or train the network anew: fa train NAME."


class WeightsError(RuntimeError):
    """A weight file that is missing, damaged, or not the one that was asked for."""


def save_weights(path: str | Path, state: dict[str, torch.Tensor], *, metadata: dict) -> str:
    """Write tensors as float16, atomically.

    Vectors (biases, batch statistics) stay float32: they are small, and a running variance may leave the
    range of float16 or lose its small values there.

    Parameters
    ----------
    path : path
        File to write; its folder is made. An earlier file stays whole until the new one is complete.
    state : dict of torch.Tensor
        Named tensors.
    metadata : dict
        Whatever JSON can say; read back by :func:`read_weights`.

    Returns
    -------
    str
        sha256 of the file, in hexadecimal.

    Raises
    ------
    ValueError
        If a tensor is not finite or exceeds float16.
    """
    path = Path(path)
    compact = {name: _compact(name, tensor) for name, tensor in state.items()}
    content = save(compact, metadata={"fa_utils": json.dumps(metadata)})
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def read_weights(path: str | Path, *, sha256: str | None = None) -> tuple[dict[str, torch.Tensor], dict]:
    """Read a weight file back as float32 tensors, with its metadata.

    Raises
    ------
    WeightsError
        If the file is missing or damaged, or its checksum is not ``sha256``.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weight file {path} does not exist. {REMEDY}")
    found = file_sha256(path)
    if sha256 is not None and found != sha256:
        raise WeightsError(
            f"weight file {path} is not the expected one: sha256 {found}, expected {sha256}. {REMEDY}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("fa_utils", "{}"))
            names = file.keys()  # the file itself cannot be iterated over
            state = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise WeightsError(f"weight file {path} is damaged (sha256 {found}): {error}. {REMEDY}") from error
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}, metadata


def load_part(
    module: torch.nn.Module, state: dict[str, torch.Tensor], part: str, *, path: str | Path
) -> None:
    """Load the tensors named ``part.*`` into a module; every name and shape must agree.

    Raises
    ------
    WeightsError
        Naming the first tensors that are missing, unexpected, or of another shape.
    """
    given = {name.removeprefix(part + "."): t for name, t in state.items() if name.startswith(part + ".")}
    wanted = module.state_dict()
    wrong = [f"missing {part}.{name}" for name in wanted if name not in given]
    wrong += [f"unexpected {part}.{name}" for name in given if name not in wanted]
    wrong += [
        f"{part}.{name} is {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(
            f"weight file {path} is of another network: {'; '.join(wrong[:3])}{more}. {REMEDY}"
        )
    module.load_state_dict(given)


def check_sha256(path: str | Path, sha256: str) -> None:
    """Raise unless a file, such as a network from elsewhere, has this checksum.

    Raises
    ------
    WeightsError
        Naming both checksums.
    """
    found = file_sha256(path)
    if found != sha256.lower():
        raise WeightsError(
            f"{path} is not the expected file: sha256 {found}, expected {sha256}. Copy the expected one again, or "
            "register this one: fa register NAME PATH"
        )


def file_sha256(path: str | Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is the earlier one or complete, also when killed or when a disk fills up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _compact(name: str, tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    if not torch.isfinite(tensor).all():
        raise ValueError(f"tensor {name} has values that are not finite; nothing was written")
    if tensor.ndim < 2:
        return tensor.float()
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise ValueError(
            f"tensor {name} reaches {tensor.abs().max():.3g}, beyond float16 (65504); nothing was written"
        )
    return half.contiguous()
