"""The short way from a request to its endpoint: one look-up, one call, one answer.

Starlette tries all routes one after the other and wraps each call in two layers that catch errors, which costs more than most
of our handlers. Requests that an endpoint of ours takes go straight to it; all else - static files, wrong methods, unknown
paths - goes on to Starlette, whose answers do not change.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import problems
from gateway.endpoint import Endpoint
from shared.errors import MeshError

_QUERIES = 256
"""So many query strings are kept parsed: clients ask for the same few things over and over."""


class Fields(Headers):
    """The header fields of a request, by a dictionary: they are looked up ten times for each request."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope=scope)
        self._first: dict[bytes, bytes] = {}
        for name, value in self._list:
            self._first.setdefault(name, value)

    def __getitem__(self, key: str) -> str:
        return self._first[key.lower().encode("latin-1")].decode("latin-1")

    def get(self, key: str, default: Any = None) -> Any:
        """The first field of this name, or `default`."""
        value = self._first.get(key.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1")

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower().encode("latin-1") in self._first


class LeanRequest(Request):
    """Starlette's request with quicker fields and parameters."""

    @property
    def headers(self) -> Headers:
        """The header fields."""
        if not hasattr(self, "_headers"):
            self._headers = Fields(self.scope)
        return self._headers

    @property
    def query_params(self) -> QueryParams:
        """The parameters, which nobody changes."""
        return _query(self.scope["query_string"])


@lru_cache(_QUERIES)
def _query(text: bytes) -> QueryParams:
    return QueryParams(text)


class DispatchMiddleware:
    """The last of the middleware, in front of Starlette's router."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self.app = app
        self._exact: dict[tuple[str, str], Endpoint] = {}
        self._patterns: dict[tuple[str, str], list[Endpoint]] = {}
        for route in routes:
            if not isinstance(route, Endpoint):
                continue
            if route.param_convertors:
                self._patterns.setdefault((route.method, _first_segment(route.path)), []).append(route)
            elif not any(each.path_regex.match(route.path) for each in self._alike(route.method, route.path)):
                self._exact.setdefault((route.method, route.path), route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        endpoint = self._find(scope) if scope["type"] == "http" else None
        if endpoint is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = endpoint
        request = LeanRequest(scope, receive, send)
        try:
            response = await endpoint.endpoint(request)
        except MeshError as error:
            response = await problems.on_mesh_error(request, error)
        except HTTPException as error:
            response = await problems.on_http_exception(request, error)
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> Endpoint | None:
        """The endpoint that Starlette would choose; its path's parameters go into the scope."""
        method, path = scope["method"], scope["path"]
        endpoint = self._exact.get((method, path))
        if endpoint is not None:
            scope["path_params"] = {}
            return endpoint
        for endpoint in self._alike(method, path):
            found = endpoint.path_regex.match(path)
            if found:
                scope["path_params"] = {
                    name: endpoint.param_convertors[name].convert(value) for name, value in found.groupdict().items()
                }
                return endpoint
        return None

    def _alike(self, method: str, path: str) -> list[Endpoint]:
        """The endpoints with parameters that this path may belong to."""
        return self._patterns.get((method, _first_segment(path)), [])


def _first_segment(path: str) -> str:
    return path[1:].partition("/")[0]
