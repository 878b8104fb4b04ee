"""Archives of datasets, unpacked whole or not at all, and never outside their folder."""

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path

from tqdm.auto import tqdm

from fa_utils.data.lists import inside

__all__ = ["unpack"]

# What the standard library raises on damaged archives; BadGzipFile is an OSError, as a full disk is, hence apart.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError, NotImplementedError, RuntimeError)


def unpack(archive: str | Path, folder: str | Path, *, progress: bool = True) -> Path:
    """Unpack a tar (also .gz, .bz2, .xz) or zip archive into a new folder.

    Everything goes to a temporary folder beside ``folder`` first, which is renamed when it is complete.

    Parameters
    ----------
    archive : path
    folder : path
        Must not exist, or be empty.
    progress : bool

    Returns
    -------
    Path
        ``folder``

    Raises
    ------
    FileNotFoundError
        No such archive.
    FileExistsError
        ``folder`` holds something.
    ValueError
        No archive, a damaged one, or a member that is a link or a device or would leave the folder: names it.
        Nothing is left behind.
    OSError
        The folder cannot be written.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise FileNotFoundError(f"there is no archive {archive}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder; name a new one, nothing in it is overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.parent / f".{folder.name}.{os.getpid()}.part"
    part.mkdir()
    try:
        for _ in tqdm(_members(archive, part), desc=f"unpacking {archive.name}", unit="file", disable=not progress):
            pass
        os.replace(part, folder)
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # a full disk, no permission: not the archive's fault
            raise
        raise ValueError(f"{archive} cannot be unpacked ({error or type(error).__name__}): it is damaged or incomplete, or of "
                         "a kind that cannot be read. Nothing was unpacked") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _members(archive: Path, folder: Path) -> Iterator[str]:
    """Unpack one member after the other, each checked before it is written."""
    if tarfile.is_tarfile(archive):
        yield from _tar_members(archive, folder)
    elif zipfile.is_zipfile(archive):
        yield from _zip_members(archive, folder)
    else:
        raise ValueError(f"{archive} is neither a tar nor a zip archive, or its beginning or end is damaged. Nothing was unpacked")


def _tar_members(archive: Path, folder: Path) -> Iterator[str]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir() and member.name in (".", ""):
                continue
            _check(member.name, archive, plain=member.isreg() or member.isdir())
            tar.extract(member, folder, filter="data")
            yield member.name


def _zip_members(archive: Path, folder: Path) -> Iterator[str]:
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not made on Unix
            _check(member.filename, archive, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
            packed.extract(member, folder)
            yield member.filename


def _check(name: str, archive: Path, *, plain: bool) -> None:
    inside(name, str(archive))
    if not plain:
        raise ValueError(f"{archive} holds {name!r}, which is a link or a device; datasets have files and folders only. "
                         "Nothing was unpacked")
