"""Topics of events and the patterns that match them."""

import itertools
from functools import lru_cache
from typing import Final

from gateway.model.names import is_name, name_of

_SOURCES: Final = frozenset({"scale", "machine", "*"})


def parse_topic(pattern: str) -> tuple[str, ...]:
    """Return the segments of a topic pattern, each a word or ``*``.

    :raises ValueError: the pattern is not valid.
    """
    match tuple(pattern.split("/")):
        case (source, name) if source in _SOURCES and (name == "*" or is_name(name)):
            return source, _stored_name(source, name)
        case (source, name, "samples" | "*" as last) if source in {"machine", "*"} and (name == "*" or is_name(name)):
            return source, _stored_name(source, name), last
    raise ValueError("a topic is scale/<id>, machine/<name> or machine/<name>/samples, with * for a whole segment")


def _stored_name(source: str, name: str) -> str:
    """Return the stored form of a name: a machine's in NFC, a scale's as configured."""
    return name if source == "scale" else name_of(name) or name


@lru_cache(maxsize=4096)
def matching_patterns(topic: str) -> tuple[tuple[str, ...], ...]:
    """Return every pattern that matches a topic."""
    return tuple(itertools.product(*((segment, "*") for segment in topic.split("/"))))
