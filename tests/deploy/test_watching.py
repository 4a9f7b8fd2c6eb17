"""Dashboards, rules and scrape settings ask for metrics that a real mesh tells, with labels that they have."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local.supervisor import LocalMesh
from shared import errors
from tests.scraping import scrape_all

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/visionmesh.json").read_text("utf-8"))
RULES = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text("utf-8"))
RULE_LIST: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
RECORDED = {rule["record"] for rule in RULE_LIST if "record" in rule}

ONLY_WHEN_IT_HAPPENS = {
    "mesh_admission_refusals_total": {"code"},
    "mesh_triton_errors_total": {"model", "code"},
    "mesh_store_retries_total": {"service"},
    "mesh_gpu_utilization_ratio": {"gpu", "name"},
    "mesh_gpu_memory_used_bytes": {"gpu", "name"},
    "mesh_gpu_memory_total_bytes": {"gpu", "name"},
}
"""Metrics that a healthy mesh without a GPU does not tell, with their labels."""


def expressions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]
    for rule in RULE_LIST:
        yield f"rule {rule.get('alert') or rule['record']}", rule["expr"]


@pytest.fixture(scope="module")
def told(mesh: LocalMesh) -> dict[str, set[str]]:
    """Names and label names that a mesh through which a picture went tells."""
    import httpx

    from tests.conftest import PHOTOS

    photo = (PHOTOS / "chelsea.png").read_bytes()
    assert httpx.post(f"{mesh.url}/predict/small", content=photo, timeout=30).status_code == 200
    found: dict[str, set[str]] = dict(ONLY_WHEN_IT_HAPPENS)
    for name, labels in scrape_all(mesh):
        found.setdefault(name, set()).update(key for key, _ in labels)
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_what_is_asked_for_is_told(told: dict[str, set[str]], where: str, expression: str) -> None:
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = re.findall(r"\bmesh[_:][a-z0-9_:]+", bare)
    assert names, "asks for nothing of ours"
    for name in names:
        assert name in told or name in RECORDED, f"{where}: {name} is told by nobody"
    for name, selector in re.findall(r"(mesh_\w+)\{([^}]*)\}", bare):
        labels = set(re.findall(r"(\w+)\s*[=!]", selector))
        assert labels <= told[name], f"{where}: {name} has no {labels - told[name]}"
    known = set().union(*(told.get(name, {"model", "status"}) for name in names))
    for grouped in re.findall(r"\bby\s*\(([^)]*)\)", bare):
        labels = {label.strip() for label in grouped.split(",")}
        assert labels <= known, f"{where}: none has {labels - known}"
    for value in re.findall(r'code=~?"([^"]+)"', expression):
        assert set(value.split("|")) <= set(errors.BY_CODE), where


def test_every_alert_is_in_the_runbook() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text("utf-8")
    for rule in RULE_LIST:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"]
            assert f"### {rule['alert']}\n" in runbook, rule["alert"]


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize(
    "command",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
    ids=" ".join,
)
def test_promtool_agrees(command: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool (Debian's package prometheus) is not installed")
    done = subprocess.run([promtool, *command], cwd=ROOT / "deploy" / "prometheus", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test_or_is_a_plain_threshold() -> None:
    tests = yaml.safe_load((ROOT / "deploy/prometheus/rules_test.yml").read_text("utf-8"))["tests"]
    tested = {case["alertname"] for test in tests for case in test["alert_rule_test"]}
    pages = {rule["alert"] for rule in RULE_LIST if "alert" in rule and rule["labels"]["severity"] == "page"}
    assert pages - tested <= {"ModelNotReady"}, pages - tested
