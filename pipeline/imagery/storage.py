"""The one door to where things lie: local paths and s3:// alike. List, read, create once, replace.

A place is a `Path` or a `Remote`. What is written is made as a local temporary file and published whole: on disk it is synced
and linked or moved to its final name, in a bucket it is one conditional put. So nothing is ever visible by halves, and of
two writers exactly one wins. Temporary names start with a dot and end in `.tmp`.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import io
import json
import os
import posixpath
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipeline.errors import Refused
from pipeline.imagery import s3
from pipeline.imagery.s3 import NoBucket, Remote, Taken

Place = Path | Remote
OUT_OF_REACH = (PermissionError, NoBucket)  # no other file of that folder or bucket would fare better
Result = TypeVar("Result")

TEMPORARY = ".tmp"  # ends the names of what is being made; a dot begins them
OLD_S = 24 * 3600.0  # after which it is a killed run's
SWEEPS = 4  # by other runs, while a small file is written
WAITS_S = (0.2, 1.0, 3.0)  # before a store is asked again, above the retries of its clients
FETCHED_AT_ONCE = 8
VSIS3 = "/vsis3/"
AMAZON = re.compile(
    r"https://([a-z0-9.-]+?)\.s3[.-](?:[a-z0-9-]+\.)?amazonaws\.com/([^?]+)"
)  # as public catalogues write a bucket's objects


def place_of(text: str | os.PathLike[str] | Place) -> Place:
    """The place that `text` names, local paths made absolute. Raises Refused for schemes that are not supported."""
    if isinstance(text, Remote):
        return text
    name = os.fspath(text)
    if name.startswith("s3://"):
        remote = Remote.parse(name)
        if not remote.bucket:
            raise Refused(f"{name}: names no bucket: write s3://BUCKET/KEY")
        return remote
    if of_amazon := AMAZON.fullmatch(name):
        return Remote.parse(f"s3://{of_amazon[1]}/{of_amazon[2]}")
    name = name.removeprefix("file://")
    if "://" in name:
        raise Refused(f"{name}: {name.split('://')[0]}:// is not supported: copy it to a local path or to s3://")
    path = os.path.abspath(os.path.expanduser(name))
    if path.startswith("/vsi"):
        raise Refused(f"{name}: GDAL's virtual file systems are not taken: give a path or s3://BUCKET/KEY")
    return Path(path)


def local_path(text: str | os.PathLike[str]) -> Path:
    """The absolute local path that `text` names. Raises Refused for everything else."""
    found = place_of(text)
    if isinstance(found, Remote):
        raise Refused(f"{found}: must be a local path")
    return found


def is_file(place: Place) -> bool:
    return s3.look(place) is not None if isinstance(place, Remote) else place.is_file()


def is_folder(place: Place) -> bool:
    """Whether there is a folder, or an object whose key goes on after this one and a slash."""
    return any(s3.listing(place)) if isinstance(place, Remote) else place.is_dir()


def matching(pattern: Place) -> list[Place]:
    """The files that match a pattern, in order."""
    if isinstance(pattern, Remote):
        return list(s3.matching(pattern))
    return [Path(match) for match in sorted(glob.glob(str(pattern))) if Path(match).is_file()]


def version(place: Place) -> str | None:
    """What tells one state of a file from another: size and time of change in nanoseconds, or ETag. None: there is no file."""
    if isinstance(place, Remote):
        found = s3.look(place)
        return found.version if found else None
    try:
        status = place.stat()
    except FileNotFoundError:
        return None
    return f"{status.st_size}-{status.st_mtime_ns}"


def size(place: Place) -> int:
    """The bytes of a file. Raises FileNotFoundError."""
    if isinstance(place, Remote):
        return _found(place).size
    return place.stat().st_size


def modified(place: Place) -> datetime:
    """When a file was last changed, in UTC. Raises FileNotFoundError."""
    if isinstance(place, Remote):
        return _found(place).modified
    return datetime.fromtimestamp(place.stat().st_mtime, UTC)


def _found(place: Remote) -> s3.Found:
    found = s3.look(place)
    if found is None:
        raise FileNotFoundError(f"{place}: no such object")
    return found


def read(place: Place) -> bytes:
    """The bytes of a file. Raises FileNotFoundError and other OSErrors."""
    return s3.read(place) if isinstance(place, Remote) else place.read_bytes()


def opened(place: Place) -> BinaryIO:
    """A small file, to be read. Raises FileNotFoundError and other OSErrors."""
    return io.BytesIO(s3.read(place)) if isinstance(place, Remote) else place.open("rb")


def sought(place: Place) -> BinaryIO:
    """A file of which only parts are read: of a bucket's, the ranges that are asked for. Raises FileNotFoundError and other OSErrors."""
    return s3.sought(place) if isinstance(place, Remote) else place.open("rb")


