"""Rights of a request or of a connection."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

#: Right that a token gives: to read, to write commits too, or to do everything.
Scope = Literal["read", "commit", "admin"]

SCOPES: Final[tuple[Scope, ...]] = ("read", "commit", "admin")


@dataclass(frozen=True, slots=True)
class Principal:
    """Holder of a token, or everybody without one.

    :ivar name: name of the token; empty without a token.
    :ivar digest: hash of the token; empty without one.
    :ivar scopes: rights, complete: ``commit`` and ``admin`` come with ``read``, and ``admin`` with ``commit``.
    """

    name: str
    scopes: frozenset[Scope]
    digest: str = ""


def with_implied(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """Return scopes with those that they imply."""
    given = frozenset(scopes)
    if "admin" in given:
        return frozenset(SCOPES)
    return given | {"read"} if given else given


#: Rights of everybody while access control is off.
EVERYBODY: Final = Principal("", frozenset(SCOPES))

#: Rights of a request that is not identified.
NOBODY: Final = Principal("", frozenset())
