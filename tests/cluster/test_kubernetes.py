"""The manifests for Kubernetes: valid for API server and operator, of one piece, locked down, and in agreement with jobs and image."""

from __future__ import annotations

import copy
import importlib
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from cluster import job as outcomes
from cluster.monitor_config import read_watch
from tests.cluster.kustomize import Document, containers, render
from tests.cluster.manifests import KUBERAY, complaints

PROJECT = Path(__file__).parents[2]
MANIFESTS = PROJECT / "cluster/kubernetes"
OVERLAYS = ("overlays/gpu", "overlays/cpu", "overlays/dev")
JOBS = ("jobs/segment", "jobs/train", "jobs/monitor")
USERS_SECRETS = {"tilewright-ray": {"auth_token"}, "tilewright-redis": {"password"}, "tilewright-s3": set()}  # as README.md says
SYSTEM_LABELS = {"kubernetes.io/metadata.name", "k8s-app", "app.kubernetes.io/name"}  # of namespaces and pods that are not ours
DAY_S = 86400

every_folder = pytest.mark.parametrize("folder", (*OVERLAYS, *JOBS))
every_overlay = pytest.mark.parametrize("folder", OVERLAYS)
every_job = pytest.mark.parametrize("folder", JOBS)


@cache
def _rendered(folder: str) -> str:
    return json.dumps(render(MANIFESTS / folder))


def rendered(folder: str) -> list[Document]:
    return json.loads(_rendered(folder))


def only(documents: list[Document], kind: str, name: str | None = None) -> Document:
    (found,) = (document for document in documents if document["kind"] == kind and name in (None, document["metadata"]["name"]))
    return found


def clusters(documents: list[Document]) -> Iterator[Document]:
    """The spec of each RayCluster, also of one that a job brings along."""
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "RayCluster":
            yield spec
        elif document["kind"] in ("RayJob", "RayCronJob"):
            yield spec.get("jobTemplate", spec)["rayClusterSpec"]


def pods(document: Any) -> Iterator[Document]:
    """Every pod template, wherever it is."""
    if isinstance(document, dict):
        if "containers" in document.get("spec", {}):
            yield document
        for value in document.values():
            yield from pods(value)
    elif isinstance(document, list):
        for item in document:
            yield from pods(item)


# Valid


@every_folder
@pytest.mark.parametrize("kuberay", KUBERAY)
def test_an_api_server_would_take_every_object(folder: str, kuberay: str):
    found = {complaint for document in rendered(folder) for complaint in complaints(document, kuberay)}
    newer = {complaint for complaint in found if "'priority' was unexpected" in complaint and kuberay == "1.6.0"}  # workers.yaml says so
    assert found == newer
    assert len(newer) == (kuberay == "1.6.0" and folder in ("overlays/gpu", "jobs/segment", "jobs/monitor"))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("RayCluster", lambda spec: spec.update(rayVersoin="2.60.0")),
        ("RayCluster", lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].update(volumeMount=[])),
        ("RayCluster", lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0})),
        ("RayCluster", lambda spec: spec["workerGroupSpecs"][0].pop("groupName")),
        ("RayCluster", lambda spec: spec["workerGroupSpecs"][0].update(minReplicas="0")),
        ("RayCluster", lambda spec: next(containers(spec["workerGroupSpecs"]))["resources"]["limits"].update(cpu="7x")),
        ("RayCluster", lambda spec: spec["autoscalerOptions"].update(version="v3")),
        ("CronJob", lambda spec: spec["jobTemplate"]["spec"]["template"]["spec"].update(securitycontext={})),
        ("CronJob", lambda spec: spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"].pop("values")),
        ("CronJob", lambda spec: spec["jobTemplate"]["spec"]["template"]["spec"]["volumes"].append({"name": "tmp", "emptyDir": {}})),
        ("StatefulSet", lambda spec: spec["template"]["spec"]["containers"][0].update(imagePullPolice="Always")),
        ("PodMonitor", lambda spec: spec["podMetricsEndpoints"][0].update(ports="metrics")),
    ],
)
def test_what_is_wrong_in_any_place_is_refused(kind: str, wrong: Callable[[Document], Any]):
    document = only(rendered("overlays/gpu"), kind)
    assert not complaints(document)
    wrong(document["spec"])
    assert len(complaints(document)) == 1


