"""The image, as far as it can be built and checked without a container engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cluster.dockerfile import Stage, read_stages
from tests.processes import PROJECT, clean_environment

FOLDER = PROJECT / "cluster" / "image"
STAGES = read_stages(FOLDER / "Dockerfile")
DEPENDENCIES, RUNTIME, COMPILER, LAST = STAGES
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def locked() -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package of the lock."""
    found: dict[str, tuple[str, int]] = {}
    text = (FOLDER / "requirements.txt").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            requirement, *hashes = line.split("--hash=")
            name, version = re.fullmatch(r"([a-z0-9.-]+)==(\S+)\s*", requirement).groups()  # type: ignore[union-attr]
            found[name] = (version, sum(one.startswith("sha256:") for one in hashes))
    return found


def test_the_lock_agrees_with_the_constraints():
    constraints = dict(line.split("==") for line in (PROJECT / "constraints.txt").read_text().splitlines())
    assert {name: version for name, (version, _) in locked().items()} == {name: constraints[name] for name in locked()}
    assert all(hashes for _, hashes in locked().values())


def test_the_lock_has_what_the_project_needs():
    wanted = [Requirement(text) for text in PYPROJECT["dependencies"]]
    extras = PYPROJECT["optional-dependencies"]
    wanted += [Requirement(text) for text in [*extras["image"], *extras["openvino"]] if not text.startswith("tilewright")]
    for requirement in wanted:
        version, _ = locked()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version} is locked; make lock"


def test_what_only_developers_need_is_not_in_the_lock():
    assert not locked().keys() & {"pytest", "moto", "mypy", "ruff", "pre-commit", "pip"}


def test_versions_are_one():
    assert f'org.opencontainers.image.version="{PYPROJECT["version"]}"' in RUNTIME.all("LABEL")[0]
    assert all(f":{PYPROJECT['version']}" in line for line in (FOLDER / "Dockerfile").read_text().splitlines() if "tilewright:" in line)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name or "last")
def test_rules(stage: Stage):
    """What a linter would look at; hadolint itself is run below, where it is installed."""
    names = [other.name for other in STAGES if other.name]
    assert stage.base in names or re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[a-z-]+", stage.base), "a base is pinned"
    assert not stage.all("ADD") and not stage.all("MAINTAINER")
    for command in stage.all("RUN"):
        assert not re.search(r"\b(sudo|curl|wget)\b", command)
        if "apt-get install" in command:
            assert command.startswith("apt-get update &&") and "--no-install-recommends" in command and "--yes" in command
            assert "rm -rf /var/lib/apt/lists/*" in command
        assert subprocess.run(["bash", "-n", "-c", without_flags(command)], check=False).returncode == 0
    assert all(json.loads(text) for keyword in ("CMD", "ENTRYPOINT", "SHELL") for text in stage.all(keyword)), "exec form"
    assert all(text.split()[-1].startswith("/") for text in stage.all("COPY") + stage.all("WORKDIR"))


def without_flags(command: str) -> str:
    return re.sub(r"^(--mount=\S+\s+)*", "", command)


def test_who_runs_it_is_not_root_and_cannot_change_it():
    assert LAST.base == "runtime" and not LAST.all("USER")
    assert RUNTIME.all("USER") == ["1000:1000"] and COMPILER.all("USER")[-1] == "1000:1000", "a name is not enough for runAsNonRoot"
    assert "useradd --create-home --uid 1000" in RUNTIME.all("RUN")[0]
    assert not any("--chown" in text for text in RUNTIME.all("COPY"))


def test_dependencies_come_before_the_code():
    copies = RUNTIME.all("COPY")
    assert copies[-1] == ". /opt/tilewright" and all(text.startswith("--from=dependencies") for text in copies[:-1])
    assert not any("gcc" in text or "g++" in text for stage in (DEPENDENCIES, RUNTIME, LAST) for text in stage.all("RUN"))


