"""Crafting many adversarial images: fixed work units, a checkpoint after each, and grids of runs.

A unit always holds the same pairs, and each image has its own random streams, so what comes out depends
neither on who crafts which unit nor on where a run was killed.
"""

import dataclasses
import errno
import hashlib
import io
import os
import traceback
import zipfile
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import fa_utils
from fa_utils.attacks.engine import Attack, as_encoders, check_keys, check_snapshots, device_of

DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class CraftResult:
    """Crafted images, as they would be stored and shared.

    Attributes
    ----------
    images : ndarray
        uint8, (N, 3, H, W), RGB.
    snapshots : dict of int to ndarray
        The same after the steps that were asked for.
    forwards, backwards : int
        Passes through one network per image.
    zero_gradients : int
        Random sign steps taken because a gradient was exactly zero.
    """

    images: np.ndarray
    snapshots: dict[int, np.ndarray]
    forwards: int
    backwards: int
    zero_gradients: int


def craft(
    attack: Attack,
    encoder: nn.Module | Sequence[nn.Module],
    source: np.ndarray,
    target: np.ndarray | None = None,
    *,
    keys: Sequence[Hashable] | None = None,
    unit: int = 20,
    snapshots: Sequence[int] = (),
    checkpoint: Path | str | None = None,
    progress: bool = True,
) -> CraftResult:
    """Attack any number of images, unit by unit.

    Parameters
    ----------
    attack : Attack
    encoder : FaceEncoder or sequence of FaceEncoder
        The surrogate, or several for an ensemble.
    source, target : ndarray
        uint8, (N, 3, H, W), RGB; may be memory-mapped. Dodging needs no target.
    keys : sequence, optional
        A unique name for each pair; 0 ... N-1 by default.
    unit : int
        Images per work unit, which is also the batch size.
    snapshots : sequence of int
        Steps after which to keep a copy of the images.
    checkpoint : path, optional
        Folder for finished units. A later call with the same attack, networks, images and keys takes them up.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ValueError, TypeError
        For unusable images, keys or settings, before anything runs.
    OSError
        When the checkpoint folder cannot be written; units finished before are kept, nothing is half-written.
    """
    if isinstance(unit, bool) or not isinstance(unit, int) or unit < 1:
        raise ValueError(f"unit must be a whole number of at least 1, got {unit!r}")
    source = _check_bytes("source", source)
    target = None if target is None else _check_bytes("target", target)
    if target is not None and target.shape != source.shape:
        raise ValueError(f"target has shape {target.shape}, source {source.shape}; they must be equal")
    keys = check_keys(keys, len(source))
    snapshots = sorted(check_snapshots(snapshots, attack.steps))
    encoders = as_encoders(encoder)
    folder = None
    if checkpoint is not None:
        digest = _digest(attack, encoders, source, target, keys, unit, snapshots)
        folder = _open_folder(Path(checkpoint) / digest[:20])

    device = device_of(encoders)
    units = []
    with tqdm(total=len(source), desc="craft", unit="img", disable=not progress) as bar:
        for number, start in enumerate(range(0, len(source), unit)):
            part = slice(start, start + unit)
            path = folder and folder / f"unit-{number:05d}.npz"
            done = _load(path)
            if done is None:
                pair = [
                    None if images is None else _to_float(images[part], device) for images in (source, target)
                ]
                done = _craft_unit(attack, encoders, pair, keys[part], snapshots)
                _store(path, done)
            units.append(done)
            bar.update(len(done["images"]))
    return CraftResult(
        np.concatenate([done["images"] for done in units]),
        {step: np.concatenate([done[f"step_{step}"] for done in units]) for step in snapshots},
        int(units[0]["forwards"]),
        int(units[0]["backwards"]),
        int(sum(done["zero_gradients"] for done in units)),
    )


class GridError(RuntimeError):
    """Some runs of a grid failed; ``records`` holds all of them, the failed ones with an ``error``."""

    def __init__(self, records: list[dict]):
        self.records = records
        failed = [record for record in records if record.get("error")]
        lines = [
            f"{record['spec']!r}: {str(record['error']).strip().splitlines()[-1]}" for record in failed[:5]
        ]
        more = f"\n... and {len(failed) - 5} more" if len(failed) > 5 else ""
        super().__init__(f"{len(failed)} of {len(records)} runs failed:\n" + "\n".join(lines) + more)


