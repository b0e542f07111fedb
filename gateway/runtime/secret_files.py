"""Files that hold one secret."""

from typing import Final

#: Maximum bytes of a secret.
MAX_SECRET: Final = 1000


class SecretFileError(Exception):
    """Error for a file that holds no usable secret; the text is one line for an operator, without the secret."""


def read_secret(path: str) -> str:
    """Return the secret in a file, without the newline at its end. It blocks.

    :raises SecretFileError: the file cannot be read, or its content is not a secret.
    """
    try:
        with open(path, "rb") as file:
            # A newline may follow the longest secret, and a byte order mark precede it.
            secret = file.read(MAX_SECRET + 16).decode("utf-8-sig").rstrip("\r\n")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise SecretFileError(f"{path}: the secret is not UTF-8 text") from None
        raise SecretFileError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not secret:
        raise SecretFileError(f"{path} is empty; write the secret into it")
    if len(secret.encode()) > MAX_SECRET:
        raise SecretFileError(f"{path}: the secret is longer than {MAX_SECRET} bytes")
    if not secret.isprintable():
        raise SecretFileError(f"{path}: a secret is one line without control characters")
    return secret