def start_of(place: Place, size: int) -> bytes:
    """The first `size` bytes of a file."""
    if isinstance(place, Remote):
        return s3.read(place, size)
    with place.open("rb") as file:
        return file.read(size)


def sha256(place: Place) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with here(place) as path, open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def names(folder: Place) -> set[str]:
    """The names in a folder, without temporary ones; none where there is no folder."""
    try:
        found = set().union(*s3.listing(folder)) if isinstance(folder, Remote) else set(os.listdir(folder))
    except FileNotFoundError:
        return set()
    return {name for name in found if not _is_temporary(name)}


def folders(folder: Place) -> dict[str, Place]:
    """The folders in a folder by their names, in order; none where there is no folder."""
    if isinstance(folder, Remote):
        return {name: folder / name for name in sorted(s3.listing(folder)[1])}
    if not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}


def all_folders(folder: Place) -> list[Place]:
    """A folder and all folders below it, in order; links to folders are not followed further. Those that vanish meanwhile are left out."""
    if isinstance(folder, Remote):
        return [folder, *(deeper for below in folders(folder).values() for deeper in all_folders(below))]
    return sorted({folder, *(Path(top, name) for top, names, _ in os.walk(folder) for name in names)})


def relative(place: Place, top: Place) -> str:
    """The path from `top`, which `place` is or lies in, to it; empty where they are the same."""
    return str(place).removeprefix(str(top)).strip("/")


def identity(place: Place) -> str:
    """What two names of one file share: a local one's path without links."""
    return str(place) if isinstance(place, Remote) else str(place.resolve())


def beside(file: Place, name: str) -> Place:
    """Where `name`, as `file` says it, lies: an absolute path or URI as it is, all else from that file's folder."""
    if "://" in name or name.startswith("/"):
        return place_of(name)
    if isinstance(file, Remote):
        return Remote(file.bucket, posixpath.normpath(f"{file.parent.key}/{name}").strip("/"))
    return place_of(file.parent / name)


def read_json(place: Place) -> Any | None:
    """The JSON object at `place`, or None where there is none. Raises Refused where it is not JSON."""
    try:
        return json.loads(read(place))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise Refused(f"{place} is not valid JSON ({error}); remove it if it was damaged") from None


def json_bytes(content: Any) -> bytes:
    """What the file of a JSON object holds."""
    return f"{json.dumps(content, indent=2, ensure_ascii=False)}\n".encode()


@contextmanager
def here(place: Place) -> Iterator[Path]:
    """A local file with the content of `place`, to be read while the block lasts."""
    with all_here([place]) as (path,):
        yield path


@contextmanager
def all_here(places: list[Place]) -> Iterator[list[Path]]:
    """Local files with the content of `places`: themselves, or copies that are gone after the block."""
    if not any(isinstance(place, Remote) for place in places):
        yield [place for place in places if isinstance(place, Path)]
        return
    with tempfile.TemporaryDirectory(dir=_scratch(os.getpid())) as folder:

        def copy(number: int, place: Place) -> Path:
            if isinstance(place, Path):
                return place
            target = Path(folder, f"{number}-{place.name}")
            retried(lambda: s3.fetch(place, target), [place], OSError)
            return target

        with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
            yield list(pool.map(copy, range(len(places)), places))


