"""Submit a job to a Ray cluster, print its log as it comes, and exit as the job did: what timers and schedulers call.

    python -m cluster.submit [options] -- python jobs/monitor_crops.py --config s3://config/monitor.yaml

The job runs in a copy of the project's folder. `ray job submit` exits with 1 for every failure, and with 0 for a job that was stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.environment import PROJECT
from cluster.job import DONE, ERROR, run_job
from pipeline.errors import Refused, one_line

ADDRESS = "RAY_API_SERVER_ADDRESS"
ANSWER_S = 60.0  # for one answer; the head itself waits 10 s for its job agent
START_S, START_EVERY_S = 120.0, 3.0  # that a cluster which has just started may take until it has a job agent
SILENT_S = 120.0  # after which a cluster that does not answer is given up
STOP_S = 45.0  # for a job's end once it was told to
LAST_WORDS_S = 30  # of these, until Ray kills it; its default is 3
POLL_S = 1.0
TROUBLE = (RuntimeError, OSError, ValueError, AuthenticationError)  # all that Ray's client raises where an answer is none
LOG_LETTERS_A_SECOND = 200_000  # Ray gives the whole log each time: a long one is asked for less often

NO_COMMAND = "the job's command is missing: give it after --, as in python -m cluster.submit -- python jobs/segment_region.py ..."
EXAMPLE = """example:
  python -m cluster.submit --deadline 72000 -- python jobs/monitor_crops.py --config s3://config/monitor.yaml

exit code: the job's own; 1 where it was stopped, by whomever, or could not be run, or the cluster was not reached; 2 bad usage"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. What is wrong is one line on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_job(lambda: submit(parse(words)), lambda: "look with `ray job list` whether the cluster still has the job")


def submit(options: argparse.Namespace) -> int:
    """Submit the job, follow it to its end, or stop it."""
    job = Job(connect(options.address), options.submission_id or new_id(options.command))
    until = time.monotonic() + options.deadline
    try:
        job.start(options.command, options.working_dir)
        print(f"job {job.name} was submitted to {options.address}", file=sys.stderr)
        ended = job.follow(until)
    except KeyboardInterrupt:
        print(f"interrupted: {job.stop()}", file=sys.stderr)
        return ERROR
    if ended is None:
        print(f"error: --deadline {options.deadline:g}: the time is up; {job.stop()}", file=sys.stderr)
        return ERROR
    return report(job.name, ended)


def parse(words: list[str]) -> argparse.Namespace:
    """The command line: options, then the job's own after `--`. Raises Refused."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.submit", usage="%(prog)s [options] -- COMMAND ...", description=__doc__.split("\n\n")[0], epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--address", metavar="URL", default=os.environ.get(ADDRESS), help=f"of the head's dashboard (default: {ADDRESS})")
    parser.add_argument("--submission-id", metavar="ID", help="the job's name; one is made up unless it is said")
    parser.add_argument(
        "--working-dir", type=Path, default=PROJECT, metavar="DIR", help="what the job runs in (default: the project's folder)"
    )
    parser.add_argument("--deadline", type=float, default=float("inf"), metavar="SECONDS", help="stop the job after so long")
    mark = words.index("--") if "--" in words else len(words)
    if mark == len(words) and not {"-h", "--help"} & set(words):
        raise Refused(NO_COMMAND)
    options = parser.parse_args(words[:mark])
    options.command = words[mark + 1 :]
    check(options)
    return options


def check(options: argparse.Namespace) -> None:
    """Raise Refused, naming the option."""
    if not options.command:
        raise Refused(NO_COMMAND)
    if not options.address:
        raise Refused(f"which cluster? set {ADDRESS}, or give --address http://HEAD:8265")
    if not re.match(r"https?://.", options.address):
        raise Refused(f"{options.address}: the address of a head's dashboard begins with http://, as in http://HEAD:8265")
    if not options.deadline > 0:
        raise Refused(f"--deadline {options.deadline:g}: must be above 0 s")
    if options.submission_id is not None and not re.fullmatch(r"[\w.-]+", options.submission_id, re.ASCII):
        raise Refused(f"--submission-id {options.submission_id}: may have letters, digits, _, - and .")
    if not options.working_dir.is_dir():
        raise Refused(f"--working-dir {options.working_dir}: there is no such folder")


def new_id(command: Sequence[str]) -> str:
    """A name that tells what and when."""
    script = next((Path(word).stem for word in command if word.endswith(".py")), "job")
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', script)}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


class Client(JobSubmissionClient):
    """Ray's own waits for an answer for ever."""

    def _do_request(self, *words: Any, **more: Any) -> Any:
        return super()._do_request(*words, **({"timeout": ANSWER_S} | more))


