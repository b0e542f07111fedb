"""The OpenAPI document, held against the routes, the error codes and its own schemas."""

import ast
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.assembly.web import REST_APPS
from gateway.web.http.scopes import ScopedApp
from gateway.web.schema.openapi import document, routes_of
from gateway.web.schema.rest_catalogue import OPERATIONS
from tests.conftest import ROOT

DOCUMENT = document(REST_APPS)

#: Codes of paths that AsyncAPI describes.
LIVE = {"too_many_subscribers", "upgrade_required"}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def contents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each content of a request or an answer with its place."""
    for path, method, operation in operations():
        places = {"body": operation.get("requestBody", {}), **operation["responses"]}
        for place, owner in places.items():
            for media, content in owner.get("content", {}).items():
                yield f"{method} {path} {place} {media}", content


def test_document_is_valid_openapi() -> None:
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []


def test_every_route_has_a_description_and_every_description_a_route() -> None:
    described = {(prefix, endpoint) for prefix, specs in OPERATIONS.items() for endpoint in specs}
    assert described == {(route.prefix, route.endpoint) for route in routes_of(REST_APPS)}
    for prefix, app in REST_APPS.items():
        assert isinstance(app, ScopedApp)
        assert {endpoint for owner, endpoint in described if owner == prefix} == set(app.scopes)


def test_paths_are_those_of_the_routes() -> None:
    assert {(path, method) for path, method, _ in operations()} == {
        ("/api/scale-gateway/latest/", "get"),
        ("/api/scale-gateway/commit/", "post"),
        ("/stat/machineList", "get"),
        ("/stat/hour", "get"),
        ("/stat/day", "get"),
        ("/stat/month", "get"),
        ("/stat/year", "get"),
        ("/stat/anomaly", "get"),
        ("/stat/anomaly/all", "get"),
        ("/sio/machineList", "get"),
        ("/api/v1/machines/{machine}/samples", "get"),
        ("/api/v1/record/head", "get"),
        ("/api/v1/scales", "get"),
        ("/api/v1/scales/{scale_id}", "get"),
        ("/api/v1/scales/{scale_id}/check-weigh", "post"),
        ("/api/v1/record/heads", "post"),
        ("/api/v1/commits", "get"),
        ("/api/v1/commits/{commit}", "get"),
        ("/api/v1/commits/{commit}/receipt", "get"),
        ("/api/v1/commits/{commit}/undo", "post"),
        ("/api/v1/cylinders/{cylinder}", "get"),
        ("/", "get"),
        ("/healthz", "get"),
        ("/readyz", "get"),
        ("/metrics", "get"),
        ("/openapi.json", "get"),
    }


def test_scopes_are_those_of_the_routes() -> None:
    routes = {(route.path, route.method): route.scope for route in routes_of(REST_APPS)}
    for path, method, operation in operations():
        scope = routes[path, method]
        assert operation["security"] == ([] if scope is None else [{"bearer": [scope]}, {}])
        assert ("401" in operation["responses"]) == (scope is not None)
        assert "403" in operation["responses"]


def test_operation_ids_are_unique() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)


def test_document_has_every_error_code() -> None:
    codes = set()
    for path in (ROOT / "gateway" / "web").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="Refusal"), args=[_, ast.Constant(value=str(code)), *_]):
                    codes.add(code)
    documented = {
        code
        for _, _, operation in operations()
        for answer in operation["responses"].values()
        for content in answer.get("content", {}).values()
        for code in content.get("examples", {})
    }
    assert codes - LIVE <= documented


@pytest.mark.parametrize(("place", "content"), [pytest.param(*each, id=each[0]) for each in contents()])
def test_example_has_the_form_of_its_schema(place: str, content: dict[str, Any]) -> None:
    examples = [each["value"] for each in content.get("examples", {}).values()] or [content["example"]]
    validator = Draft202012Validator({**content["schema"], "components": DOCUMENT["components"]})
    for example in examples:
        validator.validate(example)


def test_answers_have_the_headers_that_clients_need() -> None:
    expected = {
        "401": "WWW-Authenticate",
        "405": "Allow",
        "415": "Accept-Encoding",
        "429": "Retry-After",
        "503": "Retry-After",
    }
    for _, _, operation in operations():
        for status, answer in operation["responses"].items():
            assert set(answer.get("headers", {})) == ({expected[status]} if status in expected else set())
