"""Processes that tests start, find and end: jobs as a person runs them, and a Ray cluster of the tests' own."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.local import STARTS, count_nodes, head_command, node_environment, worker_command
from cluster.processes import alive as alive
from cluster.processes import descendants, free_port

PROJECT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).parent / "ray")


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without anything of Ray's, and this Python's folder first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "RAY_USAGE_STATS_ENABLED": "0", **more}


def start(command: list[object], **environment: str) -> subprocess.Popen[str]:
    """Start a command in the project's folder, as the leader of its own group, with its output kept."""
    return subprocess.Popen(
        list(map(str, command)), cwd=PROJECT, env=clean_environment(**environment), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_heed_interrupts,
    )  # fmt: skip


def _heed_interrupts() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(command: list[object], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's folder to its end."""
    process = start(command, **environment)
    try:
        out, err = process.communicate(timeout=280)
    finally:
        end_group(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def all_ended(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """What processes that lead their own groups have printed, once all have ended; none outlives this."""
    try:
        return [process.communicate(timeout=280) for process in processes]
    finally:
        for process in processes:
            end_group(process)


def submit(command: list[object], *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit` of a command with this folder, once the cluster's job agent is up, which a busy machine delays."""
    for _ in range(20):
        done = run([RAY, "job", "submit", "--working-dir", ".", *options, "--", *command], **environment)
        if "No available agent" not in done.stdout + done.stderr:
            return done
        time.sleep(3)
    return done


def job_command(job: str, *arguments: object) -> list[object]:
    return [sys.executable, f"jobs/{job}.py", *arguments]


@contextmanager
def ray_head(cpus: int = 2, ip: str = "127.0.0.1", *options: str, **more: str) -> Iterator[dict[str, str]]:
    """A Ray head on ports of its own, with token authentication; `more` is for the environment of all that it starts.

    Yields the environment that its users set. What its last entry, HEAD_PID, names is the process that started all others.
    """
    port, dashboard = free_port(), free_port()
    environment = {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": f"{ip}:{port}", "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:  # sockets need short paths
        command = head_command(port, dashboard, free_port(), folder, f"--num-cpus={cpus}", f"--node-ip-address={ip}", *options)
        head = subprocess.Popen(
            command, env=node_environment(environment) | more, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for(lambda: count_nodes(environment) == 1, 90)
            yield environment | {"HEAD_PID": str(head.pid)}
        finally:
            end_group(head)


@contextmanager
def ray_node(environment: dict[str, str], *options: str, within: Sequence[str] = (), **more: str) -> Iterator[subprocess.Popen]:
    """One more node of the cluster that `environment` joins, started by the command `within`, once it is there.

    Ray gives it 30 s, on a machine however busy, and so it is tried again.
    """
    before = count_nodes(environment)
    for _ in range(STARTS):
        node = subprocess.Popen(
            [*within, *worker_command(environment["RAY_ADDRESS"], *options)], env=node_environment(environment) | more,
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(lambda node=node: node.poll() is not None or count_nodes(environment) > before, 120, every=0.5)
            if node.poll() is None:
                yield node
                return
        finally:
            end_group(node)
    raise AssertionError(f"no node in {STARTS} starts")


@contextmanager
def two_nodes(*, within: Sequence[str] = (), **more: str) -> Iterator[tuple[dict[str, str], tuple[int, int]]]:
    """A cluster as `make cluster` starts it: a head without work of its own and two nodes of a core each, started by the command `within`.

    Yields the environment of its users, and the processes that started the nodes.
    """
    with (
        ray_head(0, **more) as environment,
        ray_node(environment, "--num-cpus=1", within=within, **more) as first,
        ray_node(environment, "--num-cpus=1", within=within, **more) as second,
    ):
        yield environment, (first.pid, second.pid)


def titled(pids: list[int], title: str) -> list[int]:
    """Those processes whose command line holds `title`."""
    found = []
    for pid in pids:
        try:
            if title in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                found.append(pid)
        except OSError:
            continue
    return found


def wait_for(happened: Callable[[], object], seconds: float, every: float = 0.1) -> None:
    """Wait until `happened()`; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"did not happen within {seconds} s"
        time.sleep(every)


def end_group(process: subprocess.Popen) -> None:
    """End a process that leads its own group, and all that it started, wherever they went."""
    others = descendants(process.pid)
    for how in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, how)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                continue
    for pid in others:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
