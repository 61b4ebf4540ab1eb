"""A Ray cluster on this machine, a head and two workers, to try jobs on as they run on a large one.

    make cluster             python -m cluster.local start
    make cluster-stop        python -m cluster.local stop

What is known of it lies in the folder `.cluster`: who its processes are, what they said, and `environment`, which its users source.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from cluster.environment import PROJECT
from cluster.job import DONE, run_job
from cluster.processes import POLL_S, Process, answers, descendants, end, free_port, seen
from pipeline.errors import Refused, one_line

FOLDER = PROJECT / ".cluster"
ENVIRONMENT, PROCESSES, LOCK = "environment", "processes.json", "lock"
BIN = Path(sys.executable).parent
HERE = "127.0.0.1"
WORKERS = 2
NODES = ["head", *(f"worker-{number}" for number in range(1, WORKERS + 1))]
OBJECT_STORE_BYTES = 128 * 2**20  # a node's: no pixel goes through it
LAST_WORDS_S = 30  # that a job which is stopped has before it is killed; Ray's default is 3
STARTS, START_S, END_S = 3, 120.0, 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Start or stop it; returns the exit code."""
    return run_job(lambda: start_or_stop(parse(arguments)), lambda: "nothing of the cluster is left")


def start_or_stop(options: argparse.Namespace) -> int:
    """What the command line says, while no other process does."""
    if not Path("/proc/self/stat").exists():
        raise Refused("a cluster on this machine needs Linux, whose /proc tells which processes are its own")
    with alone(options.folder.resolve()) as folder:
        (start if options.what == "start" else stop)(folder)
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse exits with 2 for bad usage, as a job does."""
    parser = argparse.ArgumentParser(prog="python -m cluster.local", description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["start", "stop"])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where what is known of it lies (default: .cluster)")
    return parser.parse_args(arguments)


@contextmanager
def alone(folder: Path) -> Iterator[Path]:
    """Make and hold the folder, so that nobody starts or stops its cluster meanwhile. Raises Refused."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{folder}: another process is starting or stopping this cluster: wait for it") from None
        yield folder


def start(folder: Path) -> None:
    """Start the cluster of this folder, if it is not running, and say how it is used. One that does not start leaves nothing."""
    known = read_known(folder)
    if known and (folder / ENVIRONMENT).exists() and all(seen(process.pid) == process for process in known[1]):
        print("the cluster is running already", file=sys.stderr)
    else:
        if known:
            print("what is left of an earlier cluster is ended first", file=sys.stderr)
            end_known(folder)
        try:
            Starting(folder).start()
        except BaseException:
            stop(folder)
            raise
    print(usage(folder))


def stop(folder: Path) -> None:
    """End the processes of this folder's cluster, of no other, and remove what they wrote, and the folder if it has nothing else."""
    print("the cluster was stopped" if end_known(folder) else "no cluster is running", file=sys.stderr)
    (folder / LOCK).unlink()
    with suppress(OSError):
        folder.rmdir()


def end_known(folder: Path) -> bool:
    """End what is known of this folder's cluster, and remove it; False where nothing is."""
    known = read_known(folder)
    if known:
        session, processes = known
        end(processes, END_S)
        shutil.rmtree(session, ignore_errors=True)
        for file in (folder / ENVIRONMENT, *(folder / f"{node}.log" for node in NODES), folder / PROCESSES):
            file.unlink(missing_ok=True)
    return known is not None


def read_known(folder: Path) -> tuple[str, list[Process]] | None:
    """Ray's folder, and the processes that were seen of this folder's cluster; None where there is none."""
    try:
        known = json.loads((folder / PROCESSES).read_text())
        return known["session"], [Process(*process) for process in known["processes"]]
    except FileNotFoundError:
        return None


