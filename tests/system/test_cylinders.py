"""Commits checked against the plant's own table of cylinders, on the running daemon and a real PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, running, until
from tests.support.postgres import Server

#: As the plant's table is: columns of CHAR are padded on the right.
TABLE = """
CREATE SCHEMA fcms_cdc;
CREATE TABLE fcms_cdc.ma_cylinders (
    cylinder_no CHAR(20) PRIMARY KEY, weight CHAR(10), net CHAR(10), test_due CHAR(8), blocked CHAR(1)
);
INSERT INTO fcms_cdc.ma_cylinders VALUES
    ('CY-GOOD', '53.2', '20.0', '20991231', 'N'),
    ('CY-BLOCKED', '53.2', '20.0', '20991231', 'Y'),
    ('CY-OVERDUE', '53.2', '20.0', '20200101', 'N');
"""

QUERY = """
SELECT weight AS tare_kg, net AS net_kg, test_due, blocked
FROM fcms_cdc.ma_cylinders WHERE rtrim(cylinder_no) = %(cylinder_no)s
"""


@pytest.fixture
def plant(server: Server, tmp_path: Path) -> Iterator[Daemon]:
    server.sql("DROP SCHEMA IF EXISTS fcms_cdc CASCADE")
    server.sql(TABLE)
    cylinders = {"query": QUERY, "url": server.url, "tolerance_kg": 1.0}
    with running(tmp_path, cylinders=cylinders, scale={"override": True, "idle_timeout_sec": 600}) as daemon:
        yield daemon


def show(daemon: Daemon, weight: float) -> None:
    daemon.weigh(f"ST,+{weight:09.2f} kg".encode())
    until(daemon.latest_is(weight), "the weight")


def committed(daemon: Daemon, cylinder_no: str, **fields: Any) -> Any:
    """The answer to a commit, once the master data are there; no commit waits for them for long."""
    found: list[Any] = []

    def is_checked() -> bool:
        found[:] = daemon.commit(cylinder_no, **fields)[:2]
        return found[0] != 200 or bool(found[1].get("checked"))

    until(is_checked, "the master data")
    return found


def test_full_cylinder_is_shipped_with_its_figures_and_an_empty_one_is_not(plant: Daemon) -> None:
    events = plant.subscribe("scale/default")
    show(plant, 73.5)
    status, body = committed(plant, "CY-GOOD")
    assert (status, body["tare_kg"], body["net_kg"]) == (200, 53.2, 20.3)
    (event,) = events.events(1, "commit")
    assert event["data"]["net_kg"] == 20.3 or event["data"]["checked"] is False
    show(plant, 53.3)
    status, body = committed(plant, "CY-GOOD")
    assert (status, body["error"]) == (409, "implausible_weight")
    assert "72.20~74.20" in body["message"], "what was expected"
    status, body = committed(plant, "CY-GOOD", event_type="RETURN")
    assert (status, body["remaining_kg"]) == (200, 0.1)


def test_blocked_and_overdue_cylinders_are_refused_but_for_a_reason(plant: Daemon) -> None:
    show(plant, 73.2)
    for cylinder_no in ("CY-BLOCKED", "CY-OVERDUE"):
        status, body = committed(plant, cylinder_no)
        assert (status, body["error"]) == (409, "cylinder_blocked")
        status, body = committed(plant, cylinder_no, override={"reason": "scrapped"})
        assert (status, body["overridden"]) == (200, ["cylinder_blocked"])


def test_unknown_cylinder_and_absent_master_block_no_commit(plant: Daemon, server: Server) -> None:
    show(plant, 73.2)
    status, body, _ = plant.commit("CY-UNKNOWN")
    assert (status, body["checked"]) == (200, False)
    committed(plant, "CY-GOOD")
    server.stop()
    status, body, _ = plant.commit("CY-OTHER")
    assert (status, body["checked"]) == (200, False)
    until(
        lambda: any("cylinders" in problem for problem in plant.get("/healthz")[1]["problems"]), "the problem is said"
    )
    server.start()
    until(lambda: not plant.get("/healthz")[1]["problems"], "the problem ends")
    assert committed(plant, "CY-BLOCKED")[1]["error"] == "cylinder_blocked"