def workshop(folder: Place) -> Path:
    """The local folder, made if missing, in which is made what belongs into `folder`: itself, or one of this process."""
    if isinstance(folder, Remote):
        return _scratch(os.getpid())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def temporary(folder: Place, name: str) -> Path:
    """A name for a local file that will belong into `folder` and is still being written: unique, never listed."""
    return workshop(folder) / f".{name}.{uuid.uuid4().hex[:12]}{TEMPORARY}"


@contextmanager
def temporary_folder(folder: Place) -> Iterator[Path]:
    """A local folder, gone when the block ends, for files that will belong into `folder` or below it."""
    with tempfile.TemporaryDirectory(prefix=".", suffix=TEMPORARY, dir=workshop(folder)) as made:
        yield Path(made)


def publish_once(finished: Path, place: Place) -> bool:
    """Give a finished temporary file its final name. False, and the file gone, where one exists."""
    try:
        if isinstance(place, Remote):
            s3.put(finished, place, onto=None)
            return True
        _sync(finished)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(finished, place)
    except FileExistsError:
        return False
    finally:
        finished.unlink(missing_ok=True)
    _sync(place.parent)
    return True


def publish(finished: Path, place: Place, *, onto: str | None = "") -> None:
    """Give a finished temporary file its final name, in place of what has that name.

    With `onto`, only in place of that version, or where it is None, of nothing; raises Taken where another is there. (On disk
    the last moment is not covered: the file is compared and then moved.)
    """
    if isinstance(place, Remote):
        s3.put(finished, place, onto=onto)
        finished.unlink()
        return
    _sync(finished)
    place.parent.mkdir(parents=True, exist_ok=True)
    if onto != "" and version(place) != onto:
        raise Taken(f"{place}: another one was put there meanwhile")
    os.replace(finished, place)
    _sync(place.parent)


def publish_folder(finished: Path, place: Place, last: str) -> None:
    """Give a finished local folder of files its final name, in place of what has that name.

    In a bucket the file `last` is taken away first and put last, so that a folder with it is whole. On disk `place` is missing
    for a moment between two renames; `finished` lies on the same disk.
    """
    if isinstance(place, Remote):
        s3.remove(place / last)
        for path in sorted(finished.iterdir(), key=lambda path: path.name == last):
            s3.put(path, place / path.name)
        shutil.rmtree(finished)
        return
    old = place.with_name(f".{place.name}.last")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.rename(place, old)
    os.rename(finished, place)
    shutil.rmtree(old, ignore_errors=True)


def mirror(folder: Path, place: Place) -> None:
    """Put what a local folder holds into `place`, if that is another one."""
    if isinstance(place, Remote):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            s3.put(path, place / path.relative_to(folder).as_posix())


def create(place: Place, content: bytes) -> bool:
    """Create the object at `place`. False, and nothing changed, where it exists."""
    return _unswept(lambda: publish_once(_written(place, content), place))


def create_json(place: Place, content: Any) -> bool:
    """Create the JSON object at `place`. False, and nothing changed, where it exists."""
    return create(place, json_bytes(content))


def replace_json(place: Place, content: Any) -> None:
    """Put the JSON object at `place`, in place of what is there."""
    _unswept(lambda: publish(_written(place, json_bytes(content)), place))


def _unswept(write: Callable[[], Result]) -> Result:
    """What `write` returns; it is called again where another run has swept its temporary file away."""
    for _ in range(SWEEPS):
        try:
            return write()
        except FileNotFoundError:
            continue
    return write()


def remove(place: Place) -> None:
    """Remove a file, if it is there."""
    if isinstance(place, Remote):
        s3.remove(place)
    else:
        place.unlink(missing_ok=True)


def remove_folder(folder: Place) -> None:
    """Remove a folder and all that is in it, if it is there."""
    if isinstance(folder, Remote):
        s3.remove_below(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Place) -> None:
    """Remove the temporary files of a folder; of a prefix, the uploads that were begun and never ended."""
    if isinstance(folder, Remote):
        s3.abort_uploads(folder)
    elif folder.is_dir():
        for name in filter(_is_temporary, os.listdir(folder)):
            _sweep_away(folder / name)


def sweep_old(folder: Place) -> None:
    """Remove what is temporary anywhere below a folder and a day old: no run that is under way works on it."""
    if isinstance(folder, Remote):
        s3.abort_uploads(folder, before=datetime.now(UTC) - timedelta(seconds=OLD_S))
        return
    for path, folders, files in os.walk(folder):
        for name in filter(_is_temporary, [*folders, *files]):
            with suppress(FileNotFoundError):
                if time.time() - os.lstat(os.path.join(path, name)).st_mtime > OLD_S:
                    _sweep_away(Path(path, name))
        folders[:] = [name for name in folders if not _is_temporary(name)]


def free_bytes(place: Place) -> int:
    """Free space on the disk on which what belongs at `place`, which need not exist yet, is made."""
    nearest = _nearest_existing(Path(tempfile.gettempdir()) if isinstance(place, Remote) else place)
    return shutil.disk_usage(nearest).free


def check_writable(folder: Place) -> list[str]:
    """Raise Refused where `folder` is not one, or nothing can be written there. Leaves nothing behind.

    Returns what a person should know: that the store does not keep writers apart.
    """
    if isinstance(folder, Remote):
        return _check_bucket(folder)
    nearest = _nearest_existing(folder)
    if not nearest.is_dir():
        raise Refused(f"cannot write to {folder}: {nearest} is a file, not a folder")
    probe = nearest / f".{uuid.uuid4().hex[:12]}{TEMPORARY}"
    try:
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise Refused(f"cannot write to {folder}: {error.strerror}; choose another --output") from None
    return []


def _check_bucket(folder: Remote) -> list[str]:
    try:
        if s3.ignores_conditions(folder / f".{uuid.uuid4().hex[:12]}.tmp"):
            return [f"{folder}: this store ignores conditional writes (If-None-Match): never let two runs share this --output at once"]
    except OSError as error:
        raise Refused(f"cannot write to {error}") from None
    return []


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


def gdal_name(place: Place) -> str:
    """What GDAL calls a place."""
    return f"{VSIS3}{place.bucket}/{place.key}" if isinstance(place, Remote) else str(place)


def of_gdal(name: str) -> Place:
    """The place that GDAL calls `name`."""
    return Remote.parse(name.removeprefix(VSIS3)) if name.startswith(VSIS3) else Path(name)


def gdal_options(*places: Place) -> dict[str, str]:
    """The settings with which GDAL opens and reads places."""
    return s3.gdal_options() if any(isinstance(place, Remote) for place in places) else {}


def filesystem(place: Place) -> Any | None:
    """The fsspec filesystem through which a library reads what lies below `place` by its s3:// URI; None for local paths."""
    return s3.filesystem() if isinstance(place, Remote) else None


def told(error: BaseException) -> str:
    """What an error says, in one line and without the endpoint of a store."""
    return s3.told(" ".join(str(error).split()))


def retried(work: Callable[[], Result], places: Iterable[Place], *errors: type[Exception]) -> Result:
    """What `work` returns; where it reads from a bucket and raises one of `errors`, it is tried again a few times."""
    waits = WAITS_S if any(isinstance(place, Remote) for place in places) else ()
    for wait_s in waits:
        try:
            return work()
        except FileNotFoundError:
            raise
        except errors:
            time.sleep(wait_s)
    return work()


@contextmanager
def in_turn(file: Path) -> Iterator[None]:
    """Processes of this machine that name the same file do the block one after another."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        yield


@cache
def _scratch(process: int) -> Path:
    """This process's own folder for what goes to a bucket or comes from one, in TMPDIR.

    It is locked while the process lives; the folders of processes that were killed are removed here.
    """
    top = Path(tempfile.gettempdir(), f"tilewright-{os.getuid()}")
    top.mkdir(mode=0o700, exist_ok=True)
    with in_turn(top / "lock"):  # nobody sweeps while a folder is being made
        for folder in top.iterdir():
            if folder.is_dir() and _unlocked(folder):
                shutil.rmtree(folder, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=top))
        _lock(folder)
    return folder


def _lock(folder: Path) -> None:
    """Lock a folder until this process ends."""
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)


def _unlocked(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(handle)


def _written(place: Place, content: bytes) -> Path:
    finished = temporary(place.parent, place.name)
    finished.write_bytes(content)
    return finished


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(TEMPORARY)


def _sweep_away(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
