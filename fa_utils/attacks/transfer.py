"""Transfer studies: craft on some networks, judge on others, one tidy row for each pair.

A `Trial` is one attack on one surrogate. It is picklable and knows its networks by address, so a grid of them
runs in any number of processes; a finished trial is kept in the cache as a small table, an unfinished one as
the units that `craft` finished.
"""

import functools
import hashlib
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image

import fa_utils
from fa_utils.attacks.craft import craft, run_grid
from fa_utils.attacks.engine import Attack
from fa_utils.data import FaceSet, Pairs, attack_pairs, to_float
from fa_utils.locks import locked
from fa_utils.metrics import pair_similarity, rmsd
from fa_utils.models import registry
from fa_utils.models.checkpoints import SUFFIXES
from fa_utils.models.encoder import FaceEncoder
from fa_utils.models.onnx import BlackBox, onnx_encoder
from fa_utils.models.recipes import nearest
from fa_utils.models.weights import write_atomically
from fa_utils.models.zoo import load_encoder, read_encoder, zoo_table
from fa_utils.paths import CACHE

BLACK_BOX = "black box: "  # before the name of a judge that is asked through encoded pictures
IN_MEMORY = 6000  # pictures that a trial holds at once, 0.2 GB at 112 x 112


# ---------------------------------------------------------------- who attacks whom


@dataclass(frozen=True, eq=False)
class PairSet:
    """Pairs of pictures of different people.

    Attributes
    ----------
    sources, targets : ndarray
        uint8, (S, 3, H, W) and (T, 3, H, W), RGB.
    source, target : ndarray
        int64, (P,): rows of the two.
    source_id, target_id : ndarray
        int64, (P,): the persons, by which results are clustered.
    name : str
        Where the pictures come from.
    """

    sources: np.ndarray
    targets: np.ndarray
    source: np.ndarray
    target: np.ndarray
    source_id: np.ndarray
    target_id: np.ndarray
    name: str

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, key)) for key in ("source", "target", "source_id", "target_id")}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(f"the columns of {self.name!r} must have one length, at least 1, got {lengths}")
        if self.source.max() >= len(self.sources) or self.target.max() >= len(self.targets):
            raise ValueError(f"{self.name!r} points past its {len(self.sources)} sources or its targets")

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"PairSet({self.name!r}, {len(self)} pairs)"

    def first(self, count: int) -> "PairSet":
        """The first ``count`` pairs, fewer where there are fewer."""
        columns = (self.source, self.target, self.source_id, self.target_id)
        return PairSet(self.sources, self.targets, *(column[:count] for column in columns), self.name)

    @cached_property
    def digest(self) -> str:
        """Name of the pictures and pairs; a trial's result hangs on it."""
        columns = (self.source, self.target, self.source_id, self.target_id)
        return _sha(
            *(np.ascontiguousarray(part).tobytes() for part in (self.sources, self.targets, *columns))
        )


def procedural_pairs(
    n_pairs: int, *, domain: str | None = None, calibration: bool = False, progress: bool = True
) -> PairSet:
    """Pairs of rendered people, named "procedural" and the domain where one is given: see `fa_utils.data.attack_pairs`."""
    faces = attack_pairs(n_pairs, domain=domain, calibration=calibration, progress=progress)
    sources, targets, source, target = faces
    rows = (np.asarray(source, np.int64), np.asarray(target, np.int64))
    name = "procedural" if domain is None else f"procedural {domain}"
    return PairSet(np.asarray(sources.images), np.asarray(targets.images), *rows, *rows, name)


def benchmark_pairs(faces: FaceSet, pairs: Pairs, n_pairs: int, *, seed: int = 0) -> PairSet:
    """A sample of a protocol's impostor pairs, in the protocol's order; ``a`` attacks ``b``.

    Raises
    ------
    ValueError
        If the protocol has fewer impostor pairs than asked for.
    """
    negatives = pairs.negatives()
    if not 1 <= n_pairs <= len(negatives):
        raise ValueError(
            f"n_pairs = {n_pairs}: {faces.name} has {len(negatives)} impostor pairs, at least 1 is needed"
        )
    chosen = np.sort(np.random.default_rng(seed).choice(len(negatives), n_pairs, replace=False))
    a, b = negatives.a[chosen], negatives.b[chosen]
    rows_a, source = np.unique(a, return_inverse=True)
    rows_b, target = np.unique(b, return_inverse=True)
    people = (faces.identity[a], faces.identity[b])
    return PairSet(faces.images[rows_a], faces.images[rows_b], source, target, *people, faces.name)