@every_folder
def test_it_is_what_kustomize_renders(folder: str):
    command = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    if not shutil.which(command[0]):
        pytest.skip("neither kubectl nor kustomize is here: only the tests' own renderer was used")
    done = subprocess.run([*command, str(MANIFESTS / folder)], capture_output=True, text=True, check=True)

    def by_name(documents: list[Document]) -> list[Document]:
        return sorted(documents, key=lambda document: (document["kind"], document["metadata"]["name"]))

    assert by_name(list(yaml.safe_load_all(done.stdout))) == by_name(rendered(folder))


@every_folder
def test_the_operator_would_take_every_ray_cluster(folder: str):
    """What KubeRay 1.7 refuses beyond its schema, in as far as it is used here (ray-operator/controllers/ray/utils/validation.go)."""
    for spec in clusters(rendered(folder)):
        assert spec["authOptions"] == {"mode": "token", "secretName": "tilewright-ray"}
        assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
        groups = spec["workerGroupSpecs"]
        assert len({group["groupName"] for group in groups}) == len(groups) > 0
        for group in (spec["headGroupSpec"], *groups):
            assert "restartPolicy" not in group["template"]["spec"]  # with this autoscaler the operator sets Never
            assert not {"labels", "redis-password", "redis-username"} & group["rayStartParams"].keys()
            assert not {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & {entry["name"] for entry in next(containers(group))["env"]}
        assert all(0 <= group["minReplicas"] <= group["maxReplicas"] for group in groups)
        assert all("replicas" not in group for group in groups), "it is the autoscaler's: applied again, it would end workers"


@every_job
def test_the_operator_would_take_every_job(folder: str):
    (document,) = rendered(folder)
    name, spec = document["metadata"]["name"], document["spec"].get("jobTemplate", document["spec"])
    assert len(name) <= (36 if document["kind"] == "RayCronJob" else 47)
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"] > 0
    assert isinstance(yaml.safe_load(spec["runtimeEnvYAML"]), dict)
    assert not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} & spec.keys()  # not with deletionRules
    assert "clusterSelector" not in spec  # not with backoffLimit
    seconds: dict[tuple[str, str], dict[str, int]] = {}
    for rule in spec["deletionStrategy"]["deletionRules"]:
        (state,) = ((key, value) for key, value in rule["condition"].items() if key != "ttlSeconds")
        assert rule["policy"] != "DeleteWorkers"  # not with the autoscaler
        assert rule["policy"] not in seconds.setdefault(state, {})
        seconds[state][rule["policy"]] = rule["condition"]["ttlSeconds"]
    assert all("DeleteCluster" in rules and rules.get("DeleteSelf", DAY_S) >= rules["DeleteCluster"] for rules in seconds.values())
    assert seconds.keys() == {("jobStatus", "SUCCEEDED"), ("jobStatus", "FAILED"), ("jobDeploymentStatus", "Failed")}


def test_a_job_brings_the_cluster_of_its_overlay():
    (segment,), (train,), (monitor,) = (rendered(folder) for folder in JOBS)
    expected = only(rendered("overlays/gpu"), "RayCluster")["spec"]
    assert segment["spec"]["rayClusterSpec"] == monitor["spec"]["jobTemplate"]["rayClusterSpec"] == expected
    (group,) = train["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    words = shlex.split(train["spec"]["entrypoint"])
    assert group["groupName"] == "gpu-on-demand"
    assert group["minReplicas"] == group["maxReplicas"] == int(words[words.index("--workers") + 1])


# Ray


@every_overlay
def test_ray_s_autoscaler_reads_what_nodes_there_are(folder: str):
    cluster = only(rendered(folder), "RayCluster")
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert types.pop("headgroup")["resources"]["CPU"] == 0
    for name, node in types.items():
        assert node["resources"].get("GPU", 0) == name.startswith("gpu")
        assert node["resources"]["CPU"] >= 1
        assert node["min_workers"] == (folder == "overlays/dev")


@pytest.mark.parametrize(("spot", "expected"), [(1.0, {"gpu-spot": 100, "gpu-on-demand": 3}), (0.0, {"gpu-on-demand": 8, "gpu-spot": 95})])
def test_spot_nodes_are_asked_for_first_and_others_where_they_cannot_be_had(spot: float, expected: dict[str, int]):
    types = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(only(rendered("overlays/gpu"), "RayCluster")), skip_content_hash=True)
    actor = {"CPU": 1, "GPU": 1, "memory": 16 * 2**30}
    request = SchedulingRequest(
        disable_launch_config_check=True, node_type_configs=types.get_node_type_configs(), max_num_nodes=types.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(actor)] * 103),
        recoverable_resource_availabilities={"gpu-spot": spot},
    )  # fmt: skip
    reply = ResourceDemandScheduler().schedule(request)
    assert {launch.instance_type: launch.count for launch in reply.to_launch} == expected


