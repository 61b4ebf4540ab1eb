"""The compose file: the specification's schema, and what its services promise each other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.processes import PROJECT, clean_environment, end_group, wait_for

FILE = PROJECT / "cluster" / "image" / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
NODES = ["head", "worker"]
SCHEMA = jsonschema.Draft7Validator(json.loads((PROJECT / "tests/cluster/schemas/compose-spec.json").read_text()))


def test_it_is_of_the_specification():
    SCHEMA.validate(COMPOSE)


@pytest.mark.parametrize("change", [{"comand": []}, {"healthcheck": {"retry": 1}}, {"ports": [{"publish": 1}]}])
def test_the_schema_refuses_what_is_misspelt(change: dict[str, Any]):
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate(COMPOSE | {"services": {"head": SERVICES["head"] | change}})


def test_everything_is_pinned_and_of_one_version():
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    constraints = dict(line.split("==") for line in (PROJECT / "constraints.txt").read_text().splitlines())
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images.pop("s3") == f"motoserver/moto:{constraints['moto']}", "the version that tests/servers.py tries"
    assert set(images.values()) == {f"tilewright:{version}"}
    assert (FILE.parent / SERVICES["head"]["build"]["context"] / SERVICES["head"]["build"]["dockerfile"]).resolve().exists()


def test_only_this_machine_reaches_it():
    assert all(port.startswith("127.0.0.1:") for service in SERVICES.values() for port in service.get("ports", []))
    assert not any(service.keys() & {"privileged", "network_mode", "cap_add", "pid"} for service in SERVICES.values())
    assert all(service["cap_drop"] == ["ALL"] for service in SERVICES.values())


def test_every_node_and_client_has_the_token_which_must_be_given():
    for name, service in SERVICES.items():
        if name != "s3":
            environment = service["environment"]
            assert environment["RAY_AUTH_MODE"] == "token" and environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
            assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert re.fullmatch(r"\$\{RAY_AUTH_TOKEN:\?[^$}]+\}", SERVICES["head"]["environment"]["RAY_AUTH_TOKEN"])


def started(name: str) -> dict[str, Any]:
    from ray.scripts.scripts import start

    assert SERVICES[name]["command"][:2] == ["ray", "start"]
    return start.make_context("start", SERVICES[name]["command"][2:]).params


def test_two_nodes_find_each_other():
    head, worker = started("head"), started("worker")
    assert head["head"] and head["num_cpus"] == 0 and worker["address"] == f"head:{head['port']}"
    assert head["block"] and worker["block"]
    assert head["metrics_export_port"] == worker["metrics_export_port"] == 8080
    published = SERVICES["head"]["ports"][0].split(":")[-1]
    assert SERVICES["submit"]["environment"]["RAY_API_SERVER_ADDRESS"] == f"http://head:{published}"
    assert SERVICES["submit"]["entrypoint"] == ["python", "-m", "cluster.submit", "--"]


def test_the_store_is_where_nodes_look_for_it():
    endpoint = SERVICES["worker"]["environment"]["AWS_ENDPOINT_URL"]
    assert endpoint == f"http://s3:{SERVICES['s3']['ports'][0].split(':')[-1]}"


def test_who_waits_for_whom():
    for name, service in SERVICES.items():
        for other, waits in service.get("depends_on", {}).items():
            healthy = waits["condition"] == "service_healthy"
            assert ("healthcheck" in SERVICES[other]) == healthy, f"{name} waits for {other}"


class Machines:
    """Each service in a network of its own on one bridge, with the environment, commands and ports of the compose file."""

    def __init__(self) -> None:
        names = ["head", "worker", "s3", "submit"]
        self.spaces = {name: f"tilec{os.getpid() % 10_000}{name[0]}{name[1]}" for name in names}
        self.addresses = {name: f"10.78.{os.getpid() % 250}.{number}" for number, name in enumerate(names, 1)}
        self.started: list[subprocess.Popen[bytes]] = []

    def plug(self) -> None:
        head = self.spaces["head"]
        for name, space in self.spaces.items():
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
            end = "bridge" if name == "head" else "eth0"
            if name == "head":
                ip("-n", head, "link", "add", end, "type", "bridge")
            else:
                ip("-n", head, "link", "add", name, "type", "veth", "peer", "name", end, "netns", space)
                ip("-n", head, "link", "set", name, "master", "bridge", "up")
            ip("-n", space, "address", "add", f"{self.addresses[name]}/24", "dev", end)
            ip("-n", space, "link", "set", end, "up")
            ip("-n", space, "route", "add", "default", "dev", end)  # Ray asks it for the node's address

    def unplug(self) -> None:
        for process in self.started:
            end_group(process)
        for space in self.spaces.values():
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)

    def here(self, text: str) -> str:
        """With addresses in place of the services' names, which nobody resolves here."""
        for name, address in self.addresses.items():
            text = re.sub(rf"(?<![\w-]){name}(?=:\d)", address, text)
        return text

    def words(self, service: str, command: Sequence[str]) -> list[str]:
        private = 'mkdir -p /tmp/ray; mount -t tmpfs tmpfs /tmp/ray; exec "$@"'
        return ["ip", "netns", "exec", self.spaces[service], "unshare", "-m", "sh", "-c", private, "-", *map(self.here, command)]

    def environment(self, service: str) -> dict[str, str]:
        given = {name: self.here(value) for name, value in SERVICES[service].get("environment", {}).items()}
        return clean_environment(**given | {"RAY_AUTH_TOKEN": "a-token-that-is-long-enough"})

    def start(self, service: str, command: Sequence[str]) -> None:
        self.started.append(
            subprocess.Popen(
                self.words(service, command), cwd=PROJECT, env=self.environment(service), start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip

    def run(self, service: str, command: Sequence[str], like: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command in a service's network, with its environment or that of another one."""
        return subprocess.run(
            self.words(service, command), cwd=PROJECT, env=self.environment(like or service), capture_output=True, text=True,
            check=False, timeout=280,
        )  # fmt: skip

    def wait_until_healthy(self, service: str) -> None:
        check = SERVICES[service]["healthcheck"]
        assert check["test"][0] == "CMD"
        wait_for(lambda: self.run(service, check["test"][1:]).returncode == 0, 120, every=1)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[Machines]:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("only root makes networks")
    made = Machines()
    try:
        made.plug()
        yield made
    finally:
        made.unplug()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_commands_make_a_cluster_that_segments_the_demo(machines: Machines):
    """What `up` and `run submit` would start, in place of containers as processes of this environment."""
    machines.start("s3", [str(Path(sys.executable).parent / "moto_server"), "-H", "0.0.0.0", "-p", "5000"])  # as its image does
    machines.wait_until_healthy("s3")
    made = machines.run("submit", SERVICES["bucket"]["command"], like="bucket")
    assert made.returncode == 0, made.stderr
    for node in NODES:
        machines.start(node, SERVICES[node]["command"])
        machines.wait_until_healthy(node)
    job = ["jobs/segment_region.py", f"{PROJECT}/jobs/demo/zion/item.json", "--model", f"{PROJECT}/jobs/demo/model"]
    done = machines.run("submit", [*SERVICES["submit"]["entrypoint"], "python", *job, "--output", "s3://tilewright/demo"])
    assert done.returncode == 0, done.stdout + done.stderr
    listed = machines.run("submit", ["python", "-c", "import s3fs; print(s3fs.S3FileSystem().find('tilewright'))"])
    assert "/mask.tif" in listed.stdout, listed.stderr
