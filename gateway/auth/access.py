"""Decision about the rights of a token."""

import hmac
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Literal

from gateway.auth.principal import EVERYBODY, NOBODY, Principal, Scope, with_implied
from gateway.auth.tokens import Token, hash_of

#: Reason why a token gives no rights.
Fault = Literal["invalid", "expired"]


class AccessControl:
    """The tokens in force, and the rights without one; off until :meth:`update` turns it on.

    :param now: returns the time of the wall clock, for the expiry of tokens.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._anonymous = EVERYBODY
        self._tokens: tuple[tuple[str, Token, Principal], ...] = ()
        self.is_on = False

    def turn_off(self) -> None:
        """Give everybody all rights."""
        self.is_on, self._anonymous, self._tokens = False, EVERYBODY, ()

    def update(self, tokens: Iterable[Token], anonymous: Iterable[Scope]) -> None:
        """Replace the tokens and the rights of requests without one."""
        self.is_on = True
        self._anonymous = Principal("", with_implied(anonymous))
        self._tokens = tuple(
            (token.sha256, token, Principal(token.name, with_implied(token.scopes), token.sha256)) for token in tokens
        )

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

    def _find(self, digest: str) -> Principal | Fault:
        match: tuple[Token, Principal] | None = None
        for known, token, principal in self._tokens:
            if hmac.compare_digest(known, digest):
                match = token, principal
        if match is None:
            return "invalid"
        return "expired" if match[0].has_expired(self._now()) else match[1]
