"""`visionmesh bench` against the real mesh: every mode, every endpoint, its files, and the comparison of two."""

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from deploy.local.supervisor import LocalMesh
from tests.conftest import PHOTOS
from visionmesh.bench import modes
from visionmesh.commands.bench import app

PHOTO = str(PHOTOS / "chelsea.png")


def bench(mesh: LocalMesh, folder: Path, *options: str) -> dict[str, list[dict[str, object]]]:
    """Run it; returns the JSON report."""
    arguments = ["--url", mesh.url, "--image", PHOTO, "--to", str(folder), "--warmup", "2", *options]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    (path,) = folder.glob("*.json")
    return json.loads(path.read_bytes())


@pytest.mark.parametrize("mode", ["single", "quick", "full", "all"])
def test_modes_of_one_run_measure_what_was_sent(mesh: LocalMesh, tmp_path: Path, mode: str) -> None:
    report = bench(mesh, tmp_path, "--mode", mode, "--requests", "6", "--clients", "3")
    (result,) = report["results"]
    assert isinstance(result, dict)
    assert result["good"] == (1 if mode == "all" else 6)
    assert not result["errors"]
    stages = result["stages_ms"]
    assert isinstance(stages, dict)
    assert {"upload", "preprocess", "inference", "total"} <= stages.keys()
    latency = result["latency_ms"]
    assert isinstance(latency, dict)
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    assert sum(result["batch_sizes"].values()) == result["good"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("mode", "options", "names"),
    [
        ("sustained", ("--clients", "2"), ["probe-1", "probe-2", "sustained"]),
        ("variable", (), ["probe", *(f"variable-{share:.0%}" for share in modes.STEPS), "variable-burst", "variable-after"]),
        ("matrix", ("--model", "small", "--clients", "2"), ["matrix-1", "matrix-2"]),
    ],
)
def test_modes_of_many_runs_go_through_their_loads(
    mesh: LocalMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, options: tuple[str, ...], names: list[str]
) -> None:
    monkeypatch.setattr(modes, "PROBE_S", 0.3)
    report = bench(mesh, tmp_path, "--mode", mode, "--duration", "1.4" if mode == "variable" else "0.3", *options)
    assert [result["phase"]["name"] for result in report["results"]] == names  # type: ignore[index]
    assert all(result["good"] for result in report["results"])


@pytest.mark.parametrize("endpoint", ["predict", "submit"])
def test_the_other_endpoints(mesh: LocalMesh, http: httpx.Client, tmp_path: Path, endpoint: str) -> None:
    (result,) = bench(mesh, tmp_path, "--mode", "quick", "--requests", "4", "--clients", "2", "--endpoint", endpoint)["results"]
    assert (result["good"], result["errors"]) == (4, {})


def test_an_open_loop_sends_at_its_rate(mesh: LocalMesh, tmp_path: Path) -> None:
    (result,) = bench(mesh, tmp_path, "--mode", "quick", "--rate", "10", "--duration", "1")["results"]
    assert result["good"] == 10
    assert result["unsent"] == 0


def test_json_on_stdout_is_the_report_and_tells_how_full_batches_were(mesh: LocalMesh, tmp_path: Path) -> None:
    options = ["--url", mesh.url, "--image", PHOTO, "--to", str(tmp_path), "--model", "small_trt", "--requests", "2", "--json"]
    ran = CliRunner().invoke(app, options)
    report = json.loads(ran.stdout)
    (path,) = tmp_path.glob("*.json")
    assert report == json.loads(path.read_bytes())
    assert "results: " in ran.stderr
    (result,) = report["results"]
    served = {model["name"]: model for model in httpx.get(f"{mesh.url}/v1/models").json()["models"]}
    assert result["batch_fill"] == pytest.approx(result["mean_batch"] / served["small"]["max_batch"], abs=1e-4)


def test_files_hold_the_same_runs(mesh: LocalMesh, tmp_path: Path) -> None:
    report = bench(mesh, tmp_path, "--mode", "quick", "--requests", "3", "--clients", "1")
    (table,) = tmp_path.glob("*.csv")
    with table.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["per_second"]) == report["results"][0]["per_second"]
    assert float(row["inference_p50_ms"]) > 0
    (plot,) = tmp_path.glob("*.svg")
    texts = [each.text or "" for each in ET.fromstring(plot.read_text("utf-8")).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314 - our own
    assert any("visionmesh bench, quick" in text for text in texts)
    assert any("inference" in text for text in texts)


def test_two_results_are_compared_and_what_got_worse_fails(mesh: LocalMesh, tmp_path: Path) -> None:
    report = bench(mesh, tmp_path, "--mode", "single", "--requests", "3")
    (before,) = tmp_path.glob("*.json")
    after = tmp_path / "after.json"
    report["results"][0]["per_second"] /= 2  # type: ignore[operator]
    after.write_text(json.dumps(report))
    compared = CliRunner().invoke(app, ["compare", str(before), str(after)])
    assert compared.exit_code == 0
    assert "-50.0 %" in compared.output
    changes = json.loads(CliRunner().invoke(app, ["compare", str(before), str(after), "--json"]).stdout)
    assert [change["percent"] for change in changes if change["figure"] == "per_second"] == [-50.0]
    drawn = tmp_path / "again.svg"
    assert CliRunner().invoke(app, ["plot", str(before), "--to", str(drawn)]).exit_code == 0
    assert drawn.read_bytes() == before.with_suffix(".svg").read_bytes()
    assert CliRunner().invoke(app, ["compare", str(before), str(after), "--worse-than", "20"]).exit_code == 1
    assert CliRunner().invoke(app, ["compare", str(before), str(before), "--worse-than", "20"]).exit_code == 0
    assert CliRunner().invoke(app, ["compare", str(before), str(tmp_path / "none.json")]).exit_code == 2


def test_the_ceiling_is_far_above_the_mesh() -> None:
    ran = CliRunner().invoke(app, ["--ceiling", "--duration", "0.5", "--clients", "8", "--json"])
    assert ran.exit_code == 0, ran.output
    assert "load generator:" in ran.stderr
    assert json.loads(ran.stdout)["per_second"] > 300


def test_what_cannot_be_measured_is_one_line(mesh: LocalMesh, tmp_path: Path) -> None:
    for options, words in (
        (["--url", "http://127.0.0.1:9"], "no mesh at 127.0.0.1:9"),
        (["--url", mesh.url, "--model", "nothing"], "no model 'nothing'"),
        (["--url", mesh.url, "--images", str(tmp_path)], "no picture"),
    ):
        ran = CliRunner().invoke(app, [*options, "--to", str(tmp_path)])
        assert ran.exit_code in (1, 2)
        assert words in " ".join(ran.output.replace("│", " ").split())
