"""The schedule without Kubernetes: units that systemd knows, a cron line that mails what must be seen, a log that rotates."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cluster import submit
from jobs import monitor_crops
from tests.processes import PROJECT

SCHEDULE = PROJECT / "cluster" / "schedule"
UNITS = ["tilewright-monitor.service", "tilewright-monitor.timer", "tilewright-report@.service"]

# what systemd 252's man pages know (systemd.unit, .service, .exec, .kill, .timer) of what is used here
KNOWN = {
    "Unit": {"Description", "Wants", "After", "OnFailure", "OnSuccess"},
    "Service": {
        "Type", "User", "SupplementaryGroups", "WorkingDirectory", "Environment", "EnvironmentFile", "ExecStart", "SuccessExitStatus",
        "KillMode", "TimeoutStopSec", "NoNewPrivileges", "PrivateTmp", "ProtectSystem",
    },
    "Timer": {"OnCalendar", "RandomizedDelaySec", "Persistent"},
    "Install": {"WantedBy"},
}  # fmt: skip


def read_unit(text: str) -> dict[str, dict[str, str]]:
    """Sections of keys; a line that is neither, a key twice, or a key that systemd would ignore with a warning, is an error."""
    unit: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if section := re.fullmatch(r"\[(\w+)\]", line):
            name = section[1]
            assert name not in unit
            unit[name] = {}
        else:
            key, sign, value = line.partition("=")
            assert sign and key in KNOWN[name], line
            assert key not in unit[name], f"{key} is there twice"
            unit[name][key] = value
    return unit


def for_a_user(name: str) -> str:
    """The unit as one of a user, with the project in their home."""
    return subprocess.run(["sed", "-f", SCHEDULE / "user.sed", SCHEDULE / name], check=True, capture_output=True, text=True).stdout


def test_the_units_have_keys_that_systemd_knows_and_name_each_other():
    service, timer, report = (read_unit((SCHEDULE / name).read_text()) for name in UNITS)
    assert timer["Timer"]["OnCalendar"] == "*-*-* 05:17:00" and timer["Install"]["WantedBy"] == "timers.target"
    assert service["Unit"]["OnFailure"] == service["Unit"]["OnSuccess"] == "tilewright-report@%n.service"
    assert service["Service"]["SuccessExitStatus"] == "3"
    script = report["Service"]["ExecStart"].split()[0].removeprefix("/opt/tilewright/")
    assert os.access(PROJECT / script, os.X_OK)
    assert service["Service"]["EnvironmentFile"] == report["Service"]["EnvironmentFile"] == "/etc/tilewright/environment"


def scheduled_commands() -> list[list[str]]:
    """The command lines of the unit (both), and of cron."""
    service = (SCHEDULE / UNITS[0]).read_text()
    found = [shlex.split(line.partition("=")[2]) for line in service.splitlines() if line.lstrip("#").startswith("ExecStart=")]
    cron = next(line for line in (SCHEDULE / "crontab").read_text().splitlines() if line.startswith("17 5"))
    words = shlex.split(cron)
    assert words[5] == "tilewright" and words[6] == "/opt/tilewright/cluster/schedule/cron.sh" and os.access(SCHEDULE / "cron.sh", os.X_OK)
    return [*found, words[7:]]


def test_all_call_the_same_command_and_its_options_are_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    on_cluster, here, by_cron = scheduled_commands()
    assert by_cron[1:] == on_cluster[1:] and (by_cron[0], on_cluster[0]) == ("python", "/opt/venv/bin/python")
    assert on_cluster[1:3] == ["-m", "cluster.submit"]
    options = submit.parse(on_cluster[3:])
    assert options.deadline < 24 * 3600, "the next run finds it done"
    for job in (options.command, here):
        assert job[1] == "jobs/monitor_crops.py" and (PROJECT / job[1]).exists()
        assert monitor_crops.parse(job[2:]).config


@pytest.mark.parametrize("name", UNITS)
def test_units_of_a_user_name_nobody_and_nothing_of_the_system(name: str):
    text = for_a_user(name)
    read_unit(text)
    rest = re.sub(r"(?m)^#.*$", "", text)
    assert "User=" not in rest and "/etc/" not in rest and "/opt/" not in rest


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here: only the units' keys are checked")
@pytest.mark.parametrize("user", [False, True])
def test_systemd_takes_the_units(tmp_path: Path, user: bool):
    """Those of a user as they are, with programs of these names; the system's with programs and a user that every system has."""
    for program in (".venv/bin/python", "cluster/schedule/report.sh"):
        place = tmp_path / "tilewright" / program
        place.parent.mkdir(parents=True)
        place.write_text("#!/bin/sh\n")
        place.chmod(0o755)
    for name in UNITS:
        text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", (SCHEDULE / name).read_text()).replace("User=tilewright", "User=root")
        (tmp_path / name).write_text(for_a_user(name) if user else text)
    words, known = (["--user"], {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}) if user else ([], {})
    done = subprocess.run(
        ["systemd-analyze", "verify", *words, *(tmp_path / name for name in UNITS)], capture_output=True, text=True, env=os.environ | known
    )
    mine = [line for line in (done.stdout + done.stderr).splitlines() if "tilewright" in line]
    assert done.returncode == 0 and not mine, mine


