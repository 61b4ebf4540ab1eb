"""The submit command: it exits as the job did, prints its log once, and what goes wrong is one line. On a pretended head, by HTTP."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster import submit
from cluster.submit import main
from pipeline.errors import Refused
from tests.processes import end_group, run, start, wait_for

COMMAND = ["--", "python", "jobs/segment_region.py", "a scene.tif"]


class Head(BaseHTTPRequestHandler):
    """A head that has one job, and answers as the test tells it to."""

    told: Told

    def do_GET(self) -> None:
        told = self.told
        if self.path == "/api/version":
            self._answer(told.version_code, told.version)
        elif self.path.startswith("/api/packages/"):
            self._answer(200, "")
        elif told.drops:
            told.drops -= 1
            self.connection.close()
        elif self.path.endswith("/logs"):
            self._answer(200, {"logs": told.log()})
        else:
            state = told.state()
            self._answer(*((200, state) if state else (404, "Job x does not exist")))

    def do_POST(self) -> None:
        told = self.told
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        if self.path.endswith("/stop"):
            told.stops += 1
            self._answer(200, {"stopped": True})
        else:
            told.submitted.append(body)
            told.looks = 0
            code, text = told.refusals.pop(0) if told.refusals else (200, {"job_id": "x", "submission_id": body["submission_id"]})
            self._answer(code, text)

    def _answer(self, code: int, content: Any) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Told:
    """What a test tells the head: the end of its job after three looks, and what goes wrong before."""

    def __init__(self) -> None:
        self.version: Any = {"version": "4", "ray_version": "2.60.0", "ray_commit": "x"}
        self.version_code = 200
        self.refusals: list[tuple[int, str]] = []
        self.submitted: list[dict[str, Any]] = []
        self.end: dict[str, Any] = {"status": "SUCCEEDED", "driver_exit_code": 0}
        self.looks = self.drops = self.stops = 0
        self.forgets = self.runs_for_ever = False
        self.address = ""

    def state(self) -> dict[str, Any] | None:
        self.looks += 1
        if self.forgets and self.looks > 1:
            return None
        stopped = {"status": "STOPPED"} if self.stops else None
        ended = self.end if self.looks > 3 and not self.runs_for_ever else {"status": "RUNNING"}
        return {"type": "SUBMISSION", "entrypoint": "x"} | (stopped or ended)

    def log(self) -> str:
        return "".join(f"progress {number}/4 shards\n" for number in range(1, min(self.looks, 4) + 1)) + (
            "last words\n" if self.stops else ""
        )


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """A pretended head; the command's own waiting is short."""
    told = Told()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Pretended", (Head,), {"told": told}))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    told.address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    monkeypatch.setattr(submit, "START_EVERY_S", 0.01)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", told.address)
    before = signal.getsignal(signal.SIGTERM)
    yield told
    signal.signal(signal.SIGTERM, before)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0, ""),
        ({"status": "FAILED", "driver_exit_code": 3, "message": "Job entrypoint command failed"}, 3, "ended with exit code 3"),
        ({"status": "FAILED", "driver_exit_code": 2, "message": "Job entrypoint command failed"}, 2, "ended with exit code 2"),
        ({"status": "FAILED", "driver_exit_code": -9, "message": "killed"}, 137, "ended with exit code -9"),
        ({"status": "STOPPED"}, 1, "was stopped"),
        ({"status": "FAILED", "message": "runtime_env setup failed:\nno space left", "error_type": "RUNTIME_ENV_SETUP_FAILURE"}, 1,
         "failed without an exit code: runtime_env setup failed: no space left"),
    ],
)  # fmt: skip
def test_it_exits_as_the_job_did_and_says_why(head: Told, capsys: pytest.CaptureFixture[str], end: dict[str, Any], code: int, said: str):
    head.end = end
    assert main(COMMAND) == code
    printed = capsys.readouterr()
    assert printed.out == "".join(f"progress {number}/4 shards\n" for number in range(1, 5)), "each line of the log once"
    lines = printed.err.splitlines()
    assert len(lines) == (2 if said else 1) and said in lines[-1]


