"""The file of the tokens, the rights that they give, and the command that changes them."""

import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.auth.access import AccessControl
from gateway.auth.principal import EVERYBODY, NOBODY, Principal, Scope
from gateway.auth.tokens import MAX_TOKENS, Token, TokenFileError, hash_of, locked, new_token, read_tokens, write_tokens
from gateway.commands.token import main

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def token(name: str, *scopes: Scope, expires: datetime | None = None) -> Token:
    return Token(name=name, scopes=scopes, sha256=hash_of(name), created=NOW, expires=expires)


class Plant:
    """Access control at a time that a test sets."""

    def __init__(self) -> None:
        self.now = NOW
        self.access = AccessControl(lambda: self.now.timestamp())

    def scopes(self, name: str) -> set[str] | str:
        found = self.access.identify(name.encode())
        return set(found.scopes) if isinstance(found, Principal) else found


# -- rights


def test_access_without_configuration_gives_everybody_all_rights() -> None:
    plant = Plant()
    assert plant.access.anonymous is EVERYBODY
    assert plant.scopes("anything") == {"read", "commit", "admin"}


@pytest.mark.parametrize(
    ("given", "rights"),
    [
        (("read",), {"read"}),
        (("commit",), {"read", "commit"}),
        (("admin",), {"read", "commit", "admin"}),
        (("read", "commit"), {"read", "commit"}),
    ],
)
def test_token_has_its_scopes_and_those_that_they_imply(given: tuple[Scope, ...], rights: set[str]) -> None:
    plant = Plant()
    plant.access.update([token("other", "admin"), token("a", *given)], ())
    assert plant.scopes("a") == rights


def test_unknown_and_expired_tokens_have_no_rights() -> None:
    plant = Plant()
    plant.access.update([token("a", "read", expires=NOW + timedelta(seconds=1))], ("read",))
    assert plant.scopes("a") == {"read"}
    assert plant.scopes("b") == plant.scopes("") == plant.scopes(hash_of("a")) == "invalid"
    plant.now += timedelta(seconds=1)
    assert plant.scopes("a") == "expired"


def test_anonymous_rights_are_none_unless_configured() -> None:
    plant = Plant()
    plant.access.update([], ())
    assert plant.access.anonymous.scopes == set()
    plant.access.update([], ("commit",))
    assert plant.access.anonymous.scopes == {"read", "commit"}


def test_principal_of_an_earlier_request_has_the_rights_of_now() -> None:
    plant = Plant()
    plant.access.update([token("a", "commit")], ())
    holder = plant.access.identify(b"a")
    assert isinstance(holder, Principal)
    assert plant.access.current(holder).scopes == {"read", "commit"}
    plant.access.update([token("a", "read")], ())
    assert plant.access.current(holder).scopes == {"read"}
    # Another token with the same name.
    plant.access.update([token("b", "read").model_copy(update={"name": "a"})], ())
    assert plant.access.current(holder) is NOBODY
    assert plant.access.current(EVERYBODY).scopes == set()
    plant.access.turn_off()
    assert plant.access.current(holder) is plant.access.current(NOBODY) is EVERYBODY


# -- the file


def test_file_holds_hashes_only_and_reads_back(tmp_path: Path) -> None:
    path = str(tmp_path / "tokens.json")
    text, entry = new_token("hall", ("read", "commit"), NOW, NOW + timedelta(days=90))
    write_tokens(path, [entry])
    assert read_tokens(path) == (entry,)
    assert len(text) == 43
    assert text not in Path(path).read_text("utf-8")
    assert new_token("hall", ("read",), NOW, None)[0] != text


