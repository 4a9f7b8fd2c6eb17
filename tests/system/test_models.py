"""`visionmesh models` beside a mesh that runs: a detector nobody has seen is served, verified, unloaded, removed."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from deploy.export import repository
from deploy.local.supervisor import LocalMesh
from tests.command_line import Ended, visionmesh
from tests.conftest import PHOTOS
from tests.deploy.export.detectors import FOUND, picture, save


def command(*arguments: str, url: str = "http://127.0.0.1:1") -> Ended:
    return visionmesh("models", *arguments, environ={"VISIONMESH_URL": url})


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def quarters(mesh: LocalMesh, tmp_path: Path) -> Iterator[str]:
    added = command("add", str(save(tmp_path, "yolov8")), "--name", "quarters", url=mesh.url)
    assert added.code == 0, added.err + added.out
    yield "quarters"
    command("remove", "quarters", url=mesh.url)


def test_a_detector_of_ones_own_is_served_as_b_and_c(quarters: str, mesh: LocalMesh, http: httpx.Client) -> None:
    for model, track in (("quarters", "B"), ("quarters_end2end", "C"), ("quarters_trt", "B")):
        job = http.post(
            "/v1/jobs", params={"model": model}, content=png(), headers={"prefer": "wait=25", "content-type": "image/png"}
        )
        found = [
            (one["label"], round(one["confidence"], 3), tuple(round(side) for side in one["box"].values()))
            for one in job.json()["detections"]
        ]
        assert (found, job.json()["track"]) == (FOUND, track)
    described = http.get("/v1/models/quarters").json()
    assert (described["ready"], described["triton"]["state"], described["labels"]) == (True, "READY", ["red", "green"])
    verified = command("verify", "quarters_end2end", "--json", url=mesh.url)
    assert verified.code == 0
    assert [row["missed"] for row in json.loads(verified.out)] == [[], [], []]
    listed = json.loads(command("list", "--json", url=mesh.url).out)
    assert {row["name"]: row["state"] for row in listed}["quarters"] == "ready"


def test_unloaded_is_refused_and_removed_is_unknown(quarters: str, mesh: LocalMesh, http: httpx.Client) -> None:
    def status() -> tuple[int, str]:
        answer = http.post(f"/predict/{quarters}", content=png(), headers={"content-type": "image/png"})
        return answer.status_code, answer.json().get("code", "")

    assert command("unload", quarters).code == 0
    assert status() == (503, "model-unavailable")
    assert (http.get(f"/v1/models/{quarters}").json()["ready"], http.get("/readyz").status_code) == (False, 200)
    assert command("load", quarters, url=mesh.url).code == 0
    assert status() == (200, "")
    assert command("remove", quarters).code == 0
    assert status() == (404, "unknown-model")


@pytest.mark.parametrize("model", ["small", "small_end2end"])
def test_the_built_in_detector_agrees_with_the_plain_reference(mesh: LocalMesh, model: str) -> None:
    verified = command("verify", model, "--json", url=mesh.url)
    assert verified.code == 0, verified.out + verified.err
    rows = json.loads(verified.out)
    assert [row["wanted"] for row in rows] == [1, 1, 1]
    assert min(row["worst_iou"] for row in rows) >= 0.95
    assert max(row["worst_confidence"] for row in rows) <= 0.03


def test_what_does_not_agree_is_told_by_the_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    row = 'triton_model = "small"\ninput_width = 300\ninput_height = 300\nlabels = ["a", "b"]\n'
    source = save(tmp_path, "yolov8").name
    file.write_text(f'[models.small]\n{row}source = "{source}"\n', "utf-8")
    environ = {"MESH_MODELS": str(file), "MESH_DEFAULT_MODEL": "small"}
    done = visionmesh("models", "verify", "small", "--here", environ=environ)
    assert done.code == 2
    assert "takes 64x64 pixels, not 300x300" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "nowhere.onnx", "--name", "x"], "cannot be read"),
        (["add", str(PHOTOS / "chelsea.png"), "--name", "x"], "is not an ONNX file"),
        (["add", str(repository.DEFAULT_ONNX), "--name", "a/b"], "is no name"),
        (["add", str(repository.DEFAULT_ONNX), "--name", "x", "--input-size", "big"], "WIDTHxHEIGHT"),
        (["add", str(repository.DEFAULT_ONNX), "--name", "x", "--target", "tensorrt"], "--repository"),
        (["show", "nothing"], "no model 'nothing'"),
        (["remove", "small"], "can be unloaded"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    done = command(*arguments)
    assert done.code == 2
    assert said in " ".join(done.err.split())
