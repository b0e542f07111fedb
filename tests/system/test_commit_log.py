"""Log of commits, receipts, undo and cylinders of the real daemon, with both stores."""

import base64
import csv
import hashlib
import io
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.daemon import Daemon, running, until
from tests.support.postgres import Server

LOG = "/api/v1/commits"


@pytest.fixture(params=["embedded", "postgresql"])
def plant(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """Return a running gateway with a weight, on each store."""
    settings: dict[str, Any] = {"gateway": {"name": "hall 1"}, "timezone": "Asia/Seoul"}
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("server")
        settings["database"] = {"url": server.url}
    with running(tmp_path, **settings) as daemon:
        until(lambda: daemon.get("/healthz")[1]["problems"] == [], "the store is ready")
        weigh(daemon, 53.26)
        yield daemon


def weigh(daemon: Daemon, weight: float) -> None:
    daemon.weigh(b"ST,+%08.2f kg" % weight)
    until(daemon.latest_is(weight), "the weight")


def commit(daemon: Daemon, cylinder: str, **fields: Any) -> int:
    status, answer, _ = daemon.commit(cylinder, **fields)
    assert status == 200, answer
    number: int = answer["id"]
    return number


def undo(daemon: Daemon, number: Any, reason: Any = "wrong number", key: str | None = None) -> tuple[int, Any]:
    headers = {} if key is None else {"Idempotency_Key": key}
    return daemon.request("POST", f"{LOG}/{number}/undo", json.dumps({"reason": reason}).encode(), **headers)[:2]


def cylinders(daemon: Daemon, query: str = "") -> list[str]:
    status, answer, _ = daemon.get(f"{LOG}?{query}")
    assert status == 200, answer
    return [found["cylinder_no"] for found in answer["commits"]]


def table(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_log_gives_commits_newest_first_with_a_cursor(plant: Daemon) -> None:
    assert plant.get(LOG)[1] == {"ok": True, "commits": [], "next": None}
    numbers = [commit(plant, f"CY{number}", arrival_shipping_no="AS1") for number in range(5)]
    status, answer, headers = plant.get(f"{LOG}/?limit=2")
    assert (status, headers["content-type"]) == (200, "application/json; charset=utf-8")
    first = answer["commits"][0]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+09:00", first.pop("committed_at"))
    assert first.pop("received_at")
    assert first == {
        "id": numbers[-1],
        "ticket": None,
        "scale_id": "default",
        "cylinder_no": "CY4",
        "event_type": "SHIP",
        "gross_kg": 53.26,
        "raw_line": "ST,+00053.26 kg",
        "arrival_shipping_no": "AS1",
        "move_report_no": None,
        "by": "operator",
        "override": None,
        "warnings": [],
        "undo_of": None,
        "undone_by": None,
        "reason": None,
        "tare_kg": None,
        "net_kg": None,
        "remaining_kg": None,
        "checked": None,
    }
    found = [stored["id"] for stored in answer["commits"]]
    while answer["next"] is not None:
        answer = plant.get(f"{LOG}?limit=2&after={answer['next']}")[1]
        found += [stored["id"] for stored in answer["commits"]]
    assert found == numbers[::-1]
    one = plant.get(f"{LOG}/{numbers[0]}")[1]
    assert one["ok"] is True
    assert one["cylinder_no"] == "CY0"
    assert set(one) - {"ok"} == set(first) | {"committed_at", "received_at"}


def test_selection(plant: Daemon) -> None:
    commit(plant, "A")
    commit(plant, "B", event_type="RETURN")
    assert cylinders(plant, "cylinder_no=A") == ["A"]
    assert cylinders(plant, "event_type=RETURN") == ["B"]
    assert cylinders(plant, "scale_id=default") == ["B", "A"]
    assert cylinders(plant, "scale_id=other") == []
    assert cylinders(plant, "from=2025-01-01&to=9000-01-01T00:00:00%2B09:00") == ["B", "A"]
    assert cylinders(plant, "to=2025-01-01") == []


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("from=yesterday", "from"),
        ("to=2025-13-01", "to"),
        ("from=2025-12-19&to=2025-12-18T00:00", "from"),
        ("after=x", "after"),
        ("after=-1", "after"),
        (f"after={2**63}", "after"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("event_type=SOLD", "event_type"),
        (f"cylinder_no={'x' * 51}", "cylinder_no"),
        ("cylinder_no=a%00b", "cylinder_no"),
        ("scale_id=%0a", None),
        ("format=xml", "format"),
        ("excel=yes", "excel"),
    ],
)
def test_wrong_parameter_is_named(shared_daemon: Daemon, query: str, name: str | None) -> None:
    status, answer, _ = shared_daemon.get(f"{LOG}?{query}")
    if name is None:
        assert status == 200
    else:
        assert (status, answer["error"]) == (400, "invalid_request")
        assert answer["message"].startswith(name)


def test_unknown_commit_is_not_found(plant: Daemon) -> None:
    for number in ("1", "0", "9" * 18, "9" * 400, str(2**63), "g-1", "a%00b", "가", "x" * 300):
        for path in (f"{LOG}/{quote(number, safe='%')}", f"{LOG}/{quote(number, safe='%')}/receipt"):
            status, answer, _ = plant.get(path)
            assert (status, answer["error"]) == (404, "unknown_commit"), number
        assert undo(plant, quote(number, safe="%"))[1]["error"] == "unknown_commit", number


def test_csv_has_the_whole_selection_or_the_newest(plant: Daemon, tmp_path: Path) -> None:
    commit(plant, '=1+1,"x"')
    commit(plant, "CY2")
    status, content, headers = plant.get(LOG, Accept="text/csv")
    assert (status, headers["content-type"]) == (200, "text/csv; charset=utf-8")
    rows = table(content)
    assert [row["cylinder_no"] for row in rows] == ["CY2", '=1+1,"x"']
    assert (rows[0]["gross_kg"], rows[0]["warnings"], rows[0]["by"]) == ("53.26", "", "operator")
    content = plant.get(f"{LOG}?format=csv&excel=1")[1]
    assert content.startswith(b"\xef\xbb\xbfid,ticket,")
    assert [row["cylinder_no"] for row in table(content[3:])] == ["CY2", '\'=1+1,"x"']
    assert len(table(plant.get(f"{LOG}?format=csv&limit=1")[1])) == 1
    assert plant.get(f"{LOG}?format=json", Accept="text/csv")[1]["ok"] is True


def test_csv_has_more_than_a_page(daemon: Daemon) -> None:
    path = daemon.folder / "database" / "cynow-gateway.sqlite3"
    path = path if path.exists() else next(daemon.folder.rglob("cynow-gateway.sqlite3"))
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO scale_weight_log (scale_id, cylinder_no, event_type, gross_kg, raw_line, received_at,"
            " committed_at) VALUES ('s', ?, 'SHIP', 1.5, 'x', '2025-12-18 01:00:00', '2025-12-18 01:00:00')",
            [(f"C{number}",) for number in range(2500)],
        )
    connection.close()
    rows = table(daemon.get(f"{LOG}?format=csv")[1])
    assert [row["cylinder_no"] for row in rows] == [f"C{number}" for number in reversed(range(2500))]
    assert {row["by"] for row in rows} == {""}
    assert daemon.get(LOG)[1]["commits"][0]["warnings"] is None
    assert len(daemon.get(LOG)[1]["commits"]) == 100


def test_undo_writes_the_opposite_and_links_both(plant: Daemon) -> None:
    number = commit(plant, "CY1", move_report_no="MR1")
    weigh(plant, 1.0)
    client = plant.subscribe("scale/default")
    status, answer = undo(plant, number)
    assert status == 200
    assert answer.pop("committed_at")
    undoing = answer["id"]
    assert answer == {
        "ok": True,
        "id": undoing,
        "cylinder_no": "CY1",
        "event_type": "RETURN",
        "gross_kg": 53.26,
        "undo_of": number,
    }
    (event,) = client.events(1, "commit")
    assert (event["data"]["id"], event["data"]["undo_of"]) == (undoing, number)
    first, second = (plant.get(f"{LOG}/{each}")[1] for each in (number, undoing))
    assert (first["undone_by"], first["undo_of"]) == (undoing, None)
    assert (second["undone_by"], second["undo_of"], second["reason"]) == (None, number, "wrong number")
    assert [second[name] for name in ("raw_line", "move_report_no")] == ["ST,+00053.26 kg", "MR1"]
    status, answer = undo(plant, number)
    assert (status, answer["error"]) == (409, "already_undone")
    assert str(undoing) in answer["message"]
    status, answer = undo(plant, undoing)
    assert (status, answer["error"]) == (409, "is_undo")
    assert len(cylinders(plant)) == 2


def test_undo_with_a_key_is_written_once(plant: Daemon) -> None:
    number, other = commit(plant, "CY1", key="k"), commit(plant, "CY2")
    assert undo(plant, number, key="k")[1]["error"] == "idempotency_conflict"
    first = undo(plant, number, key="u")
    assert first[0] == 200
    assert undo(plant, number, key="u") == first
    assert undo(plant, number, "another reason", key="u")[1]["error"] == "idempotency_conflict"
    assert undo(plant, other, key="u")[1]["error"] == "idempotency_conflict"
    assert len(cylinders(plant)) == 3


@pytest.mark.parametrize("reason", [None, "", "  ", 5, "x" * 201, "a\u0000b"])
def test_undo_needs_a_reason(shared_daemon: Daemon, reason: Any) -> None:
    status, answer = undo(shared_daemon, 1, reason)
    assert (status, answer["error"]) == (400, "invalid_request")
    assert answer["message"].startswith("reason")


def test_receipt_is_text_or_a_page(plant: Daemon) -> None:
    number = commit(plant, "<b>CY&1</b>")
    status, content, headers = plant.get(f"{LOG}/{number}/receipt")
    assert (status, headers["content-type"]) == (200, "text/plain; charset=utf-8")
    text = content.decode()
    for word in (
        "계량 기록 확인서",
        "hall 1",
        "<b>CY&1</b>",
        "출하",
        "53.26 kg",
        "+09:00",
        "operator",
        "법정계량 증명이 아닙니다",
    ):
        assert word in text
    assert f"기록 번호 (Commit number): {number}" in text
    head = plant.get("/api/v1/record/head")[1]
    assert f"원장 번호 (Record number): {head['number']}" in text
    assert f"원장 최종 해시 (Head of the record): {head['head']}" in text
    english = plant.get(f"{LOG}/{number}/receipt", Accept_Language="en-US,en;q=0.9,ko;q=0.5")
    assert english[2]["content-language"] == "en"
    assert "Shipping" in english[1].decode()
    assert "출하" not in english[1].decode()
    status, content, headers = plant.get(f"{LOG}/{number}/receipt", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = content.decode()
    assert page.startswith("<!DOCTYPE html>")
    assert "&lt;b&gt;CY&amp;1&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<script" not in page
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in headers["content-security-policy"]
    undo(plant, number, "wrong <number>")
    assert "취소됨" in plant.get(f"{LOG}/{number}/receipt?format=text")[1].decode()
    assert "wrong &lt;number&gt;" in plant.get(f"{LOG}/{number + 1}/receipt?format=html")[1].decode()


#: Numbers that paths must carry unharmed.
CYLINDERS = ("CY1", "가 1", "a/b", "a//b", "/a", "a?b#c", "50%", "..", "a%2Fb")


def test_cylinder_of_any_number(plant: Daemon) -> None:
    for cylinder in CYLINDERS:
        commit(plant, cylinder)
        commit(plant, cylinder, event_type="RETURN")
        path = f"/api/v1/cylinders/{quote(cylinder, safe='')}"
        for each in (path, f"{path}/"):
            status, answer, _ = plant.get(each)
            assert status == 200, answer
            assert (answer["cylinder_no"], answer["master"]) == (cylinder, None)
            assert answer["balance"]["tare_bound_kg"] == answer["commits"][0]["gross_kg"]
            assert [found["event_type"] for found in answer["commits"]] == ["RETURN", "SHIP"]
        status, answer, _ = plant.get("/api/v1/cylinders/unknown")
        assert (status, answer["error"]) == (404, "unknown_cylinder")
