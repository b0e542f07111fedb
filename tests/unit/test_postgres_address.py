"""``database.url``: valid and invalid URLs, and the order of hosts."""

import threading
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from gateway.commands.check import check_line
from gateway.config.loader import ConfigError, load
from gateway.store.interface import StoreUnavailable
from gateway.store.postgres import address as address_module
from gateway.store.postgres.address import ServerAddress, url_problem


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgres://db",
        "postgresql://cynow:s3cret@db.example:5433/cynow",
        "postgresql://u@h1:1,h2:5432/db?target_session_attrs=read-write",
        "postgresql://u@h1,h2/db",
        "postgresql://u@h1,h2:5433/db",
        "postgresql://u@[::1]:5432,10.0.0.7/db",
        "postgresql:///db?host=/run/postgresql&port=5433",
        "postgresql://%2Frun%2Fpostgresql/db",
        "postgresql://u:p%40ss@h/db?sslmode=verify-full&sslrootcert=/etc/ca.pem&connect_timeout=3",
        "postgresql:///?service=plant",
        "postgresql://h/db?options=-c%20search_path%3Dplant",
        "postgresql://h/db?application_name=x",
    ],
)
def test_url_problem_valid_url_is_empty(url: str) -> None:
    assert url_problem(url) == ""
    assert ServerAddress(reactor, url, "test").parameters


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mysql://u:s3cret@h/db", "not a PostgreSQL URL; expected postgresql://user:password@host:port/database"),
        ("host=h user=u password=s3cret", "not a PostgreSQL URL"),
        ("postgresql:/u:s3cret@h/db", "not a PostgreSQL URL"),
        ("postgresql://u:s3cret%zz@h/db", "not a PostgreSQL URL"),
        ("postgresql://u:s3cret@[h/db", "not a PostgreSQL URL"),
        ("postgresql://u:s3cret@h/db?nonsense=s3cret", "unknown parameter nonsense"),
        ("postgresql://u:s3cret@h:99999/db", "not a valid port"),
        ("postgresql://u:s3cret@h:0/db", "not a valid port"),
        ("postgresql://u:s3cret@h:x/db", "not a valid port"),
        ("postgresql://h1,h2,h3/db?port=1,2", "ports for"),
        ("postgresql://h/db?target_session_attrs=writable", "target_session_attrs is not one of"),
    ],
)
def test_load_invalid_url_is_a_problem_without_its_password(tmp_path: Path, url: str, expected: str) -> None:
    assert expected in url_problem(url)
    assert "s3cret" not in url_problem(url)
    file = tmp_path / "gateway.yaml"
    file.write_text(f"database: {{url: '{url}'}}", "utf-8")
    with pytest.raises(ConfigError) as caught:
        load(file, {}, check_line)
    (problem,) = caught.value.problems
    assert problem.key == "database.url"
    assert expected in problem.message
    assert "s3cret" not in str(problem)


