"""The cluster launcher's configurations, taken by Ray's own code as `ray up` takes them; Amazon is moto."""

from __future__ import annotations

import copy
import logging
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

from tests.cluster.dockerfile import read_stages
from tests.processes import PROJECT

FOLDER = PROJECT / "cluster" / "launcher"
NAMES = ["aws", "onprem"]
VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
A_SHARD = {"CPU": 1.0, "GPU": 1.0, "memory": 8e9}  # as cluster/actors.py asks


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def prepared(name: str) -> dict[str, Any]:
    """The configuration with Ray's defaults, as its schema accepts it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(name))
    validate_config(config)
    return config


@pytest.mark.parametrize("name", NAMES)
def test_ray_accepts_it(name: str):
    config = prepared(name)
    assert config["docker"]["image"] == f"registry.example/tilewright:{VERSION}"
    commands = [config[key] for key in config if key.endswith(("setup_commands", "initialization_commands"))]
    assert commands and not any(commands), "Ray's defaults would install another Ray"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["head_nodes", "max_worker"])
def test_a_misspelt_key_is_refused(name: str, key: str):
    import jsonschema
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(jsonschema.ValidationError, match=key):
        validate_config(prepared(name) | {key: 1})


def started(config: dict[str, Any], kind: str) -> dict[str, Any]:
    """The options of `ray start` in a configuration, as Ray's command line parses them."""
    from ray.scripts.scripts import start

    line = config[f"{kind}_start_ray_commands"][-1]
    words = shlex.split(line[line.index("ray start") :])[2:]
    return start.make_context("start", words).params


@pytest.mark.parametrize("name", NAMES)
def test_what_nodes_are_started_with(name: str):
    head, worker = (started(prepared(name), kind) for kind in ("head", "worker"))
    assert head["head"] and head["num_cpus"] == 0 and head["autoscaling_config"] and head["disable_usage_stats"]
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["metrics_export_port"] == worker["metrics_export_port"] == 8080
    assert worker["address"] == "$RAY_HEAD_IP:6379" and worker["num_cpus"] is None


@pytest.mark.parametrize("name", NAMES)
def test_the_token_is_in_no_file_of_ours(name: str):
    config = prepared(name)
    ((inside, outside),) = config["file_mounts"].items()
    assert (
        outside == "~/.tilewright" and inside == f"{read_stages(PROJECT / 'cluster/image/Dockerfile')[1].environment()['HOME']}/.tilewright"
    )
    assert not re.search(r"[0-9a-f]{16}", (FOLDER / f"{name}.yaml").read_text().replace("ami-" + 17 * "0", ""))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["head", "worker"])
def test_the_commands_reach_ray_through_ssh_and_docker(name: str, kind: str, tmp_path: Path):
    """By Ray's command runner, with ssh and docker that only hand on what they are told: four shells unquote it."""
    from ray.autoscaler._private.command_runner import DockerCommandRunner
    from ray.autoscaler._private.util import with_head_node_ip

    (tmp_path / ".tilewright").mkdir()
    (tmp_path / ".tilewright/token").write_text("a-token\n")
    (tmp_path / ".bashrc").touch()
    tools = tmp_path / "tools"
    tools.mkdir()
    write_tool(tools / "ray", 'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN $*" >> "$HOME/seen"')
    write_tool(tools / "docker", 'case "$1" in exec) shift; while [ "$1" != /bin/bash ]; do shift; done; exec "$@";; inspect) ;; esac')
    (tmp_path / ".profile").write_text(f"export PATH={tools}:$PATH\n")
    config = prepared(name)

    class Hands:
        """What starts processes for Ray: here the far end of ssh is a shell of our own."""

        def check_call(self, words: list[str], **_: Any) -> None:
            self.check_output(words)

        def check_output(self, words: list[str], **_: Any) -> bytes:
            far = words[next(number for number, word in enumerate(words) if word.endswith("@192.0.2.1")) + 1 :]
            environment = {"HOME": str(tmp_path), "PATH": f"{tools}:/usr/bin:/bin"}
            return subprocess.run(["bash", "-c", " ".join(far)], env=environment, capture_output=True, check=True).stdout

    class Provider:
        def internal_ip(self, _: str) -> str:
            return "192.0.2.1"

    runner = DockerCommandRunner(
        config["docker"], log_prefix="", node_id="node", provider=Provider(), auth_config={"ssh_user": "ubuntu"},
        cluster_name="tilewright", process_runner=Hands(), use_internal_ip=True,
    )  # fmt: skip
    runner.home_dir = str(tmp_path)
    for command in with_head_node_ip(config[f"{kind}_start_ray_commands"], "192.0.2.10"):
        runner.run(command)
    stop, start = (tmp_path / "seen").read_text().splitlines()
    assert stop.split() == ["stop"] and start.startswith("token a-token start ")
    assert ("--address=192.0.2.10:6379" in start) == (kind == "worker") and ("--head" in start) == (kind == "head")


