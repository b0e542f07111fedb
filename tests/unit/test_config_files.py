"""Files that the configuration names: the URL of the database, credentials of systemd, the rights of secrets."""

import io
import sys
from pathlib import Path

import pytest

from gateway.commands.check import check_config, check_line, write_result
from gateway.config.loader import ConfigError, load
from gateway.config.settings import Settings
from gateway.runtime.paths import expand_credentials

URL = "postgresql://cynow:s3cret@db.example/cynow"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gateway.yaml"


def read(file: Path, text: str, **environment: str) -> Settings:
    file.write_text(text, "utf-8")
    return load(file, environment, check_line, str(file.parent))


def problems(file: Path, text: str, **environment: str) -> dict[str, str]:
    """Return every problem by its key; one that is not fatal begins with a question mark."""
    file.write_text(text, "utf-8")
    found = check_config(file, environment, str(file.parent)).problems
    assert len({problem.key for problem in found}) == len(found)
    assert all("s3cret" not in str(problem) and "\n" not in str(problem) for problem in found)
    return {("" if problem.is_fatal else "?") + problem.key: problem.message for problem in found}


def secret(path: Path, content: str | bytes = URL, mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [URL, f"{URL}\n", f"{URL}\r\n", f"\ufeff {URL} \n\n"])
def test_url_file_is_read_as_the_url(file: Path, content: str) -> None:
    secret(file.parent / "url", content)
    settings = read(file, "DATABASE: {URL_FILE: url}")
    assert (settings.database.url, settings.database.url_file) == (URL, "url")
    assert problems(file, "database: {url_file: url}\nserver: {share_ports: true}") == {}


def test_url_file_absolute_path_is_read_from_any_folder(file: Path, tmp_path: Path) -> None:
    path = secret(tmp_path / "url")
    file.write_text(f"database: {{url_file: {path}}}")
    assert load(file, {}).database.url == URL


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\n", "the file is empty"),
        (b"mysql://cynow:s3cret@db.example/cynow", "not a PostgreSQL URL"),
        (b"postgresql://cynow:s3cret@db.example:x y/?", "url: "),
        (f"{URL}\n{URL}".encode(), "more than one line"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\0" * 100_000, "control character"),
    ],
)
def test_url_file_with_another_content_is_a_problem(file: Path, content: bytes, said: str) -> None:
    secret(file.parent / "url", content)
    found = problems(file, "database: {url_file: url}")
    assert set(found) == {"database.url_file"}
    assert said in found["database.url_file"]
    with pytest.raises(ConfigError) as caught:
        read(file, "database: {url_file: url}")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("name", "said"), [("missing", "No such file"), (".", "Is a directory"), ('"a\\0b"', "NUL")])
def test_url_file_that_cannot_be_read_is_a_problem(file: Path, name: str, said: str) -> None:
    found = problems(file, f"database: {{url_file: {name}}}\nserver: {{share_ports: true}}")
    assert set(found) == {"database.url_file"}
    assert said in found["database.url_file"]


def test_url_file_beside_the_url_is_a_problem(file: Path) -> None:
    secret(file.parent / "url")
    found = problems(file, f"database: {{url_file: url, url: '{URL}'}}")
    assert found == {"database.url_file": "database.url is set as well; leave one of them out"}


def test_url_file_without_a_value_is_the_embedded_store(file: Path) -> None:
    assert read(file, "database: {url_file: null}").database.url is None


ALL = """
database: {url_file: $CREDENTIALS_DIRECTORY/url}
fcm: {cred_path: $CREDENTIALS_DIRECTORY/fcm}
auth: {tokens_file: $CREDENTIALS_DIRECTORY/tokens}
server: {tls: {cert: $CREDENTIALS_DIRECTORY/a, key: $CREDENTIALS_DIRECTORY/b, client_ca: $CREDENTIALS_DIRECTORY/c}}
scales: {dock: {listen: "tcp:4001", tls: {cert: $CREDENTIALS_DIRECTORY/d, key: $CREDENTIALS_DIRECTORY/e}}}
machines: {Saw: {secret_file: $CREDENTIALS_DIRECTORY/f}}
"""


def test_credentials_directory_is_expanded_in_every_path(file: Path, tmp_path: Path) -> None:
    secret(tmp_path / "url")
    settings = read(file, ALL, CREDENTIALS_DIRECTORY=str(tmp_path))
    scale = settings.scales["dock"]
    assert settings.server.tls is not None
    assert scale.tls is not None
    assert settings.auth is not None
    assert settings.database.url == URL
    assert [
        settings.fcm.cred_path,
        settings.auth.tokens_file,
        settings.server.tls.cert,
        settings.server.tls.key,
        settings.server.tls.client_ca,
        scale.tls.cert,
        scale.tls.key,
        settings.machines["Saw"].secret_file,
    ] == [f"{tmp_path}/{name}" for name in ("fcm", "tokens", "a", "b", "c", "d", "e", "f")]


def test_credentials_directory_not_set_is_a_problem_of_each_path(file: Path) -> None:
    found = problems(file, ALL)
    assert set(found) == {
        "database.url_file",
        "fcm.cred_path",
        "auth.tokens_file",
        "server.tls.cert",
        "server.tls.key",
        "server.tls.client_ca",
        "scales.dock.tls.cert",
        "scales.dock.tls.key",
        "machines.Saw.secret_file",
    }
    assert all("$CREDENTIALS_DIRECTORY is not set" in message for message in found.values())


@pytest.mark.parametrize("path", ["/etc/$CREDENTIALS_DIRECTORY/x", "$HOME/x", "~/x", "$CREDENTIALS_DIRECTORYx", ""])
def test_expand_credentials_other_paths_stay(path: str) -> None:
    assert expand_credentials(path, {"CREDENTIALS_DIRECTORY": "/run", "HOME": "/root"}) == path


def test_expand_credentials_replaces_the_beginning() -> None:
    assert expand_credentials("$CREDENTIALS_DIRECTORY/a/b", {"CREDENTIALS_DIRECTORY": "/run/c"}) == "/run/c/a/b"
    for environment in ({}, {"CREDENTIALS_DIRECTORY": ""}):
        with pytest.raises(ValueError, match="is not set"):
            expand_credentials("$CREDENTIALS_DIRECTORY/a", environment)


SECRETS = """
database: {url_file: url}
fcm: {cred_path: fcm}
auth: {tokens_file: tokens}
server: {tls: {cert: cert, key: key, client_ca: ca}}
machines: {key: {secret_file: secret}}
stat: {cert: ABS}
"""


def test_secret_that_every_user_may_read_is_a_warning(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("url", "fcm", "tokens", "cert", "key", "ca", "secret", "ABS"):
        secret(tmp_path / name, mode=0o604)
    open_to_all = ("?database.url_file", "?fcm.cred_path", "?server.tls.key", "?machines.key.secret_file")
    warnings = problems(file, SECRETS)
    assert [key for key in open_to_all if key not in warnings] == []
    assert warnings["?server.tls.key"] == f"every user may read {tmp_path}/key; take that right away (chmod o-r)"
    assert not {"?auth.tokens_file", "?server.tls.cert", "?server.tls.client_ca", "?stat.cert"} & set(warnings)
    for name in ("url", "fcm", "key", "secret"):
        (tmp_path / name).chmod(0o640)
    assert not set(open_to_all) & set(problems(file, SECRETS))
    # A warning makes --check fail, as every other one.
    (tmp_path / "url").chmod(0o644)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert write_result("", check_config(file, {}, str(tmp_path))) == 1
