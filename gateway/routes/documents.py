"""What the service says of itself: `/` with the page's files, `/openapi.json`, `/docs`, and what each problem means."""

import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from gateway import encoders, openapi, parameters
from gateway.answers import Description, ProblemKind, ProblemKinds
from gateway.endpoint import Answer, Endpoint, Example, Parameter
from gateway.mesh import Mesh
from shared import errors
from shared.errors import BY_CODE, JobError, MeshError

_STATIC = Path(__file__).parents[1] / "static"
DOCS = _STATIC / "docs.html"

PAGE_HEADERS = {
    "vary": "accept",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
}
"""The page runs its own files only: no inline script, no other host."""


class Files(StaticFiles):
    """The page's files, checked by their ETag at every load: a mesh that was updated is never shown by an old page."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """The file, or 304 if the browser has it."""
        answer = super().file_response(full_path, stat_result, scope, status_code)
        answer.headers["cache-control"] = "no-cache"
        return answer


_files = Files(directory=_STATIC)


async def describe(request: Request) -> Response:
    """`GET /`: the web page for a browser, else what this service is and where to go on."""
    if "text/html" in request.headers.get("accept", ""):
        page = await _files.get_response("index.html", request.scope)
        page.headers.update(PAGE_HEADERS)
        return page
    mesh: Mesh = request.state.mesh
    paths = sorted({route.path for route in _router(request).routes if isinstance(route, Route)})
    description = Description(
        service="visionmesh",
        description="Finds objects in pictures: POST one to /v1/jobs or /predict/{model}; /docs says more",
        models=sorted(mesh.registry.models),
        formats=mesh.settings.formats.split(","),
        max_upload_bytes=mesh.settings.max_upload_bytes,
        endpoints=paths,
    )
    return encoders.answer(request, description, headers={"vary": "accept"})


async def show_openapi(request: Request) -> Response:
    """`GET /openapi.json`: this API as an OpenAPI 3.1 document."""
    state = request.app.state
    if not hasattr(state, "openapi"):  # made once per process: it says the same to everybody
        state.openapi = openapi.document(_router(request).routes)
    return encoders.answer_json(state.openapi)


async def show_docs(request: Request) -> Response:
    """`GET /docs`: the same for people, on one page that loads nothing from elsewhere."""
    parameters.check_names(request.query_params, [])
    return FileResponse(DOCS, headers={"cache-control": "no-cache"})


async def list_problems(request: Request) -> Response:
    """`GET /problems`: all kinds of problems that an answer or a job may have."""
    parameters.check_names(request.query_params, [])
    return encoders.answer(request, ProblemKinds([_kind(kind) for kind in BY_CODE.values()]))


async def show_problem(request: Request) -> Response:
    """`GET /problems/CODE`: the kind of problem that a problem's `type` names."""
    parameters.check_names(request.query_params, [])
    kind = BY_CODE.get(request.path_params["code"])
    if kind is None:
        raise errors.NotFound(f"no problem has the code {request.path_params['code']!r}; /problems lists them all")
    return encoders.answer(request, _kind(kind))


def _kind(kind: type[MeshError]) -> ProblemKind:
    return ProblemKind(kind.code, kind.status, kind.title, ends_jobs=issubclass(kind, JobError))


def _router(request: Request) -> Router:
    return request.app.router


_CODE = Parameter("code", str, "The problem's code, the last part of its `type`.", "path", "too-large")

ROUTES: list[BaseRoute] = [
    Mount("/static", _files),
    Endpoint(
        "GET",
        "/",
        describe,
        tag="Mesh",
        answers=(Answer(200, "The description; a browser gets the page.", Description),),
        example=Example(),
    ),
    Endpoint(
        "GET",
        "/openapi.json",
        show_openapi,
        tag="Mesh",
        answers=(Answer(200, "The document.", gives="json"),),
        example=Example(),
    ),
    Endpoint("GET", "/docs", show_docs, tag="Mesh", answers=(Answer(200, "The page.", gives="html"),), example=Example()),
    Endpoint(
        "GET",
        "/problems",
        list_problems,
        tag="Mesh",
        answers=(Answer(200, "The kinds of problems.", ProblemKinds),),
        problems=(errors.InvalidParameter,),
        example=Example(),
    ),
    Endpoint(
        "GET",
        "/problems/{code}",
        show_problem,
        tag="Mesh",
        parameters=(_CODE,),
        answers=(Answer(200, "The kind of problem.", ProblemKind),),
        problems=(errors.NotFound,),
        example=Example(path={"code": "too-large"}),
    ),
]