def write_tool(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/bash\n{line}\n")
    path.chmod(0o755)


def test_onprem_is_all_its_machines():
    config = prepared("onprem")
    node_type = config["available_node_types"][config["head_node_type"]]
    assert node_type["min_workers"] == node_type["max_workers"] == len(config["provider"]["worker_ips"]) == config["max_workers"]
    assert all(ip.startswith("192.0.2.") for ip in [config["provider"]["head_ip"], *config["provider"]["worker_ips"]]), "for documentation"


@pytest.fixture(scope="module")
def amazon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """An account with the two instance profiles, and the configuration after all that `ray up` asks of it before it starts the head."""
    from ray.autoscaler._private.aws import config as aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.aws.utils import resource_cache

    config = prepared("aws")
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # where the SSH key is written
        resource_cache.cache_clear()
        iam = boto3.client("iam")
        for profile in ("tilewright-head", "tilewright-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        config = aws.bootstrap_aws(config)
        yield AWSNodeProvider.fillout_available_node_types_resources(config)
    resource_cache.cache_clear()


def test_amazon_starts_its_nodes(amazon: dict[str, Any]):
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider = AWSNodeProvider(amazon["provider"], amazon["cluster_name"])
    for name, node_type in amazon["available_node_types"].items():
        provider.create_node(copy.deepcopy(node_type["node_config"]), {"ray-user-node-type": name}, 1)
    client = boto3.client("ec2", amazon["provider"]["region"])
    found = {}
    for reservation in client.describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            found[next(tag["Value"] for tag in instance["Tags"] if tag["Key"] == "ray-user-node-type")] = instance
    assert {name: one.get("InstanceLifecycle") for name, one in found.items()} == {
        "head": None, "gpu-spot": "spot", "gpu-on-demand": None
    }  # fmt: skip
    profiles = {name: one["IamInstanceProfile"]["Arn"].split("/")[-1] for name, one in found.items()}
    assert profiles == {"head": "tilewright-head", "gpu-spot": "tilewright-worker", "gpu-on-demand": "tilewright-worker"}
    for instance in found.values():
        volumes = [mapping["Ebs"]["VolumeId"] for mapping in instance["BlockDeviceMappings"]]
        (volume,) = client.describe_volumes(VolumeIds=volumes)["Volumes"]
        assert volume["Encrypted"] and volume["VolumeType"] == "gp3" and volume["Size"] >= 100


def test_amazons_head_takes_no_work_and_workers_have_gpus(amazon: dict[str, Any]):
    resources = {name: node_type["resources"] for name, node_type in amazon["available_node_types"].items()}
    assert resources["head"]["CPU"] == 0 and "GPU" not in resources["head"]
    assert resources["gpu-spot"] == resources["gpu-on-demand"] and resources["gpu-spot"]["GPU"] == 1
    assert resources["gpu-spot"]["CPU"] >= 2
    assert f"--env AWS_REGION={amazon['provider']['region']}" in amazon["docker"]["run_options"]


@pytest.mark.parametrize(
    ("shards", "failed", "expected"),
    [
        (1, [], {"gpu-spot": 1}),
        (4, [], {"gpu-spot": 4}),
        (3, ["gpu-spot"], {"gpu-on-demand": 3}),
        (100, [], {"gpu-spot": 12, "gpu-on-demand": 4}),
        (0, [], {}),
    ],
)
def test_nodes_are_asked_for_by_waiting_shards_spot_first(amazon: dict[str, Any], shards: int, failed: list[str], expected: dict[str, int]):
    """By the scheduler of Ray's autoscaler, version 2, with a head that runs."""
    from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    config = AutoscalingConfig(amazon, skip_content_hash=True)
    request = SchedulingRequest(
        node_type_configs=config.get_node_type_configs(), max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(A_SHARD) for _ in range(shards)]),
        recoverable_resource_availabilities=dict.fromkeys(failed, 0.0), disable_launch_config_check=True,
    )  # fmt: skip
    reply = ResourceDemandScheduler(AutoscalerEventLogger(logging.getLogger())).schedule(request)
    assert {launch.instance_type: launch.count for launch in reply.to_launch if launch.instance_type != "head"} == expected