# ---------------------------------------------------------------- networks by address


def split_addresses(networks: str, *, least: int = 1) -> tuple[str, ...]:
    """The addresses in a parameter ``networks``: by commas; a folder stands for the ONNX files in it, in order of name.

    Raises
    ------
    ValueError
        For fewer than ``least`` networks, an empty address, two of one name, or a folder without ONNX files.
    """
    folder = Path(networks.strip())
    if networks.strip() and folder.is_dir():
        names = tuple(map(str, sorted(folder.glob("*.onnx"))))
        if not names:
            raise ValueError(f"networks = {networks!r}: there is no ONNX file in this folder")
    else:
        names = tuple(part.strip() for part in networks.split(","))
    if not all(names) or len(names) < least or len({network_name(name) for name in names}) < len(names):
        raise ValueError(
            f"networks = {networks!r}: expected is 'zoo', or at least {least} different networks by commas (names of the zoo, "
            "registered names, ONNX files, weight files), or a folder of ONNX files"
        )
    return names


def network_name(address: str) -> str:
    """How tables call a network: a name of the zoo or of the networks file as it is, a file by its stem."""
    return Path(address).stem if _is_file(address) else address


def open_network(address: str, device: str = "cpu") -> FaceEncoder:
    """The network at an address: a name of the zoo or of the user's networks file, an ONNX file, or a weight file of ``fa train``.

    Loaded once in each process, and again where its entry in the networks file has changed.

    Raises
    ------
    ValueError, FileNotFoundError, WeightsError
        For an unknown name (the nearest is offered), a checkpoint that is not registered, or a file that is missing
        or damaged.
    """
    return _open(_source(address), device)


def network_sha256(address: str) -> str:
    """Checksum of the network: of its file and, for a registered one, of how pictures are prepared for it."""
    source = _source(address)
    return source.digest if isinstance(source, registry.Entry) else _sha256(source)


def _source(address: str) -> registry.Entry | str:
    """The registered entry of an address; a file or a name of the zoo as it is."""
    if _is_file(address):
        return address
    # Asked first, so that a networks file that claims a name of the zoo is an error and not passed over.
    known = registry.registered()
    if address in known:
        return known[address]
    if known and address not in (zoo := zoo_table().index):
        raise ValueError(
            f"network {address!r} is neither in the zoo nor in {registry.networks_file()}{nearest(address, [*known, *zoo])}"
        )
    return address


@functools.lru_cache(maxsize=32)
def _open(source: registry.Entry | str, device: str) -> FaceEncoder:
    if isinstance(source, registry.Entry):
        return registry.open_registered(source).to(device)
    if source.endswith(".onnx"):
        return onnx_encoder(source).to(device)
    return (read_encoder(source) if _is_file(source) else load_encoder(source)).to(device)


@functools.lru_cache(maxsize=32)
def _sha256(source: str) -> str:
    if _is_file(source):
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()
    table = zoo_table()
    if source not in table.index:
        load_encoder(source)  # raises, and offers the nearest name
    return str(table.loc[source, "sha256"])


def _is_file(address: str) -> bool:
    """Whether an address is a file that can be opened as it is.

    Raises
    ------
    ValueError
        For a checkpoint of PyTorch, which does not say what it is.
    """
    if address.endswith(SUFFIXES):
        raise ValueError(
            f"the checkpoint {address} does not say its layout: register it under a name, and use the name: "
            f"fa register NAME {address} --layout LAYOUT"
        )
    return address.endswith((".onnx", ".safetensors"))


def _open_black_box(address: str) -> BlackBox:
    return _black_box(_source(address))


@functools.lru_cache(maxsize=8)
def _black_box(source: registry.Entry | str) -> BlackBox:
    if isinstance(source, registry.Entry):
        return registry.open_black_box(source)
    return BlackBox(source if source.endswith(".onnx") else _open(source, "cpu"), thresholds={})


# ---------------------------------------------------------------- trials


