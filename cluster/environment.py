"""What must be known or set before Ray is imported; and what a cluster is made of, for modules that do not need Ray."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


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
    """What actors compute on: `kind` as torch names it, `description` as plans do."""

    kind: str
    description: str

    def slots(self, node: Node) -> int:
        """How many actors a node has room for: one a GPU, or one a core."""
        return node.gpus if self.kind == "cuda" else node.cpus


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
