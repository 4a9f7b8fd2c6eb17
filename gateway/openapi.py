"""The OpenAPI 3.1 document, made from the routes (`gateway.endpoint.Endpoint`) and the msgspec types of their answers.

(https://spec.openapis.org/oas/v3.1.0; schemas are JSON Schema 2020-12, from `msgspec.json.schema_components`)
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.routing import BaseRoute

from gateway.answers import Problem
from gateway.endpoint import TAGS, Answer, Endpoint, Parameter
from gateway.receiving import BATCH_PART_NAMES, PART_NAMES
from shared import errors
from shared.errors import MeshError

VERSION = "1.0.0"
"""Of the API, not of the software: the major number changes when something stops working."""

_REF = "#/components/schemas/{name}"
_PROBLEM = "application/problem+json"
_DATA = ("application/json", "application/msgpack")
_RAW = ("image/jpeg", "image/png", "image/webp", "image/gif", "application/octet-stream")
_BINARY: dict[str, Any] = {}
"""In OpenAPI 3.1 an empty schema of a media type that is no text says: any bytes."""

_ALWAYS: tuple[type[MeshError], ...] = (errors.Overloaded, errors.StoreUnavailable)
_WITH_KEYS: tuple[type[MeshError], ...] = (errors.Unauthorized, errors.Forbidden, errors.TooManyRequests)
_HEADERS = {
    "location": "Where it can be read from now on.",
    "retry-after": "Seconds after which it pays to ask again.",
    "preference-applied": "The wait that was asked for and kept.",
}
_EVENTS = (
    "Server-sent events, each as described, for each state of the job that was not seen yet, until it has ended; comments in "
    "between keep the connection."
)


def document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The document of all routes that are endpoints."""
    endpoints = [route for route in routes if isinstance(route, Endpoint)]
    types = [kind for endpoint in endpoints for answer in endpoint.answers for kind in _types(answer)]
    parameters = [parameter.type for endpoint in endpoints for parameter in endpoint.parameters]
    schemas, components = msgspec.json.schema_components([*types, *parameters, Problem], ref_template=_REF)
    by_type = dict(zip(map(id, [*types, *parameters]), schemas, strict=False))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "visionmesh",
            "version": VERSION,
            "description": "Finds objects in pictures. Boxes are pixels of the upright picture, most confident first. "
            "Every error is an RFC 9457 problem with a stable `code`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, where the mesh is configured with keys.",
                }
            },
        },
        "security": [{}, {"key": []}],
    }


def _operation(endpoint: Endpoint, by_type: dict[int, Any]) -> dict[str, Any]:
    summary, _, more = endpoint.text.partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{endpoint.method.lower()}{endpoint.path}").strip("_"),
        "summary": _sentence(summary),
        "tags": [endpoint.tag],
        "parameters": [_parameter(parameter, by_type) for parameter in endpoint.parameters],
        "responses": {str(answer.status): _answer(answer, by_type) for answer in endpoint.answers} | _problems(endpoint),
    }
    if more:
        operation["description"] = " ".join(more.split())
    if endpoint.takes:
        operation["requestBody"] = {"required": True, "content": _body(endpoint)}
    return operation


def _parameter(parameter: Parameter, by_type: dict[int, Any]) -> dict[str, Any]:
    described = {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.where == "path",
        "description": parameter.text,
        "schema": by_type[id(parameter.type)],
    }
    return described if parameter.example is None else described | {"example": parameter.example}


def _body(endpoint: Endpoint) -> dict[str, Any]:
    """What a body may be: a form with the picture in a part, or the picture itself."""
    if endpoint.takes == "pictures":
        part = {"type": "array", "minItems": 1, "items": _BINARY, "description": "The pictures, a part for each."}
        return {"multipart/form-data": {"schema": _form(BATCH_PART_NAMES[0], part)}}
    part = {"description": "The picture."}
    return {
        "multipart/form-data": {"schema": _form(PART_NAMES[0], part)},
        **{kind: {"schema": _BINARY} for kind in _RAW},
    }


def _form(name: str, part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: part}}


def _types(answer: Answer) -> Sequence[Any]:
    if answer.type is None:
        return ()
    return answer.type if isinstance(answer.type, tuple) else (answer.type,)


def _answer(answer: Answer, by_type: dict[int, Any]) -> dict[str, Any]:
    schemas = [by_type[id(kind)] for kind in _types(answer)]
    schema = {"anyOf": schemas} if len(schemas) > 1 else schemas[0] if schemas else {}
    content: dict[str, Any]
    match answer.gives:
        case "data":
            content = {kind: {"schema": schema} for kind in _DATA}
        case "json":
            content = {"application/json": {"schema": schema or {"type": "object"}}}
        case "events":
            content = {"text/event-stream": {"schema": _event(schema)}}
        case "image":
            content = {kind: {"schema": _BINARY} for kind in ("image/jpeg", "image/webp", "image/png")}
        case "html":
            content = {"text/html": {"schema": {"type": "string"}}}
        case "empty":
            content = {}
    described: dict[str, Any] = {"description": answer.text}
    if content:
        described["content"] = content
    if answer.headers:
        described["headers"] = {name: {"description": _HEADERS[name], "schema": {"type": "string"}} for name in answer.headers}
    return described


def _event(of: dict[str, Any]) -> dict[str, Any]:
    """One server-sent event. OpenAPI 3.1 has no word for a sequence; 3.2's tools read the schema of a stream as an event's."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": of, "description": "The job."}
    fields = {"id": {"type": "string"}, "event": {"type": "string", "description": "The job's status."}, "data": data}
    return {"type": "object", "required": ["id", "event", "data"], "properties": fields, "description": _EVENTS}


def _problems(endpoint: Endpoint) -> dict[str, Any]:
    kinds: list[type[MeshError]] = [*endpoint.problems, *_ALWAYS, *_WITH_KEYS]
    if endpoint.parameters or endpoint.takes:
        kinds.append(errors.InvalidParameter)
    taken = {answer.status for answer in endpoint.answers}
    by_status: dict[int, list[str]] = {}
    for kind in kinds:
        if kind.status not in taken and kind.code not in by_status.setdefault(kind.status, []):
            by_status[kind.status].append(kind.code)
    described = {str(status): _problem(f"One of: {', '.join(codes)}.") for status, codes in sorted(by_status.items()) if codes}
    return described | {"default": _problem("Any other problem; `code` says which.")}


def _problem(text: str) -> dict[str, Any]:
    return {"description": text, "content": {_PROBLEM: {"schema": {"$ref": _REF.format(name=Problem.__name__)}}}}


def _sentence(text: str) -> str:
    words = " ".join(text.split()).rstrip(".")
    return words[:1].upper() + words[1:]
