"""OpenAPI 3.1 document of the REST interface, at ``/openapi.json``.

Paths, methods and scopes are those of the routes; the catalogue describes the rest. The specification:
https://spec.openapis.org/oas/v3.1.0
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson
from klein import Klein
from twisted.web.http import Request
from twisted.web.resource import IResource

from gateway import __version__
from gateway.auth.principal import Scope
from gateway.web.http.answers import encoded_answer, handle_errors
from gateway.web.http.root import WithSlash
from gateway.web.http.scopes import ScopedApp
from gateway.web.schema.operations import ErrorCase, OperationSpec, contents_of, error_answers
from gateway.web.schema.rest_catalogue import OPERATIONS
from gateway.web.schema.rest_schemas import REST_SCHEMAS

_PATHS_OF_EVENTS: Final = "`/ws` (WebSocket), `/events` (server-sent events) and `/socket.io/`"

#: Errors that any request may get.
_ANY: Final = (
    ErrorCase(400, "bad_request", "not a valid HTTP/1 request"),
    ErrorCase(400, "invalid_url", "the path is not UTF-8"),
    ErrorCase(403, "origin_not_allowed", "the page's origin is not in `server.cors_origins`"),
    ErrorCase(404, "not_found", "the path does not exist"),
    ErrorCase(405, "method_not_allowed", "the path does not support the method"),
    ErrorCase(408, "request_timeout", "the request came too slowly"),
    ErrorCase(413, "body_too_large", "the body exceeds `limits.body_bytes`"),
    ErrorCase(415, "unsupported_encoding", "the body has a `Content-Encoding`"),
    ErrorCase(421, "misdirected_request", "the `Host` is not in `server.names`"),
    ErrorCase(429, "too_many_requests", "more than `limits.requests_per_second`"),
    ErrorCase(431, "head_too_large", "the head of the request exceeds 16 KiB or 500 lines"),
    ErrorCase(500, "internal_error", "a fault in the gateway; the log has the traceback"),
    ErrorCase(503, "too_many_connections", "`limits.connections` are open"),
)

#: Errors of routes that need a scope.
_SCOPED: Final = (
    ErrorCase(401, "unauthorized", "no token, or one that is not valid"),
    ErrorCase(403, "forbidden", "the token lacks the scope"),
)

_TAGS: Final = {
    "scales": "저울: the latest weight, and commits of shipped and returned cylinders.",
    "machines": "설비: statistics, anomalies and raw samples.",
    "gateway": "The gateway itself.",
}

#: A variable part of a route: converter, its arguments, name.
_VARIABLE: Final = re.compile(r"<(?:(\w+)(?:\(([^)]*)\))?:)?(\w+)>")


@dataclass(frozen=True, slots=True)
class RestRoute:
    """One path and method of an app.

    :ivar path: path with its variables in braces.
    :ivar value: value of the only variable of a route that lists its values, such as ``hour``; else empty.
    """

    path: str
    method: str
    prefix: str
    endpoint: str
    scope: Scope | None
    value: str = ""


def routes_of(apps: Mapping[str, Klein]) -> Iterator[RestRoute]:
    """Yield the routes of apps, by prefix; of a path with and without a slash at the end, the one with it.

    ``HEAD``, which every ``GET`` includes, is left out.
    """
    for prefix, app in apps.items():
        assert isinstance(app, ScopedApp)
        rules = {rule.rule: rule for rule in app.url_map.iter_rules()}
        for text, rule in rules.items():
            if f"{text}/" in rules:
                continue
            path = prefix if prefix and text == "/" else prefix + text
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                for expanded, value in _expand(path):
                    yield RestRoute(expanded, method.lower(), prefix, rule.endpoint, app.scopes[rule.endpoint], value)


def _expand(path: str) -> Iterator[tuple[str, str]]:
    """Yield the paths of a rule: one for each value of a variable that lists its values."""
    found = _VARIABLE.search(path)
    if found is not None and found[1] == "any":
        for value in found[2].split(","):
            yield path.replace(found[0], value.strip()), value.strip()
    else:
        yield _VARIABLE.sub(r"{\3}", path), ""


def document(apps: Mapping[str, Klein]) -> dict[str, Any]:
    """Return the OpenAPI document.

    :param apps: apps by the prefix of their paths.
    """
    paths: dict[str, Any] = {}
    for route in routes_of(apps):
        operation = _describe(route, OPERATIONS[route.prefix][route.endpoint])
        paths.setdefault(route.path, {})[route.method] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "CYNOW gateway",
            "version": __version__,
            "description": "Scales and machines of a plant. Paths work with and without a slash at the end, and those "
            f"with `GET` also answer `HEAD`. Live events come by {_PATHS_OF_EVENTS}: `/asyncapi.json` describes them.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "externalDocs": {"url": "/asyncapi.json", "description": "Live events, as AsyncAPI 3."},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": REST_SCHEMAS,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `cynow-gateway token add`, where the configuration has `auth`. Its "
                    "scopes are `read`, `commit` (with `read`) and `admin` (all).",
                }
            },
        },
    }


def _describe(route: RestRoute, spec: OperationSpec) -> dict[str, Any]:
    scope = route.scope
    words = [spec.description] if spec.description else []
    words.append("Open to everybody." if scope is None else f"Scope: `{scope}`.")
    name = "_".join(
        filter(None, (route.prefix.strip("/").replace("/", "_").replace(".", "_"), route.endpoint, route.value))
    )
    operation: dict[str, Any] = {
        "tags": [spec.tag],
        "summary": spec.summary + (f": {route.value}" if route.value else ""),
        "description": " ".join(words),
        "operationId": name,
        # An empty requirement: without `auth` in the configuration, no token is needed.
        "security": [] if scope is None else [{"bearer": [scope]}, {}],
        "responses": _responses(spec, scope),
    }
    if spec.parameters:
        operation["parameters"] = list(spec.parameters)
    if spec.body is not None:
        operation["requestBody"] = {"required": True, "content": contents_of([spec.body])}
    return operation


def _responses(spec: OperationSpec, scope: Scope | None) -> dict[str, Any]:
    cases: Iterable[ErrorCase] = (*spec.errors, *_ANY, *(() if scope is None else _SCOPED))
    others = {str(status): answer for status, answer in (spec.others or {}).items()}
    answers = {**error_answers(cases), **others}
    good: dict[str, Any] = {"description": spec.summary}
    if spec.contents:
        good["content"] = contents_of(spec.contents)
    return {str(spec.status): good, **dict(sorted(answers.items()))}


class OpenApi:
    """``/openapi.json``.

    :param apps: other apps by the prefix of their paths.
    """

    app = ScopedApp()
    handle_errors(app)

    def __init__(self, apps: Mapping[str, Klein]) -> None:
        self._make = partial(document, apps)
        self._text = b""

    def resource(self) -> IResource:
        """Return the resource of the route."""
        return WithSlash(self.app.resource())

    @app.route("/", methods=["GET"], scope="read")
    def openapi(self, request: Request) -> bytes:
        self._text = self._text or orjson.dumps(self._make())
        return encoded_answer(request, self._text)
