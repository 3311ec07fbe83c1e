"""Atomic file writes: a temporary file is written, then renamed. Tensors are stored as safetensors."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from defectdiffu.errors import InputError

if TYPE_CHECKING:  # reading and writing pictures and JSON needs no torch
    from torch import Tensor

MARKER = "made-by-defectdiffu"  # an empty file in every folder that is only there until its content is whole
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)` and rename the result to `path`; on failure the temporary file is removed.

    Raises `InputError` when the disk is full or cannot be written; an old file at `path` is then kept.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_by_a_killed_run in path.parent.glob(f".{path.name}.*.part"):
            left_by_a_killed_run.unlink()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, which gets the name `folder` when the block ends; on failure nothing of it is left.

    What a killed run left of the same folder is removed first. Raises `InputError` if `folder` is there already, when
    the disk is full or cannot be written.
    """
    if folder.exists():
        raise InputError(f"{folder} exists: choose another folder")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        start, end = f".{folder.name}.", ".part"
        for left in folder.parent.iterdir():
            if left.name.startswith(start) and left.name.endswith(end) and (left / MARKER).is_file():
                shutil.rmtree(left)
        part = Path(tempfile.mkdtemp(end, start, folder.parent))
        try:
            (part / MARKER).touch()
            inside = part / "inside"
            inside.mkdir()
            yield inside
            inside.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of writing in this block, such as a full disk, into an `InputError` that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = any(os.strerror(number) in str(error) for number in FULL)  # safetensors gives only the system's message
        cure = "free some space and run the same command again" if full else "fix that, or choose another path"
        raise InputError(f"could not write {path}: {error}; {cure}") from error


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """No other process works in `folder` during this block; the lock ends with the process, killed or not.

    Raises `InputError` where another one does.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(f"another process {what} in {folder}: wait for it, or name another place") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    """Write `value` as JSON, atomically. Raises ValueError for numbers that are not finite, which JSON cannot hold."""
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write_text(text))


def read_json(path: Path, cure: str) -> Any:
    """The inverse of `write_json`. Raises `InputError`, which names the file and ends with `cure`, if it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): {cure}") from error


def save_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict) -> None:
    """Write tensors with JSON metadata to one safetensors file, atomically."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(path, lambda p: save_file(tensors, p, {"metadata": json.dumps(metadata)}))


def load_tensors(path: Path) -> "tuple[dict[str, Tensor], dict]":
    """The inverse of `save_tensors`. Raises `SafetensorError` for a damaged file."""
    with safe_open(path, "pt") as file:
        metadata = json.loads((file.metadata() or {}).get("metadata", "{}"))
        return {k: file.get_tensor(k) for k in file.keys()}, metadata  # noqa: SIM118 (not a dict)
