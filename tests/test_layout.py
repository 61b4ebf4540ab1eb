"""The house: imports run only downward along the rooms, and ray stays out of the library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
ROOMS = ["geometry", "imagery", "models", "inference", "training", "results"]
LIBRARY = sorted((PROJECT / "pipeline").rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def test_the_rooms_are_the_designs():
    assert sorted(folder.name for folder in (PROJECT / "pipeline").iterdir() if (folder / "__init__.py").exists()) == sorted(ROOMS)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(PROJECT)))
def test_imports_run_downward(path: Path):
    modules = imported_modules(path)
    assert not {name for name in modules if name.split(".")[0] in ("ray", "cluster", "jobs")}
    room = path.relative_to(PROJECT / "pipeline").parts[0]
    if room in ROOMS:
        later = ROOMS[ROOMS.index(room) + 1 :]
        assert not {name for name in modules for other in later if name.startswith(f"pipeline.{other}")}


@pytest.mark.parametrize("path", sorted((PROJECT / "cluster").glob("*.py")), ids=lambda path: path.name)
def test_the_cluster_does_not_import_jobs(path: Path):
    assert not {name for name in imported_modules(path) if name.split(".")[0] == "jobs"}


def test_the_library_works_where_ray_is_not_installed():
    code = "import sys; sys.modules['ray'] = None; import pipeline.inference.segment, pipeline.results.publish; print('ok')"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr
