"""Checks of the query for cylinders, which only the plant's own database could run."""

import re
from collections.abc import Iterator
from typing import Final

from gateway.config.problems import Problem
from gateway.config.settings import Settings

_KEY: Final = "cylinders.query"

_PLACEHOLDER: Final = "%(cylinder_no)s"

#: Per cent signs by their use, so that a doubled one is not seen as the beginning of a placeholder.
_PERCENT: Final = re.compile(r"%%|%\([^)]*\)s|%")

#: A placeholder within quotes: the driver puts quotes around the number itself.
_QUOTED: Final = re.compile(r"'%\(cylinder_no\)s'|\"%\(cylinder_no\)s\"")

#: Texts and comments, which may have any character.
_TEXT: Final = re.compile(r"'[^']*'|--[^\n]*|/\*.*?\*/", re.DOTALL)

#: Beginnings of statements that return rows, and can stand in parentheses.
_READING: Final = re.compile(
    r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(?:select|with|table|values)\b", re.IGNORECASE | re.DOTALL
)


def cylinder_problems(settings: Settings) -> Iterator[Problem]:
    """Yield each problem of the section ``cylinders``; no value is shown, since a URL may hold a password."""
    query = settings.cylinders.query
    if query is None:
        if settings.cylinders.url is not None:
            yield Problem("cylinders.url", "has no effect: set cylinders.query", is_fatal=False)
        return
    if settings.cylinders.url is None and settings.database.url is None:
        yield Problem(_KEY, "no database to ask; set cylinders.url, or database.url")
    if not _READING.match(query):
        yield Problem(_KEY, "not a query; it must begin with SELECT or WITH")
    elif ";" in _TEXT.sub("", query.strip().rstrip(";")):
        yield Problem(_KEY, "more than one statement; write one SELECT, without a semicolon")
    yield from _placeholder_problems(query)


def _placeholder_problems(query: str) -> Iterator[Problem]:
    uses = set(_PERCENT.findall(query)) - {"%%"}
    if "%" in uses:
        yield Problem(_KEY, "a per cent sign that is not part of %(cylinder_no)s must be doubled: %%")
    for other in sorted(uses - {"%", _PLACEHOLDER}):
        yield Problem(_KEY, f"unknown placeholder {other}; the only one is {_PLACEHOLDER}")
    if _PLACEHOLDER not in uses:
        yield Problem(
            _KEY, f"has no {_PLACEHOLDER}; write it where the number stands, such as WHERE no = {_PLACEHOLDER}"
        )
    elif _QUOTED.search(query):
        yield Problem(_KEY, f"quotes around {_PLACEHOLDER}; leave them out, because the driver adds them")