def cron(tmp_path: Path, command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run cron's script as cron does: hardly any environment, no terminal, another folder."""
    environment = tmp_path / "environment"
    if not environment.exists():
        environment.write_text("RAY_AUTH_MODE=token\nRAY_AUTH_TOKEN=secret\n")
        environment.chmod(0o600)
    known = {"PATH": "/usr/bin:/bin", "TILEWRIGHT_ENVIRONMENT": str(environment), "TILEWRIGHT_LOG": str(tmp_path / "monitor.log"), **more}
    return subprocess.run([SCHEDULE / "cron.sh", "sh", "-c", command], env=known, cwd="/", capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (3, "exit code 3: some scenes or dates failed on their data; the rest is published, and they are tried again next time"),
        (2, "exit code 2: was refused before work began, and will be next time"), (1, "exit code 1: did not end well"),
        (137, "exit code 137: did not end well"),
    ],
)  # fmt: skip
def test_cron_mails_what_must_be_seen(tmp_path: Path, code: int, said: str):
    done = cron(tmp_path, f"echo progress 1/2 shards; echo 'error: x.tif: is broken' >&2; exit {code}")
    assert done.returncode == code and done.stderr == ""
    assert done.stdout.startswith("tilewright-monitor: ") and said in done.stdout.splitlines()[0]
    assert "error: x.tif: is broken" in done.stdout, "the log's last lines"
    assert "is broken" not in cron(tmp_path, "exit 1").stdout, "those of the run before are not mailed again"


def test_cron_is_silent_when_all_is_well_and_the_log_has_it_all(tmp_path: Path):
    done = cron(tmp_path, 'pwd; echo "token $RAY_AUTH_TOKEN"')
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    log = (tmp_path / "monitor.log").read_text()
    assert f"\n{PROJECT}\ntoken secret\n" in log and log.splitlines()[-1].endswith("Z exit code 0")


def test_two_runs_do_not_pile_up(tmp_path: Path):
    environment = tmp_path / "environment"
    cron(tmp_path, "true")
    first = subprocess.Popen(
        [SCHEDULE / "cron.sh", "sh", "-c", f"touch {tmp_path / 'began'}; exec sleep 5"], stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "TILEWRIGHT_ENVIRONMENT": str(environment), "TILEWRIGHT_LOG": str(tmp_path / "monitor.log")},
    )  # fmt: skip
    try:
        while not (tmp_path / "began").exists():
            time.sleep(0.05)
        second = cron(tmp_path, "echo second ran")
        assert (second.returncode, second.stdout) == (0, "")
        log = (tmp_path / "monitor.log").read_text()
        assert "left out: the run before is not done" in log and "second ran\n" not in log
    finally:
        first.wait(20)
    assert cron(tmp_path, "echo third ran").returncode == 0
    assert "third ran\n" in (tmp_path / "monitor.log").read_text()


