"""An S3 server of the tests' own, and a proxy before it that counts requests and injects faults."""

from __future__ import annotations

import http.client
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.processes import answers, end_group, free_port, wait_for

KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-secret", "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1"}
ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>injected</Message></Error>"
CODES = {403: b"AccessDenied", 429: b"TooManyRequests", 500: b"InternalError", 503: b"SlowDown"}


@dataclass
class Fault:
    """What is done to every `every`-th of the requests that match, `times` times at most.

    `kind`: a status to answer, or `reset` (the connection), `truncate` (half of the answer's body), `delay` (by `seconds`), `lose`
    (the answer to a request that was carried out).
    """

    kind: int | str
    method: str = "."
    path: str = "."
    every: int = 1
    times: int = 10**9
    seconds: float = 0.0
    seen: int = 0
    done: int = 0

    def due(self, method: str, path: str) -> bool:
        if not re.fullmatch(self.method if self.method != "." else ".*", method) or not re.search(self.path, path):
            return False
        self.seen += 1
        if self.seen % self.every or self.done >= self.times:
            return False
        self.done += 1
        return True


@dataclass
class Store:
    """A store that answers at `url`; `environment` is what its users set. Faults may be added at any time."""

    url: str
    backend: int
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)  # method and path with query
    deaf: bool = False  # to If-None-Match and If-Match, as some stores are
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        return {**KEYS, "AWS_ENDPOINT_URL": self.url, "AWS_EC2_METADATA_DISABLED": "true"}

    def take(self, method: str, path: str) -> Fault | None:
        """Count a request, and say what is to be done to it."""
        with self.lock:
            self.requests.append((method, path))
            return next((fault for fault in self.faults if fault.due(method, path)), None)

    def calm(self) -> None:
        """No more faults; the requests so far are forgotten."""
        with self.lock:
            self.faults.clear()
            self.requests.clear()


@contextmanager
def object_store() -> Iterator[Store]:
    """A moto server in a process of its own, which honours If-None-Match and If-Match, and the proxy before it."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env={**os.environ, **KEYS}, start_new_session=True, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            wait_for(lambda: answers(port), 60)
            with _proxy(port) as store:
                yield store
        finally:
            end_group(server)


@contextmanager
def _proxy(backend: int) -> Iterator[Store]:
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    proxy.daemon_threads = True
    proxy.store = Store(f"http://127.0.0.1:{proxy.server_address[1]}", backend)  # type: ignore[attr-defined]
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy.store  # type: ignore[attr-defined]
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *values: object) -> None:
        pass

    def _serve(self) -> None:
        store: Store = self.server.store  # type: ignore[attr-defined]
        body = self._body()
        fault = store.take(self.command, self.path)
        kind = fault.kind if fault else None
        if fault and kind == "delay":
            time.sleep(fault.seconds)
        if kind == "reset":
            self._reset()
        elif isinstance(kind, int):
            self._answer(kind, {"Content-Type": "application/xml"}, ERROR % CODES[kind])
        else:
            status, headers, content = self._forward(store.backend, body, ("if-none-match", "if-match") if store.deaf else ())
            if kind == "lose":
                self._reset()
            else:
                self._answer(status, headers, content, cut=kind == "truncate")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forward(self, backend: int, body: bytes, unheard: Sequence[str]) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", backend, timeout=120)
        dropped = {"transfer-encoding", "content-length", "expect", *unheard}
        kept = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection.request(self.command, self.path, body, {**kept, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        headers = dict(answer.getheaders())
        connection.close()
        return answer.status, headers, content

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut and len(content) > 1 else content)
        if cut and len(content) > 1:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def put_file(store: Store, path: Path, place: str) -> str:
    """Copy a file to `bucket/key` in a store, past its proxy; the bucket is made if it is missing. Returns its s3:// URI."""
    return put_bytes(store, path.read_bytes(), place)


def put_bytes(store: Store, content: bytes, place: str) -> str:
    """As `put_file`, of bytes."""
    bucket = place.split("/")[0]
    _ask(store, "PUT", f"/{bucket}", b"")
    assert _ask(store, "PUT", f"/{place}", content)[0] == 200
    return f"s3://{place}"


def get_bytes(store: Store, place: str) -> bytes | None:
    """The content of `bucket/key` in a store, asked past its proxy; None where there is none."""
    status, content = _ask(store, "GET", f"/{place}", b"")
    return content if status == 200 else None


def all_objects(store: Store, bucket: str) -> dict[str, bytes]:
    """The objects of a bucket by their keys, asked past the proxy."""
    found: dict[str, bytes] = {}
    token = ""
    while True:
        _, page = _ask(store, "GET", f"/{bucket}?list-type=2&max-keys=1000{token}", b"")
        keys = [key.decode() for key in re.findall(rb"<Key>(.*?)</Key>", page)]
        found |= {key: get_bytes(store, f"{bucket}/{key}") or b"" for key in keys}
        more = re.search(rb"<NextContinuationToken>(.*?)</NextContinuationToken>", page)
        if not more:
            return found
        token = f"&continuation-token={more[1].decode()}"


def _ask(store: Store, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", store.backend, timeout=60)
    headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=tests/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content
