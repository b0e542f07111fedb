"""The file of the tokens, which holds their hashes only.

A token is 32 random bytes in base64url. Its hash needs neither salt nor stretching: nobody can try 2**256 of them.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gateway.auth.principal import Scope

#: Bytes of a new token.
_TOKEN_BYTES: Final = 32

#: Maximum tokens of a file: each request is compared with all of them.
MAX_TOKENS: Final = 1000

#: Rights on a new file: its owner's, and reading by its group.
_MODE: Final = 0o640


class TokenFileError(Exception):
    """Error for a file of tokens that cannot be read or written; the text is one line for an operator."""


class Token(BaseModel):
    """Entry of the file.

    :ivar sha256: SHA-256 of the token, in hexadecimal digits.
    :ivar expires: time from which it is not valid any more; ``None`` for never.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    created: AwareDatetime
    expires: AwareDatetime | None = None

    def has_expired(self, now: datetime) -> bool:
        """Return whether it is not valid any more."""
        return self.expires is not None and self.expires <= now


class _TokenList(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Annotated[tuple[Token, ...], Field(max_length=MAX_TOKENS)] = ()


def hash_of(token: str | bytes) -> str:
    """Return the hash under which a token is kept."""
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).hexdigest()


def new_token(name: str, scopes: Sequence[Scope], now: datetime, expires: datetime | None) -> tuple[str, Token]:
    """Return a new token and its entry; only the caller ever knows the token itself.

    :param now: time of its creation.
    """
    text = secrets.token_urlsafe(_TOKEN_BYTES)
    return text, Token(name=name, scopes=tuple(scopes), sha256=hash_of(text), created=now, expires=expires)


def read_tokens(path: str) -> tuple[Token, ...]:
    """Return the tokens of a file; it blocks.

    :raises FileNotFoundError: no file has this path.
    :raises TokenFileError: it cannot be read, or is not a file of tokens.
    """
    try:
        # A pipe would be waited for.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise TokenFileError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TokenFileError(f"{path}: {error.strerror}") from error
    try:
        tokens = _TokenList.model_validate_json(content).tokens
    except ValidationError as error:
        # Without the value, which may be a token that somebody has written there.
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise TokenFileError(f"{path}: not a file of tokens: {where}: {first['msg']}") from None
    if len({token.name for token in tokens}) < len(tokens):
        raise TokenFileError(f"{path}: two tokens have the same name")
    if len({token.sha256 for token in tokens}) < len(tokens):
        raise TokenFileError(f"{path}: two tokens have the same sha256")
    return tokens


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Keep other commands from changing a file of tokens within a block.

    :raises TokenFileError: the folder cannot be written.
    """
    try:
        lock = _open_lock(f"{path}.lock")
    except OSError as error:
        raise TokenFileError(f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _open_lock(path: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        lock = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    if os.geteuid() == 0:
        # As the file of the tokens, so that the command can also be run as the owner of the folder later.
        folder = os.stat(os.path.dirname(path) or ".")
        os.fchown(lock, folder.st_uid, folder.st_gid)
    return lock


def write_tokens(path: str, tokens: Iterable[Token]) -> None:
    """Replace a file of tokens at once, so that a reader never sees half of it.

    It keeps its owner and its rights; a new one gets the owner of its folder, who may be another user than the one that
    runs the command.

    :raises TokenFileError: it cannot be written.
    """
    if os.path.islink(path):
        # To replace the link would leave its file as it was; to follow it as root, any file could be meant.
        raise TokenFileError(f"{path}: a symbolic link; name the file itself in auth.tokens_file")
    folder = os.path.dirname(path) or "."
    text = _TokenList(tokens=tuple(tokens)).model_dump_json(indent=1) + "\n"
    try:
        try:
            before = os.stat(path)
            mode = before.st_mode & 0o777
        except FileNotFoundError:
            before, mode = os.stat(folder), _MODE
        descriptor, temporary = tempfile.mkstemp(prefix=".tokens-", dir=folder)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fchmod(descriptor, mode)
                if os.geteuid() == 0:
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fsync(descriptor)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise TokenFileError(f"{path}: {error.strerror}") from error
