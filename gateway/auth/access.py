"""Decision about the rights of a token."""

import hmac
import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from gateway.auth.principal import EVERYBODY, NOBODY, Principal, Scope, with_implied
from gateway.auth.tokens import Token, hash_of

#: Reason why a token gives no rights.
Fault = Literal["invalid", "expired"]


class _KnownToken(NamedTuple):
    """Token in force.

    :ivar until: time at which it expires, in seconds since 1970; infinite if it does not.
    """

    digest: str
    until: float
    principal: Principal


class AccessControl:
    """The tokens in force, and the rights without one; off until :meth:`update` turns it on.

    :param wall: returns the time of the wall clock, in seconds since 1970.
    :ivar version: number that changes with the tokens and the rights.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self.wall = wall
        self._anonymous = EVERYBODY
        self._tokens: tuple[_KnownToken, ...] = ()
        self.is_on = False
        self.version = 0

    def turn_off(self) -> None:
        """Give everybody all rights."""
        self.is_on, self._anonymous, self._tokens = False, EVERYBODY, ()
        self.version += 1

    def update(self, tokens: Iterable[Token], anonymous: Iterable[Scope]) -> None:
        """Replace the tokens and the rights of requests without one."""
        self.is_on = True
        self._anonymous = Principal("", with_implied(anonymous))
        self._tokens = tuple(
            _KnownToken(
                token.sha256,
                math.inf if token.expires is None else token.expires.timestamp(),
                Principal(token.name, with_implied(token.scopes), token.sha256),
            )
            for token in tokens
        )
        self.version += 1

    @property
    def anonymous(self) -> Principal:
        """Rights without a token."""
        return self._anonymous

    def identify(self, token: bytes) -> Principal | Fault:
        """Return the rights of a token, or the reason why it gives none.

        The time that this takes does not depend on the token: its hash is compared with all, each in constant time.
        """
        if not self.is_on:
            return EVERYBODY
        return self._find(hash_of(token))

    def current(self, principal: Principal) -> Principal:
        """Return the rights that a principal of an earlier request has now."""
        if self.is_on and principal is NOBODY:
            return NOBODY
        if not self.is_on or not principal.digest:
            return self._anonymous
        found = self._find(principal.digest)
        return found if isinstance(found, Principal) else NOBODY

    def until(self, principal: Principal) -> float:
        """Return the time at which the token of a principal expires, in seconds since 1970; infinite if it does not."""
        return next((known.until for known in self._tokens if known.digest == principal.digest), math.inf)

    def has_expired_between(self, before: float, now: float) -> bool:
        """Return whether a token has expired after ``before`` and until ``now``, both in seconds since 1970."""
        return any(before < known.until <= now for known in self._tokens)

    def _find(self, digest: str) -> Principal | Fault:
        match: _KnownToken | None = None
        for known in self._tokens:
            if hmac.compare_digest(known.digest, digest):
                match = known
        if match is None:
            return "invalid"
        return "expired" if match.until <= self.wall() else match.principal
