"""An S3 server of the tests' own, and a proxy before it that counts requests and injects faults.

The proxy is a process of its own (`python -m tests.servers PORT`): rasterio holds the interpreter during some requests of GDAL, which
a thread of the same process would never answer.
"""

from __future__ import annotations

import http.client
import json
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
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cluster.processes import answers
from tests.processes import PROJECT, end_group, free_port, wait_for

KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-secret", "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1"}
ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>injected</Message></Error>"
CODES = {403: b"AccessDenied", 404: b"NoSuchBucket", 429: b"TooManyRequests", 500: b"InternalError", 503: b"SlowDown"}
CONTROL = "/-/control"  # no bucket has this name


@dataclass
class Fault:
    """What is done to every `every`-th of the requests that match, `times` times at most.

    `kind`: a status to answer, or `reset` (the connection), `truncate` (half of the answer's body), `delay` (by `seconds`), `lose`
    (the answer to a request that was carried out), `deaf` (If-None-Match and If-Match are not heard, as by some stores).
    """

    kind: int | str
    method: str = ".*"
    path: str = "."
    every: int = 1
    times: int = 10**9
    seconds: float = 0.0
    seen: int = 0
    done: int = 0

    def due(self, method: str, path: str) -> bool:
        if not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        self.seen += 1
        if self.seen % self.every or self.done >= self.times:
            return False
        self.done += 1
        return True


@dataclass(frozen=True)
class Store:
    """A store that answers at `url`; behind its proxy at port `backend`. `environment` is what its users set."""

    url: str
    backend: int

    @property
    def environment(self) -> dict[str, str]:
        return {**KEYS, "AWS_ENDPOINT_URL": self.url, "AWS_EC2_METADATA_DISABLED": "true"}

    def fail(self, *faults: Fault) -> None:
        """From now on inject these faults, and no others; the requests so far are forgotten."""
        self._control("PUT", json.dumps([asdict(fault) for fault in faults]).encode())

    def calm(self) -> None:
        """No more faults; the requests so far are forgotten."""
        self.fail()

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and path with query of each request since the faults were changed."""
        return [(method, path) for method, path in self._control("GET")["requests"]]

    @property
    def injected(self) -> int:
        """How many faults were injected since they were changed."""
        return sum(fault["done"] for fault in self._control("GET")["faults"])

    def _control(self, method: str, body: bytes = b"") -> Any:
        status, content = _ask(int(self.url.rpartition(":")[2]), method, CONTROL, body)
        assert status == 200
        return json.loads(content)


@contextmanager
def object_store() -> Iterator[Store]:
    """A moto server, which honours If-None-Match and If-Match, and the proxy before it, each in a process of its own."""
    backend, port = free_port(), free_port()
    commands = [["moto.server", "-H", "127.0.0.1", "-p", str(backend)], ["tests.servers", str(port), str(backend)]]
    with tempfile.TemporaryFile() as log:
        servers = [
            subprocess.Popen(
                [sys.executable, "-m", *command], cwd=PROJECT, env={**os.environ, **KEYS}, start_new_session=True, stdout=log, stderr=log
            )
            for command in commands
        ]
        try:
            wait_for(lambda: answers(backend) and answers(port), 60)
            yield Store(f"http://127.0.0.1:{port}", backend)
        finally:
            for server in servers:
                end_group(server)


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, backend: int):
        super().__init__(("127.0.0.1", port), _Handler)
        self.backend, self.lock = backend, threading.Lock()
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []

    def take(self, method: str, path: str) -> Fault | None:
        """Count a request, and say what is to be done to it."""
        with self.lock:
            self.requests.append((method, path))
            return next((fault for fault in self.faults if fault.due(method, path)), None)

    def control(self, method: str, body: bytes) -> bytes:
        """Take the faults that are wanted, or say what there was."""
        with self.lock:
            if method == "PUT":
                self.faults, self.requests = [Fault(**fault) for fault in json.loads(body)], []
            return json.dumps({"faults": [asdict(fault) for fault in self.faults], "requests": self.requests}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *values: object) -> None:
        pass

    def _serve(self) -> None:
        proxy: Any = self.server
        body = self._body()
        if self.path == CONTROL:
            self._answer(200, {}, proxy.control(self.command, body))
            return
        fault = proxy.take(self.command, self.path)
        kind = fault.kind if fault else None
        if fault and kind == "delay":
            time.sleep(fault.seconds)
        if kind == "reset":
            self._reset()
        elif isinstance(kind, int):
            self._answer(kind, {"Content-Type": "application/xml"}, ERROR % CODES[kind])
        else:
            status, headers, content = self._forward(proxy.backend, body, ("if-none-match", "if-match") if kind == "deaf" else ())
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
    _ask(store.backend, "PUT", f"/{bucket}", b"")
    assert _ask(store.backend, "PUT", f"/{place}", content)[0] == 200
    return f"s3://{place}"


def get_bytes(store: Store, place: str) -> bytes | None:
    """The content of `bucket/key` in a store, asked past its proxy; None where there is none."""
    status, content = _ask(store.backend, "GET", f"/{place}", b"")
    return content if status == 200 else None


def all_objects(store: Store, bucket: str) -> dict[str, bytes]:
    """The objects of a bucket by their keys, asked past the proxy."""
    found: dict[str, bytes] = {}
    token = ""
    while True:
        _, page = _ask(store.backend, "GET", f"/{bucket}?list-type=2&max-keys=1000{token}", b"")
        keys = [key.decode() for key in re.findall(rb"<Key>(.*?)</Key>", page)]
        found |= {key: get_bytes(store, f"{bucket}/{key}") or b"" for key in keys}
        more = re.search(rb"<NextContinuationToken>(.*?)</NextContinuationToken>", page)
        if not more:
            return found
        token = f"&continuation-token={more[1].decode()}"


def _ask(port: int, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=tests/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


if __name__ == "__main__":
    _Proxy(int(sys.argv[1]), int(sys.argv[2])).serve_forever()
