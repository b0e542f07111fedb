"""Access control as the configuration says."""

import os
from typing import Final

from gateway.auth.access import AccessControl
from gateway.auth.tokens import Token, read_tokens
from gateway.config.settings import Settings

#: First segments of paths that need no token: the API page asks for one itself, and so does a Socket.IO ``CONNECT``.
OPEN_TREES: Final = ("docs", "socket.io")


def load_tokens(settings: Settings, folder: str) -> tuple[Token, ...]:
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


def apply_access(access: AccessControl, settings: Settings, tokens: tuple[Token, ...]) -> None:
    """Put tokens and the rights without one into force."""
    if settings.auth is None:
        access.turn_off()
    else:
        access.update(tokens, settings.auth.anonymous)
