"""Headless Chromium, driven through its DevTools protocol over two pipes: pages are opened without a network, and asked what they show."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
COMPLAINTS = ("error", "warning", "assert")
WAIT_S = 60.0
# The protocol is on descriptors 3 and 4 of the browser.
ON_3_AND_4 = """
import fcntl, os, sys
hears, says = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(hears, 3)
os.dup2(says, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def find_browser() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Page:
    """A tab of a browser; `complaints` are errors and warnings of its console, `loaded` what it asked for."""

    send_to: int
    hear_from: int
    session: str = ""
    complaints: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    _heard: bytes = b""
    _sent: int = 0

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """The result of a DevTools method."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": values, **({"sessionId": self.session} if self.session else {})}
        os.write(self.send_to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._hear()
            if answer.get("id") == self._sent:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def wait_for(self, event: str) -> None:
        while event not in self.events:
            self._hear()

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._heard:
            assert select([self.hear_from], [], [], WAIT_S)[0], "the browser does not answer"
            more = os.read(self.hear_from, 2**20)
            assert more, "the browser has ended"
            self._heard += more
        message, _, self._heard = self._heard.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        self._note(told.get("method", ""), told.get("params") or {})
        return told

    def _note(self, event: str, told: dict[str, Any]) -> None:
        self.events.append(event)
        if event == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]["text"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in COMPLAINTS:
            self.complaints.append(str(told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in COMPLAINTS:
            self.complaints.append(told["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.loaded.append(told["request"]["url"])

    def evaluate(self, expression: str) -> Any:
        """What an expression of JavaScript gives, after promises."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, path: Path, width: int, height: int) -> None:
        """Show a local file in a window of that size, a phone's if it is narrow, with every network off."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for("Page.loadEventFired")
        self.evaluate("Promise.all([...document.images].map(image => image.decode().catch(() => {})))")

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser_page(binary: str) -> Iterator[Page]:
    """A tab of a browser of its own, which ends with the block."""
    hears, send_to = os.pipe()
    hear_from, says = os.pipe()
    with tempfile.TemporaryDirectory(prefix="tilewright-browser-") as profile:
        command = [
            binary, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-extensions", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        started = [sys.executable, "-c", ON_3_AND_4, str(hears), str(says), *command]
        process = subprocess.Popen(started, pass_fds=(hears, says), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(hears)
        os.close(says)
        try:
            page = Page(send_to, hear_from)
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            yield page
        finally:
            os.close(send_to)
            os.close(hear_from)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()
