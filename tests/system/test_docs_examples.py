"""The requests of the REST page, sent to a real gateway, and the form of their answers."""

import contextlib
import csv
import io
import json
import re
import shlex
import sqlite3
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOT
from tests.support.daemon import Daemon, running, until

PAGE = ROOT / "docs" / "reference" / "rest.rst"


def examples() -> list[tuple[str, str]]:
    """Return the commands of the page, each in one line, and their answers."""
    text = PAGE.read_text("utf-8").replace("\\\n        ", "")
    return [
        (command, re.sub(r"^    ", "", answer, flags=re.MULTILINE))
        for command, answer in re.findall(r"^    \$ (curl .*)\n((?:    (?!\$).*\n)+)", text, re.MULTILINE)
    ]


EXAMPLES = examples()


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Run a gateway with the scale and the machine of the examples."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "db").mkdir()
    with contextlib.closing(sqlite3.connect(folder / "db" / "ShotBlast.db")) as connection, connection:
        for period, time in (("hour", "2025-12-18 10:00:00"), ("day", "2025-12-18 00:00:00")):
            table = f"shot_blast_vib1_{period}_avg"
            connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, time TIMESTAMP, data REAL)")
            connection.execute(f"INSERT INTO {table} (time, data) VALUES (?, 0.734)", (time,))
        connection.execute("CREATE TABLE anomaly (id INTEGER PRIMARY KEY, time TIMESTAMP, threshold REAL, score REAL)")
        connection.execute("INSERT INTO anomaly VALUES (1, '2025-12-18 10:11:12.123456', 1.0, 1.5)")
    raw = folder / "data" / "ShotBlast" / "20251218_vib1.csv"
    raw.parent.mkdir(parents=True)
    raw.write_text("time,data\n10:00:00,-2.5\n10:00:00,3.25\n", "ascii")
    # Limits for a page whose reference weight is not what stands on the scale.
    check_weigh = {"warning_kg": 40, "control_kg": 50, "every_days": 7, "calibration_due": "2099-06-30"}
    with running(folder, timezone="Asia/Seoul", scale={"check_weigh": check_weigh}) as daemon:
        # The scale was empty before, which its passport shows, and was checked.
        daemon.scale().sendall(b"ST , +000000.00 _kg\r\n" * 10 + b"ST , +000053.26 _kg\r\n")
        daemon.daq(b'["name", "ShotBlast"]\0')
        until(daemon.latest_is(53.26), "the reading of the examples")
        assert daemon.request("POST", "/api/v1/scales/default/check-weigh", b'{"nominal_kg": 53.25}')[0] == 200
        until(lambda: daemon.get("/sio/machineList")[1]["machine_list"], "the machine of the examples")
        yield daemon


def sent(daemon: Daemon, command: str) -> tuple[int, Any]:
    """Send the request of a command line of curl; return status and content of the answer."""
    words = iter(shlex.split(command)[1:])
    headers: dict[str, str] = {}
    body = url = None
    for word in words:
        if word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name.replace("-", "_")] = value
        elif word == "-d":
            body = next(words).encode()
        else:
            url = urlsplit(word)
    assert url is not None
    path = f"{url.path}?{url.query}" if url.query else url.path
    return daemon.request("GET" if body is None else "POST", path, body, **headers)[:2]


def form(value: Any) -> Any:
    """Return a JSON value without its contents: keys, kinds of values, and the first item of a list."""
    if isinstance(value, dict):
        # Lines for an operator, which there may be none of.
        return {key: "lines" if key == "details" else form(item) for key, item in value.items()}
    if isinstance(value, list):
        return [form(item) for item in value[:1]]
    return "number" if isinstance(value, float | int) and not isinstance(value, bool) else type(value).__name__


@pytest.mark.parametrize(("command", "answer"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_request_of_rest_page_gets_answer_of_its_form(plant: Daemon, command: str, answer: str) -> None:
    status, content = sent(plant, command)
    assert status == 200, content
    if "text/csv" in command:
        expected, found = (list(csv.reader(io.StringIO(text))) for text in (answer, content.decode("utf-8")))
        assert found[0] == expected[0]
        assert {len(row) for row in found} == {len(row) for row in expected}
    else:
        assert form(content) == form(json.loads(answer))


def test_rest_page_has_an_example_for_each_answer_with_data() -> None:
    text = PAGE.read_text("utf-8")
    without = {"/metrics", "/asyncapi.json", "/openapi.json", "/docs", "/", "/api/v1/commits/1/receipt"}
    without |= {"/api/v1/cylinders/CY123456789"}
    for title in re.findall(r"^((?:``(?:GET|POST) .*))\n~+$", text, re.MULTILINE):
        path = re.findall(r"/[^`,]*", title)[0].replace("<name>", "ShotBlast").replace("<scale_id>", "default")
        path = path.replace("<id or ticket>", "1").replace("<number>", "CY123456789")
        assert path in without or any(path in command for command, _ in EXAMPLES), title
