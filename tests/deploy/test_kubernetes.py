"""The Kubernetes base is valid by the API's schemas and says what the code says."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from shared import models
from shared.settings import read
from shared.store import keys

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
LISTED: list[str] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text("utf-8"))["resources"]
DOCUMENTS: list[dict[str, Any]] = [
    document for name in LISTED for document in yaml.safe_load_all((FOLDER / name).read_text("utf-8"))
]
OF_KEDA = ("ScaledObject", "TriggerAuthentication")
PODS = {doc["metadata"]["name"]: doc["spec"]["template"] for doc in DOCUMENTS if doc["kind"] == "Deployment"}
SHARED = next(doc["data"] for doc in DOCUMENTS if doc["kind"] == "ConfigMap")


def test_every_file_is_listed() -> None:
    assert {file.name for file in FOLDER.glob("*.yaml")} == {*LISTED, "kustomization.yaml"}


@pytest.mark.parametrize(
    "document",
    [doc for doc in DOCUMENTS if doc["kind"] not in OF_KEDA],
    ids=lambda doc: f"{doc['kind']}-{doc['metadata']['name']}",
)
def test_the_api_takes_it(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, "1.31", strict=True)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_configured_as_the_code_reads_it(name: str) -> None:
    spec = PODS[name]["spec"]
    service = spec["containers"][0]
    given = {entry["name"]: entry.get("value", "redis://secret") for entry in service["env"]}
    settings = read({**SHARED, **given})
    assert service["envFrom"] == [{"configMapRef": {"name": "mesh"}}]
    assert spec["terminationGracePeriodSeconds"] > settings.shutdown_s + 5 > settings.job_deadline_s
    assert {"name": "metrics", "containerPort": settings.metrics_port} in service["ports"]
    assert name != "gateway" or {"name": "http", "containerPort": settings.port} in service["ports"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert service[probe]["httpGet"]["path"] in ("/livez", "/readyz")
        assert service[probe]["httpGet"]["port"] in {port["name"] for port in service["ports"]}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in spec["volumes"]}
    assert spec["securityContext"]["runAsNonRoot"] is True


def test_the_inference_worker_and_its_triton_share_memory() -> None:
    spec = PODS["inference-worker"]["spec"]
    assert [container["name"] for container in spec["containers"]] == ["inference-worker", "triton"]
    for container in spec["containers"]:
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]  # noqa: S108
    assert next(volume for volume in spec["volumes"] if volume["name"] == "shm")["emptyDir"]["medium"] == "Memory"


def test_scaling_follows_queues_that_exist_down_to_none() -> None:
    scaled = {doc["spec"]["scaleTargetRef"]["name"]: doc["spec"] for doc in DOCUMENTS if doc["kind"] == "ScaledObject"}
    assert set(scaled) == {"preprocess-worker", "inference-worker"}
    queues = {keys.queue(0, "preprocess"), *(keys.queue(0, f"inference:{model}") for model in models.load().models)}
    for spec in scaled.values():
        assert spec["minReplicaCount"] == 0
        for trigger in spec["triggers"]:
            assert trigger["type"] == "redis-streams"
            assert trigger["metadata"]["stream"] in queues
            assert trigger["metadata"]["consumerGroup"] == keys.GROUP
    deployments = {doc["metadata"]["name"]: doc["spec"] for doc in DOCUMENTS if doc["kind"] == "Deployment"}
    assert not any("replicas" in deployments[name] for name in scaled), "an apply would undo the scaling"


def test_selectors_find_their_pods() -> None:
    for document in DOCUMENTS:
        spec = document.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if document["kind"] in ("PodDisruptionBudget", "NetworkPolicy", "Service"):
            labels = selector.get("matchLabels", selector)
            found = [name for name, pod in PODS.items() if labels.items() <= pod["metadata"]["labels"].items()]
            assert found, document["metadata"]["name"]
