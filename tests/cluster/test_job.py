"""What all jobs share: how they end, and where their results may lie."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.job import AGAIN, DONE, ERROR, FAILED_ON_DATA, REFUSED, lasting_place, run_job
from pipeline.errors import Refused, Unreadable
from pipeline.imagery.storage import Remote


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Refused("a.tif: has no bands"), REFUSED, "error: a.tif: has no bands"),
        (Unreadable("a.tif: is cut short"), FAILED_ON_DATA, "error: a.tif: is cut short"),
        (KeyboardInterrupt(), ERROR, "interrupted: nothing was written"),
        (OSError("No space left\non device"), ERROR, f"error: No space left on device; {AGAIN}"),
        (RuntimeError("gone"), ERROR, f"error: gone; {AGAIN}"),
    ],
)
def test_what_ends_a_job_is_one_line_and_a_code(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]):
    def work() -> int:
        raise error

    assert run_job(work, lambda: "nothing was written", again=True) == code
    assert capsys.readouterr().err == said + "\n"


def test_a_job_that_is_told_to_end_says_so(capsys: pytest.CaptureFixture[str]):
    assert run_job(lambda: signal.raise_signal(signal.SIGTERM) or DONE, lambda: AGAIN) == ERROR
    assert capsys.readouterr().err == f"interrupted: {AGAIN}\n"


def test_an_interruption_that_python_drops_comes_again(capsys: pytest.CaptureFixture[str]):
    """One that comes while an object is being deleted, as a handle of Ray's is by code of its own; what a shell starts in the
    background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    class Deleted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> int:
        Deleted()
        time.sleep(30)
        return DONE

    assert run_job(work, lambda: AGAIN) == ERROR
    assert capsys.readouterr().err == f"interrupted: {AGAIN}\n"


def test_errors_of_the_program_itself_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_job(lambda: 1 // 0, lambda: AGAIN)


def test_results_in_rays_copy_of_the_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    assert lasting_place("out") == copy / "out"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for output in ("out", "./out", str(copy / "out")):
        with pytest.raises(Refused, match="would be lost with Ray's copy"):
            lasting_place(output)
    assert lasting_place("s3://bucket/out") == Remote("bucket", "out")
    assert lasting_place("../out") == tmp_path / "out" == lasting_place(str(tmp_path / "out"))