def test_file_keeps_its_rights_and_a_new_one_is_not_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    write_tokens(str(path), [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    write_tokens(str(path), [token("a", "read")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["tokens.json"]


def test_symbolic_link_is_not_replaced(tmp_path: Path) -> None:
    path, link = tmp_path / "tokens.json", tmp_path / "link.json"
    write_tokens(str(path), [])
    link.symlink_to(path)
    with pytest.raises(TokenFileError, match="a symbolic link; name the file itself"):
        write_tokens(str(link), [token("a", "read")])
    assert link.is_symlink()
    assert read_tokens(str(path)) == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_lock_that_root_makes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    for _ in range(2):
        with locked(str(tmp_path / "tokens.json")):
            pass
    lock = (tmp_path / "tokens.json.lock").stat()
    assert (lock.st_uid, lock.st_gid) == (65534, 65534)


def test_lock_does_not_follow_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "tokens.json.lock").symlink_to("elsewhere")
    with pytest.raises(TokenFileError), locked(str(tmp_path / "tokens.json")):
        raise AssertionError("not reached")
    assert not (tmp_path / "elsewhere").exists()


ENTRY = {"name": "a", "scopes": ["read"], "sha256": "0" * 64, "created": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        json.dumps({"tokens": [ENTRY, ENTRY]}).encode(),
        json.dumps({"tokens": [ENTRY, {**ENTRY, "name": "b"}]}).encode(),
        json.dumps({"tokens": [{**ENTRY, "scopes": []}]}).encode(),
        json.dumps({"tokens": [{**ENTRY, "scopes": ["write"]}]}).encode(),
        json.dumps({"tokens": [{**ENTRY, "sha256": "secret-token-itself"}]}).encode(),
        json.dumps({"tokens": [{**ENTRY, "expires": "2026-01-01T00:00:00"}]}).encode(),
        json.dumps(
            {"tokens": [{**ENTRY, "name": str(n), "sha256": f"{n:064x}"} for n in range(MAX_TOKENS + 1)]}
        ).encode(),
        json.dumps({"tokens": [], "more": 1}).encode(),
    ],
)
def test_invalid_file_is_one_line_without_its_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokens.json"
    path.write_bytes(content)
    with pytest.raises(TokenFileError) as caught:
        read_tokens(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_pipe_or_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(TokenFileError, match="not a regular file"):
            read_tokens(str(path))


# -- the command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs the command in a plant with access control, and returns its output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gateway.yaml").write_text("auth: {tokens_file: secrets/tokens.json}\n", "utf-8")
    (tmp_path / "secrets").mkdir()

    def run(*arguments: str, status: int = 0) -> str:
        assert main([*arguments, "--config", "gateway.yaml"]) == status
        output = capsys.readouterr()
        return output.err if status else output.out

    return run


def entries(folder: Path) -> dict[str, Token]:
    return {entry.name: entry for entry in read_tokens(str(folder / "secrets" / "tokens.json"))}


def test_add_prints_a_valid_token_as_its_last_line(run: Callable[..., str], tmp_path: Path) -> None:
    output = run("add", "홀 1", "--scope", "read,commit", "--expires", "90d")
    entry = entries(tmp_path)["홀 1"]
    assert hash_of(output.splitlines()[-1]) == entry.sha256
    assert entry.scopes == ("read", "commit")
    assert entry.expires is not None
    assert entry.expires - entry.created == timedelta(days=90)


def test_add_takes_scopes_in_several_options_too(run: Callable[..., str], tmp_path: Path) -> None:
    run("add", "app", "--scope", "read", "--scope", "commit,read")
    assert entries(tmp_path)["app"].scopes == ("read", "commit")


def test_add_of_a_name_that_exists_changes_nothing(run: Callable[..., str], tmp_path: Path) -> None:
    run("add", "hall", "--scope", "read")
    before = entries(tmp_path)
    assert "already" in run("add", "hall", "--scope", "admin", status=1)
    assert entries(tmp_path) == before


def test_revoked_token_is_gone_and_others_stay(run: Callable[..., str], tmp_path: Path) -> None:
    run("add", "hall", "--scope", "read")
    run("add", "app", "--scope", "admin")
    run("revoke", "hall")
    assert set(entries(tmp_path)) == {"app"}
    assert "no token hall" in run("revoke", "hall", status=1)


def test_list_shows_names_scopes_and_expiry_but_no_hash(run: Callable[..., str], tmp_path: Path) -> None:
    assert "no tokens" in run("list")
    run("add", "hall", "--scope", "commit")
    (tmp_path / "secrets" / "tokens.json").write_text(
        json.dumps({"tokens": [{**ENTRY, "expires": "2026-01-02T00:00:00Z"}]}), "utf-8"
    )
    output = run("list")
    assert "EXPIRED" in output
    assert "read" in output
    assert "0" * 10 not in output


def test_relative_file_is_below_the_working_directory_of_the_gateway(run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "plant" / "secrets").mkdir(parents=True)
    run("add", "hall", "--scope", "read", "--rundir", "plant")
    assert (tmp_path / "plant" / "secrets" / "tokens.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "a"],
        ["add", "a", "--scope", "write"],
        ["add", "a", "--scope", ""],
        ["add", "a/b", "--scope", "read"],
        ["add", "a", "--scope", "read", "--expires", "90"],
        ["add", "a", "--scope", "read", "--expires", "-1d"],
        ["add", "a", "--scope", "read", "--expires", "0d"],
        ["revoke"],
        [],
        ["unknown"],
    ],
)
def test_wrong_use_exits_with_2(run: Callable[..., str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2


def test_command_without_access_control_says_what_to_configure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("server: {port: 1}\n", "utf-8")
    assert main(["list", "--config", str(config)]) == 1
    assert "auth: {tokens_file: FILE}" in capsys.readouterr().err


def test_command_without_a_configuration_asks_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 1
    assert "--config FILE" in capsys.readouterr().err
