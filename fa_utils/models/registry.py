"""The user's own networks, by names of their own: a small TOML file that says where each is and how it is fed.

::

    [my-r50]
    path = "weights/backbone.pth"  # from this file's folder, or absolute
    sha256 = "..."
    layout = "ires50"              # checkpoints only

The file is `networks.toml` in the project root, or what ``FA_NETWORKS`` names; ``fa register`` writes it.
"""

import functools
import hashlib
import json
import math
import os
import re
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from fa_utils.locks import locked
from fa_utils.models.backbones import FULL, nearest
from fa_utils.models.checkpoints import SUFFIXES, Preprocessing, load_checkpoint, preprocessing_of
from fa_utils.models.encoder import CHANNEL_ORDERS, FaceEncoder
from fa_utils.models.onnx import BlackBox, check_paths, onnx_encoder, stated_size
from fa_utils.models.weights import check_sha256, file_sha256, write_atomically
from fa_utils.models.zoo import read_encoder, zoo_table
from fa_utils.paths import ROOT

NAME = re.compile(r"[A-Za-z0-9_-]+")
FIGURES = ("input_size", "mean", "std", "channels")
KEYS = ("path", "sha256", "layout", *FIGURES)
ONNX = Preprocessing(112, 0.0, 1.0, "rgb")  # a graph that preprocesses inside


class RegistryError(ValueError):
    """A networks file that is not what it should be; names the file, the network and the key."""


@dataclass(frozen=True)
class Entry:
    """A registered network. ``path`` is absolute; ``layout`` is None for ONNX files and files of ``fa train``."""

    name: str
    path: str
    sha256: str
    layout: str | None = None
    input_size: int | None = None
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None
    channels: str | None = None

    @property
    def digest(self) -> str:
        """Checksum of the file and of how it is fed: what results hang on. The name and the place do not matter."""
        values = asdict(self)
        return hashlib.sha256(repr([values[key] for key in KEYS if key != "path"]).encode()).hexdigest()

    @property
    def preprocessing(self) -> dict:
        return {key: getattr(self, key) for key in FIGURES}


def networks_file() -> Path:
    """The user's networks file, which need not exist."""
    return Path(os.environ.get("FA_NETWORKS") or ROOT / "networks.toml").expanduser().absolute()


# ---------------------------------------------------------------- reading


def registered(file: Path | None = None) -> dict[str, Entry]:
    """The registered networks by name; none where there is no file.

    Raises
    ------
    RegistryError
        For a file that is not TOML, and for a name, a key or a value that is not accepted.
    """
    file = file or networks_file()
    try:
        stamp = file.stat()
    except FileNotFoundError:
        return {}
    return dict(_read(file, stamp.st_mtime_ns, stamp.st_size, stamp.st_ino))


def find(name: str) -> Entry | None:
    """The registered network of this name."""
    return registered().get(name)


@functools.lru_cache(maxsize=8)
def _read(file: Path, *stamp: int) -> dict[str, Entry]:
    return _entries(file.read_bytes(), file)


def _entries(content: bytes, file: Path) -> dict[str, Entry]:
    try:
        tables = tomllib.loads(content.decode())
    except ValueError as error:  # not UTF-8, or not TOML
        raise RegistryError(f"{file} is not TOML: {error}") from error
    return {name: _entry(name, table, file) for name, table in tables.items()}


def _entry(name: str, table: object, file: Path) -> Entry:
    where = f"{file}, network {name!r}"
    check_name(name, where)
    if not isinstance(table, dict):
        raise RegistryError(f"{where}: a table [{name}] with the keys {', '.join(KEYS)} is wanted, not {table!r}")
    for key, value in table.items():
        if key not in CHECKS:
            raise RegistryError(f"{where}: unknown key {key!r}; known: {', '.join(KEYS)}.{nearest(key, CHECKS)}")
        accepts, check = CHECKS[key]
        if not check(value):
            hint = nearest(value, FULL) if key == "layout" else ""
            raise RegistryError(f"{where}, key {key!r}: {value!r} is not {accepts}{hint}")
    for key in ("path", "sha256"):
        if key not in table:
            raise RegistryError(f"{where}: the key {key!r} is missing; fa register writes all that is needed")
    path = file.parent / Path(table["path"]).expanduser()
    values = {key: _floats(value) if key in ("mean", "std") else value for key, value in table.items()}
    defaults = default_preprocessing(path, table.get("layout"), values, where)
    return Entry(**{"name": name, **defaults, **values, "path": str(path), "sha256": table["sha256"].lower()})


