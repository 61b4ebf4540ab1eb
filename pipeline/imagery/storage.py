"""The one door to where things lie: list, read, create once, replace. Local paths now; s3:// comes through here too.

An object is created under a temporary name, synced, and linked to its final name, which fails where that exists: so
nothing is ever visible by halves, and of two writers exactly one wins. Temporary names start with a dot and end in
`.tmp`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import Refused


def local_path(place: str | os.PathLike[str]) -> Path:
    """The absolute local path that `place` names. Raises Refused for the schemes that are not supported yet."""
    text = os.fspath(place)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text:
        scheme = text.split("://")[0]
        raise Refused(f"{text}: {scheme}:// is not supported yet; copy it to a local path")
    return Path(os.path.abspath(os.path.expanduser(text)))


def version(path: Path) -> str:
    """What tells one state of a file from another: its size and its time of change in nanoseconds."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def names(folder: Path) -> set[str]:
    """The names in a folder, without temporary ones; none where there is no folder."""
    try:
        return {name for name in os.listdir(folder) if not _is_temporary(name)}
    except FileNotFoundError:
        return set()


def read_json(path: Path) -> Any | None:
    """The JSON object at `path`, or None where there is none. Raises Refused where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is not valid JSON ({error}); remove it if it was damaged") from None


def temporary(folder: Path, name: str) -> Path:
    """A name for a file that is still being written: unique, in `folder` (made if missing), never listed."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f".{name}.{uuid.uuid4().hex[:12]}.tmp"


def publish_once(finished: Path, path: Path) -> bool:
    """Give a finished temporary file its final name, on the same disk. False, and the file gone, where one exists."""
    _sync(finished)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(finished, path)
    except FileExistsError:
        return False
    finally:
        finished.unlink(missing_ok=True)
    _sync(path.parent)
    return True


def publish(finished: Path, path: Path) -> None:
    """Give a finished temporary file its final name, on the same disk, in place of what has that name."""
    _sync(finished)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(finished, path)
    _sync(path.parent)


def create(path: Path, content: bytes) -> bool:
    """Create the object at `path`. False, and nothing changed, where it exists."""
    return publish_once(_written(path, content), path)


def create_json(path: Path, content: Any) -> bool:
    """Create the JSON object at `path`. False, and nothing changed, where it exists."""
    return create(path, _json(content))


def replace_json(path: Path, content: Any) -> None:
    """Put the JSON object at `path`, in place of what is there."""
    publish(_written(path, _json(content)), path)


def sweep(folder: Path) -> None:
    """Remove the temporary files of a folder."""
    if folder.is_dir():
        for name in filter(_is_temporary, os.listdir(folder)):
            (folder / name).unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Free space on the disk that would hold `path`, which need not exist yet."""
    return shutil.disk_usage(_nearest_existing(path)).free


def check_writable(folder: Path) -> None:
    """Raise Refused where `folder` is not one, or nothing can be written there. Leaves nothing behind."""
    nearest = _nearest_existing(folder)
    if not nearest.is_dir():
        raise Refused(f"cannot write to {folder}: {nearest} is a file, not a folder")
    probe = nearest / f".{uuid.uuid4().hex[:12]}.tmp"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Refused(f"cannot write to {folder}: {error.strerror}; choose another --output") from None


def cache_folder() -> Path:
    """Where what can be made again is kept for this user: XDG_CACHE_HOME/tilewright, ~/.cache/tilewright."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "tilewright")


@contextmanager
def discarded(path: Path) -> Iterator[Path]:
    """A temporary file that is gone when the block ends, whether it was published or not."""
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _json(content: Any) -> bytes:
    return f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode()


def _written(path: Path, content: bytes) -> Path:
    finished = temporary(path.parent, path.name)
    finished.write_bytes(content)
    return finished


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _nearest_existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
