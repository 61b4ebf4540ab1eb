"""Faults that a test orders for the processes that it starts, through `sitecustomize` beside this file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Faults:
    """A folder that says what goes wrong, and where each time leaves a line."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What processes have in their environment for which it goes wrong."""
        return {"PYTHONPATH": str(HERE), "FAULTS": str(self.folder / "faults.json")}

    def order(self, where: dict[str, Any]) -> None:
        """From now on this goes wrong, and nothing else."""
        for mark in self.folder.iterdir():
            mark.unlink()
        new = self.folder / "new"
        new.write_text(json.dumps(where))
        new.replace(self.folder / "faults.json")  # whole, for those who read it now

    def times(self, where: str) -> int:
        """How often it went wrong there."""
        mark = self.folder / where
        return len(mark.read_text().splitlines()) if mark.exists() else 0