def _floats(value: float | list) -> float | tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def default_preprocessing(path: Path, layout: str | None, given: dict, where: str) -> dict:
    """What a file's kind says of its preprocessing; nothing for a file of ``fa train``, which has it inside."""
    if path.suffix == ".onnx":
        if layout is not None:
            raise RegistryError(f"{where}: an ONNX file holds its layout; take the key 'layout' away")
        return ONNX._asdict()
    if layout is not None:
        return preprocessing_of(layout)._asdict()
    if path.suffix == ".safetensors":  # without a layout: a file of fa train
        if unused := [key for key in FIGURES if given.get(key) is not None]:
            raise RegistryError(
                f"{where}: {unused[0]!r} is for public checkpoints, which also need a 'layout'; a file of fa train "
                "has its preprocessing inside"
            )
        return {}
    raise RegistryError(f"{where}: the checkpoint {path.name} does not say its layout; give one of {', '.join(FULL)}")


def check_name(name: str, where: str) -> None:
    """Names are words, so that they are no files, and those of the zoo are taken."""
    if not NAME.fullmatch(name):
        raise RegistryError(f"{where}: a name is made of letters, digits, _ and -")
    if name == "zoo" or name in zoo_table().index:
        raise RegistryError(f"{where}: the zoo has this name; choose another")


def _number(low: float, high: float, *, above: bool = False):
    """A check of a number, or of three (RGB)."""

    def check(value: object) -> bool:
        values = value if isinstance(value, list) else [value]
        plain = all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)
        return plain and len(values) in (1, 3) and all((low < v if above else low <= v) and v <= high for v in values)

    return check


# By key: what is accepted, in words, and the check.
CHECKS = {
    "path": ("the path of a file", lambda value: isinstance(value, str) and bool(value)),
    "sha256": (
        "a checksum of 64 hexadecimal digits",
        lambda value: isinstance(value, str) and bool(re.fullmatch(r"[0-9a-fA-F]{64}", value)),
    ),
    "layout": (f"a layout; known: {', '.join(FULL)}.", lambda value: isinstance(value, str) and value in FULL),
    "input_size": (
        "a side in pixels, a whole number from 16 to 1024",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 16 <= value <= 1024,
    ),
    "mean": (
        "a number or a list of three (RGB) from 0 to 1, on the scale of pictures in [0, 1]: 127.5 grey levels are 0.5",
        _number(0, 1),
    ),
    "std": (
        "a number or a list of three (RGB) above 0 and up to 1, on the scale of pictures in [0, 1]: 127.5 grey "
        "levels are 0.5",
        _number(0, 1, above=True),
    ),
    "channels": ("'rgb' or 'bgr'", lambda value: isinstance(value, str) and value in CHANNEL_ORDERS),
}


def network_table() -> pd.DataFrame:
    """The networks of the zoo and the registered ones, by name: where they are from, their file, how they are fed.

    ``state`` is "ok", "missing", or "changed" where the file is not the one that was registered.
    """
    rows = [{"network": name, "from": "zoo", "file": file, "state": "ok"} for name, file in zoo_table()["file"].items()]
    for entry in registered().values():
        fed = {key: getattr(entry, key) for key in ("layout", *FIGURES)}
        rows.append({"network": entry.name, "from": "own", "file": entry.path, "state": _state(entry), **fed})
    columns = ("network", "from", "file", "state", "layout", *FIGURES)
    # As objects: a column of whole numbers with gaps would turn into floats.
    frame = pd.DataFrame(rows, columns=columns, dtype=object).set_index("network")
    return frame.where(frame.notna(), "")


def _state(entry: Entry) -> str:
    if not Path(entry.path).is_file():
        return "missing"
    return "ok" if file_sha256(entry.path) == entry.sha256 else "changed"


# ---------------------------------------------------------------- opening


def open_registered(entry: Entry) -> FaceEncoder:
    """The network of an entry, differentiable in the images.

    Raises
    ------
    FileNotFoundError, WeightsError, ValueError
        For a file that is missing, damaged, refused, or another than the checksum says.
    """
    check_file(entry)
    if entry.path.endswith(".onnx"):
        return onnx_encoder(entry.path, name=entry.name, **entry.preprocessing)
    if entry.layout is not None:
        return load_checkpoint(entry.path, entry.layout, name=entry.name, **entry.preprocessing)
    encoder = read_encoder(entry.path)
    encoder.name = entry.name
    return encoder


def open_black_box(entry: Entry) -> BlackBox:
    """The network of an entry as a service without thresholds."""
    if not entry.path.endswith(".onnx"):
        return BlackBox(open_registered(entry), thresholds={})
    check_file(entry)
    return BlackBox(entry.path, thresholds={}, name=entry.name, **entry.preprocessing)


def check_file(entry: Entry) -> None:
    """Whether the file is there, and is the one that was registered."""
    if not Path(entry.path).is_file():
        raise FileNotFoundError(f"the network {entry.name!r} of {networks_file()} is not there: no file {entry.path}")
    check_sha256(entry.path, entry.sha256)


# ---------------------------------------------------------------- writing


def register_network(name: str, path: str | Path, *, layout: str | None = None, **preprocessing) -> Entry:
    """Open a network, compute its checksum, and write it into the networks file under this name.

    An earlier entry of the name is replaced. Nothing is written unless the network opens, embeds, and, for an ONNX
    file, gives the same embeddings as a differentiable network and in ONNX Runtime.

    Parameters
    ----------
    name : str
        Letters, digits, ``_`` and ``-``.
    path : path
        An ONNX file, a public checkpoint (then with its ``layout``), or a weight file of ``fa train``.
    layout : str, optional
        Full-size layout of `fa_utils.models.build_backbone`.
    **preprocessing
        ``input_size``, ``mean``, ``std``, ``channels``, as in the file; the defaults of the kind where None.

    Raises
    ------
    RegistryError, ValueError, FileNotFoundError, WeightsError
        For an argument or a file that is not accepted.
    """
    file, path = networks_file(), Path(path).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"there is no network {path}")
    if path.suffix not in (".onnx", ".safetensors", *SUFFIXES):
        raise RegistryError(f"{path} must be an ONNX file or a checkpoint ({', '.join(('.safetensors', *SUFFIXES))})")
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in preprocessing.items() if value is not None}
    table = {"path": _written(path, file), "sha256": file_sha256(path), **({"layout": layout} if layout else {}), **given}
    entry = _entry(name, table, file)
    if path.suffix == ".onnx" and "input_size" not in given:
        entry = _entry(name, table | {"input_size": _stated_or_default(path)}, file)
    encoder = open_registered(entry)
    if path.suffix == ".onnx":
        check_paths(encoder, open_black_box(entry))
    write_entry(file, entry)
    return entry


def _stated_or_default(path: Path) -> int:
    try:
        return stated_size(path) or ONNX.input_size
    except Exception:  # a damaged file, which opening reports
        return ONNX.input_size


def _written(path: Path, file: Path) -> str:
    """How the networks file calls a path: from its own folder where the path is inside."""
    inside = path.is_relative_to(file.parent)
    return (path.relative_to(file.parent) if inside else path).as_posix()


def write_entry(file: Path, entry: Entry) -> None:
    """Append an entry to the networks file, or replace the one of its name; the rest of the file stays as it is.

    Raises
    ------
    RegistryError
        If the file is not accepted as it is, or the entry cannot be exchanged in its text.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.parent):
        before = file.read_bytes() if file.exists() else b""
        wanted = _entries(before, file) | {entry.name: entry}
        text = _replaced(before.decode(), entry.name, _toml(entry, file)).encode()
        if _entries(text, file) != wanted:
            raise RegistryError(f"{file}: the entry [{entry.name}] is written in an unusual way; take it out by hand")
        write_atomically(file, text)


def _replaced(text: str, name: str, table: str) -> str:
    """The text with the table of this name exchanged, or appended; comments above the next table stay."""
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.lstrip().startswith("[")]
    own = [i for i in heads if re.match(rf"\s*\[\s*[\"']?{re.escape(name)}[\"']?\s*\]", lines[i])]
    if not own:
        return "\n".join([*lines, *([""] if lines and lines[-1] else []), table]) + "\n"
    start = own[0]
    end = next((i for i in heads if i > start), len(lines))
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    return "\n".join([*lines[:start], table, *lines[end:]]) + "\n"


def _toml(entry: Entry, file: Path) -> str:
    values = {key: getattr(entry, key) for key in KEYS} | {"path": _written(Path(entry.path), file)}
    lines = [f"{key} = {_toml_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join([f"[{entry.name}]", *lines])


def _toml_value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False)  # strings and numbers are written alike in both
