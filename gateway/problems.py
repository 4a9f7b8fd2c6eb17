"""Errors as RFC 9457 problem documents: the one place where an error of the mesh becomes an HTTP answer."""

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from shared import errors, metrics
from shared.errors import MeshError
from shared.messages import JobProblem

_BY_STATUS: dict[int, type[MeshError]] = {404: errors.NotFound, 405: errors.MethodNotAllowed}


def answer(error: MeshError, *, trace_id: str = "", headers: dict[str, str] | None = None) -> Response:
    """The problem document of an error. `type` is a path that leads to the error's row in the documentation."""
    document: dict[str, Any] = {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
    }
    if error.job_id:
        document["job_id"] = error.job_id
    if trace_id:
        document["trace_id"] = trace_id
    headers = dict(headers or {})
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    return Response(msgspec.json.encode(document), error.status, headers, media_type="application/problem+json")


def of_job(problem: JobProblem, job_id: str) -> MeshError:
    """The error that a failed job stands for, where the job is the request itself."""
    return errors.BY_CODE.get(problem.code, errors.Internal)(problem.detail, job_id=job_id)


async def on_mesh_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for our own errors."""
    assert isinstance(error, MeshError)  # noqa: S101 - registered for nothing else
    if request.method == "POST" and isinstance(error, errors.RequestError):
        metrics.refused(error.code)
    return answer(error, trace_id=request.scope.get("trace_id", ""))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler for what its router raises."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    kind = _BY_STATUS.get(error.status_code, errors.BadRequest)
    detail = f"{request.method} {request.url.path}: {error.detail}"
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == errors.MethodNotAllowed.status:
        headers["allow"] = ", ".join(sorted(_methods(request)))
    return answer(kind(detail), trace_id=request.scope.get("trace_id", ""), headers=headers)


def _methods(request: Request) -> set[str]:
    """What can be done at this path. A route tells of its own method only, and each of our endpoints is a route."""
    there = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in there for method in getattr(route, "methods", None) or ()}
