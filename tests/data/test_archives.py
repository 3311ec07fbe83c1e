"""Archives are unpacked whole and inside their folder, or not at all."""

import io
import re
import shutil
import stat
import tarfile
import zipfile
from collections import namedtuple

import pytest

from defectdiffu import InputError
from defectdiffu.data.archives import unpack

FILES = {"set/a.txt": b"one", "set/deep/b.bin": bytes(range(256)) * 300}


def make_tar(path, files=FILES, mode="w", extra=()):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return path


def make_zip(path, files=FILES, extra=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for name, content in [*files.items(), *extra]:
            package.writestr(name, content)
    return path


def link(kind, target):
    info = tarfile.TarInfo("set/link")
    info.type, info.linkname = kind, target
    return info


def refusal(archive, folder):
    """The one-line error for a refused archive; checks that no unpacked file is left."""
    before = set(folder.parent.iterdir())
    with pytest.raises(InputError) as caught:
        unpack(archive, folder)
    assert set(folder.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_tar_archives_are_unpacked(tmp_path, mode):
    folder = unpack(make_tar(tmp_path / "set.tar", mode=mode), tmp_path / "out")
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES


def test_zip_archives_are_unpacked(tmp_path):
    folder = unpack(make_zip(tmp_path / "set.zip", extra=[("set/empty/", b"")]), tmp_path / "out")
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES


OUTSIDE = ["../escaped.txt", "set/../../escaped.txt", "/tmp/escaped.txt", "C:/escaped.txt", "set\\..\\..\\escaped.txt"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_member_that_points_outside_is_refused(tmp_path, make, name):
    archive = make(tmp_path / "archive", FILES | {name: b"evil"})
    (tmp_path / "in").mkdir()
    assert f"'{name}' points outside" in refusal(archive, tmp_path / "in" / "out")
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize(
    ("kind", "target"), [(tarfile.SYMTYPE, "/etc/passwd"), (tarfile.SYMTYPE, "a.txt"), (tarfile.LNKTYPE, "set/a.txt")]
)
def test_links_in_a_tar_are_refused(tmp_path, kind, target):
    archive = make_tar(tmp_path / "set.tar", extra=[link(kind, target)])
    assert f"'set/link' is a link to '{target}'" in refusal(archive, tmp_path / "out")


def test_devices_are_refused(tmp_path):
    archive = make_tar(tmp_path / "set.tar", extra=[link(tarfile.FIFOTYPE, "")])
    assert "'set/link' is a device" in refusal(archive, tmp_path / "out")


def test_links_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("set/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = make_zip(tmp_path / "set.zip", extra=[(info, b"/etc/passwd")])
    assert "'set/link' is a link" in refusal(archive, tmp_path / "out")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "zip"])
def test_a_truncated_archive_leaves_nothing(tmp_path, mode):
    noise = {"set/noise.bin": bytes((i * i * 7919 >> 3) % 256 for i in range(200_000))}
    archive = tmp_path / "archive"
    make_zip(archive, noise) if mode == "zip" else make_tar(archive, noise, mode)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    message = refusal(archive, tmp_path / "out")
    assert "archive" in message and ("truncated" in message or "incomplete" in message)


def test_a_damaged_zip_is_refused(tmp_path):
    archive = make_zip(tmp_path / "set.zip")
    content = bytearray(archive.read_bytes())
    content[content.index(b"set/deep/b.bin") + 100] ^= 255  # a byte of its compressed content
    archive.write_bytes(content)
    assert "truncated or damaged" in refusal(archive, tmp_path / "out")


def test_a_compression_that_python_lacks_is_named(tmp_path):
    archive = make_zip(tmp_path / "set.zip")
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):  # the number of the method, in both of its places
        for found in re.finditer(re.escape(signature), bytes(content)):
            content[found.start() + offset] = 97
    archive.write_bytes(content)
    assert "unpack it by another program and give the folder" in refusal(archive, tmp_path / "out")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "page.html").write_text("please log in")
    assert "neither a tar nor a zip" in refusal(tmp_path / "page.html", tmp_path / "out")
    assert "cannot be read" in refusal(tmp_path / "absent.zip", tmp_path / "out")


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    assert "exists" in refusal(make_tar(tmp_path / "set.tar"), tmp_path / "out")


def test_a_disk_without_room_is_not_filled(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1e12, 1e12, 200_050_000))  # space for the first file only
    assert "not enough disk space for set/deep/b.bin" in refusal(make_tar(tmp_path / "set.tar"), tmp_path / "out")