def test_what_a_run_has_left_behind_does_not_hold_up_the_next(tmp_path: Path):
    cron(tmp_path, f"sleep 100 & echo $! > {tmp_path / 'left'}")
    try:
        cron(tmp_path, "echo next ran")
        assert "\nnext ran\n" in (tmp_path / "monitor.log").read_text()
    finally:
        os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)


def test_a_token_that_others_can_read_is_refused(tmp_path: Path):
    cron(tmp_path, "true")
    (tmp_path / "environment").chmod(0o640)
    done = cron(tmp_path, "echo ran")
    assert done.returncode == 2 and done.stdout.count("\n") == 1 and "others can read the token in it: chmod 600" in done.stdout


def test_an_environment_that_is_not_there_is_one_line(tmp_path: Path):
    done = cron(tmp_path, "echo ran", TILEWRIGHT_ENVIRONMENT=str(tmp_path / "nothing"))
    assert done.returncode == 2 and done.stderr == "" and done.stdout.startswith(f"error: {tmp_path / 'nothing'}: cannot be read")


def report(code: str, **more: str) -> str:
    """What the report unit's script prints, as systemd calls it."""
    known = {"PATH": "/usr/bin:/bin", "MONITOR_UNIT": "x.service", "MONITOR_INVOCATION_ID": "1", "MONITOR_EXIT_STATUS": code, **more}
    return subprocess.run([SCHEDULE / "report.sh", "x.service"], env=known, capture_output=True, text=True, check=True).stdout


def test_the_journal_gets_a_line_of_the_right_level():
    assert report("0") == ""
    assert report("3").startswith("<4>x.service: exit code 3: some scenes or dates failed on their data")
    assert report("2").startswith("<3>x.service: exit code 2: was refused")
    assert report("1").startswith("<3>x.service: exit code 1: did not end well")


def test_a_mail_is_sent_where_there_is_a_sendmail(tmp_path: Path):
    (tmp_path / "sendmail").write_text(f"#!/bin/sh\ncat > {tmp_path / 'mail'}\n")
    (tmp_path / "journalctl").write_text('#!/bin/sh\necho "journal of $*"\n')
    for script in ("sendmail", "journalctl"):
        (tmp_path / script).chmod(0o755)
    report("3", PATH=f"{tmp_path}:/usr/bin:/bin", MAILTO="crops@example.org")
    mail = (tmp_path / "mail").read_text()
    assert mail.startswith("To: crops@example.org\nSubject: x.service: exit code 3: ") and "_SYSTEMD_INVOCATION_ID=1" in mail


def test_the_example_environment_holds_no_secret_and_every_reader_can_read_it():
    for line in (SCHEDULE / "environment.example").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Z_]+=\S*", line), line
    assert "RAY_AUTH_TOKEN=\n" in (SCHEDULE / "environment.example").read_text()


@pytest.mark.skipif(shutil.which("logrotate") is None or os.geteuid() != 0, reason="logrotate is not here, or nobody may become another")
def test_the_log_rotates(tmp_path: Path):
    logs = tmp_path / "log"
    logs.mkdir(mode=0o755)
    (logs / "monitor.log").write_text("a line\n")
    config = (SCHEDULE / "logrotate").read_text().replace("/var/log/tilewright", str(logs)).replace("tilewright tilewright", "root root")
    (tmp_path / "logrotate").write_text(config)
    (tmp_path / "logrotate").chmod(0o644)
    done = subprocess.run(
        ["logrotate", "--force", "--state", tmp_path / "state", tmp_path / "logrotate"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (logs / "monitor.log.1").read_text() == "a line\n" and (logs / "monitor.log").read_text() == ""