def connect(address: str) -> Client:
    """Reach the cluster. Raises RuntimeError, or Refused for a wrong token."""
    os.environ[ADDRESS] = address  # which Ray puts before any argument
    for name in ("dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging", "_private.runtime_env.working_dir"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)  # what is uploaded, and that .git is not
    try:
        return Client(address)
    except AuthenticationError as error:
        raise Refused(f"{address}: {first_line(error)}: set RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN") from None
    except ConnectionError:
        raise RuntimeError(f"cannot reach a Ray cluster at {address}: is it running, and is this its dashboard's address?") from None
    except (*TROUBLE, KeyError) as error:
        raise RuntimeError(f"what answers at {address} is not the dashboard of a Ray cluster: {first_line(error)}") from None


class Job:
    """A job on the cluster: its state, and how much of its log was printed."""

    def __init__(self, client: Client, name: str):
        self.client, self.name = client, name
        self._printed = 0
        self._heard = time.monotonic()

    def start(self, command: Sequence[str], folder: Path) -> None:
        """Submit it. A cluster that has just started may not take jobs yet. Raises Refused or RuntimeError."""
        environment = {"working_dir": str(folder), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(LAST_WORDS_S)}}
        until = time.monotonic() + START_S
        asked_before = False
        while True:
            try:
                self.client.submit_job(entrypoint=shlex.join(command), submission_id=self.name, runtime_env=environment)
                return
            except TROUBLE as error:
                if "already exists" in str(error) and not asked_before:
                    raise Refused(f"--submission-id {self.name}: was used on this cluster before: give another, or none") from None
                if "already exists" in str(error):
                    return  # it had arrived
                if "No available agent" not in str(error) or time.monotonic() > until:
                    raise RuntimeError(f"the cluster did not take the job: {last_line(error)}") from None
            asked_before = True
            time.sleep(START_EVERY_S)

    def follow(self, until: float) -> Any:
        """Print the log as it comes; returns what Ray says of the job once it has ended, or None where it has not by `until`."""
        while (now := time.monotonic()) < until:
            found = self._look()
            if found and found.status.is_terminal():
                return found
            time.sleep(max(0.0, min(POLL_S + self._printed / LOG_LETTERS_A_SECOND, until - now)))
        return None

    def stop(self) -> str:
        """Stop it and print its last words; returns what became of it."""
        try:
            self.client.stop_job(self.name)
        except TROUBLE as error:
            if "does not exist" in str(error):
                return "nothing was submitted"
            return f"job {self.name} may be running on, it could not be stopped: {last_line(error)}"
        ended = self.follow(time.monotonic() + STOP_S)
        if ended is None:
            return f"job {self.name} was told to stop, and had not ended {STOP_S:.0f} s later"
        return (
            f"job {self.name} was stopped" if ended.status == JobStatus.STOPPED else f"job {self.name} had ended by itself: {ended.status}"
        )

    def _look(self) -> Any:
        """What Ray says of the job, and its log; None where it does not answer. Raises RuntimeError where it has not for too long."""
        try:
            found = self.client.get_job_info(self.name)
        except TROUBLE as error:
            if "does not exist" in str(error):
                raise RuntimeError(f"the cluster does not know job {self.name} any more: its head was started anew") from None
            if (silent_s := time.monotonic() - self._heard) > SILENT_S:
                why = last_line(error) if isinstance(error, RuntimeError) else type(error).__name__
                raise RuntimeError(
                    f"the cluster has not answered for {silent_s:.0f} s ({why}): job {self.name} may be running on"
                ) from None
            return None
        self._heard = time.monotonic()
        self._print_log(last=found.status.is_terminal())
        return found

    def _print_log(self, last: bool) -> None:
        try:
            log = self.client.get_job_logs(self.name)
        except TROUBLE as error:  # for once: half a letter at its end is enough
            if last:
                print(f"note: the end of the job's log could not be read: {last_line(error)}", file=sys.stderr)
            return
        print(log[self._printed :], end="", flush=True)
        self._printed = max(self._printed, len(log))


def report(name: str, ended: Any) -> int:
    """Say how a job ended, unless all is well; returns the exit code."""
    if ended.status == JobStatus.SUCCEEDED:
        return DONE
    if ended.status == JobStatus.STOPPED:
        print(f"error: job {name} was stopped", file=sys.stderr)
        return ERROR
    code = ended.driver_exit_code
    if not code:
        print(f"error: job {name} failed without an exit code: {one_line(ended.message or ended.error_type)[:500]}", file=sys.stderr)
        return ERROR
    print(f"job {name} ended with exit code {code}", file=sys.stderr)
    return code if code > 0 else 128 - code  # as a shell has it for a signal


def first_line(error: object) -> str:
    return one_line(next(iter(str(error).splitlines()), ""))[:300]


def last_line(error: object) -> str:
    """Of a traceback in an answer of Ray's, the line that tells."""
    lines = [line for line in str(error).splitlines() if line.strip(" .")]
    return one_line(lines[-1] if lines else type(error).__name__)[:300]


if __name__ == "__main__":
    sys.exit(main())