def test_the_job_gets_the_projects_folder_wherever_the_command_is_called(head: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert main(COMMAND) == 0
    job = head.submitted[0]
    assert job["entrypoint"] == "python jobs/segment_region.py 'a scene.tif'" and job["submission_id"].startswith("segment_region-2")
    assert job["runtime_env"]["working_dir"].startswith("gcs://_ray_pkg_")
    assert main(["--working-dir", str(tmp_path), "--submission-id", "mine", *COMMAND]) == 0
    assert head.submitted[1]["submission_id"] == "mine"
    assert head.submitted[1]["runtime_env"]["working_dir"] != job["runtime_env"]["working_dir"]


def test_a_cluster_that_has_just_started_is_asked_again(head: Told):
    head.refusals = [(500, "No available agent to submit job, please try again later.")] * 2
    assert main(COMMAND) == 0
    assert len(head.submitted) == 3 and len({job["submission_id"] for job in head.submitted}) == 1


def test_a_job_that_had_arrived_though_the_head_said_otherwise_is_followed(head: Told):
    head.refusals = [(500, "No available agent to submit job"), (400, "ValueError: Job with submission_id x already exists. Please use")]
    assert main(COMMAND) == 0


@pytest.mark.parametrize(
    ("refusal", "code", "said"),
    [
        ((400, "Traceback\nValueError: Job with submission_id mine already exists."), 2, "--submission-id mine: was used"),
        ((500, "Traceback (most recent call last):\n  x\nOSError: disk full\n"), 1, "the cluster did not take the job: OSError: disk full"),
    ],
)  # fmt: skip
def test_what_the_cluster_does_not_take_is_one_line(
    head: Told, capsys: pytest.CaptureFixture[str], refusal: tuple[int, str], code: int, said: str
):
    head.refusals = [refusal]
    assert main(["--submission-id", "mine", *COMMAND]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_answers_that_break_off_are_asked_for_again(head: Told, capsys: pytest.CaptureFixture[str]):
    head.drops = 5
    assert main(COMMAND) == 0
    assert capsys.readouterr().out.count("progress") == 4


def test_a_head_that_falls_silent_is_given_up_and_the_job_is_named(
    head: Told, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(submit, "SILENT_S", 0.2)
    head.drops = 1_000_000
    assert main(["--submission-id", "mine", *COMMAND]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "error: the cluster has not answered for 0 s (ConnectionError): job mine may be running on"


def test_a_head_that_was_started_anew_does_not_know_the_job(head: Told, capsys: pytest.CaptureFixture[str]):
    head.forgets = True
    assert main(["--submission-id", "mine", *COMMAND]) == 1
    assert "does not know job mine any more: its head was started anew" in capsys.readouterr().err


def test_an_answer_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(submit, "ANSWER_S", 0.2)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls, and says nothing
        assert main(["--address", f"http://127.0.0.1:{silent.getsockname()[1]}", *COMMAND]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_time_is_up(head: Told, capsys: pytest.CaptureFixture[str]):
    head.runs_for_ever = True
    assert main(["--deadline", "0.3", "--submission-id", "mine", *COMMAND]) == 1
    printed = capsys.readouterr()
    assert head.stops == 1 and printed.out.endswith("last words\n")
    assert printed.err.splitlines()[-1] == "error: --deadline 0.3: the time is up; job mine was stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_ends_the_command_stops_the_job(head: Told, number: signal.Signals):
    head.runs_for_ever = True
    command = start(
        [sys.executable, "-m", "cluster.submit", "--submission-id", "mine", *COMMAND],
        RAY_AUTH_MODE="disabled", RAY_API_SERVER_ADDRESS=head.address,
    )  # fmt: skip
    try:
        wait_for(lambda: head.looks > 1, 60)
        command.send_signal(number)
        out, err = command.communicate(timeout=30)
    finally:
        end_group(command)
    assert command.returncode == 1 and head.stops == 1
    assert out.endswith("last words\n") and err.splitlines()[-1] == "interrupted: job mine was stopped"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["python", "jobs/segment_region.py"], "the job's command is missing: give it after --"),
        ([], "the job's command is missing: give it after --"),
        (["--"], "the job's command is missing: give it after --"),
        (["--address", "head:6379", *COMMAND], "head:6379: the address of a head's dashboard begins with http://"),
        (["--deadline", "0", *COMMAND], "--deadline 0: must be above 0 s"),
        (["--submission-id", "a/b", *COMMAND], "--submission-id a/b: may have letters, digits, _, - and ."),
        (["--working-dir", "/nowhere", *COMMAND], "--working-dir /nowhere: there is no such folder"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(Refused) as refusal:
        submit.parse(words)
    assert said in str(refusal.value)


def test_no_cluster_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(Refused, match="which cluster"):
        submit.parse(COMMAND)


def test_a_cluster_that_cannot_be_reached_is_one_line():
    done = run([sys.executable, "-m", "cluster.submit", "--address", "http://127.0.0.1:1", *COMMAND], RAY_AUTH_MODE="disabled")
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: cannot reach a Ray cluster at http://127.0.0.1:1: ")


@pytest.mark.parametrize(
    ("code", "answer", "exit_code", "said"),
    [
        (401, "Unauthorized", 2, "Authentication required"), (403, "Forbidden", 2, "Authentication failed"),
        (200, "<html>Welcome to nginx!</html>", 1, "is not the dashboard of a Ray cluster"),
        (404, "no such page", 1, "is not the dashboard of a Ray cluster"),
        (200, {"version": "1", "ray_version": "1.9.0"}, 1, "Ray version 1.9.0 is running on the cluster"),
    ],
)  # fmt: skip
def test_what_is_no_cluster_of_ours_is_one_line(
    head: Told, capsys: pytest.CaptureFixture[str], code: int, answer: Any, exit_code: int, said: str
):
    head.version_code, head.version = code, answer
    assert main(COMMAND) == exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and head.address in line
