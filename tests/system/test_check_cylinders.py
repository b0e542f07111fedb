"""Commits that are checked against a plant's table, over HTTP, with the embedded store."""

from pathlib import Path

from tests.support.daemon import running, until
from tests.support.postgres import Server

TABLE = """
CREATE TABLE ma_cylinders ("CYLINDER_NO" char(20), "WEIGHT" char(10), "STOP_YN" char(2));
INSERT INTO ma_cylinders VALUES ('CY-GOOD-1', '33.26', 'N'), ('CY-STOP-1', '33.26', 'Y');
"""

QUERY = """
SELECT "WEIGHT" AS tare_kg, 20 AS net_kg, "STOP_YN" AS blocked FROM ma_cylinders
WHERE rtrim("CYLINDER_NO") = %(cylinder_no)s
"""


def test_commits_are_checked_and_go_on_without_the_table(server: Server, tmp_path: Path) -> None:
    server.sql(TABLE)
    with running(tmp_path, cylinders={"url": server.url, "query": QUERY}) as plant:
        until(lambda: plant.get("/readyz")[1]["parts"]["cylinders"]["state"] == "ready", "the table is connected")
        plant.weigh(b"ST,+00053.26 kg")
        until(plant.latest_is(53.26), "the weight")
        status, answer, _ = plant.commit("CY-GOOD-1")
        assert (status, answer["checked"], answer["tare_kg"], answer["net_kg"]) == (200, True, 33.26, 20.0)
        status, answer, _ = plant.commit("CY-GOOD-1", event_type="RETURN")
        assert (status, answer["remaining_kg"]) == (200, 20.0)
        status, answer, _ = plant.commit("CY-STOP-1")
        assert (status, answer["error"]) == (409, "cylinder_blocked")
        status, answer, _ = plant.commit("CY-OTHER")
        assert (status, answer["checked"]) == (200, False)
        plant.weigh(b"ST,+00033.30 kg")
        until(plant.latest_is(33.3), "the weight of the empty cylinder")
        status, answer, _ = plant.commit("CY-GOOD-1")
        assert (status, answer["error"]) == (409, "implausible_weight")
        server.stop()
        until(lambda: plant.get("/readyz")[1]["parts"]["cylinders"]["state"] == "degraded", "the absence shows")
        status, answer, _ = plant.commit("CY-AWAY")
        assert (status, answer["checked"]) == (200, False)
        (problem,) = plant.get("/healthz")[1]["problems"]
        assert problem.startswith("cylinders are not checked: PostgreSQL is unavailable")
        text = plant.get("/metrics")[1].decode() + plant.log()
        assert "CY-" not in text
        assert server.password not in text
        assert plant.terminate() == 0
