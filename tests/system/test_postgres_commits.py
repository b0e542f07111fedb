"""HTTP answers and log lines for commits that PostgreSQL rejects, or does not confirm in time."""

from pathlib import Path

from tests.support.daemon import Daemon, running, until
from tests.support.postgres import Server

#: Cylinder that must not be logged.
CYLINDER = "CY-SECRET-77"


def weighed(plant: Daemon) -> None:
    until(lambda: plant.get("/healthz")[1]["problems"] == [], "PostgreSQL is connected")
    plant.weigh(b"ST,+00053.26 kg")
    until(plant.latest_is(53.26), "the weight")
    assert plant.commit("FIRST")[0] == 200


def cylinders(server: Server) -> list[str]:
    return [name for (name,) in server.sql("SELECT cylinder_no FROM scale_weight_log ORDER BY id")]


def test_commit_rejected_by_the_database_answers_409_and_logs_no_values(server: Server, tmp_path: Path) -> None:
    with running(tmp_path, database={"url": server.url}) as plant:
        weighed(plant)
        server.sql(f"ALTER TABLE scale_weight_log ADD CONSTRAINT plant CHECK (cylinder_no <> '{CYLINDER}')")
        for key in ({}, {"key": "k"}, {"key": "k"}):
            status, answer, headers = plant.commit(CYLINDER, **key)
            assert (status, answer["error"]) == (409, "rejected_by_database")
            assert "retry-after" not in headers
        server.sql(
            "ALTER TABLE scale_weight_log DROP CONSTRAINT plant;"
            " CREATE FUNCTION plant() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'not %', NEW.cylinder_no USING DETAIL = NEW.raw_line, ERRCODE = '53100'; END $$;"
            " CREATE TRIGGER plant BEFORE INSERT ON scale_weight_log FOR EACH ROW EXECUTE FUNCTION plant()"
        )
        status, answer, headers = plant.commit(CYLINDER)
        assert (status, answer["error"]) == (503, "store_unavailable")
        (problem,) = plant.get("/healthz")[1]["problems"]
        assert "commits are refused" in problem
        assert CYLINDER not in problem
        server.sql("DROP TRIGGER plant ON scale_weight_log")
        until(lambda: plant.get("/healthz")[1]["problems"] == [], "the store recovers without a commit")
        assert cylinders(server) == ["FIRST"]
        assert plant.metric("cynow_commits_total", outcome="rejected_by_database") == 3
        assert CYLINDER not in plant.log()


def test_commit_not_confirmed_in_time_answers_504_until_its_key_is_known(server: Server, tmp_path: Path) -> None:
    with running(tmp_path, database={"url": server.url}) as plant:
        weighed(plant)
        server.sql(
            "CREATE FUNCTION plant() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF NEW.cylinder_no = '{CYLINDER}' THEN PERFORM pg_sleep(12); END IF; RETURN NEW; END $$;"
            " CREATE CONSTRAINT TRIGGER plant AFTER INSERT ON scale_weight_log DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION plant()"
        )
        statuses = []
        while (answered := plant.commit(CYLINDER, key="k"))[0] != 200:
            statuses.append((answered[0], answered[1]["error"]))
            assert len(statuses) < 20
        assert set(statuses) == {(504, "outcome_unknown")}
        ((number, found),) = server.sql("SELECT id, cylinder_no FROM scale_weight_log WHERE cylinder_no <> 'FIRST'")
        assert (answered[1]["id"], answered[1]["cylinder_no"]) == (number, found)
        assert CYLINDER not in plant.log()
