"""compose.yaml and the Dockerfile say what the code says. There is no Docker here: what they name is looked up, and what they
run is run without a container."""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from deploy.local import ports
from deploy.local.valkey import Valkey
from gateway.app import ROUTES
from shared.settings import read
from tests.conftest import Background

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text("utf-8")
OURS = ["gateway", "tasks", "preprocess-worker", "inference-worker"]
LONG_RUNNING = [name for name in SERVICES if name != "access"]


def defaults(value: str) -> str:
    """A value as compose reads it where the environment says nothing."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str) -> None:
    environ = {key: defaults(value) for key, value in SERVICES[name]["environment"].items()}
    settings = read(environ)
    assert settings.metrics_port == 9601
    assert settings.metrics_host == "0.0.0.0"  # noqa: S104
    assert settings.triton_url.partition(":")[0] in SERVICES["triton-cpu"]["networks"]["back"]["aliases"]
    grace_s = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert grace_s > settings.shutdown_s, "the container would be killed while it finishes its work"
    most_mb = settings.gateway_worker_max_rss_mb if name == "gateway" else settings.worker_max_rss_mb
    number, unit = re.fullmatch(r"(\d+)([mg])", SERVICES[name]["mem_limit"]).groups()
    assert most_mb < int(number) * (1 if unit == "m" else 1024), "the kernel would end it before it is recycled"


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_every_container_has_little_rights_and_limits(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert re.fullmatch(r"(\$\{\w+:-)?\d+[mg]\}?", service["mem_limit"])
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert service["restart"] == "unless-stopped"
    assert "@sha256" in service["image"] or ":" in service["image"] or service["image"].startswith("visionmesh/"), (
        "a version is named"
    )


def test_all_who_write_or_read_uploads_have_the_same_folder() -> None:
    for name in ("gateway", "preprocess-worker", "inference-worker"):
        folder = read({"MESH_UPLOAD_FOLDER": SERVICES[name]["environment"]["MESH_UPLOAD_FOLDER"]}).upload_folder
        assert f"uploads:{folder}" in SERVICES[name]["volumes"]
        assert f"chown 10001:10001 {folder}" in SERVICES["access"]["command"][0]


def test_only_the_gateway_can_be_reached_from_outside() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["gateway"]
    published, _, inside = defaults(SERVICES["gateway"]["ports"][0]).rpartition(":")
    assert published == "127.0.0.1:9600"
    assert inside == SERVICES["gateway"]["environment"]["MESH_PORT"]
    assert COMPOSE["networks"]["back"]["internal"] is True
    assert {name for name in LONG_RUNNING if "front" in SERVICES[name]["networks"]} == {"gateway", "tasks"}


def test_what_is_mounted_exists() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = defaults(volume).split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists() or name == "triton-gpu", f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"
    for name in OURS:
        user = name.removesuffix("-worker")
        assert f"access-{user}:/run/access:ro" in SERVICES[name]["volumes"], "each service sees its own password"
        assert sum("access-" in volume for volume in SERVICES[name]["volumes"]) == 1


def test_the_commands_of_services_without_an_image_of_their_own_exist() -> None:
    assert SERVICES["tasks"]["image"] == SERVICES["gateway"]["image"]
    assert importlib.util.find_spec(SERVICES["tasks"]["command"][2])


def test_one_profile_runs_one_triton() -> None:
    assert SERVICES["triton-cpu"]["profiles"] == ["cpu"]
    assert SERVICES["triton-gpu"]["profiles"] == ["gpu"]
    assert "COMPOSE_PROFILES=cpu\n" in (ROOT / ".env").read_text("utf-8")
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["triton-cpu", "triton-gpu"]


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "build" in service])
def test_every_image_is_a_target_that_holds_its_extra(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (ROOT / build["dockerfile"]).is_file()
    assert build["target"] == name
    stage = re.search(rf"FROM runtime AS {name}\n(.*?)(?:\nFROM|\Z)", DOCKERFILE, re.DOTALL)
    assert stage
    assert f"COPY --from=build-{name} " in stage[1]
    module = re.search(r'CMD \["python", "-m", "([\w.]+)"\]', stage[1])
    assert module
    spec = importlib.util.find_spec(module[1])
    assert spec, module[1]
    assert importlib.util.find_spec(f"{module[1]}.__main__") if spec.submodule_search_locations else spec.origin
    health = " ".join(SERVICES[name]["healthcheck"]["test"])
    port, path = re.search(r"127\.0\.0\.1:(\d+)(/[\w/]*)", health).groups()  # type: ignore[union-attr]
    assert port in re.search(r"EXPOSE ([\d ]+)", stage[1])[1].split()  # type: ignore[index]
    assert path in {getattr(route, "path", "") for route in ROUTES} | {"/livez"}


def test_every_extra_and_file_of_the_dockerfile_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    named = {extra for extras in re.findall(r'"\.\[([\w,]+)\]"', DOCKERFILE) for extra in extras.split(",")}
    assert named == {"gateway", "preprocess", "inference", "triton", "cli", "otel"}
    assert named <= set(project["project"]["optional-dependencies"])
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = [word for word in line.split() if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in allowed, f"{source} is not in the build's context"
            copied.add(source)
    packages = {package.split(".")[0] for package in project["tool"]["setuptools"]["packages"]}
    assert packages <= copied, "a package is not in the images"


def test_redis_lets_each_service_in_with_the_password_made_for_it(background: Background, tmp_path: Path) -> None:
    """The very commands of the containers `access` and `valkey`, on a Valkey of this machine."""
    port = ports.free()
    script, template = ROOT / "deploy" / "docker" / "make-access.sh", ROOT / "deploy" / "redis" / "users.acl"

    def make() -> dict[str, str]:
        subprocess.run(["sh", script, template, tmp_path], check=True, env=os.environ | {"VALKEY_HOST": "127.0.0.1"})
        return {file.parent.name: file.read_text() for file in tmp_path.glob("*/redis-url")}

    urls = make()
    assert set(urls) == {"gateway", "tasks", "preprocess", "inference", "subscriber"}
    assert len(set(urls.values())) == 5
    assert make() == urls, "a restart changes no password"
    given = SERVICES["valkey"]["command"]
    options = dict(zip(given[1::2], given[2::2], strict=True))
    assert options["--aclfile"] == "/run/access/users.acl"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"
    server = Valkey(tmp_path, port)
    server.command += ["--aclfile", str(tmp_path / "valkey" / "users.acl")]
    background.run(server.start())
    try:
        url = urls["gateway"].replace(":6379", f":{port}")
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            until_it_answers(client)
            assert client.set("{mesh:0}:job:x", "1")
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.flushall()
        with contextlib.closing(redis.Redis.from_url(urls["tasks"].replace(":6379", f":{port}"))) as tasks:
            assert tasks.set("arq:job:x", "1"), "arq keeps what it is to deliver"
        with contextlib.closing(redis.Redis(port=port)) as nobody, pytest.raises(redis.exceptions.AuthenticationError):
            nobody.get("{mesh:0}:job:x")
        wrapper = [ROOT / "deploy" / "docker" / "start.sh", "sh", "-c", "echo $MESH_REDIS_URL"]
        said = subprocess.run(wrapper, check=True, capture_output=True, text=True, env={**os.environ, "MESH_REDIS_URL": "kept"})
        assert said.stdout == "kept\n", "without a file of its own, a service keeps what it was given"
    finally:
        background.run(server.stop(5))


def until_it_answers(client: redis.Redis) -> None:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        try:
            client.ping()
        except redis.exceptions.ConnectionError:
            time.sleep(0.02)
        else:
            return
    pytest.fail("Valkey does not answer")


EXTRAS = {
    "gateway": (["gateway.app", "gateway.__main__"], ["pyvips", "tritonclient", "onnxruntime", "typer"]),
    "preprocess": (["preprocess_worker.worker", "preprocess_worker.decoder_child"], ["tritonclient", "starlette", "granian"]),
    "inference": (["inference_worker.worker"], ["pyvips", "starlette", "granian"]),
    "triton": (["deploy.local.serve_triton"], ["pyvips", "starlette", "redis", "granian"]),
    "cli": (["visionmesh.cli"], ["pyvips", "starlette", "tritonclient", "granian", "onnxruntime"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_a_clean_environment_with_one_extra_runs_its_service(extra: str, tmp_path: Path) -> None:
    """The install steps of the images, without containers."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin" / "python"
    line = next(line for line in DOCKERFILE.splitlines() if "pip install" in line and f".[{extra}" in line)
    target = re.search(r'"(\.\[[\w,]+\])"', line)[1]  # type: ignore[index]
    uv = Path(sys.executable).with_name("uv")
    command = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--python",
        python,
        "--constraint",
        ROOT / "constraints.txt",
        f"{ROOT}{target[1:]}",
    ]
    if subprocess.run(command, check=False).returncode:
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{ROOT}{target[1:]}"], check=True
        )
    modules, absent = EXTRAS[extra]
    code = f"""
import importlib, importlib.util
for name in {modules!r}: importlib.import_module(name)
there = [name for name in {absent!r} if importlib.util.find_spec(name)]
assert not there, there
"""
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path)
