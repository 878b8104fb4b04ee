"""Archives that are whole, damaged, or try to leave their folder."""

import io
import os
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from fa_utils.data.archives import unpack

NOISE = np.random.default_rng(0).bytes(30_000)


def write_tar(path, members=None, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in (members or {"lfw/Anna/Anna_0001.jpg": NOISE, "lfw/pairs.txt": b"1 1"}).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_zip(path, members=None):
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in (members or {"lfw/Anna/Anna_0001.jpg": NOISE, "lfw/pairs.txt": b"1 1"}).items():
            packed.writestr(name, content)
    return path


def only_the_archive_is_left(folder):
    return [path.name for path in folder.iterdir() if "archive" not in path.name] == []


@pytest.mark.parametrize("write, name", [(write_tar, "archive.tgz"), (write_zip, "archive.zip")])
@pytest.mark.parametrize("empty", [False, True])
def test_unpacks_whole(tmp_path, write, name, empty):
    archive = write(tmp_path / name)
    if empty:
        (tmp_path / "faces").mkdir()
    folder = unpack(archive, tmp_path / "faces", progress=False)
    assert (folder / "lfw/Anna/Anna_0001.jpg").read_bytes() == NOISE
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "faces"])


@pytest.mark.parametrize("write, name", [(write_tar, "archive.tgz"), (write_zip, "archive.zip")])
@pytest.mark.parametrize("member", ["../out.txt", "/tmp/out.txt", "lfw/../../out.txt", "..\\out.txt", "C:\\out.txt"])
def test_members_that_leave_the_folder(tmp_path, write, name, member):
    archive = write(tmp_path / name, {"lfw/good.txt": b"x", member: b"x"})
    with pytest.raises(ValueError, match="names .*out.txt', which is no path inside the folder"):
        unpack(archive, tmp_path / "faces", progress=False)
    assert only_the_archive_is_left(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar(tmp_path, kind):
    archive = tmp_path / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo("lfw/odd")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ValueError, match="'lfw/odd', which is a link or a device"):
        unpack(archive, tmp_path / "faces", progress=False)
    assert only_the_archive_is_left(tmp_path)


def test_links_in_a_zip(tmp_path):
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        info = zipfile.ZipInfo("lfw/odd")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="'lfw/odd', which is a link or a device"):
        unpack(archive, tmp_path / "faces", progress=False)
    assert only_the_archive_is_left(tmp_path)


@pytest.mark.parametrize("write, name", [(write_tar, "archive.tgz"), (write_zip, "archive.zip"),
                                         (lambda path: write_tar(path, mode="w"), "archive.tar")])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_truncated_archives(tmp_path, write, name, share):
    archive = write(tmp_path / name)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="Nothing was unpacked"):
        unpack(archive, tmp_path / "faces", progress=False)
    assert only_the_archive_is_left(tmp_path)


def test_a_changed_byte_is_found(tmp_path):
    archive = write_zip(tmp_path / "archive.zip")
    content = bytearray(archive.read_bytes())
    content[5000] ^= 255
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or incomplete"):
        unpack(archive, tmp_path / "faces", progress=False)
    assert only_the_archive_is_left(tmp_path)


def test_nothing_is_overwritten(tmp_path):
    archive = write_tar(tmp_path / "archive.tgz")
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        unpack(archive, tmp_path / "faces", progress=False)
    with pytest.raises(FileNotFoundError, match="no archive"):
        unpack(tmp_path / "none.zip", tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    archive = write_tar(tmp_path / "archive.tgz")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        unpack(archive, tmp_path / "locked" / "faces", progress=False)
