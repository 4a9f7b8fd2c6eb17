"""`visionmesh doctor` against real servers, misconfigured as newcomers have them: what it finds, and its exit code."""

import email.utils
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.local import ports
from deploy.local.supervisor import LocalMesh
from deploy.local.valkey import Valkey
from shared import models
from tests.conftest import Background, _until
from tests.visionmesh.conftest import Scripted
from visionmesh.cli import app
from visionmesh.commands import doctor as command
from visionmesh.commands import servers


def doctor(*arguments: str, code: int, **environ: str) -> list[dict[str, Any]]:
    theirs = {name: None for name in os.environ if name.startswith(("MESH_", "VISIONMESH_"))}
    whole = theirs | {"MESH_PORT": str(ports.free())} | environ
    done = CliRunner().invoke(app, ["doctor", "--json", *arguments], env=whole)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if done.stdout else []


def wrong(findings: list[dict[str, Any]]) -> dict[str, str]:
    return {finding["what"]: finding["mend"] for finding in findings if finding.get("mend") and not finding.get("is_note")}


@pytest.fixture
def careless(background: Background, tmp_path: Path) -> Iterator[Valkey]:
    options = {"maxmemory-policy": "allkeys-lru", "appendonly": "no", "maxmemory": "0"}
    server = Valkey(tmp_path, ports.free(), options)
    background.run(server.start())
    background.run(_until(server.ready))
    yield server
    background.run(server.stop(5))


def test_servers_as_they_should_be_are_well(redis_url: str, triton_url: str) -> None:
    findings = doctor(code=0, MESH_REDIS_URL=redis_url, MESH_TRITON_URL=triton_url)
    assert wrong(findings) == {}
    assert {"the clocks here and of Redis agree", "Redis evicts by noeviction"} <= {finding["what"] for finding in findings}
    assert any(finding["what"].endswith("answers, 2 of 2 models ready") for finding in findings)


def test_a_careless_redis_and_a_model_that_triton_lacks(careless: Valkey, triton_url: str, tmp_path: Path) -> None:
    registry = tmp_path / "models.toml"
    # The registry of the package with a detector more, by a name that no Triton knows.
    text = models.DEFAULT_FILE.read_text("utf-8")
    table = text[text.index("[models.small]") : text.index("[models.small_end2end]")]
    other = table.replace("[models.small]", "[models.mine]").replace('"small"', '"mine_in_triton"')
    registry.write_text(text.replace("[aliases]", f"{other}\n[aliases]", 1))
    assert "mine" in models.load(registry).models
    found = wrong(doctor(code=1, MESH_REDIS_URL=careless.url, MESH_TRITON_URL=triton_url, MESH_MODELS=str(registry)))
    assert len(found) == 4
    assert "maxmemory-policy noeviction" in found["Redis evicts by allkeys-lru"]
    assert "appendonly yes" in found["Redis has no append-only file"]
    assert "maxmemory 2gb" in found["Redis has no memory limit"]
    assert "take mine out" in found["Triton has no model mine_in_triton ready, which the registry names for mine"]


def test_nobody_listens_and_a_stranger_has_the_port() -> None:
    nobody = ports.free()
    with Scripted() as server:
        server.script = [(200, {}, b"not a mesh")]
        port = int(server.url.rpartition(":")[2])
        found = wrong(
            doctor(
                code=1,
                MESH_REDIS_URL=f"redis://:geheim@127.0.0.1:{nobody}/0",
                MESH_TRITON_URL=f"127.0.0.1:{nobody}",
                MESH_PORT=str(port),
            )
        )
    assert len(found) == 3
    assert "geheim" not in str(found)
    assert re.search("Redis at 127.0.0.1:[0-9]+ does not answer", str(found))
    assert re.search("Triton at 127.0.0.1:[0-9]+ does not answer", str(found))
    assert "MESH_PORT" in found[f"port {port} on 127.0.0.1 is taken"]


def test_a_mesh_that_is_not_ready_and_has_another_time(scripted: Scripted) -> None:
    body = json.dumps({"ready": False, "checks": {"redis": True, "model": False}}).encode()

    def answer(handler: Any) -> None:  # send_response would write a Date of now
        date = email.utils.formatdate(time.time() - 60, usegmt=True)
        head = f"HTTP/1.1 503 no\r\ndate: {date}\r\ncontent-length: {len(body)}\r\n\r\n"
        handler.wfile.write(head.encode() + body)

    scripted.script = [answer]
    first, second = servers._mesh(scripted.url)
    assert first.what == f"a mesh runs at {scripted.url} but is not ready: model missing"
    assert "visionmesh status" in first.mend
    assert re.search(r"is (58|59|60)\.\d s behind", second.what)
    assert "NTP" in second.mend


def test_a_mesh_that_runs_well_is_no_mistake_at_its_port(mesh: LocalMesh) -> None:
    findings = doctor(code=0, MESH_PORT=mesh.url.rpartition(":")[2], MESH_REDIS_URL=mesh.redis_url)
    assert wrong(findings) == {}
    seen = {finding["what"] for finding in findings}
    assert {f"a mesh runs at {mesh.url} and is ready", "the clocks here and of the mesh agree"} <= seen


def test_small_shared_memory_is_a_note_and_small_memory_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SHARED", tmp_path / "none")
    limit = tmp_path / "memory.max"
    limit.write_text(f"{1024**3}\n")
    monkeypatch.setattr(command, "CGROUP_LIMIT", limit)
    advised = [finding for finding in command._machine() if finding.mend]
    assert any("--shm-size" in finding.mend and not finding.is_wrong for finding in advised)
    assert [finding.what for finding in advised if finding.is_wrong] == ["1.0 GiB of memory"]


def test_misuse_is_told_apart() -> None:
    assert doctor("--nonsense", code=2) == []
