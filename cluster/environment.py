"""What must be known or set before Ray is imported; and what a cluster is made of, for modules that do not need Ray."""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

CPUS_BESIDE_GPU = 4


@dataclass(frozen=True)
class Node:
    """A node that is alive and what it allots, whoever uses it now."""

    node_id: str
    name: str
    cpus: int
    gpus: int
    memory_bytes: int


@dataclass(frozen=True)
class Device:
    """What actors compute on: `kind` as torch names it, `description` as plans do, and how many GPUs, or which part of one, each has."""

    kind: str
    description: str
    gpus: float = 0.0

    def slots(self, node: Node) -> int:
        """How many actors a node has room for: one a GPU, or a part of one, or one a core."""
        if self.kind != "cuda":
            return node.cpus
        return node.gpus * int(1 / self.gpus) if self.gpus < 1 else int(node.gpus / self.gpus)

    def cpus(self, nodes: Sequence[Node]) -> int:
        """Cores of an actor. Ray lets torch have as many threads; beside a GPU they read, decompress and write."""
        if self.kind != "cuda":
            return 1
        return min([CPUS_BESIDE_GPU, *(node.cpus // slots for node in nodes if (slots := self.slots(node)))])


ACCESS = {
    "endpoint-url": ("AWS_ENDPOINT_URL_S3", "URL", "where s3:// is, if not at Amazon"),
    "region": ("AWS_REGION", "NAME", "the buckets' region"),
    "profile": ("AWS_PROFILE", "NAME", "whose credentials to use"),
}


def add_access(parser: argparse.ArgumentParser) -> None:
    """The options that say where s3:// is and as whom to ask, each in place of a variable of the AWS environment."""
    group = parser.add_argument_group("object storage", "credentials come from the usual AWS environment, on every node")
    for option, (variable, metavar, what) in ACCESS.items():
        group.add_argument(f"--{option}", metavar=metavar, help=f"{what} (default: {variable})")


def use_access(options: argparse.Namespace) -> dict[str, str]:
    """Set what was asked for in this process's environment, and return it, for actors on other machines to set."""
    asked = {variable: getattr(options, option.replace("-", "_")) for option, (variable, _, _) in ACCESS.items()}
    found = {variable: value for variable, value in asked.items() if value is not None}
    if "AWS_REGION" in found:
        found["AWS_DEFAULT_REGION"] = found["AWS_REGION"]  # botocore reads this one
    os.environ.update(found)
    return found


def without_access(command: Sequence[str]) -> list[str]:
    """A command line as a run record may show it."""
    shown, hide = [], False
    for word in command:
        name, _, value = word.removeprefix("--").partition("=")
        ours = word.startswith("--") and name in ACCESS
        shown.append("..." if hide else f"--{name}=..." if ours and value else word)
        hide = ours and not value
    return shown


def ray_address() -> str:
    """Where Ray is: the cluster that RAY_ADDRESS names, or `local` for an embedded one."""
    return os.environ.get("RAY_ADDRESS") or "local"


def in_submitted_job() -> bool:
    """Whether this process runs in Ray's copy of the working directory, which is gone after the job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def secure_embedded_ray() -> None:
    """Give an embedded Ray a token of its own; call it before Ray is imported, since Ray reads its settings then.

    Ray's ports listen on every interface, and with authentication off whoever reaches them runs code here. A cluster is
    joined with the token that its user has set. Usage statistics are off.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if ray_address() == "local":
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