@every_folder
def test_memory_is_shared_out_within_the_limit(folder: str):
    for spec in clusters(rendered(folder)):
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod, parameters = group["template"]["spec"], group["rayStartParams"]
            store, limit = int(parameters["object-store-memory"]), quantity(pod["containers"][0]["resources"]["limits"]["memory"])
            (shm,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
            assert shm["medium"] == "Memory" and 75 * 2**20 <= store < quantity(shm["sizeLimit"])  # Ray's least
            if group is not spec["headGroupSpec"]:
                assert int(parameters["memory"]) + quantity(shm["sizeLimit"]) + 2**29 <= limit, "Ray's own processes take half a GiB"


def quantity(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 2**20, "Gi": 2**30}[unit]


# Of one piece


@every_folder
def test_what_is_named_is_there_or_is_the_user_s_to_create(folder: str):
    overlay = rendered(folder) + (rendered("overlays/gpu") if folder in JOBS else [])
    names = {(document["kind"], document["metadata"]["name"]) for document in overlay}
    for key, value in fields(rendered(folder)):
        if key in ("secretKeyRef", "secretRef"):
            assert value["name"] in USERS_SECRETS
            assert value.get("optional") or value["key"] in USERS_SECRETS[value["name"]]
        elif key == "secretName":
            assert value in USERS_SECRETS
        elif key == "configMap":
            assert ("ConfigMap", value["name"]) in names
        elif key == "claimName":
            assert ("PersistentVolumeClaim", value) in names
        elif key == "serviceAccountName":
            assert ("ServiceAccount", value) in names
        elif key == "redisAddress":
            service, port = value.split(":")
            assert port in [str(entry["port"]) for entry in only(overlay, "Service", service)["spec"]["ports"]]
    for pod in pods(rendered(folder)):
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])} | {"data"}  # a StatefulSet's claim
        mounts = {mount["name"] for container in pod["spec"]["containers"] for mount in container["volumeMounts"]}
        assert mounts <= volumes


