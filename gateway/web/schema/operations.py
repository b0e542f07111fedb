"""Parts of the descriptions of REST operations: the source of ``/openapi.json``, beside the routes themselves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.web.http.answers import Refusal
from gateway.web.schema.catalogue import JsonSchema

#: Headers of answers, by status; an answer of the status always has them.
_HEADERS: Final = {
    401: ("WWW-Authenticate", "Bearer", "The kind of token that is needed."),
    405: ("Allow", "GET, HEAD", "The methods that the path allows."),
    415: ("Accept-Encoding", "identity", "The encodings of bodies that are accepted."),
    426: ("Upgrade", "websocket", "The protocol that is needed."),
    429: ("Retry-After", 2, "Seconds after which the request may be repeated."),
    503: ("Retry-After", 2, "Seconds after which the request may be repeated."),
}


@dataclass(frozen=True, slots=True)
class ErrorCase:
    """An error answer of an operation.

    :ivar error: error code.
    :ivar reason: condition under which it is answered.
    :ivar message: example of the text for people; by default the text of the error code.
    """

    status: int
    error: str
    reason: str
    message: str | None = None

    def example(self) -> dict[str, Any]:
        message = Refusal(self.status, self.error, self.message).message
        return {"ok": False, "error": self.error, "message": message}


@dataclass(frozen=True, slots=True)
class ContentSpec:
    """A form of an answer or of a request's body."""

    media: str
    schema: JsonSchema
    examples: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OperationSpec:
    """Description of an operation, which the table of routes lacks.

    :ivar tag: group in the documentation.
    :ivar contents: forms of the answer.
    :ivar parameters: Parameter Objects of OpenAPI; those of the path may be missing.
    :ivar errors: errors beside those of every request.
    :ivar others: Response Objects of further answers, by status.
    :ivar status: status of the answer; 101 has no content.
    """

    tag: str
    summary: str
    description: str
    contents: tuple[ContentSpec, ...]
    parameters: tuple[Mapping[str, Any], ...] = ()
    body: ContentSpec | None = None
    errors: tuple[ErrorCase, ...] = ()
    others: Mapping[int, Mapping[str, Any]] | None = None
    status: int = 200


def json_content(schema: JsonSchema, **examples: Any) -> ContentSpec:
    """Return the specification of a JSON content with named examples."""
    return ContentSpec("application/json", schema, examples)


def csv_content(*lines: str) -> ContentSpec:
    """Return the specification of a CSV answer with an example of lines."""
    schema = {"type": "string", "description": "CSV with a header (RFC 4180), with Accept: text/csv."}
    return ContentSpec("text/csv", schema, {"table": "".join(f"{line}\r\n" for line in lines)})


def query(name: str, schema: JsonSchema, description: str, example: Any, *, required: bool = False) -> dict[str, Any]:
    """Return the Parameter Object of a query parameter."""
    return {
        "name": name,
        "in": "query",
        "required": required,
        "description": description,
        "schema": schema,
        "example": example,
    }


def contents_of(contents: Iterable[ContentSpec]) -> dict[str, Any]:
    """Return the map of media types of a request or an answer."""
    return {
        content.media: {
            "schema": content.schema,
            "examples": {name: {"value": value} for name, value in content.examples.items()},
        }
        for content in contents
    }


def error_answers(cases: Iterable[ErrorCase]) -> dict[str, Any]:
    """Return Response Objects of errors, by status."""
    by_status: dict[int, list[ErrorCase]] = {}
    for case in cases:
        by_status.setdefault(case.status, []).append(case)
    return {str(status): _error_answer(status, by_status[status]) for status in sorted(by_status)}


def _error_answer(status: int, cases: list[ErrorCase]) -> dict[str, Any]:
    codes = [case.error for case in cases]
    reference = {"$ref": "#/components/schemas/Error"}
    schema = {"allOf": [reference, {"properties": {"error": {"enum": codes}}}]}
    answer: dict[str, Any] = {
        "description": "\n".join(f"- `{case.error}`: {case.reason}" for case in cases),
        "content": contents_of([json_content(schema, **{case.error: case.example() for case in cases})]),
    }
    if status in _HEADERS:
        name, example, description = _HEADERS[status]
        kind = "integer" if isinstance(example, int) else "string"
        header = {"required": True, "description": description, "schema": {"type": kind}, "example": example}
        answer["headers"] = {name: header}
    return answer
