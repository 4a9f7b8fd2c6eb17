"""The Kubernetes files fit Kubernetes' own schemas and the code. There is no cluster here: what they name is looked up."""

import copy
import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import yaml
from starlette.routing import Route

from gateway.app import ROUTES
from inference_worker.batching import INFER_TIMEOUT_S
from shared import models
from shared.settings import Settings, read
from shared.store import keys

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text("utf-8")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
SCHEMAS = ("1.30", "1.34")
Thing = dict[str, Any]


def merged(base: Any, patch: Any) -> Any:
    """A strategic merge of the kind that is used here: tables by key, lists of named things by name, other lists as a whole."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {key: merged(base.get(key), value) for key, value in patch.items()}
    if isinstance(base, list) and isinstance(patch, list) and all("name" in each for each in (*base, *patch)):
        patches = {each["name"]: each for each in patch}
        kept = [merged(each, patches.pop(each["name"], {})) for each in base]
        return kept + list(patches.values())
    return copy.deepcopy(patch)


def rendered(folder: str) -> list[Thing]:
    """What `kustomize build` makes of a folder, as far as these files use it."""
    here = FOLDER / folder
    kustomization = yaml.safe_load((here / "kustomization.yaml").read_text("utf-8"))
    known = {"apiVersion", "kind", "namespace", "labels", "resources", "patches"}
    assert kustomization.keys() <= known, "the test does not know this"
    things: list[Thing] = []
    for resource in kustomization["resources"]:
        path = here / resource
        inside = path.is_dir()
        things += rendered(f"{folder}/{resource}") if inside else list(yaml.safe_load_all(path.read_text("utf-8")))
    for patch in kustomization.get("patches", []):
        change = yaml.safe_load((here / patch["path"]).read_text("utf-8"))
        (at,) = [at for at, each in enumerate(things) if each["kind"] == change["kind"] and name(each) == name(change)]
        things[at] = merged(things[at], change)
    for thing in things:
        if "namespace" in kustomization and thing["kind"] != "Namespace":
            thing["metadata"]["namespace"] = kustomization["namespace"]
        for label in kustomization.get("labels", []):
            thing["metadata"].setdefault("labels", {}).update(label["pairs"])
            if label.get("includeTemplates") and "template" in thing.get("spec", {}):
                thing["spec"]["template"]["metadata"].setdefault("labels", {}).update(label["pairs"])
    return things


def name(thing: Thing) -> str:
    return thing["metadata"]["name"]


def of_kind(things: list[Thing], kind: str) -> dict[str, Thing]:
    return {name(thing): thing for thing in things if thing["kind"] == kind}


BUILDS = {"base": rendered("base"), "gpu": rendered("gpu")}
DEPLOYMENTS = ["gateway", "tasks", "preprocess", "inference"]
PODS = [(build, deployment) for build in BUILDS for deployment in DEPLOYMENTS]
OURS = {"gateway": "gateway", "tasks": "gateway", "preprocess": "preprocess-worker", "inference": "inference-worker"}


def pod(build: str, deployment: str) -> Thing:
    return of_kind(BUILDS[build], "Deployment")[deployment]["spec"]["template"]


def containers(build: str, deployment: str) -> list[Thing]:
    spec = pod(build, deployment)["spec"]
    return spec["containers"] + spec.get("initContainers", [])


def settings_of(build: str, deployment: str) -> Settings:
    """What the service itself reads from the environment that its container gets."""
    (container,) = pod(build, deployment)["spec"]["containers"]
    environ = dict(of_kind(BUILDS[build], "ConfigMap")["visionmesh-settings"]["data"])
    for each in container["env"]:
        environ[each["name"]] = each.get("value", "redis://redis:6379/0")
    return read({key: value for key, value in environ.items() if key.startswith("MESH_")})


@pytest.mark.parametrize("version", SCHEMAS)
@pytest.mark.parametrize("build", BUILDS)
def test_every_resource_fits_the_schema_of_its_kind(build: str, version: str) -> None:
    assert len({(thing["kind"], name(thing)) for thing in BUILDS[build]}) == len(BUILDS[build])
    for thing in BUILDS[build]:
        kubernetes_validate.validate(thing, version, strict=True)
        if thing["kind"] != "Namespace":
            assert thing["metadata"]["namespace"] == "visionmesh"


@pytest.mark.parametrize(("build", "deployment"), PODS)
def test_every_container_has_little_rights_and_limits(build: str, deployment: str) -> None:
    spec = pod(build, deployment)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {each["name"] for each in spec["volumes"]}
    for container in containers(build, deployment):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert {each["name"] for each in container["volumeMounts"]} <= volumes
        assert "/tmp" in {each["mountPath"] for each in container["volumeMounts"]}  # noqa: S108
        assert not container["image"].endswith(":latest")


@pytest.mark.parametrize(("build", "deployment"), PODS)
def test_every_service_is_the_codes(build: str, deployment: str) -> None:
    spec = pod(build, deployment)["spec"]
    (container,) = spec["containers"]
    settings = settings_of(build, deployment)
    python, flag, module = container["command"]
    assert (python, flag) == ("python", "-m")
    assert importlib.util.find_spec(module if "." in module else f"{module}.__main__")
    image, _, tag = container["image"].rpartition(":")
    assert (image, tag) == (f"visionmesh/{OURS[deployment]}", VERSION)
    assert f" AS {OURS[deployment]}\n" in DOCKERFILE
    assert f"useradd --uid {spec['securityContext']['runAsUser']} " in DOCKERFILE
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports["metrics"] == settings.metrics_port
    assert settings.metrics_host == "0.0.0.0"  # noqa: S104
    most_mb = settings.gateway_worker_max_rss_mb if deployment == "gateway" else settings.worker_max_rss_mb
    number, unit = re.fullmatch(r"(\d+)([MG])i", container["resources"]["limits"]["memory"]).groups()
    assert most_mb < int(number) * (1 if unit == "M" else 1024), "the kernel would end it before it is recycled"
    if deployment == "gateway":
        assert (settings.host, ports["http"]) == ("0.0.0.0", settings.port)  # noqa: S104
    paths = {route.path for route in ROUTES if isinstance(route, Route)}
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container[kind]["httpGet"]
        assert probe["port"] in ports
        assert probe["path"] in ({"/livez", "/readyz"} if probe["port"] == "metrics" else paths)


@pytest.mark.parametrize(("build", "deployment"), PODS)
def test_every_service_is_its_own_user_of_redis(build: str, deployment: str) -> None:
    (container,) = pod(build, deployment)["spec"]["containers"]
    (given,) = [each for each in container["env"] if each["name"] == "MESH_REDIS_URL"]
    assert given["valueFrom"]["secretKeyRef"] == {"name": "visionmesh-redis", "key": deployment}
    assert f"\nuser {deployment} " in (ROOT / "deploy" / "redis" / "users.acl").read_text("utf-8")
    assert f"--from-literal={deployment}=rediss://{deployment}:" in (ROOT / "docs" / "kubernetes.md").read_text("utf-8")


def test_a_mesh_without_workers_still_takes_jobs() -> None:
    """/readyz of the gateway asks for workers, which there are none of until there are jobs."""
    (container,) = pod("base", "gateway")["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/livez"


@pytest.mark.parametrize(("build", "deployment"), PODS)
def test_a_pod_that_stops_ends_what_it_has(build: str, deployment: str) -> None:
    settings = settings_of(build, deployment)
    spec = pod(build, deployment)["spec"]
    assert settings.shutdown_s > settings.job_deadline_s > INFER_TIMEOUT_S
    asleep_s = 0
    for container in spec["containers"]:
        for command in [container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])]:
            assert command[0] == "sleep"
            asleep_s = int(command[1])
    assert spec["terminationGracePeriodSeconds"] >= settings.shutdown_s + asleep_s + 5
    strategy = of_kind(BUILDS[build], "Deployment")[deployment]["spec"]["strategy"]
    assert strategy["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("build", BUILDS)
def test_inference_worker_and_triton_share_memory_and_a_user(build: str) -> None:
    spec = pod(build, "inference")["spec"]
    (volume,) = [each for each in spec["volumes"] if each["name"] == "shm"]
    assert volume["emptyDir"]["medium"] == "Memory"
    for container in containers(build, "inference"):
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]  # noqa: S108
        assert "securityContext" not in container or "runAsUser" not in container["securityContext"]
    (triton,) = spec["initContainers"]
    assert triton["restartPolicy"] == "Always", "a sidecar: there before the worker, and until after it"
    ports = {each["containerPort"] for each in triton["ports"]}
    assert settings_of(build, "inference").triton_url == "127.0.0.1:8001"
    assert {8000, 8001, 8002} == ports
    if build == "base":
        assert importlib.util.find_spec(triton["command"][2])
    else:
        assert triton["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert {"name": "models", "mountPath": "/models", "readOnly": True} in triton["volumeMounts"]
        assert "--model-repository=/models" in triton["args"]


@pytest.mark.parametrize("build", BUILDS)
def test_selectors_select(build: str) -> None:
    things = BUILDS[build]
    labels = [pod(build, each)["metadata"]["labels"] for each in DEPLOYMENTS]
    selectors = [thing["spec"]["selector"]["matchLabels"] for thing in of_kind(things, "PodDisruptionBudget").values()]
    selectors += [thing["spec"]["selector"] for thing in of_kind(things, "Service").values()]
    selectors += [thing["spec"]["podSelector"].get("matchLabels", {}) for thing in of_kind(things, "NetworkPolicy").values()]
    for selector in selectors:
        assert any(selector.items() <= each.items() for each in labels), selector
    for deployment in of_kind(things, "Deployment").values():
        wanted = deployment["spec"]["selector"]["matchLabels"].items()
        assert [name(deployment)] == [d for d, each in zip(DEPLOYMENTS, labels, strict=True) if wanted <= each.items()]
    assert {"gateway", "preprocess", "inference"} == of_kind(things, "PodDisruptionBudget").keys()


def test_only_what_is_listed_gets_through() -> None:
    policies = of_kind(BUILDS["base"], "NetworkPolicy")
    nothing = policies.pop("nothing")["spec"]
    assert (nothing["podSelector"], nothing["policyTypes"]) == ({}, ["Ingress", "Egress"])
    assert "ingress" not in nothing
    assert "egress" not in nothing
    open_to_all = {
        port["port"]
        for policy in policies.values()
        for rule in policy["spec"].get("ingress", [])
        if "from" not in rule
        for port in rule["ports"]
    }
    assert open_to_all == {settings_of("base", "gateway").port}


KEDA: list[Thing] = rendered("autoscaling")
SCALED = of_kind(KEDA, "ScaledObject")


def test_workers_are_scaled_by_the_queues_that_the_code_has() -> None:
    assert SCALED.keys() == {"preprocess", "inference"}
    streams = {each: {trigger["metadata"]["stream"] for trigger in SCALED[each]["spec"]["triggers"]} for each in SCALED}
    decoding = keys.queue(0, "preprocess")
    served = {keys.queue(0, f"inference:{model}") for model in models.load("").models}
    assert streams == {"preprocess": {decoding}, "inference": served | {decoding}}
    (authentication,) = of_kind(KEDA, "TriggerAuthentication").values()
    assert {each["parameter"] for each in authentication["spec"]["secretTargetRef"]} == {"address", "username", "password"}
    for scaled in SCALED.values():
        spec = scaled["spec"]
        target = of_kind(BUILDS["base"], "Deployment")[spec["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"], "every apply would undo the autoscaler's number"
        assert spec["minReplicaCount"] == 0
        assert spec["maxReplicaCount"] > 1
        for trigger in spec["triggers"]:
            assert trigger["type"] == "redis-streams"
            assert trigger["authenticationRef"] == {"name": name(authentication)}
            assert trigger["metadata"].keys() == {"stream", "streamLength", "enableTLS"}
            assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_a_queues_length_tells_more_than_its_groups_lag(redis_url: str) -> None:
    """Why the triggers do not follow `lagCount`: Redis does not know it where a waiting job was canceled."""
    queue = keys.queue(0, "preprocess")
    with redis.Redis.from_url(redis_url) as server:
        entries = [server.xadd(queue, {"id": str(number)}) for number in range(3)]
        assert server.xlen(queue) == 3, "known before there is any group"
        server.xgroup_create(queue, keys.GROUP, id="0")
        (group,) = server.xinfo_groups(queue)
        assert group["lag"] == 3
        server.xdel(queue, entries[1])  # what a cancel does
        (group,) = server.xinfo_groups(queue)
        assert group["lag"] is None
        assert server.xlen(queue) == 2
