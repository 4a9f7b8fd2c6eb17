"""Schemathesis (https://schemathesis.io) against the gateway's own document: every operation, with what fits and what does not.

The document is given to it without the answers that stand for any other problem, so that a status that is not described is
found. What is a picture no schema can say, so that schema-valid bodies may be refused; the answers must be described ones.
"""

from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import CheckContext
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.specs.openapi import checks

from deploy.local.supervisor import LocalMesh
from gateway import openapi
from gateway.app import ROUTES
from tests.preprocess_worker.pictures import encode, scene

EXAMPLES, MANY_EXAMPLES = 8, 300
PICTURE = encode(scene(40, 30), "PNG")
WEB = ("http://", "https://")


def strict_document() -> dict[str, Any]:
    """The document as JSON has it, with described answers only."""
    document = msgspec.json.decode(msgspec.json.encode(openapi.document(ROUTES)))
    for path in document["paths"].values():
        for operation in path.values():
            del operation["responses"]["default"]
    return document


def schema(examples: int) -> schemathesis.BaseSchema:
    generation = GenerationConfig(max_examples=examples, deterministic=True)
    projects = ProjectsConfig(default=ProjectConfig(generation=generation))
    return schemathesis.openapi.from_dict(strict_document(), config=SchemathesisConfig(projects=projects, seed=1))


schemathesis.openapi.media_type("image/png", st.just(PICTURE))


@schemathesis.deserializer("application/msgpack")
def _unpacked(_ctx: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return msgspec.msgpack.decode(response.content)


@schemathesis.check
def no_server_error(_ctx: CheckContext, response: schemathesis.Response, _case: schemathesis.Case) -> None:
    if response.status_code == 503:
        assert int(response.headers["retry-after"][0]) >= 1
    else:
        assert response.status_code < 500


ALWAYS = [
    no_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
    checks.allow_header_conformance,
]
WITHOUT_BODY = [checks.negative_data_rejection, checks.positive_data_acceptance]


@pytest.fixture(scope="module")
def ids(mesh: LocalMesh) -> dict[str, dict[str, str]]:
    """Jobs and batches that exist, by method: those that are deleted are others than those that are read."""
    with httpx.Client(base_url=mesh.url, timeout=30, headers={"prefer": "wait=20"}) as http:

        def made() -> dict[str, str]:
            job = http.post("/v1/jobs", params={"keep_upload": "true"}, files={"image": PICTURE})
            batch = http.post("/v1/batches", files=[("images", PICTURE), ("images", b"no picture")])
            return {"job_id": job.json()["id"], "batch_id": batch.json()["id"]}

        return {method: made() for method in ("GET", "POST", "DELETE")}


def run(case: schemathesis.Case, mesh: LocalMesh, ids: dict[str, dict[str, str]]) -> None:
    if case.meta and case.meta.generation.mode.is_positive:
        for name, value in ids.get(case.method, {}).items():
            if name in case.path_parameters:
                case.path_parameters[name] = value
    if str(case.query.get("callback_url", "")).lower().startswith(WEB):
        del case.query["callback_url"]  # nobody outside hears of a test
    accept = "application/msgpack" if len(case.query) % 2 else "application/json"
    response = case.call(base_url=mesh.url, headers={"accept": accept}, timeout=60)
    case.validate_response(response, checks=ALWAYS if case.operation.body else ALWAYS + WITHOUT_BODY)


@schema(EXAMPLES).parametrize()
def test_every_operation_answers_as_described(case: schemathesis.Case, mesh: LocalMesh, ids: dict[str, dict[str, str]]) -> None:
    run(case, mesh, ids)


@pytest.mark.slow
@schema(MANY_EXAMPLES).parametrize()
def test_every_operation_answers_as_described_whatever_comes(
    case: schemathesis.Case, mesh: LocalMesh, ids: dict[str, dict[str, str]]
) -> None:
    run(case, mesh, ids)