@dataclass(frozen=True)
class Trial:
    """One attack on one surrogate or ensemble, and when it is looked at.

    Attributes
    ----------
    source : tuple of str
        Addresses of the surrogates.
    method : str
        How tables call the attack.
    attack : Attack
    looks : tuple of (int, tuple of str)
        After which step which networks judge; step 0 is the unchanged picture. An address after the prefix
        `BLACK_BOX` is asked through encoded pictures.
    """

    source: tuple[str, ...]
    method: str
    attack: Attack
    looks: tuple[tuple[int, tuple[str, ...]], ...]

    @property
    def label(self) -> str:
        """The surrogates' names, joined by ``+``."""
        return "+".join(network_name(address) for address in self.source)


class Study(NamedTuple):
    """What trials found.

    Attributes
    ----------
    frame : DataFrame
        One row for each trial, step, pair and judge: ``source``, ``method``, ``seed``, ``step``, ``pair``,
        ``source_id``, ``target_id``, ``target``, ``similarity`` (cosine to the target's picture), ``rmsd``
        (grey levels).
    costs : DataFrame
        One row for each trial: ``source``, ``method``, ``seed``, ``steps``, ``forwards`` and ``backwards`` an
        image, and ``queries`` of black boxes in all.
    """

    frame: pd.DataFrame
    costs: pd.DataFrame


def run_trials(
    trials: Sequence[Trial],
    pairs: PairSet,
    *,
    workers: int = 1,
    device: str = "cpu",
    unit: int = 20,
    cache: str | Path | None = CACHE / "attacks",
    progress: bool = True,
) -> Study:
    """Run trials on the same pairs, in processes of one thread each.

    Parameters
    ----------
    trials : sequence of Trial
    pairs : PairSet
    workers : int
        Processes.
    device : str
        Torch device of each process.
    unit : int
        Images crafted at once. Results do not depend on it beyond rounding.
    cache : path or None
        Where finished trials, and the finished units of unfinished ones, are kept.
    progress : bool

    Raises
    ------
    GridError
        When some trials failed, after all have run; names them.
    """
    run_one = functools.partial(_run_one, pairs=pairs, device=device, unit=unit, cache=cache and Path(cache))
    records = run_grid(trials, run_one, workers=workers, progress=progress)
    frame = pd.concat([record["frame"] for record in records], ignore_index=True)
    return Study(frame, pd.DataFrame([record["cost"] for record in records]))


def _run_one(trial: Trial, *, pairs: PairSet, device: str, unit: int, cache: Path | None) -> dict:
    if cache is None:
        return _run_trial(trial, pairs, device, unit, None)
    name = trial_digest(trial, pairs, device)[:24]
    path = cache / f"{name}.npz"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f"{name}.lock"):
        if not path.exists():
            units = cache / name
            _save(path, _run_trial(trial, pairs, device, unit, units))
            shutil.rmtree(units, ignore_errors=True)
        return _read(path, trial)


