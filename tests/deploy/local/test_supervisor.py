"""The local mesh as a process of its own: it starts, mends itself, refuses what is wrong, and leaves nothing behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.local import ports
from tests.command_line import visionmesh
from tests.conftest import PHOTOS

UP = [sys.executable, "-m", "visionmesh", "up"]


def environ(folder: Path, **settings: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return ours | {"TMPDIR": str(folder), "NO_COLOR": "1", "COLUMNS": "200"} | settings


Up = tuple[subprocess.Popen[str], str]


@contextmanager
def up(folder: Path) -> Iterator[Up]:
    """`visionmesh up` with its URL."""
    command = [*UP, "--port", str(ports.free())]
    with subprocess.Popen(command, env=environ(folder), stderr=subprocess.PIPE, text=True) as process:
        try:
            url, said = "", ""
            for line in process.stderr or ():
                said += line
                if found := re.search(r"ready at (\S+)", line):
                    url = found[1]
                    break
            assert url, f"it ended before it was ready: {said}"
            yield process, url
        finally:
            process.kill()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Up]:
    with up(tmp_path) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One mesh whose parts die one after the other."""
    with up(tmp_path_factory.mktemp("mended")) as mesh:
        yield mesh


def test_ctrl_c_leaves_no_process_and_no_file(mesh: Up, tmp_path: Path) -> None:
    process, _ = mesh
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 6, "Valkey, Triton and its models, gateway, workers, decoders"
    assert list(tmp_path.iterdir())
    started_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 0
    assert time.monotonic() - started_s < 10
    assert all_end(children, 1)
    assert not list(tmp_path.iterdir())


def all_end(processes: list[psutil.Process], within_s: float) -> bool:
    """Whether they do. One that nobody waits for has ended as well: it is for the machine's first process to tidy up."""
    deadline_s = time.monotonic() + within_s
    while any(_runs_still(process) for process in processes):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def _runs_still(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


PARTS = {
    "gateway": "gateway",
    "preprocess_worker": "preprocess",
    "inference_worker": "inference",
    "valkey-server": "valkey",
    "tritonserver": "triton",
}


@pytest.mark.parametrize("module", PARTS)
def test_what_dies_is_restarted(mended: Up, module: str) -> None:
    process, url = mended
    (victim,) = [child for child in psutil.Process(process.pid).children() if _runs(child, module)]
    victim.kill()
    assert any(re.search(rf"{PARTS[module]}\b.*restarted as process", line) for line in process.stderr or ())
    with httpx.Client(base_url=url, timeout=30, transport=httpx.HTTPTransport(retries=8)) as http:
        photo = (PHOTOS / "chelsea.png").read_bytes()
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            try:
                answer = http.post("/predict/small", files={"image": photo})
            except httpx.HTTPError:
                continue
            if answer.status_code == 200:
                break
        assert answer.status_code == 200, answer.text
        assert answer.json()["detections"]


def test_kill_9_leaves_no_process(mended: Up) -> None:
    process, _ = mended  # the last that is done to it
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert all_end(children, 5)


MISUSES = {
    "unknown setting": ({"MESH_DECODRES": "2"}, [], "did you mean MESH_DECODERS?"),
    "wrong value": ({"MESH_PARTITIONS": "many"}, [], "MESH_PARTITIONS='many'"),
    "missing registry": ({"MESH_MODELS": "nowhere.toml"}, [], "nowhere.toml: cannot be read"),
    "unknown default model": ({"MESH_DEFAULT_MODEL": "huge"}, [], "no model 'huge'"),
    "wrong option": ({}, ["--preprocess-workers", "0"], "Invalid value"),
}


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where this process now makes its temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_told_in_one_line(temporary: Path, name: str) -> None:
    settings, options, said = MISUSES[name]
    ended = visionmesh("up", *options, environ=settings)
    assert ended.code == 2
    assert said in ended.err
    if not options:  # typer frames its own
        assert len(ended.err.strip().splitlines()) == 1, ended.err
    assert not list(temporary.iterdir())


def test_a_taken_port_is_named(temporary: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = visionmesh("up", "--port", str(port))
    assert ended.code == 2
    assert f"port {port} on 127.0.0.1 is taken" in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("module", ["gateway", "preprocess_worker", "inference_worker"])
def test_a_service_refuses_a_wrong_setting(tmp_path: Path, module: str) -> None:
    wrong = environ(tmp_path, MESH_LEASE_S="-1")
    result = subprocess.run([sys.executable, "-m", module], env=wrong, capture_output=True, text=True, timeout=30)
    assert result.returncode == 2
    assert "MESH_LEASE_S" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def _runs(process: psutil.Process, program: str) -> bool:
    """Whether a process runs this program or module, by its very name: `gateway` is not `gateway.tasks`."""
    words = " ".join(process.cmdline()).split()  # Valkey writes its address behind its name
    return any(Path(word).name == program for word in words)
