"""Unpacks untrusted archives safely: no file outside the folder, no links, no full disk."""

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from defectdiffu.errors import InputError
from defectdiffu.files import building

RESERVE = 200_000_000  # bytes of the disk to leave free
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive into the new folder `folder`: all of it, or nothing.

    Members must be regular files and folders. Raises an `InputError` that names the archive and the member: for a path
    that is absolute or holds "..", a link, a device, a truncated or damaged archive, a compression that Python lacks,
    too little disk space, a `folder` that exists.
    """
    kinds = {_tar: tarfile.is_tarfile, _zip: zipfile.is_zipfile}
    try:
        members = next((read for read, knows in kinds.items() if knows(archive)), None)
    except OSError as error:
        raise InputError(f"{archive} cannot be read: {error.strerror}") from error
    if members is None:
        raise InputError(f"{archive} is neither a tar nor a zip archive, or its download is incomplete")

    with building(folder) as inside:
        try:
            for name, size, content in members(archive):
                target = inside / _safe(name, archive)
                check_room(inside, size, f"{name} of {archive}")
                target.parent.mkdir(parents=True, exist_ok=True)
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                if target.stat().st_size != size:
                    raise EOFError(f"{name} has {target.stat().st_size} of {size} bytes")
        except DAMAGED as error:
            raise InputError(f"{archive} is truncated or damaged ({error}): download it again") from error
        except NotImplementedError as error:
            raise InputError(
                f"{archive} cannot be read by Python ({error}): unpack it by another program and give the folder"
            ) from error
    return folder


def check_room(folder: Path, size: int, what: str) -> None:
    """Raise `InputError` if `size` more bytes would leave less than `RESERVE` on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if size + RESERVE > free:
        raise InputError(
            f"not enough disk space for {what}: it needs {size / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB free, "
            f"of which {RESERVE / 1e9:.1f} GB must stay free"
        )


def _safe(name: str, archive: Path) -> Path:
    """A member's path, checked to be relative and inside. Backslashes and drives could point outside on Windows."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in "".join(path.parts[:1]):
        raise InputError(f"{archive} refused: its member '{name}' points outside the folder it is unpacked into")
    return Path(path)


# Both yield the regular files of an archive as (name, bytes, open content), in one pass.


def _tar(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir():
                _safe(member.name, archive)
            elif member.isreg():
                content = tar.extractfile(member)
                assert content is not None  # it is a regular file
                yield member.name, member.size, content
            else:
                kind = f"a link to '{member.linkname}'" if member.issym() or member.islnk() else "a device"
                raise InputError(f"{archive} refused: its member '{member.name}' is {kind}, not a file")


def _zip(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(archive) as package:
        for member in package.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                what = "a link" if kind == stat.S_IFLNK else "a device"
                raise InputError(f"{archive} refused: its member '{member.filename}' is {what}, not a file")
            if member.flag_bits & 1:
                raise InputError(f"{archive} refused: its member '{member.filename}' needs a password")
            if member.is_dir():
                _safe(member.filename, archive)
            else:
                yield member.filename, member.file_size, package.open(member)
