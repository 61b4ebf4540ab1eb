"""Start an embedded Ray or join a cluster, safely, and know what it has."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.deadlines import NODE_TIMEOUT_S, TELL_EVERY_S
from cluster.environment import PROJECT, Device, Node, in_submitted_job, ray_address
from pipeline.errors import Refused
from pipeline.imagery import storage
from pipeline.models.engine import choose_device, describe_device

OBJECT_STORE_BYTES = 128 * 2**20  # no pixel goes through it: only plans, offsets and counts
START_TIMEOUT_S = 60.0
STARTS = 3  # of an embedded Ray
CONNECT_TIMEOUT_S = 5.0
HEAD_EVERY_S = 5.0
RECONNECT, RECONNECT_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0  # how Ray spells it, and its default


@contextmanager
def ray_session() -> Iterator[list[Node]]:
    """Join the cluster that RAY_ADDRESS names, or start an embedded Ray, and leave or end it. Yields its nodes.

    `secure_embedded_ray` comes before. Raises Refused where the cluster cannot be joined.
    """
    address = ray_address()
    options: dict[str, Any] = {}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        options["_system_config"] = {"prestart_worker_first_driver": False}  # actors have an environment of their own, and processes
    if not in_submitted_job():  # which has its working directory already
        options["runtime_env"] = {"working_dir": str(PROJECT)}
    _check_answers(address)
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        _init(address, options)
    except SystemExit:  # of Ray's own handler, which it has put in the place of the job's
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield alive_nodes()
    finally:
        ray.shutdown()


def _init(address: str, options: dict[str, Any]) -> None:
    """Join a Ray, or start one here: it gives its processes 30 s, on a machine however busy, and so is tried again."""
    starts = STARTS if address == "local" else 1
    for number in range(starts):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception as error:  # Ray raises the base class itself where it was too slow
            ray.shutdown()
            reason = " ".join(str(error).split())[:200]
            if address != "local":
                fix = "check RAY_ADDRESS and RAY_AUTH_TOKEN, or unset RAY_ADDRESS"
                if "Version mismatch" in reason:
                    fix = "use the cluster's versions here, or submit the job: python -m cluster.submit -- python jobs/..."
                raise Refused(f"cannot join Ray at {address}: {reason}; {fix}") from None
            if number == starts - 1:
                raise RuntimeError(f"Ray did not start on this machine in {starts} tries: {reason}") from None


def _check_answers(address: str) -> None:
    """Raise Refused where nothing listens at `host:port`: Ray itself would wait for minutes."""
    if not _names_host(address):
        return
    try:
        _connect(address)
    except OSError as error:
        raise Refused(f"cannot join Ray at {address}: {error.strerror or error}; check RAY_ADDRESS, or unset it") from None


def _names_host(address: str) -> bool:
    return address.rpartition(":")[2].isdigit()  # not local or auto


def _connect(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()


class Head:
    """The head of the Ray that was joined. Ray ends a driver without a word once its head has not answered for so many seconds
    as RECONNECT says; a driver that looks for itself ends before, and says why."""

    def __init__(self) -> None:
        self._address = address if _names_host(address := ray_address()) else ray.get_runtime_context().gcs_address
        self._patience_s = 0.75 * float(os.environ.get(RECONNECT, RECONNECT_S))
        self._answered = self._asked = time.monotonic()
        self._reason: object = None

    def check(self) -> None:
        """Ask it, if that is due. Raises RuntimeError where it has not answered for too long."""
        if time.monotonic() - self._asked >= HEAD_EVERY_S:
            self.answers()
        if (silent_s := self._asked - self._answered) > self._patience_s:
            raise RuntimeError(f"Ray's head at {self._address} has not answered for {silent_s:.0f} s ({self._reason})")

    def answers(self) -> bool:
        """Ask it now: what Ray itself asks a head that is gone blocks until Ray ends the driver."""
        self._asked = time.monotonic()
        try:
            _connect(self._address)
            self._answered = self._asked
        except OSError as error:
            self._reason = error.strerror or error
            return False
        return True


def find_device(nodes: Sequence[Node], gpus: float | None = None) -> Device:
    """The device of this cluster's actors, as one of its nodes describes it: GPUs where there are any, else CPU cores.

    `gpus` is what an actor was said to have. Where no node has what is needed yet, one is waited for, which an autoscaler adds.
    """
    if gpus is None:
        nodes = await_node(nodes)
    if gpus or (gpus is None and any(node.gpus for node in nodes)):
        wanted = gpus or 1.0
        if ray_address() == "local" and sum(node.gpus for node in nodes) < wanted:
            raise Refused(f"--gpus-per-worker {wanted:g}: this machine has {sum(node.gpus for node in nodes)} GPUs")
        describe = ray.remote(num_cpus=0, num_gpus=wanted)(describe_device)
        return Device("cuda", _patiently(describe.remote("cuda"), f"no node has {wanted:g} GPU free"), wanted)
    if len(nodes) == 1 and nodes[0].node_id == ray.get_runtime_context().get_node_id() and choose_device() == "cpu":
        return Device("cpu", describe_device("cpu"))
    describe = ray.remote(num_cpus=1)(describe_device)
    return Device("cpu", _patiently(describe.remote("cpu"), "no node has a core free"))


def await_node(nodes: Sequence[Node]) -> Sequence[Node]:
    """The nodes, when there is one with cores or GPUs: a cluster that has let all of them go is asked for one. Raises Refused."""
    if any(node.cpus or node.gpus for node in nodes):
        return nodes
    _patiently(ray.remote(num_cpus=1)(describe_device).remote("cpu"), "the cluster has no node with cores or GPUs for workers")
    return alive_nodes()


def await_room(number: int, needs: Mapping[str, float], missing: str) -> Sequence[Node]:
    """The nodes, when there is room for so many workers at once, for which an autoscaler adds some. Raises Refused."""
    group = placement_group([dict(needs)] * number)
    try:
        _patiently(group.ready(), missing)
    finally:
        remove_placement_group(group)
    return alive_nodes()


def _patiently(answer: Any, missing: str) -> Any:
    """What a task answers that may wait for a node to come. Says what it waits for; raises Refused after NODE_TIMEOUT_S."""
    began = time.monotonic()
    while not ray.wait([answer], timeout=TELL_EVERY_S)[0]:
        if time.monotonic() - began > NODE_TIMEOUT_S:
            ray.cancel(answer)
            raise Refused(f"{missing}, and none came within {NODE_TIMEOUT_S:.0f} s")
        print(f"waiting for a node, for up to {NODE_TIMEOUT_S:.0f} s: {missing}", file=sys.stderr, flush=True)
    return ray.get(answer)


def check_paths(nodes: Sequence[Node], inputs: Sequence[str], out: str) -> None:
    """Raise Refused, naming the node and the path, where a node of several cannot see a local input or the output's folder."""
    if len(nodes) < 2:
        return
    look = ray.remote(num_cpus=0)(_missing)
    asked = {
        node.name: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote(list(inputs), out)
        for node in nodes
    }
    for name, answer in asked.items():
        missing = _get(answer, f"look at its files ({name})")
        if missing:
            raise Refused(f"{missing[0]}: node {name} does not see it: use a folder that all nodes share")


def _missing(inputs: list[str], out: str) -> list[str]:
    local = [path for path in inputs if isinstance(storage.place_of(path), Path)]
    place = storage.place_of(out)
    if isinstance(place, Path):
        parent = place
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        local.append(str(parent if parent != parent.parent else place))
    return [path for path in local if not os.path.exists(path)]


def _get(answer: Any, what: str) -> Any:
    try:
        return ray.get(answer, timeout=START_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        raise Refused(f"the cluster did not {what} within {START_TIMEOUT_S:.0f} s: are its nodes free?") from None


def alive_nodes() -> list[Node]:
    """The nodes that Ray has now."""
    return [
        Node(
            node["NodeID"], node["NodeName"], int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)),
            int(node["Resources"].get("memory", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]  # fmt: skip
