"""Files that the configuration names: credentials of systemd, the URL of the database, the rights of secrets."""

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from gateway.config.problems import Problem
from gateway.config.settings import DatabaseSettings, Settings
from gateway.runtime.paths import CREDENTIALS, expand_credentials

#: Keys of files, as section and key; ``True`` for a secret, which others must not read. A file of tokens holds hashes.
_FILES: Final[dict[tuple[str, ...], bool]] = {
    ("database", "url_file"): True,
    ("fcm", "cred_path"): True,
    ("tls", "cert"): False,
    ("tls", "key"): True,
    ("tls", "client_ca"): False,
    ("auth", "tokens_file"): False,
    ("machines", "secret_file"): True,
}

#: Paths that are not read: a credential that does not exist, and one with a NUL.
_NOT_READ: Final = re.compile(re.escape(CREDENTIALS) + r"|(?s:.*)\0")

#: Maximum bytes that are read as a URL.
_MAX_URL: Final = 64 * 1024

_URL_FILE: Final = "database.url_file"


def read_files(
    tree: dict[str, Any], environment: Mapping[str, str], folder: str, check: Callable[[str, str], str] | None
) -> list[Problem]:
    """Replace ``$CREDENTIALS_DIRECTORY`` in the paths of a configuration, and set ``database.url`` from its file.

    :param tree: configuration with keys in lower case, which is changed.
    :param folder: base of relative paths.
    :param check: function that takes ``url`` and a URL, and returns the problem with it.
    :returns: the problems, at most one for each key.
    """
    problems = []
    for section, key, location, _ in _files(tree):
        section[key] = section[key].strip()
        try:
            section[key] = expand_credentials(section[key], environment)
        except ValueError as error:
            problems.append(Problem(location, str(error)))
    database = tree.get("database")
    name = database.get("url_file") if isinstance(database, dict) else None
    # The settings refuse a NUL themselves.
    if isinstance(database, dict) and isinstance(name, str) and name and not _NOT_READ.match(name):
        if "url" in database:
            problems.append(Problem(_URL_FILE, "database.url is set as well; leave one of them out"))
        else:
            try:
                database["url"] = _url_in(os.path.join(folder, name), check)
            except ValueError as error:
                problems.append(Problem(_URL_FILE, str(error)))
    return problems


def _url_in(path: str, check: Callable[[str, str], str] | None) -> str:
    """Return the URL in a file, without the newline at its end.

    :raises ValueError: the file or the URL cannot be used; the message does not repeat the content.
    """
    try:
        with open(path, "rb") as file:
            url = file.read(_MAX_URL).decode("utf-8-sig").strip()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8") from None
    if not url:
        raise ValueError(f"{path}: the file is empty; write the URL into it")
    if not url.isprintable():
        raise ValueError(f"{path}: more than one line, or a control character")
    try:
        DatabaseSettings.model_validate({"url": url}, context=check)
    except ValidationError as error:
        raise ValueError(f"{path}: {error.errors()[0]['msg']}") from None
    return url


def exposed_secrets(settings: Settings, folder: str) -> Iterator[Problem]:
    """Yield a warning for each file of a secret that every user of the machine may read.

    :param folder: base of relative paths.
    """
    for section, key, location, is_secret in _files(settings.model_dump()):
        path = os.path.join(folder, section[key])
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError):
            # The part that reads the file says so.
            continue
        if is_secret and stat.S_ISREG(mode) and mode & stat.S_IROTH:
            yield Problem(location, f"every user may read {path}; take that right away (chmod o-r)", is_fatal=False)


def _files(tree: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[dict[str, Any], str, str, bool]]:
    """Yield each file of a configuration: its section, its key there, the whole key, and whether it is a secret."""
    for key, value in list(tree.items()):
        here = (*above, str(key))
        if isinstance(value, dict):
            yield from _files(value, here)
        elif isinstance(value, str) and value:
            # An entry of `machines` has a name between the section and the key.
            section = above[-1:] if above[:1] != ("machines",) else above[:-1]
            is_secret = _FILES.get((*section, str(key)))
            if is_secret is not None:
                yield tree, str(key), ".".join(here), is_secret