def fields(document: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(document, dict):
        for key, value in document.items():
            yield key, value
            yield from fields(value)
    elif isinstance(document, list):
        for item in document:
            yield from fields(item)


@every_overlay
def test_what_is_selected_is_there(folder: str):
    documents = rendered(folder)
    labels = [pod["metadata"]["labels"] for document in documents for pod in pods(document.get("spec"))]
    for document in documents:
        selectors = [value for key, value in fields(document) if key in ("podSelector", "selector") and value]
        for selector in selectors:
            wanted = selector if document["kind"] == "Service" else selector.get("matchLabels", {})
            if not SYSTEM_LABELS & wanted.keys():
                assert any(wanted.items() <= found.items() for found in labels), f"{document['metadata']['name']}: {wanted}"
            for expression in selector.get("matchExpressions", []):
                assert set(expression["values"]) <= {found[expression["key"]] for found in labels}


def test_prometheus_finds_the_ports_it_asks_for():
    documents = rendered("overlays/gpu")
    ports = {port["name"]: port["containerPort"] for found in containers(only(documents, "RayCluster")) for port in found.get("ports", [])}
    asked = [endpoint["port"] for endpoint in only(documents, "PodMonitor")["spec"]["podMetricsEndpoints"]]
    let_in = only(documents, "NetworkPolicy", "prometheus")["spec"]["ingress"][0]["ports"]
    assert [ports[name] for name in asked] == [entry["port"] for entry in let_in] == [8080, 44217, 44227]


@every_folder
def test_all_is_in_one_namespace(folder: str):
    documents = rendered(folder)
    assert {document["metadata"].get("namespace") for document in documents if document["kind"] != "Namespace"} == {"tilewright"}


# Locked down


@every_folder
def test_every_pod_meets_the_restricted_standard(folder: str):
    """Kubernetes' Pod Security Standard `restricted`, which the namespace enforces; and nothing but /tmp and volumes can be written."""
    documents = rendered(folder)
    sidecars = [spec["autoscalerOptions"] for spec in clusters(documents)]  # KubeRay makes a container of it, in the head
    for pod in pods(documents):
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] > 0 and context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys()
        assert not any("hostPath" in volume for volume in pod["spec"].get("volumes", []))
        for container in (*pod["spec"]["containers"], *sidecars):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert {"/tmp", "/data"} & {mount["mountPath"] for mount in container["volumeMounts"]}
            assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]
        if pod["metadata"]["labels"]["app.kubernetes.io/component"] != "ray-head":  # whose autoscaler needs it
            assert pod["spec"]["automountServiceAccountToken"] is False
    if folder in OVERLAYS:
        assert only(documents, "Namespace")["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}


@every_folder
def test_no_secret_is_in_the_tree(folder: str):
    documents = rendered(folder)
    assert not [document for document in documents if document["kind"] == "Secret"]
    for container in containers(documents):
        for entry in container.get("env", []):
            assert "valueFrom" in entry or not re.search("TOKEN|PASSWORD|SECRET|ACCESS_KEY", entry["name"])


Peer = tuple[str, dict[str, str]]  # the name of a pod's namespace, and its labels


def ours(component: str) -> Peer:
    return "tilewright", {"app.kubernetes.io/part-of": "tilewright", "app.kubernetes.io/component": component}


HEAD, WORKER, SUBMITTER, REDIS = map(ours, ("ray-head", "ray-worker", "submitter", "redis"))
OPERATOR = ("kuberay-operator", {"app.kubernetes.io/name": "kuberay-operator"})
PROMETHEUS, DNS, STRANGER = ("monitoring", {}), ("kube-system", {"k8s-app": "kube-dns"}), ("default", {"app": "other"})


@pytest.mark.parametrize(
    ("source", "target", "port", "expected"),
    [
        (HEAD, WORKER, 10002, True), (WORKER, HEAD, 6379, True), (WORKER, WORKER, 30000, True),
        (SUBMITTER, HEAD, 8265, True), (SUBMITTER, HEAD, 6379, False), (SUBMITTER, HEAD, 10001, False), (SUBMITTER, WORKER, 8265, False),
        (OPERATOR, HEAD, 8265, True), (OPERATOR, HEAD, 10001, False), (OPERATOR, WORKER, 8265, False),
        (STRANGER, HEAD, 8265, False), (STRANGER, WORKER, 8080, False), (ours("other"), HEAD, 8265, False),
        (("default", HEAD[1]), WORKER, 10002, False), (("default", OPERATOR[1]), HEAD, 8265, False),
        (PROMETHEUS, HEAD, 44217, True), (PROMETHEUS, WORKER, 8080, True), (PROMETHEUS, HEAD, 8265, False),
        (PROMETHEUS, REDIS, 6379, False), (REDIS, STRANGER, 443, False),
        (HEAD, REDIS, 6379, True), (WORKER, REDIS, 6379, False), (SUBMITTER, REDIS, 6379, False), (STRANGER, REDIS, 6379, False),
        (WORKER, DNS, 53, True), (SUBMITTER, DNS, 53, True), (WORKER, STRANGER, 80, False), (WORKER, STRANGER, 443, True),
    ],
)  # fmt: skip
def test_who_may_reach_whom(source: Peer, target: Peer, port: int, expected: bool):
    policies = [document["spec"] for document in rendered("overlays/gpu") if document["kind"] == "NetworkPolicy"]
    assert (let(policies, source, target, port, "Egress") and let(policies, target, source, port, "Ingress")) == expected


def test_nobody_unknown_is_let_in_whatever_they_may_send():
    policies = [document["spec"] for document in rendered("overlays/gpu") if document["kind"] == "NetworkPolicy"]
    assert not any(let(policies, pod, ours("other"), port, "Ingress") for pod in (HEAD, WORKER, REDIS) for port in (6379, 8265, 8080))


def let(policies: list[Document], pod: Peer, other: Peer, port: int, direction: str) -> bool:
    """Whether the policies on `pod` let it speak with `other`: in as far as these use the language of NetworkPolicy."""
    if pod[0] != "tilewright":
        return True
    mine = [policy for policy in policies if direction in policy["policyTypes"] and selects(policy["podSelector"], pod[1])]
    rules = [rule for policy in mine for rule in policy.get(direction.lower(), [])]
    side = {"Egress": "to", "Ingress": "from"}[direction]
    return any(
        any(is_peer(peer, other) for peer in rule[side]) and ("ports" not in rule or port in [entry["port"] for entry in rule["ports"]])
        for rule in rules
    )


def is_peer(peer: Document, other: Peer) -> bool:
    if "ipBlock" in peer:
        return peer == {"ipBlock": {"cidr": "0.0.0.0/0"}}
    namespace = peer.get("namespaceSelector", {"matchLabels": {"kubernetes.io/metadata.name": "tilewright"}})
    return selects(namespace, {"kubernetes.io/metadata.name": other[0]}) and selects(peer.get("podSelector", {}), other[1])


def selects(selector: Document, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    expressions = all(labels.get(item["key"]) in item["values"] for item in selector.get("matchExpressions", []))
    return expressions and selector.get("matchLabels", {}).items() <= labels.items()


# In agreement with the rest of the project


@every_folder
def test_versions_are_the_project_s(folder: str):
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    ray = re.search(r"^ray==(\S+)$", (PROJECT / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]
    assert {spec["rayVersion"] for spec in clusters(rendered(folder))} == {ray}
    image = "tilewright" if folder == "overlays/dev" else "registry.example/tilewright"
    assert {found["image"] for found in containers(rendered(folder)) if found["name"] != "redis"} == {f"{image}:{version}"}


@every_job
def test_a_job_s_command_is_one_that_the_job_takes(folder: str):
    (document,) = rendered(folder)
    parses(shlex.split(document["spec"].get("jobTemplate", document["spec"])["entrypoint"]))


def parses(words: list[str]) -> Any:
    """What the job's own parser makes of a command line; it exits where it takes none of it."""
    python, script, *options = words
    assert python == "python" and (PROJECT / script).is_file()
    return importlib.import_module(script.removesuffix(".py").replace("/", ".")).parse(options)


def test_the_timed_job_submits_what_the_head_can_read(monkeypatch: pytest.MonkeyPatch):
    documents = rendered("overlays/gpu")
    (submit,) = containers(only(documents, "CronJob"))
    pod = only(documents, "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    (head,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in submit["env"]}
    assert environment["RAY_API_SERVER_ADDRESS"] == f"http://{only(documents, 'RayCluster')['metadata']['name']}-head-svc:8265"
    assert {"name": "dashboard", "containerPort": 8265} in head["ports"]
    config = Path(parses(submit["args"]).config)
    (mount,) = (mount for mount in head["volumeMounts"] if mount["mountPath"] == str(config.parent))
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == mount["name"])
    assert config.name in only(documents, "ConfigMap", volume["configMap"]["name"])["data"]
    python, flag, module, *options = submit["command"]
    assert [python, flag, module, options[-1]] == ["python", "-m", "cluster.submit", "--"]
    submitter = pytest.importorskip("cluster.submit", reason="cluster.submit is not there yet")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", str(environment["RAY_API_SERVER_ADDRESS"]))
    parsed = submitter.parse([*options, *submit["args"]])
    assert parsed.command == submit["args"]
    assert parsed.deadline + 600 < only(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"]


def test_the_timed_job_heeds_exit_codes_and_never_overlaps():
    spec = only(rendered("overlays/cpu"), "CronJob")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    job = spec["jobTemplate"]["spec"]
    assert job["activeDeadlineSeconds"] + spec["startingDeadlineSeconds"] <= DAY_S, "or a run that is late would cost the next one"
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # which podFailurePolicy asks for
    (submit,) = job["template"]["spec"]["containers"]
    (codes,) = (rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    assert codes == {"containerName": submit["name"], "operator": "In", "values": [outcomes.REFUSED, outcomes.FAILED_ON_DATA]}
    assert outcomes.ERROR not in codes["values"] and job["backoffLimit"] > 0
    assert only(rendered("overlays/dev"), "CronJob")["spec"]["suspend"] is True


def test_the_region_that_is_watched_is_one_that_the_job_takes():
    watch = read_watch(MANIFESTS / "base/monitor.yaml")
    assert all(str(place).startswith("s3://") for place in (watch.scenes, watch.model, watch.parcels, watch.output))


def test_the_renderer_copies_and_does_not_share():
    before = rendered("overlays/gpu")
    groups = only(render(MANIFESTS / "overlays/gpu"), "RayCluster")["spec"]["workerGroupSpecs"]
    untouched = copy.deepcopy(groups[1])
    groups[0]["template"]["spec"]["containers"][0]["env"].clear()
    assert groups[1] == untouched == only(before, "RayCluster")["spec"]["workerGroupSpecs"][1]