def _run_trial(trial: Trial, pairs: PairSet, device: str, unit: int, units: Path | None) -> dict:
    networks = [open_network(address, device) for address in trial.source]
    steps = sorted({step for step, _ in trial.looks} - {0})
    chunk = unit * max(1, IN_MEMORY // (unit * (len(steps) + 2)))
    parts, queries = [], 0
    for start in range(0, len(pairs), chunk):
        rows = slice(start, start + chunk)
        source, target = pairs.sources[pairs.source[rows]], pairs.targets[pairs.target[rows]]
        crafted = craft(
            trial.attack,
            networks,
            source,
            target,
            keys=np.arange(len(pairs))[rows].tolist(),
            unit=unit,
            snapshots=steps,
            checkpoint=units,
            progress=False,
        )
        for step, judges in trial.looks:
            images = crafted.snapshots[step] if step else source
            change = rmsd(images, source)
            for judge in judges:
                found = _judge(judge, images, target, pairs, rows, device)
                queries += len(images) if judge.startswith(BLACK_BOX) else 0
                parts.append(_rows(trial, pairs, rows, step, judge, found, change))
    cost = {
        "source": trial.label,
        "method": trial.method,
        "seed": trial.attack.seed,
        "steps": trial.attack.steps,
        "forwards": crafted.forwards,
        "backwards": crafted.backwards,
        "queries": queries,
    }
    return {"frame": pd.concat(parts, ignore_index=True), "cost": cost}


def _judge(judge: str, images, target, pairs: PairSet, rows: slice, device: str) -> np.ndarray:
    """Similarity of each picture to its target's, by one network."""
    if judge.startswith(BLACK_BOX):
        box = _open_black_box(judge.removeprefix(BLACK_BOX))
        return box.compare_many((png(a), png(b)) for a, b in zip(images, target, strict=True))
    wanted = _target_embeddings(judge, pairs, device)[pairs.target[rows]]
    return pair_similarity(open_network(judge, device).embed(to_float(images)), wanted)


_EMBEDDED: dict[tuple, torch.Tensor] = {}


def _target_embeddings(judge: str, pairs: PairSet, device: str) -> torch.Tensor:
    """Embeddings of the clean targets, once in each process."""
    key = (judge, network_sha256(judge), device, pairs.digest)
    if key not in _EMBEDDED:
        _EMBEDDED[key] = open_network(judge, device).embed(to_float(pairs.targets))
    return _EMBEDDED[key]


def _rows(
    trial: Trial, pairs: PairSet, rows: slice, step: int, judge: str, similarity, change
) -> pd.DataFrame:
    prefix = BLACK_BOX if judge.startswith(BLACK_BOX) else ""
    return pd.DataFrame(
        {
            "source": trial.label,
            "method": trial.method,
            "seed": trial.attack.seed,
            "step": step,
            "pair": np.arange(len(pairs))[rows],
            "source_id": pairs.source_id[rows],
            "target_id": pairs.target_id[rows],
            "target": prefix + network_name(judge.removeprefix(BLACK_BOX)),
            "similarity": similarity,
            "rmsd": change,
        }
    )


def png(image: np.ndarray) -> bytes:
    """A picture (uint8, (3, H, W), RGB) as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, format="PNG", compress_level=1)
    return file.getvalue()


# ---------------------------------------------------------------- the cache


def trial_digest(trial: Trial, pairs: PairSet, device: str = "cpu") -> str:
    """A name for everything that a trial's result depends on."""
    addresses = [*trial.source, *(judge for _, judges in trial.looks for judge in judges)]
    files = {address: network_sha256(address.removeprefix(BLACK_BOX)) for address in addresses}
    kind = torch.device(device).type
    return _sha(
        repr((trial, files, pairs.digest, kind, torch.__version__, fa_utils.__version__, _code())).encode()
    )


# These decide what is attacked, when and by whom, which a trial's key says itself.
_WITHOUT_INFLUENCE = {
    "craft", "losses", "presets", "recipes", "registry", "rewrite", "train", "transfer", "weights", "zoo",
}  # fmt: skip


@functools.lru_cache(maxsize=1)
def _code() -> str:
    """The code that attacks and embeds: a kept result must not outlive it."""
    root = Path(fa_utils.__file__).parent
    files = [path for folder in ("attacks", "models") for path in sorted((root / folder).glob("*.py"))]
    return _sha(*(path.read_bytes() for path in files if path.stem not in _WITHOUT_INFLUENCE))


def _sha(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


_COSTS = ("forwards", "backwards", "queries")
_KEPT = ("step", "pair", "source_id", "target_id", "target", "similarity", "rmsd")


def _save(path: Path, record: dict) -> None:
    """Write a finished trial whole or not at all."""
    columns = {name: record["frame"][name].to_numpy() for name in _KEPT}
    columns["target"] = columns["target"].astype(str)
    file = io.BytesIO()
    np.savez_compressed(file, **columns, **{name: record["cost"][name] for name in _COSTS})
    write_atomically(path, file.getvalue())


def _read(path: Path, trial: Trial) -> dict:
    with np.load(path, allow_pickle=False) as stored:
        columns = {name: stored[name] for name in _KEPT}
        passes = {name: int(stored[name]) for name in _COSTS}
    names = {"source": trial.label, "method": trial.method, "seed": trial.attack.seed}
    cost = {**names, "steps": trial.attack.steps, **passes}
    return {"frame": pd.DataFrame({**dict.fromkeys(names), **columns}).assign(**names), "cost": cost}
