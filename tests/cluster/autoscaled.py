"""Nodes that Ray's autoscaler starts on this machine: its process loads this by name."""

from __future__ import annotations

import sys
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

GCS = "--gcs-address="


class NodesHere(FakeMultiNodeProvider):
    """Ray's own provider, told where the head is; it would look at the default port, and takes a node's memory for a custom resource."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str):
        head = next(word.removeprefix(GCS) for word in sys.argv if word.startswith(GCS))
        super().__init__(provider_config | {"gcs_address": head}, cluster_name)

    def _create_node_with_resources_and_labels(self, node_config: Any, tags: Any, count: int, resources: Any, labels: Any) -> None:
        others = {name: amount for name, amount in resources.items() if name != "memory"}
        super()._create_node_with_resources_and_labels(node_config, tags, count, others, labels)
