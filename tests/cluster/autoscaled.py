"""A cluster whose nodes Ray's autoscaler starts on this machine, and ends; its process loads NodesHere by name."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from tests.processes import PROJECT, ray_head

GCS = "--gcs-address="
HEAD = "ray.head.default"  # by which name Ray's provider knows it
UNUSED = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands", "cluster_synced_files")


class NodesHere(FakeMultiNodeProvider):
    """Ray's own provider, told where the head is; it would look at the default port, and takes a node's memory for a custom resource."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str):
        head = next(word.removeprefix(GCS) for word in sys.argv if word.startswith(GCS))
        super().__init__(provider_config | {"gcs_address": head}, cluster_name)

    def _create_node_with_resources_and_labels(self, node_config: Any, tags: Any, count: int, resources: Any, labels: Any) -> None:
        others = {name: amount for name, amount in resources.items() if name != "memory"}
        super()._create_node_with_resources_and_labels(node_config, tags, count, others, labels)


@contextmanager
def autoscaling(folder: Path, most: int, **more: str) -> Iterator[dict[str, str]]:
    """A head without cores, and an autoscaler (its second version, as on Kubernetes) over at most so many nodes of one core.

    `more` is for the environment of all that it starts. Yields the environment of its users, as `ray_head` does.
    """
    a_node = {"resources": {"CPU": 1, "memory": 4 * 2**30, "object_store_memory": 2**27}, "node_config": {}, "max_workers": most}
    config = {
        "cluster_name": "tilewright", "max_workers": most, "idle_timeout_minutes": 0.1, "file_mounts": {}, "head_node_type": HEAD,
        "available_node_types": {HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, "worker": a_node},
        "provider": {
            "type": "external", "module": f"{__name__}.{NodesHere.__name__}", "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID, "disable_node_updaters": True,
        },
    } | {key: [] for key in UNUSED}  # fmt: skip
    (folder / "autoscaling.json").write_text(json.dumps(config))
    environment = more | {
        "PYTHONPATH": os.pathsep.join([*filter(None, [more.get("PYTHONPATH")]), str(PROJECT)]),
        "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }  # fmt: skip
    with ray_head(0, "127.0.0.1", f"--autoscaling-config={folder / 'autoscaling.json'}", **environment) as users:
        yield users