def run_grid(
    specs: Iterable[Any],
    run_one: Callable[[Any], dict],
    *,
    workers: int = 1,
    progress: bool = True,
) -> list[dict]:
    """Run ``run_one(spec)`` for every spec, in processes of one thread each.

    Parameters
    ----------
    specs : iterable
        Picklable descriptions of the runs.
    run_one : callable
        Picklable; gives a record, a dict. It may report a failure in the record's ``error``; an exception
        that escapes it becomes such a record.
    workers : int
        Processes; 1 stays in this one.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of dict
        The records in the order of the specs.

    Raises
    ------
    GridError
        When all runs are over and some failed; its ``records`` holds every record.
    """
    specs = list(specs)
    if not specs:
        raise ValueError("specs is empty; give at least one run")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be a whole number of at least 1, got {workers!r}")
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        runner = joblib.Parallel(n_jobs=workers, return_as="generator")
        jobs = runner(joblib.delayed(_guarded)(run_one, spec, workers > 1) for spec in specs)
        records = list(tqdm(jobs, total=len(specs), desc="runs", disable=not progress))
    if any(record.get("error") for record in records):
        raise GridError(records)
    return records


def _guarded(run_one: Callable[[Any], dict], spec: Any, alone: bool) -> dict:
    if alone:
        torch.set_num_threads(1)
    try:
        return {"spec": spec, **run_one(spec)}
    except Exception:  # noqa: BLE001 - a grid goes on and names its failures at the end
        return {"spec": spec, "error": traceback.format_exc()}


def _craft_unit(attack: Attack, encoders, pair, keys, snapshots: list[int]) -> dict[str, np.ndarray]:
    result = attack.run(encoders, *pair, keys=keys, snapshots=snapshots)
    done = {f"step_{step}": _to_bytes(images) for step, images in result.snapshots.items()}
    done["images"] = _to_bytes(result.images)
    for name in ("forwards", "backwards", "zero_gradients"):
        done[name] = np.int64(getattr(result, name))
    return done


def _check_bytes(name: str, images: np.ndarray) -> np.ndarray:
    images = images.numpy() if isinstance(images, Tensor) else images
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"{name} must be a uint8 array (N, 3, H, W), got {kind}; a FaceSet's images are")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{name} must have shape (N, 3, H, W), got {images.shape}")
    if not images.size:
        raise ValueError(f"{name} is empty, shape {images.shape}; give at least one image")
    return images


def _to_float(images: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).float() / 255


def _to_bytes(images: Tensor) -> np.ndarray:
    return (images * 255).round().to(torch.uint8).cpu().contiguous().numpy()


def _digest(attack: Attack, encoders, source, target, keys, unit: int, snapshots) -> str:
    """A name for everything that the result depends on."""
    digest = hashlib.sha256()

    def add(*items) -> None:
        for item in items:
            raw = item if isinstance(item, bytes) else repr(item).encode()
            digest.update(len(raw).to_bytes(8, "big") + raw)

    settings = {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack)}
    add(fa_utils.__version__, _sources(), torch.__version__, settings, keys, unit, snapshots)
    for encoder in encoders:
        add(str(encoder))
        # Buffers too: an encoder's mean and std are not in its state_dict.
        for name, tensor in [*encoder.named_parameters(), *encoder.named_buffers()]:
            add(name, str(tensor.dtype), tuple(tensor.shape))
            add(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for images in (source, target):
        add(None if images is None else images.shape)
        for start in range(0, 0 if images is None else len(images), 256):
            add(np.ascontiguousarray(images[start : start + 256]).tobytes())
    return digest.hexdigest()


def _sources() -> bytes:
    """The code that attacks and embeds: a checkpoint must not outlive it."""
    digest = hashlib.sha256()
    for package in ("attacks", "models"):
        for path in sorted((Path(fa_utils.__file__).parent / package).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.digest()


def _open_folder(folder: Path) -> Path:
    """Make the folder and prove that it can be written, before an hour of work hangs on it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f".probe-{os.getpid()}", b"probe").unlink()
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write checkpoints to {folder}: {error.strerror or error}; "
            "give a writable folder with free space, or checkpoint=None",
        ) from error
    return folder


def _store(path: Path | None, done: dict[str, np.ndarray]) -> None:
    if path is None:
        return
    memory = io.BytesIO()
    np.savez(memory, **done)
    try:
        _write(path, memory.getvalue())
    except OSError as error:
        cause = "no space left on the disk" if error.errno == errno.ENOSPC else error.strerror or error
        raise OSError(
            error.errno,
            f"could not write {path}: {cause}; the units before it are kept: "
            "free space and call again, it goes on from there",
        ) from error


def _write(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all; two processes may write the same one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _load(path: Path | None) -> dict[str, np.ndarray] | None:
    """A finished unit, or None where there is none or it was damaged: then it is crafted anew."""
    if path is None or not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except DAMAGED:
        return None
