"""The short way to an endpoint leads where Starlette's would, and what a request says is read as Starlette reads it."""

from typing import Any

import pytest
from starlette.requests import Request
from starlette.routing import Match

from gateway.app import ROUTES
from gateway.dispatch import DispatchMiddleware, Fields, LeanRequest
from gateway.endpoint import Endpoint

PATHS = sorted(
    {
        route.path.format_map(dict.fromkeys(route.param_convertors, "some-name"))
        for route in ROUTES
        if isinstance(route, Endpoint)
    }
)
ODD = [
    "",
    "/v1",
    "/v1/",
    "/v1/jobs/",
    "/v1/jobs/a/b/c",
    "//v1/jobs",
    "/V1/jobs",
    "/static/page.js",
    "/predict",
    "/predict/a/b",
    "/v1/jobs/%2e",
]


async def _nowhere(*_: Any) -> None:
    raise AssertionError("not called here")


def scope_of(method: str, path: str) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "root_path": "", "headers": [], "query_string": b""}


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD", "PUT", "OPTIONS"])
def test_the_endpoint_is_the_one_that_starlette_chooses(method: str) -> None:
    dispatch = DispatchMiddleware(_nowhere, ROUTES)
    met = 0
    for path in [*PATHS, *ODD]:
        scope = scope_of(method, path)
        found = dispatch._find(scope)
        choices = [(route, *route.matches(scope_of(method, path))) for route in ROUTES]
        chosen, inner = next(((route, inner) for route, match, inner in choices if match is Match.FULL), (None, {}))
        if found is None:  # Starlette goes on, and HEAD is its own
            assert method not in ("GET", "POST", "DELETE") or not isinstance(chosen, Endpoint), path
            continue
        met += 1
        assert found is chosen, path
        assert scope["path_params"] == inner["path_params"], path
    assert bool(met) == (method in ("GET", "POST", "DELETE"))


def test_fields_are_read_as_starlette_reads_them() -> None:
    scope = scope_of("GET", "/") | {
        "headers": [(b"accept", b"a"), (b"accept", b"b"), (b"x-latin", "\u00e9".encode("latin-1")), (b"empty", b"")],
        "query_string": b"a=1&b=%20&a=2",
    }
    ours, theirs = LeanRequest(scope), Request(scope)
    assert isinstance(ours.headers, Fields)
    for name in ("accept", "Accept", "X-Latin", "empty", "none"):
        assert ours.headers.get(name) == theirs.headers.get(name)
        assert ours.headers.get(name, "else") == theirs.headers.get(name, "else")
        assert (name in ours.headers) == (name in theirs.headers)
        assert ours.headers.getlist(name) == theirs.headers.getlist(name)
    assert ours.headers["accept"] == "a"
    with pytest.raises(KeyError):
        ours.headers["none"]
    assert ours.headers.items() == theirs.headers.items()
    assert ours.query_params == theirs.query_params
    assert ours.query_params.getlist("a") == ["1", "2"]
