"""What a Dockerfile says, as far as tests look at it: stages of instructions, with continued lines joined and comments left out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [text for word, text in self.steps if word == keyword]

    def environment(self) -> dict[str, str]:
        return dict(pair for text in self.all("ENV") for pair in re.findall(r"(\w+)=(\S+)", text))


def read_stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile, each with its steps as (keyword, the rest in one line); ARGs before the first are put in."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: list[Stage] = []
    arguments: dict[str, str] = {}
    for line in filter(str.strip, joined.splitlines()):
        keyword, _, text = line.strip().partition(" ")
        if keyword == "FROM":
            base, _, name = text.partition(" AS ")
            stages.append(Stage(re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base), name))
        elif stages:
            stages[-1].steps.append((keyword, text.strip()))
        else:
            assert keyword == "ARG", f"{keyword} before the first FROM"
            name, _, value = text.partition("=")
            arguments[name] = value
    return stages
