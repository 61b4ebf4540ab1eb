"""Objects in buckets, through s3fs: what `storage` does with s3:// places. Only `storage` imports this module.

Endpoint, region, profile and credentials are those of the usual AWS environment. No error names an endpoint, since errors
are written to run records.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import s3fs

PART_BYTES = 32 * 2**20  # of a multipart upload
PARTS_AT_ONCE = 4
MOST_PARTS = 9000  # S3 allows 10,000
CONFLICTS = 5  # attempts where a store answers 409: two conditional writes met
PAGE = 1000  # names in an answer to a listing
ATTEMPTS = 8  # of a request, over 10 s
RANGE = 2**17  # bytes asked for at once where parts of an object are read
GDAL_RETRIES = 5
WRITER = "tilewright-writer"  # metadata of an object: who put it


@dataclass(frozen=True, order=True)
class Remote:
    """An object in a bucket, or a prefix of objects, with the operators of a path; nothing takes it for a local file."""

    bucket: str
    key: str = ""  # no slash at either end

    @classmethod
    def parse(cls, uri: str) -> Remote:
        """The place that `s3://bucket/key` names."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return cls(bucket, key.strip("/"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.bucket, f"{self.key}/{name}".strip("/"))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Remote:
        return Remote(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> Remote:
        return self.parent / name

    @property
    def parents(self) -> list[Remote]:
        """The prefixes that it lies in, the nearest first, the bucket last."""
        return [self.parent, *self.parent.parents] if self.key else []

    @property
    def prefix(self) -> str:
        """What the keys of the objects in it begin with."""
        return f"{self.key}/" if self.key else ""


class Taken(FileExistsError):
    """A conditional put was refused: another object is there than the one that was meant."""


class NoBucket(FileNotFoundError):
    """Not only the object is missing: the bucket is."""


@dataclass(frozen=True)
class Found:
    """What a store says of an object."""

    size: int
    etag: str
    modified: datetime
    writer: str | None

    @property
    def version(self) -> str:
        return f"{self.size}-{self.etag}"


def look(place: Remote) -> Found | None:
    """The object at `place`, or None. Raises OSError."""
    try:
        with _told(place):
            answer = _call("head_object", place)
    except FileNotFoundError:
        return None
    writer = answer.get("Metadata", {}).get(WRITER)
    return Found(answer["ContentLength"], answer["ETag"].strip('"'), answer["LastModified"].astimezone(UTC), writer)


def read(place: Remote, size: int | None = None) -> bytes:
    """The bytes of an object, or the first `size` of them. Raises FileNotFoundError and other OSErrors."""
    with _told(place):
        return filesystem().cat_file(f"{place.bucket}/{place.key}", start=None if size is None else 0, end=size)


def sought(place: Remote) -> BinaryIO:
    """An object, to be read in ranges. Raises FileNotFoundError and other OSErrors."""
    with _told(place):
        return cast(BinaryIO, filesystem().open(f"{place.bucket}/{place.key}", "rb", block_size=RANGE))


def fetch(place: Remote, target: Path) -> None:
    """Copy an object to a local file, in one stream. Raises FileNotFoundError and other OSErrors."""
    with _told(place):
        filesystem().get_file(f"{place.bucket}/{place.key}", str(target), max_concurrency=1)


def listing(folder: Remote) -> tuple[set[str], set[str]]:
    """The names in a prefix: those of objects, and those of prefixes under it."""
    objects: set[str] = set()
    prefixes: set[str] = set()
    for page in _pages("list_objects_v2", folder, Delimiter="/", MaxKeys=PAGE):
        objects |= {entry["Key"].removeprefix(folder.prefix) for entry in page.get("Contents", [])}
        prefixes |= {entry["Prefix"].removeprefix(folder.prefix).strip("/") for entry in page.get("CommonPrefixes", [])}
    return objects - {""}, prefixes - {""}


def matching(pattern: Remote) -> list[Remote]:
    """The objects whose keys match a pattern with *, ? and **, in order."""
    with _told(pattern):
        return [Remote.parse(path) for path in sorted(filesystem().glob(f"{pattern.bucket}/{pattern.key}"))]


def remove_below(folder: Remote) -> None:
    """Remove all objects in a prefix."""
    for page in _pages("list_objects_v2", folder, MaxKeys=PAGE):
        for entry in page.get("Contents", []):
            remove(Remote(folder.bucket, entry["Key"]))


def remove(place: Remote) -> None:
    """Remove an object, if it is there."""
    with _told(place):
        _call("delete_object", place)


def put(content: Path, place: Remote, *, onto: str | None = "") -> None:
    """Put a local file as an object, whole: where `onto` is None only if there is none, where it is a version only in place of that one.

    A lost reply, after which the store refuses our own repeated request, is settled by reading back who wrote the object.
    Raises Taken where the condition does not hold, and other OSErrors.
    """
    _expect(place, onto)
    condition = {"IfNoneMatch": "*"} if onto is None else {"IfMatch": onto.partition("-")[2]} if onto else {}
    writer = uuid.uuid4().hex
    for attempt in range(CONFLICTS):
        try:
            with _told(place):
                _put(content, place, {WRITER: writer}, condition, lambda: _expect(place, onto))
            return
        except Taken:
            raise
        except OSError as error:
            with suppress(OSError):
                if (there := look(place)) and there.writer == writer:
                    return
            status, code = _refusal(error)
            if not condition or not (status in (409, 412) or code == "NoSuchKey"):
                raise
            if status == 412 or attempt + 1 == CONFLICTS:
                raise Taken(f"{place}: another one was put there meanwhile") from None
            time.sleep(0.1 * 2**attempt)


def _expect(place: Remote, onto: str | None) -> None:
    """Raise Taken where a put with `onto` would be refused: stores that ignore its condition are many."""
    if onto == "":
        return
    found = look(place)
    if (found.version if found else None) != onto:
        raise Taken(f"{place}: another one is there")


def ignores_conditions(place: Remote) -> bool:
    """Put an object at `place`, which is free, put it again only if there is none, and remove it; whether that was taken."""
    with _told(place):
        _call("put_object", place, Body=b"")
    try:
        with _told(place):
            _call("put_object", place, Body=b"", IfNoneMatch="*")
        return True
    except OSError as error:
        if _refusal(error)[0] not in (409, 412):
            raise
        return False
    finally:
        remove(place)


def abort_uploads(folder: Remote, before: datetime | None = None) -> None:
    """Drop the uploads of objects in a prefix that were begun (before a moment) and never ended, where that is allowed."""
    with suppress(OSError):
        for page in _pages("list_multipart_uploads", folder):
            for upload in page.get("Uploads", []):
                if before is None or upload["Initiated"] < before:
                    _call("abort_multipart_upload", Remote(folder.bucket, upload["Key"]), UploadId=upload["UploadId"])


def gdal_options() -> dict[str, str]:
    """How GDAL reads the objects that s3fs sees: /vsis3/ knows AWS's credentials and profiles, but not its endpoints.

    An object that was replaced would be read as it was before, and an open that failed would fail once more without a
    request: so nothing is cached beyond an open file. Answers of 5xx, resets and bodies cut short are asked for again by GDAL
    where reads come one after another (GDAL 3.10; `reader` does so again above it).
    """
    options = {
        "CPL_VSIL_CURL_NON_CACHED": "/vsis3/", "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
        "GDAL_HTTP_MULTIRANGE": "SERIAL", "GDAL_HTTP_MAX_RETRY": str(GDAL_RETRIES), "GDAL_HTTP_RETRY_DELAY": "0.3",
        "GDAL_HTTP_CONNECTTIMEOUT": "10", "GDAL_HTTP_TIMEOUT": "60",
    }  # fmt: skip
    endpoint = _endpoint(os.getpid())
    if endpoint:
        parts = urlsplit(endpoint)
        options["AWS_S3_ENDPOINT"] = parts.netloc + parts.path.rstrip("/")
        options["AWS_HTTPS"] = "YES" if parts.scheme == "https" else "NO"
        options["AWS_VIRTUAL_HOSTING"] = os.environ.get("AWS_VIRTUAL_HOSTING", "FALSE")
    return options


def told(text: str) -> str:
    """A message without the endpoint, where this process has asked one."""
    endpoint = _endpoint(os.getpid()) if _endpoint.cache_info().currsize else None
    for name in (endpoint, urlsplit(endpoint).netloc, urlsplit(endpoint).hostname) if endpoint else ():
        text = text.replace(str(name), "the endpoint")
    return text


def filesystem() -> s3fs.S3FileSystem:
    """This process's connections, for libraries that read through fsspec as well."""
    return _connected(os.getpid())


@cache
def _connected(process: int) -> s3fs.S3FileSystem:
    """One for each process: its connections and its thread do not outlive a fork."""
    import s3fs  # 0.3 s that local runs do without

    s3fs.core.set_custom_error_handler(_passes)
    public = os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1")
    settings = {"retries": {"max_attempts": 0}, "connect_timeout": 10, "read_timeout": 60, "max_pool_connections": 32}
    filesystem = s3fs.S3FileSystem(anon=public, use_listings_cache=False, skip_instance_cache=True, config_kwargs=settings)
    filesystem.retries = ATTEMPTS  # s3fs's own, with botocore's below them, would be 30 in minutes
    return filesystem


def _passes(error: Exception) -> bool:
    """Whether what a store answered, or that it did not, may be otherwise in a moment."""
    from botocore.exceptions import ConnectionError as Unanswered

    return _refusal(error)[0] in (429, 500, 502, 503, 504) or isinstance(error, Unanswered)


@cache
def _endpoint(process: int) -> str | None:
    """The endpoint that the AWS environment names, if it is not Amazon's own."""
    store = filesystem()
    store.connect()
    endpoint = store.s3.meta.endpoint_url
    host = urlsplit(endpoint).hostname or ""
    return None if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else endpoint


def _call(method: str, place: Remote, **arguments: Any) -> Any:
    return filesystem().call_s3(method, Bucket=place.bucket, Key=place.key, **arguments)


def _pages(method: str, folder: Remote, **arguments: Any) -> Iterator[dict[str, Any]]:
    """The pages of a listing of a prefix."""
    token: dict[str, Any] = {}
    while True:
        with _told(folder):
            page = filesystem().call_s3(method, Bucket=folder.bucket, Prefix=folder.prefix, **arguments, **token)
        yield page
        if not page.get("IsTruncated"):
            return
        if method == "list_objects_v2":
            token = {"ContinuationToken": page["NextContinuationToken"]}
        else:
            token = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _put(
    content: Path, place: Remote, metadata: dict[str, str], condition: dict[str, str], expect: Callable[[], None]
) -> None:  # fmt: skip
    """Put an object in one request, or a large one in parts that the last request makes an object, after `expect`."""
    size = content.stat().st_size
    if size <= PART_BYTES:
        _call("put_object", place, Body=content.read_bytes(), Metadata=metadata, **condition)
        return
    step = max(PART_BYTES, -(-size // MOST_PARTS))
    upload = _call("create_multipart_upload", place, Metadata=metadata)["UploadId"]

    def send(number: int) -> dict[str, Any]:
        with content.open("rb") as file:
            file.seek((number - 1) * step)
            answer = _call("upload_part", place, UploadId=upload, PartNumber=number, Body=file.read(step))
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            parts = list(pool.map(send, range(1, -(-size // step) + 1)))
        expect()  # minutes may have passed
        _call("complete_multipart_upload", place, UploadId=upload, MultipartUpload={"Parts": parts}, **condition)
    except BaseException:
        with suppress(OSError):
            _call("abort_multipart_upload", place, UploadId=upload)
        raise


def _refusal(error: BaseException | None) -> tuple[int | None, str | None]:
    """The HTTP status and the store's code behind an error."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode"), response.get("Error", {}).get("Code")
        error = error.__cause__
    return None, None


@contextmanager
def _told(place: Remote) -> Iterator[None]:
    """Let every error of the store be an OSError of one line that names the place and what to do."""
    from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError, ProfileNotFound

    try:
        yield
    except FileNotFoundError as error:
        if _refusal(error)[1] == "NoSuchBucket":
            raise NoBucket(f"{place}: no such bucket") from error
        raise FileNotFoundError(f"{place}: no such object") from error
    except PermissionError as error:
        raise PermissionError(f"{place}: access denied: check the AWS credentials, and what they may do") from error
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        raise PermissionError(f"{place}: {' '.join(str(error).split())}: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret") from error
    except BotoCoreError as error:
        what = f"the object store does not answer ({type(error).__name__})"
        raise OSError(f"{place}: {what}: check AWS_ENDPOINT_URL and the network") from error
    except Taken:
        raise
    except OSError as error:
        raise OSError(f"{place}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
