"""The OpenAPI document: valid, complete, and true of what the gateway answers."""

from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import validate
from starlette.routing import Route

from gateway.app import ROUTES
from gateway.endpoint import Endpoint
from tests.conftest import PHOTOS

CAT = (PHOTOS / "chelsea.png").read_bytes()
ENDPOINTS = [route for route in ROUTES if isinstance(route, Endpoint)]


def name_of(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


@pytest.fixture(scope="module")
def document(mesh) -> dict[str, Any]:
    return httpx.get(f"{mesh.url}/openapi.json").json()


@pytest.fixture(scope="module")
def ids(mesh) -> dict[str, str]:
    """The IDs that stand for JOB and BATCH in examples."""
    wait = {"prefer": "wait=20"}
    with httpx.Client(base_url=mesh.url, timeout=30, headers=wait) as http:
        job = http.post("/v1/jobs", params={"keep_upload": "true"}, files={"image": CAT})
        batch = http.post("/v1/batches", files=[("images", CAT), ("images", b"no picture")])
    return {"JOB": job.json()["id"], "BATCH": batch.json()["id"]}


def test_it_is_valid(document: dict[str, Any]) -> None:
    validate(document)
    assert document["openapi"] == "3.1.0"


def test_every_route_is_described(document: dict[str, Any]) -> None:
    undescribed = [route.path for route in ROUTES if isinstance(route, Route) and not isinstance(route, Endpoint)]
    assert undescribed == [], "make them an Endpoint"
    for endpoint in ENDPOINTS:
        operation = document["paths"][endpoint.path][endpoint.method.lower()]
        assert len(operation["summary"]) > 10, name_of(endpoint)
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names) == len(ENDPOINTS)


def ask(http: httpx.Client, endpoint: Endpoint, ids: dict[str, str]) -> httpx.Response:
    example = endpoint.example
    path = endpoint.path
    for name, value in example.path.items():
        path = path.replace(f"{{{name}}}", ids.get(value, value))
    files = {"picture": {"image": CAT}, "pictures": [("images", CAT), ("images", CAT)], None: None}[endpoint.takes]
    return http.request(endpoint.method, path, params=example.query, headers=example.headers, files=files)


def check(document: dict[str, Any], endpoint: Endpoint, answer: httpx.Response) -> None:
    """The answer's status, type and content are those of the document."""
    responses = document["paths"][endpoint.path][endpoint.method.lower()]["responses"]
    described = responses.get(str(answer.status_code), responses["default"])
    kind = answer.headers.get("content-type", "").split(";")[0]
    assert kind in described.get("content", {"": None}), f"{kind} is not among {list(described.get('content', {}))}"
    for header in described.get("headers", {}):
        assert header in answer.headers
    if kind.endswith("json"):
        schema = described["content"][kind]["schema"] | {"components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_its_example_is_answered_as_described(
    http: httpx.Client, document: dict[str, Any], ids: dict[str, str], endpoint: Endpoint
) -> None:
    answer = ask(http, endpoint, ids)
    assert answer.status_code == endpoint.example.status, answer.text
    check(document, endpoint, answer)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_it_takes_the_parameters_that_are_described_and_no_other(
    http: httpx.Client, document: dict[str, Any], ids: dict[str, str], endpoint: Endpoint
) -> None:
    names = [parameter.name for parameter in endpoint.parameters if parameter.where == "query"]
    answer = http.request(
        endpoint.method,
        endpoint.path.replace("{job_id}", ids["JOB"]).replace("{batch_id}", ids["BATCH"]).replace("{model}", "small"),
        params={"zzzzzz": "1"},
        files={"picture": {"image": CAT}, "pictures": {"images": CAT}, None: None}[endpoint.takes],
    )
    if not endpoint.parameters and not endpoint.problems:
        assert answer.status_code in (200, 422, 503), "probes take whatever a prober adds"
        return
    if answer.status_code != 422:
        assert answer.status_code == 404, answer.text  # what it is about is looked for first
        return
    known = answer.json()["detail"].partition("known: ")[2]
    assert sorted(known.split(", ")) == sorted(names or ["none"])
    check(document, endpoint, answer)


@pytest.mark.parametrize("format_name", ["mesh", "ultralytics", "roboflow", "coco"])
def test_each_format_is_described(http: httpx.Client, document: dict[str, Any], ids: dict[str, str], format_name: str) -> None:
    schema = {"mesh": "Job", "ultralytics": "JobUltralytics", "roboflow": "JobRoboflow", "coco": "JobCoco"}[format_name]
    answer = http.get(f"/v1/jobs/{ids['JOB']}", params={"format": format_name})
    reference = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
    jsonschema.Draft202012Validator(reference).validate(answer.json())


def test_a_problem_leads_to_what_it_means(http: httpx.Client) -> None:
    problem = http.get("/v1/jobs/nosuchjob").json()
    kind = http.get(problem["type"]).json()
    assert (kind["code"], kind["status"], kind["title"]) == (problem["code"], problem["status"], problem["title"])


def test_the_page_for_people_loads_nothing_from_elsewhere(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "openapi.json" in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text