def context() -> list[str]:
    """The project's files that .dockerignore lets through: all but some is left out, so the last pattern that matches decides."""
    patterns = [line for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert patterns[0] == "*" and patterns[-1] == "**/__pycache__"
    kept = [pattern.removeprefix("!") for pattern in patterns[1:-1]]
    assert all((PROJECT / one).exists() for one in kept)
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return [file for file in files.splitlines() if any(file == one or file.startswith(f"{one}/") for one in kept)]


def test_the_context_has_what_runs_and_nothing_else():
    files = context()
    assert {"jobs/segment_region.py", "pipeline/__init__.py", "cluster/actors.py", ".rayignore"} <= set(files)
    assert not [file for file in files if file.startswith(("tests/", ".git", ".venv", "demo-output"))]
    sources = [text.split()[0] for stage in STAGES for text in stage.all("COPY") if not text.startswith("--from")]
    assert sources == ["cluster/image/requirements.txt", "."] and sources[0] in files
    assert sum((PROJECT / file).stat().st_size for file in files) < 40 * 2**20


def test_hadolint():
    command = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not command:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([command, str(FOLDER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


class Root:
    """A folder that stands for the image's file system, and a Python of its own that stands for the base's."""

    def __init__(self, folder: Path):
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", folder / "base"], check=True)

    def moved(self, text: str) -> str:
        """A command whose absolute paths lie in this folder."""
        text = text.replace("/usr/local/bin/python3.11", str(self.folder / "base/bin/python3"))
        return re.sub(r"(?<![\w.}/])/(opt|build)\b", rf"{self.folder}/\1", text)

    def run(self, command: str, **environment: str) -> str:
        base = clean_environment(PYTHONPATH="")
        path = f"{self.folder / 'base/bin'}:/usr/bin:/bin"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.moved(command)], cwd=self.folder, capture_output=True, text=True, check=False,
            env=base | {"PATH": path} | {name: self.moved(value).replace("$PATH", path) for name, value in environment.items()},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def copy(self, source: Path, target: str) -> None:
        place = Path(self.moved(target))
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, place)

    def copy_from_stage(self, source: str, target: str) -> None:
        """Both stages lie in this folder, so what keeps its path is there already."""
        if source != target:
            shutil.copytree(self.moved(source), self.moved(target), symlinks=True, dirs_exist_ok=True, copy_function=os.link)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    """Gone after the test: pytest would keep its 7 GB for three more runs."""
    if sys.version_info[:2] != (3, 11) or sys.platform != "linux":
        pytest.skip("the image's lock is for Python 3.11 on Linux")
    yield Root(tmp_path)
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_install_steps_give_an_environment_that_runs_the_demo(root: Root, capsys: pytest.CaptureFixture[str]):
    """The Dockerfile's own steps, but for apt-get and useradd, in a folder; a download of 3 GB the first time."""
    began = time.monotonic()
    for keyword, text in DEPENDENCIES.steps:
        if keyword == "COPY":
            root.copy(PROJECT / text.split()[0], text.split()[1])
        elif keyword == "RUN":
            root.run(without_flags(text))
    packages = size_of(root.folder / "build", root.folder / "opt")
    for text in RUNTIME.all("COPY"):
        *flags, source, target = text.split()
        if flags:
            root.copy_from_stage(source, target)
        else:
            for file in context():
                root.copy(PROJECT / file, f"{target}/{file}")
    built_s, environment = time.monotonic() - began, RUNTIME.environment() | {"HOME": str(root.folder / "home")}
    modules = [".".join(Path(file).with_suffix("").parts) for file in context() if re.match(r"(pipeline|cluster)/.*\.py$", file)]
    modules = [module.removesuffix(".__init__") for module in modules]
    root.run(f"cd /opt/tilewright && python -c 'import {', '.join(modules)}, boto3, openvino, nncf'", **environment)
    assert root.run("ray --version", **environment).split()[-1] == locked()["ray"][0]
    assert "usage:" in root.run(f"cd /opt/tilewright && {shlex.join(json.loads(LAST.all('CMD')[0]))}", **environment)
    demo = "python jobs/segment_region.py jobs/demo/zion/item.json --model jobs/demo/model --output"
    root.run(f"cd /opt/tilewright && {demo} {root.folder}/out --workers 1", **environment)
    assert list((root.folder / "out" / "scenes").glob("*/mask.tif"))
    with capsys.disabled():
        print(f"\nimage: built in {built_s:.0f} s, {packages / 1e9:.2f} GB of packages, demo done")


def size_of(*folders: Path) -> int:
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
