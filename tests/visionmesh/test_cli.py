"""The command line against the whole mesh: what it prints, what it writes, how it ends; as a process where it gets signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deploy.local.supervisor import LocalMesh
from tests.command_line import Ended, visionmesh
from tests.conftest import PHOTOS
from visionmesh import Client
from visionmesh.exchange import Retries

CAT = PHOTOS / "chelsea.png"
COMMAND = [sys.executable, "-m", "visionmesh"]


def environ(mesh: LocalMesh) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "VISIONMESH_"))}
    return ours | {"VISIONMESH_URL": mesh.url, "MESH_REDIS_URL": mesh.redis_url, "NO_COLOR": "1", "COLUMNS": "200"}


def run(mesh: LocalMesh, *arguments: str | Path, code: int = 0, cwd: Path | None = None) -> Ended:
    done = visionmesh(*arguments, environ={"VISIONMESH_URL": mesh.url, "MESH_REDIS_URL": mesh.redis_url}, cwd=cwd)
    assert done.code == code, done.out + done.err
    return done


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def tree(album: Path) -> Path:
    """A folder with two good pictures in it, one below it, a bad one, and what is no picture."""
    (album / "trip").mkdir()
    (album / "trip" / "self.png").write_bytes((PHOTOS / "astronaut.png").read_bytes())
    (album / "trip" / "broken.png").write_bytes(CAT.read_bytes()[:3000])
    (album / ".hidden.png").write_bytes(CAT.read_bytes())
    (album / "notes.txt").write_text("none")
    return album


def test_a_folder_is_written_drawn_and_gone_on_with(mesh: LocalMesh, tree: Path) -> None:
    to = tree / "detections"
    first = run(mesh, "detect", tree, "--to", to, "--coco", code=1)
    assert "4 pictures, 4 objects, 1 failed" in first.err
    written = lines((to / "results.jsonl").read_text())
    assert [line["path"] for line in written] == ["cat.png", "coffee.png", "trip/broken.png", "trip/self.png"]
    assert written[2]["job"]["error"]["code"] == "corrupt-image"
    with Image.open(to / "photos" / "trip" / "self.png") as drawn:
        assert drawn.size == (512, 512)
    assert sorted(path.name for path in (to / "photos").rglob("*.png")) == ["cat.png", "coffee.png", "self.png"]
    coco = json.loads((to / "coco.json").read_bytes())
    assert [image["file_name"] for image in coco["images"]] == ["cat.png", "coffee.png", "trip/self.png"]
    assert {category["name"] for category in coco["categories"]} == {"cat", "cup", "dining table", "person"}
    assert {note["image_id"] for note in coco["annotations"]} == {1, 2, 3}

    (tree / "trip" / "broken.png").write_bytes(CAT.read_bytes())  # mended: only this one is left to do
    with (to / "results.jsonl").open("a") as ledger:
        ledger.write('{"path": "cut o')
    second = run(mesh, "detect", tree, "--to", to, "--json")
    assert [line["path"] for line in lines(second.out)] == ["trip/broken.png"]
    assert "3 of 4 were done before" in second.err
    assert "0 pictures" in run(mesh, "detect", tree, "--to", to).err
    other = run(mesh, "detect", tree, "--to", to, "--confidence", "0.9", "--json", "--no-draw")  # other options, other results
    assert len(lines(other.out)) == 4


def test_a_run_that_is_interrupted_goes_on_where_it_stopped(mesh: LocalMesh, tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number:02}.png").write_bytes(CAT.read_bytes())
    to = tmp_path / "out"
    arguments = ["detect", str(tmp_path), "--to", str(to), "--no-draw", "--concurrency", "1"]
    with subprocess.Popen([*COMMAND, *arguments], env=environ(mesh), stderr=subprocess.PIPE, text=True) as process:
        while not (to / "results.jsonl").exists() or not (to / "results.jsonl").read_bytes():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    done = len((to / "results.jsonl").read_text().splitlines())
    assert 0 < done < 60
    assert f"stopped after {done} of 60" in said
    run(mesh, "detect", tmp_path, "--to", to, "--no-draw")
    paths = [line["path"] for line in lines((to / "results.jsonl").read_text())]
    assert paths == [f"{number:02}.png" for number in range(60)]


def test_a_job_by_its_id(mesh: LocalMesh) -> None:
    with Client(mesh.url) as client:
        job = client.submit(CAT)
    (steps, got) = run(mesh, "jobs", "watch", job.id, "--json"), run(mesh, "jobs", "get", job.id, "--wait", "20", "--json")
    assert lines(steps.out)[-1]["status"] == "succeeded"
    assert lines(got.out)[0]["detections"][0]["label"] == "cat"
    assert "cat" in run(mesh, "jobs", "get", job.id).out
    assert lines(run(mesh, "jobs", "cancel", job.id, "--json", code=1).out)[0]["status"] == "succeeded"


def test_subscribers_get_what_others_send(mesh: LocalMesh) -> None:
    command = [*COMMAND, "subscribe", "--count", "1", "--json", "--model", "small_end2end"]
    with subprocess.Popen(command, env=environ(mesh), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stdout
        assert "listening" in process.stderr.readline()
        sent = lines(run(mesh, "submit", CAT, "--model", "small_end2end", "--json").out)[0]
        assert lines(process.stdout.read())[0]["id"] == sent["id"]
    assert process.returncode == 0


def test_a_live_view_counts_what_ends(mesh: LocalMesh) -> None:
    command = [*COMMAND, "watch", "--json", "--every", "0.3"]
    with subprocess.Popen(command, env=environ(mesh), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        json.loads(process.stdout.readline())
        with Client(mesh.url) as client:
            assert len(list(client.detect_many([CAT] * 8))) == 8
        view: dict[str, Any] = {}
        while not view.get("latency_ms", {}).get("small", {}).get("jobs", 0) >= 8:
            view = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0
    assert 0 < view["latency_ms"]["small"]["p50"] <= view["latency_ms"]["small"]["p99"]
    assert all(0 < fill <= 1 for fill in view["batch_fill"].values())
    assert "inference:small" in view["health"]["queues"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["detect", "nowhere"], 2, "does not exist"),
        (["detect", "."], 2, "no picture in"),
        (["detect", str(CAT), "--model", "huge"], 2, "no model 'huge'"),
        (["submit", str(CAT), "--confidence", "7"], 2, "confidence"),
        (["submit", str(CAT), "--url", "no url"], 2, "is not a URL"),
        (["submit", str(CAT), "--url", "http://127.0.0.1:1"], 1, "start a mesh with `visionmesh up`"),
        (["jobs", "get", "nope"], 1, "no job has this ID"),
        (["subscribe", "--redis-url", "redis://127.0.0.1:1/0"], 1, "store does not answer"),
    ],
)
def test_what_goes_wrong_has_an_exit_code_and_one_line(
    mesh: LocalMesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.setattr(Retries, "pause_s", lambda *_: 0.0)
    done = run(mesh, *arguments, code=code, cwd=tmp_path)
    assert said in done.err
    assert not done.out


def test_every_verb_that_answers_can_answer_in_json() -> None:
    from typer.main import get_command

    from visionmesh.cli import app

    def verbs(command: Any, name: str) -> list[tuple[str, Any]]:
        below = [found for word, inner in getattr(command, "commands", {}).items() for found in verbs(inner, f"{name} {word}")]
        return below or [(name, command)]

    without = {name for name, verb in verbs(get_command(app), "") if not any("--json" in option.opts for option in verb.params)}
    changing = {f" models {verb}" for verb in ("add", "update", "tidy", "load", "unload", "remove")}
    # `models show` speaks JSON only.
    assert without <= {" jobs dead replay", " bench plot", " models show"} | changing


def test_shells_complete_it(mesh: LocalMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else it is for the shell that runs the tests, which may be one without completion.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert "visionmesh" in run(mesh, "--show-completion", "bash").out
