"""A head as KubeRay starts it from the manifests, under what its pod may: no capabilities, a root that cannot be written, its own ports."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.kustomize import Document, render
from tests.processes import PROJECT, clean_environment, descendants, end_group, wait_for

TOOLS = ("unshare", "nsenter", "setpriv", "ip")
MISSING = [tool for tool in TOOLS if not shutil.which(tool)] or (["root"] if os.geteuid() else [])
pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(600),
    pytest.mark.skipif(bool(MISSING), reason=f"namespaces of the kernel need {', '.join(MISSING)}"),
]  # fmt: skip

# The project stays where it is, also where that is in /tmp; a network of one, with an address for Ray to find.
POD = """set -e
mount --make-rprivate /
mount --bind "$PROJECT" /mnt
mount --bind "$FOLDER" /tmp
mkdir -p "$PROJECT"
mount --bind /mnt "$PROJECT"
mount -t tmpfs -o size=512m tmpfs /dev/shm
for place in / /mnt "$PROJECT"; do mount -o remount,ro,bind "$place"; done
ip link set lo up
ip link add eth0 type veth peer name nowhere
ip link set nowhere up
ip address add 10.0.0.2/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.0.1
cd "$PROJECT"
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def start_command(group: Document) -> str:
    """`ray start` as KubeRay 1.7 writes it for a head (ray-operator/controllers/ray/common/pod.go)."""
    flags = group["rayStartParams"] | {"block": "true", "no-monitor": "true", "dashboard-host": "0.0.0.0"}
    flags |= {"dashboard-agent-listen-port": "52365", "metrics-export-port": "8080"}
    return "ray start --head " + " ".join(f"--{name}" if value == "true" else f"--{name}={value}" for name, value in sorted(flags.items()))


@contextmanager
def pod(folder: Path, command: str, environment: dict[str, str]) -> Iterator[list[str]]:
    """Run a command in a pod's place, its output in pod.log; yields what puts another command into the same place."""
    log = (folder / "pod.log").open("w")
    alone = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        [*alone, "bash", "-c", POD, "pod", "/bin/bash", "-c", "--", command],
        env=environment, start_new_session=True, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        wait_for(lambda: descendants(process.pid), 10)
        yield ["nsenter", "--target", str(descendants(process.pid)[0]), "--mount", "--net", "--pid", f"--wd={PROJECT}"]
    finally:
        end_group(process)
        log.close()
        print((folder / "pod.log").read_text())


def test_a_head_starts_answers_its_probe_and_takes_a_job(tmp_path: Path):
    (cluster,) = (document for document in render(PROJECT / "cluster/kubernetes/overlays/dev") if document["kind"] == "RayCluster")
    head = cluster["spec"]["headGroupSpec"]
    said = {entry["name"]: entry["value"] for entry in head["template"]["spec"]["containers"][0]["env"]}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    slow = {"RAY_raylet_start_wait_time_s": "150", "RAY_agent_register_timeout_ms": "150000"}  # a busy machine; KubeRay would try again
    environment = clean_environment(PROJECT=str(PROJECT), FOLDER=str(tmp_path), **said, **token)
    with pod(tmp_path, start_command(head), environment | slow) as within:

        def asked(address: str) -> str:
            code = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{address}', timeout=5).read().decode())"
            done = subprocess.run([*within, sys.executable, "-c", code], capture_output=True, text=True, check=False)
            return done.stdout + done.stderr

        wait_for(lambda: "success" in asked("52365/api/healthz"), 240, every=2)
        assert "ray_" in asked("8080/metrics") and "ray_" in asked("44227/metrics")
        assert "401" in asked("8265/api/version")
        written = subprocess.run([*within, "touch", str(PROJECT / "x"), "/x"], capture_output=True, text=True, check=False)
        assert written.stderr.count("Read-only file system") == 2
        submit = [
            "ray",
            "job",
            "submit",
            "--address",
            "http://127.0.0.1:8265",
            "--runtime-env-json",
            json.dumps({"working_dir": str(PROJECT)}),
        ]
        job = [*submit, "--", "python", "jobs/segment_region.py", "--help"]
        done = subprocess.run([*within, *job], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "usage: segment_region.py" in done.stdout, done.stdout + done.stderr