class AddressTests(TestCase):
    """Hosts as the driver gets them."""

    def target(self, url: str) -> ServerAddress:
        target = ServerAddress(reactor, url, "test")
        target.start()
        self.addCleanup(target.close)
        return target

    async def hosts(self, url: str, turns: int = 0) -> list[tuple[str, str, str]]:
        target = self.target(url)
        for _ in range(turns):
            target.rotate(target.rotation)
        found = await target.arguments()
        return list(zip(*(found.get(key, "").split(",") for key in ("host", "hostaddr", "port")), strict=True))

    async def test_arguments_unknown_host_is_left_out(self) -> None:
        found = await self.hosts("postgresql://u@no-such-host.invalid:1,127.0.0.1:2/db")
        self.assertEqual(found, [("127.0.0.1", "127.0.0.1", "2")])

    async def test_arguments_without_known_host_raises(self) -> None:
        target = self.target("postgresql://u@no-such-host.invalid,nor-this.invalid/db")
        with self.assertRaisesRegex(OSError, "cannot look up host nor-this.invalid in database.url"):
            await target.arguments()

    async def test_rotate_silent_host_is_last(self) -> None:
        url = "postgresql://u@127.0.0.1:1,127.0.0.2:2,127.0.0.3:3/db"
        for turns, first in ((0, "1"), (1, "2"), (2, "3"), (3, "1")):
            found = await self.hosts(url, turns)
            self.assertEqual(found[0][2], first)
            self.assertEqual(len(found), 3)

    async def test_rotate_twice_for_one_attempt_rotates_once(self) -> None:
        target = self.target("postgresql://u@127.0.0.1:1,127.0.0.2:2/db")
        target.rotate(0)
        target.rotate(0)
        self.assertEqual((await target.arguments())["port"], "2,1")

    async def test_arguments_one_port_is_for_all_hosts(self) -> None:
        found = await self.hosts("postgresql://u@127.0.0.1,127.0.0.2/db?port=7")
        self.assertEqual([port for _, _, port in found], ["7", "7"])

    async def test_arguments_socket_directory_beside_a_host(self) -> None:
        found = await self.hosts("postgresql://u@%2Frun%2Fpostgresql:5,127.0.0.1:6/db")
        self.assertEqual(found, [("/run/postgresql", "", "5"), ("127.0.0.1", "127.0.0.1", "6")])

    async def test_arguments_single_directory_or_address_is_unchanged(self) -> None:
        for url in ("postgresql:///db?host=/run/postgresql", "postgresql://u@127.0.0.1/db", "postgresql:///db"):
            found: dict[str, Any] = await self.target(url).arguments()
            self.assertNotIn("hostaddr", found)

    def test_address_invalid_url_raises_without_its_password(self) -> None:
        with self.assertRaises(StoreUnavailable) as caught:
            ServerAddress(reactor, "postgresql://u:s3cret%zz@h/db", "test")
        self.assertNotIn("s3cret", str(caught.exception))

    async def test_rotate_silent_hostaddr_is_last(self) -> None:
        url = "postgresql://u@db1,db2/db?hostaddr=127.0.0.1,127.0.0.2&port=1,2"
        self.assertEqual(await self.hosts(url, turns=1), [("db2", "127.0.0.2", "2"), ("db1", "127.0.0.1", "1")])
        self.assertEqual(
            (await self.hosts("postgresql:///db?hostaddr=127.0.0.1,127.0.0.2&port=7", turns=1))[0][1:],
            ("127.0.0.2", "7"),
        )

    async def test_arguments_slow_look_up_does_not_block_other_hosts(self) -> None:
        asked: list[str] = []
        answered = threading.Event()

        def addresses(host: str) -> list[str]:
            asked.append(host)
            if host == "slow.example":
                answered.wait(60)
            return ["127.0.0.9"]

        self.patch(address_module, "_find_addresses", addresses)
        self.patch(address_module, "_MAX_LOOKUP_OF_SEVERAL", 0.2)
        self.addCleanup(answered.set)
        target = self.target("postgresql://u@slow.example:1,fast.example:2/db")
        for _ in range(3):
            found = await target.arguments()
            self.assertEqual((found["host"], found["hostaddr"], found["port"]), ("fast.example", "127.0.0.9", "2"))
        # Only one thread waits for it.
        self.assertEqual(asked.count("slow.example"), 1)

    async def test_arguments_slow_look_up_of_single_host_raises(self) -> None:
        answered = threading.Event()
        self.patch(address_module, "_find_addresses", lambda _: answered.wait(60) and [])
        self.patch(address_module, "_MAX_LOOKUP", 0.1)
        self.addCleanup(answered.set)
        with self.assertRaisesRegex(
            OSError, "cannot look up host slow.example in database.url: no answer within 0.1 s"
        ):
            await self.target("postgresql://u@slow.example/db").arguments()

    async def test_arguments_invalid_host_name_raises(self) -> None:
        with self.assertRaisesRegex(OSError, "cannot look up host x+"):
            await self.target(f"postgresql://u@{'x' * 70}.example/db").arguments()


def test_url_problem_does_not_quote_a_password_with_a_slash() -> None:
    assert "s3cret" not in url_problem("postgresql://u:a/b?s3cret=1@h/db")
