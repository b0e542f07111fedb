"""A commit while PostgreSQL is away, as a client sees it: ticket, later its id, event and record."""

import json
import sqlite3
from pathlib import Path

from tests.support.daemon import running, until
from tests.support.postgres import Server


def test_ticket_gets_its_id_event_and_record_when_the_server_is_back(server: Server, tmp_path: Path) -> None:
    scale = {"commit_when_away": "ticket", "idle_timeout_sec": 600}
    settings = {"database": {"url": server.url}, "gateway": {"name": "hall-1"}, "scale": scale}
    with running(tmp_path, **settings) as daemon:
        until(lambda: not daemon.get("/healthz")[1]["problems"], "PostgreSQL is connected")
        events = daemon.subscribe("scale/default")
        daemon.weigh(b"ST,+00053.26 kg")
        until(daemon.latest_is(53.26), "the weight")
        server.stop()
        until(lambda: daemon.get("/healthz")[1]["problems"], "the server is missed")
        status, body, _ = daemon.commit("CY-TICKET", key="k1")
        assert (status, body["id"], body["ticket"]) == (200, None, "hall-1-1")
        assert daemon.commit("CY-TICKET", key="k1")[1] == body, "a repeated request gets its first answer"
        status, waiting, _ = daemon.get("/api/v1/commits/hall-1-1")
        assert (status, waiting["id"], waiting["ticket"], waiting["cylinder_no"]) == (
            200,
            None,
            "hall-1-1",
            "CY-TICKET",
        )
        assert daemon.get("/readyz")[0] == 200, "the plant goes on"
        server.start()
        (event,) = events.events(1, "commit")
        number = event["data"]["id"]
        assert event["data"]["ticket"] == "hall-1-1"
        until(lambda: daemon.get("/api/v1/commits/hall-1-1")[1]["id"] == number, "its id")
        assert server.sql("SELECT id, cylinder_no FROM scale_weight_log") == [(number, "CY-TICKET")]
        assert daemon.commit("CY-TICKET", key="k1")[1] == body
        assert daemon.get("/api/v1/commits/hall-1-2")[0] == 404

        def kinds() -> list[str]:
            with sqlite3.connect(tmp_path / "db" / "cynow-gateway-record.sqlite3") as connection:
                rows = connection.execute("SELECT content FROM record ORDER BY number").fetchall()
            return [json.loads(content)["kind"] for (content,) in rows]

        until(lambda: kinds() == ["ticket", "commit"], "both entries of the record")
