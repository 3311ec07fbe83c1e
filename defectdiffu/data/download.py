"""Downloads a large file over HTTP: resumes, checks the SHA-256, and gives the file its name only when complete."""

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from defectdiffu.data.archives import check_room
from defectdiffu.errors import InputError
from defectdiffu.files import writing

CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 5  # connections in a row that bring nothing new


def fetch(url: str, path: Path, sha256: str) -> Path:
    """Download `url` to `path`, whose content must have the checksum `sha256` (64 hexadecimal digits).

    Until it is complete and checked, the file is `path` with ".part" added. A connection that breaks off is resumed by
    an HTTP range request, and a killed download by the next call. A server without range support sends all of it again.
    Raises `InputError`: no connection (the part stays), too little disk space (checked before the download), wrong
    checksum (the part is deleted).
    """
    sha256 = sha256.lower()
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise InputError(f"'{sha256}' is not a SHA-256: it must be 64 hexadecimal digits")
    if not url.startswith(("http://", "https://")):
        raise InputError(f"'{url}' is not a download address: it must begin with https://")
    if path.exists():
        check(path, sha256)
        return path
    part = path.with_name(path.name + ".part")
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    idle = 0
    while True:
        before = part.stat().st_size
        try:
            if _receive(url, part):
                break
            reason = "the connection broke off"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise InputError(f"{url} answers {error.code} {error.reason}: has the file moved?") from error
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        size = part.stat().st_size
        idle = 0 if size > before else idle + 1
        if idle == ATTEMPTS:
            raise InputError(f"{url}: {reason}; {size} bytes are in {part}, the same command resumes from there")
    try:
        check(part, sha256)
    except InputError:
        part.unlink()
        raise
    part.replace(path)
    return path


def check(path: Path, sha256: str) -> None:
    """Raise `InputError` if the content of `path` has another SHA-256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise InputError(
            f"{path.name.removesuffix('.part')} has SHA-256 {found}, expected {sha256}: it is damaged or another file"
        )


def _receive(url: str, part: Path) -> bool:
    """Append the rest of the file to `part`; true if it is complete then, false if the connection broke off."""
    have = part.stat().st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # "range not satisfiable": our part is complete, or it is not this file's
            raise
        if error.headers.get("Content-Range") != f"bytes */{have}":
            part.write_bytes(b"")
            return False
        return True
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise http.client.HTTPException(f"asked for bytes from {have}, got {response.headers['Content-Range']}")
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file:
            check_room(part.parent, total - have if total else 0, url)
            with tqdm(total=total, initial=have, desc=part.stem, unit="B", unit_scale=True, leave=False) as bar:
                while chunk := response.read1(CHUNK):
                    with writing(part):
                        file.write(chunk)
                    bar.update(len(chunk))
    return total is None or part.stat().st_size == total
