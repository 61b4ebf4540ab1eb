"""The compose file: the specification's schema, and what its services promise each other."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import jsonschema
import pytest
import yaml

from tests.processes import PROJECT

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