class Starting:
    """A cluster that starts: each node is written down as soon as it is there, so that `stop` finds what was started."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.session = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need short paths
        self.port, self.dashboard, self.agent = free_port(), free_port(), free_port()
        self.access = {
            "RAY_ADDRESS": f"{HERE}:{self.port}", "RAY_API_SERVER_ADDRESS": f"http://{HERE}:{self.dashboard}",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }  # fmt: skip
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all nodes, wait until they take jobs, and write down how they are reached."""
        from pipeline.inference.plan import memory_allotted  # seconds to import, which stop should not wait

        print("starting Ray: a head and two workers ...", file=sys.stderr)
        self._write_down()
        head = head_command(self.port, self.dashboard, self.agent, self.session, "--num-cpus=0", "--num-gpus=0")
        self._start(NODES[0], head, lambda: answers(self.dashboard) and answers(self.agent))
        memory = memory_allotted() // WORKERS - OBJECT_STORE_BYTES
        for number, cpus in enumerate(shares(len(os.sched_getaffinity(0))), start=1):
            gpus = ["--num-gpus=0"] if number > 1 else []  # each node would take all GPUs for its own
            worker = worker_command(self.access["RAY_ADDRESS"], f"--num-cpus={cpus}", f"--memory={memory}", *gpus)
            self._start(NODES[number], worker, partial(self._has_nodes, 1 + number))
        self._write_down(*(pid for node in self.nodes.values() for pid in descendants(node.pid)))
        self._write_environment()

    def _start(self, name: str, command: Sequence[str], there: Callable[[], bool]) -> None:
        """Start a node and wait until it is there: Ray gives it 30 s, on a machine however busy, and so it is tried again."""
        for _ in range(STARTS):
            with self._log(name).open("wb") as log:
                node = self.nodes[name] = subprocess.Popen(
                    [*command, f"--node-ip-address={HERE}", f"--node-name={name}"], env=node_environment(self.access),
                    start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                )  # fmt: skip
            self._write_down()
            until = time.monotonic() + START_S
            while node.poll() is None and time.monotonic() < until:
                if there():
                    return
                time.sleep(POLL_S)
            if node.poll() is None:
                raise RuntimeError(f"Ray's {name} did not start within {START_S:.0f} s")
        words = self._log(name).read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"Ray's {name} did not start in {STARTS} tries: {one_line(*words)}")

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _write_down(self, *others: int) -> None:
        pids = [node.pid for node in self.nodes.values()]
        known = {"session": self.session, "processes": [process for pid in (*pids, *others) if (process := seen(pid))]}
        whole = self.folder / f"{PROCESSES}.new"
        whole.write_text(json.dumps(known))
        whole.replace(self.folder / PROCESSES)

    def _has_nodes(self, number: int) -> bool:
        return count_nodes(self.access) == number

    def _write_environment(self) -> None:
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.access.items()]
        lines.append(f"export PATH={shlex.quote(str(BIN))}:$PATH")
        with open(os.open(self.folder / ENVIRONMENT, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write("\n".join([*lines, ""]))


def count_nodes(access: Mapping[str, str]) -> int:
    """How many nodes a cluster has now, by its dashboard, for which its users have `access` in their environment; 0 without an answer."""
    url = f"{access['RAY_API_SERVER_ADDRESS']}/nodes?view=summary"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {access['RAY_AUTH_TOKEN']}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            found = json.load(answer)["data"]["summary"]
    except (OSError, ValueError):  # no answer, or not all of one
        return 0
    return sum(node["raylet"].get("state") == "ALIVE" for node in found)


def usage(folder: Path) -> str:
    """What a person types to use the cluster and to end it."""
    default = folder == FOLDER
    stop = "make cluster-stop" if default else f"python -m cluster.local stop {shlex.quote(str(folder))}"
    return f"""
use it:   source {shlex.quote(os.path.relpath(folder / ENVIRONMENT))}
submit:   python -m cluster.submit -- python jobs/segment_region.py /data/scene.tif --model /data/model --output /data/out
or:       ray job submit --working-dir . -- python jobs/segment_region.py /data/scene.tif --model /data/model --output /data/out
stop it:  {stop}"""


def shares(cores: int) -> list[int]:
    """The cores of each worker: all of them, and at least one each.

    >>> shares(5), shares(1)
    ([3, 2], [1, 1])
    """
    return [max(1, (cores + WORKERS - 1 - number) // WORKERS) for number in range(WORKERS)]


def head_command(port: int, dashboard: int, agent: int, session: str, *options: str) -> list[str]:
    """What starts a head on these ports of this machine, with its files in `session`; it runs until it is ended."""
    return [
        *start_command(agent), "--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={session}",
        f"--ray-client-server-port={free_port()}", "--disable-usage-stats", *options,
    ]  # fmt: skip


def worker_command(address: str, *options: str) -> list[str]:
    """What starts one more node, of the cluster at `address`."""
    return [*start_command(free_port()), f"--address={address}", *options]


def start_command(agent: int) -> list[str]:
    """What all nodes of one machine need: a job agent of their own, since without one in the default's place Ray takes no jobs."""
    return [str(BIN / "ray"), "start", "--block", f"--object-store-memory={OBJECT_STORE_BYTES}", f"--dashboard-agent-listen-port={agent}"]


def node_environment(access: Mapping[str, str]) -> dict[str, str]:
    """The environment of a node: this process's without anything of Ray's, and this Python, which is that of jobs, first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"PATH": f"{BIN}:{kept['PATH']}", "RAY_USAGE_STATS_ENABLED": "0", "RAY_JOB_STOP_WAIT_TIME_S": str(LAST_WORDS_S)}
    return kept | own | {name: value for name, value in access.items() if name.startswith("RAY_AUTH_")}


if __name__ == "__main__":
    sys.exit(main())
