"""Access control as the configuration says."""

import os
from collections.abc import Callable
from typing import Final

from gateway.auth.access import AccessControl
from gateway.auth.tokens import Token, TokenFileError, read_tokens
from gateway.config.settings import Settings
from gateway.runtime.listener import StartError
from gateway.web.clients.registry import LiveClients

#: First segments of paths that need no token: the API page asks for one itself, and so does a Socket.IO ``CONNECT``.
OPEN_TREES: Final = ("docs", "socket.io")


def _load_tokens(settings: Settings, folder: str) -> tuple[Token, ...]:
    """Return the configured tokens; a file that does not exist yet has none. It blocks.

    :param folder: base of relative paths.
    :raises TokenFileError: the file cannot be used.
    """
    if settings.auth is None:
        return ()
    try:
        return read_tokens(os.path.join(folder, settings.auth.tokens_file))
    except FileNotFoundError:
        return ()


def prepare_access(access: AccessControl, clients: LiveClients, folder: str, settings: Settings) -> Callable[[], None]:
    """Read the tokens, and return the function that puts them and the rights without one into force.

    The function also ends the live connections that they do not admit any more.

    :raises StartError: the file of the tokens cannot be used.
    """
    try:
        tokens = _load_tokens(settings, folder)
    except TokenFileError as error:
        raise StartError(f"auth.tokens_file: {error}") from error

    def apply() -> None:
        if settings.auth is None:
            access.turn_off()
        else:
            access.update(tokens, settings.auth.anonymous)
        clients.check_access()

    return apply
