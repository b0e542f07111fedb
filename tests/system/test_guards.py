"""Guards of commits on the running daemon: what is refused, in which words, and what survives a restart."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, running, until

LATEST = "/api/scale-gateway/latest/"
SCALES = "/api/v1/scales"

KEYS: dict[str, Any] = {
    "commit_max_age_sec": 600,
    "min_kg": 0.5,
    "max_kg": 150,
    "unit": "kg",
    "zero_band_kg": 0.3,
    "duplicate_window_sec": 600,
    "override": True,
    "idle_timeout_sec": 600,
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with all guards but that of stability, which tests of their own await."""
    with running(tmp_path_factory.mktemp("guarded"), scale=KEYS) as daemon:
        yield daemon


def verdict(daemon: Daemon) -> str | None:
    error: str | None = daemon.get(LATEST)[1]["commit"]["error"]
    return error


def weigh(daemon: Daemon, weight: str) -> None:
    """Show a stable weight, and wait until the gateway has it."""
    daemon.weigh(f"ST,{'' if weight.startswith('-') else '+'}{weight} kg".encode())
    until(daemon.latest_is(float(weight)), "the weight")


def empty(daemon: Daemon) -> None:
    weigh(daemon, "0.00")


def rows(daemon: Daemon) -> list[tuple[Any, ...]]:
    with sqlite3.connect(daemon.folder / "db" / "cynow-gateway.sqlite3") as connection:
        return connection.execute("SELECT cylinder_no, gross_kg FROM scale_weight_log ORDER BY id").fetchall()


def test_refused_commits_write_nothing_and_say_what_to_do(guarded: Daemon) -> None:
    daemon = guarded
    empty(daemon)
    before = rows(daemon)
    for line, weight, error in (
        (b"ST,-00053.26 kg", -53.26, "negative_weight"),
        (b"ST,+00000.01 kg", 0.01, "weight_out_of_range"),
        (b"ST,+00900.00 kg", 900.0, "weight_out_of_range"),
        (b"ST,+00100.00 lb", 45.359237, "weight_out_of_range"),
    ):
        daemon.weigh(line)
        until(daemon.latest_is(weight), "the weight")
        assert verdict(daemon) == error
        status, body, _ = daemon.commit("CY900")
        assert (status, body["ok"], body["error"]) == (409, False, error)
        assert not body["message"].isascii()
        english = json.dumps({"cylinder_no": "CY900", "event_type": "SHIP"}).encode()
        status, body, _ = daemon.request("POST", "/api/scale-gateway/commit/", english, Accept_Language="en-GB,en")
        assert (status, body["error"], body["message"].isascii()) == (409, error, True)
    assert rows(daemon) == before


def test_commit_needs_an_emptied_scale_and_events_tell(guarded: Daemon) -> None:
    daemon = guarded
    empty(daemon)
    weigh(daemon, "53.26")
    events = daemon.subscribe("scale/default")
    assert daemon.commit("CY1")[0] == 200
    assert verdict(daemon) == "not_rearmed"
    assert daemon.commit("CY2")[1]["error"] == "not_rearmed"
    weigh(daemon, "60.00")
    assert daemon.commit("CY2")[1]["error"] == "not_rearmed"
    empty(daemon)
    weigh(daemon, "60.01")
    assert verdict(daemon) is None
    assert daemon.commit("CY2")[0] == 200
    seen = {}
    while 60.01 not in seen:
        (event,) = events.events(1, "reading")
        seen[event["data"]["weight"]] = event["data"]["commit"]["error"]
    assert seen[60.0] == "not_rearmed"
    assert seen[60.01] is None


def test_duplicate_names_the_earlier_commit(guarded: Daemon) -> None:
    daemon = guarded
    empty(daemon)
    weigh(daemon, "53.30")
    number = daemon.commit("CYD")[1]["id"]
    empty(daemon)
    weigh(daemon, "53.31")
    status, body, _ = daemon.commit("CYD")
    assert (status, body["error"]) == (409, "duplicate")
    assert str(number) in body["message"]
    assert daemon.commit("CYD", event_type="RETURN")[0] == 200


def test_override_with_a_reason_is_taken_and_kept(guarded: Daemon) -> None:
    daemon = guarded
    empty(daemon)
    weigh(daemon, "151.00")
    assert daemon.commit("CYO")[1]["error"] == "weight_out_of_range"
    for wrong in ({}, {"reason": ""}, {"reason": 5}, "yes"):
        assert daemon.commit("CYO", override=wrong)[0] == 400
    status, body, _ = daemon.commit("CYO", override={"reason": "large bundle"})
    assert (status, body["override"], body["overridden"]) == (200, "large bundle", ["weight_out_of_range"])
    weigh(daemon, "-1.00")
    assert daemon.commit("CYO2", override={"reason": "x"})[1]["error"] == "negative_weight", "no reason is good enough"


def test_reading_that_was_seen_must_still_be_shown(guarded: Daemon) -> None:
    daemon = guarded
    empty(daemon)
    weigh(daemon, "53.40")
    seen = daemon.get(LATEST)[1]["reading_id"]
    weigh(daemon, "53.41")
    assert daemon.commit("CYR", reading_id=seen)[1]["error"] == "reading_changed"
    assert daemon.commit("CYR", reading_id=daemon.get(LATEST)[1]["reading_id"])[0] == 200


def test_repeated_request_gets_its_first_answer_while_the_scale_is_not_emptied(guarded: Daemon) -> None:
    daemon = guarded
    empty(daemon)
    weigh(daemon, "53.50")
    first = daemon.commit("CYK", key="twice")
    again = daemon.commit("CYK", key="twice")
    assert (first[0], first[1]) == (again[0], again[1]) == (200, first[1])
    assert daemon.commit("CYL", key="other")[1]["error"] == "not_rearmed"


def test_refusals_and_overrides_are_in_the_record(guarded: Daemon) -> None:
    daemon = guarded
    empty(daemon)
    assert daemon.commit("CYREC")[1]["error"] == "weight_out_of_range"
    with sqlite3.connect(daemon.folder / "db" / "cynow-gateway.sqlite3") as connection:
        (content,) = connection.execute("SELECT content FROM record ORDER BY number DESC LIMIT 1").fetchone()
    entry = json.loads(content)
    assert (entry["kind"], entry["error"], entry["cylinder_no"], entry["by"], entry["weight"]) == (
        "refusal",
        "weight_out_of_range",
        "CYREC",
        "operator",
        "0.00",
    )
    weigh(daemon, "151.01")
    number = daemon.commit("CYREC", override={"reason": "a bundle"})[1]["id"]
    with sqlite3.connect(daemon.folder / "db" / "cynow-gateway.sqlite3") as connection:
        (content,) = connection.execute("SELECT content FROM record ORDER BY number DESC LIMIT 1").fetchone()
    entry = json.loads(content)
    assert (entry["kind"], entry["commit_id"], entry["detail"]["override"]) == ("commit", number, "a bundle")
    assert daemon.get(f"/api/v1/commits/{number}")[1]["override"] == "a bundle"


def test_two_operators_at_one_scale_write_one_row(guarded: Daemon) -> None:
    from concurrent.futures import ThreadPoolExecutor

    daemon = guarded
    empty(daemon)
    weigh(daemon, "53.60")
    before = len(rows(daemon))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: daemon.commit(f"CYP{number}")[0], range(8)))
    assert sorted(answers) == [200] + 7 * [409]
    assert len(rows(daemon)) == before + 1


def test_scales_list_shows_each_scale_with_its_verdict(guarded: Daemon) -> None:
    daemon = guarded
    with daemon.scale() as scale:
        scale.sendall(b"ST,+00000.00 kg\r\n")
        until(lambda: daemon.get(SCALES)[1]["scales"][0]["peer"] is not None, "the peer")
        until(daemon.latest_is(0.0), "zero")
        (state,) = daemon.get(SCALES)[1]["scales"]
        assert (state["scale_id"], state["connected"], state["is_armed"]) == ("default", True, True)
        assert state["commit"]["error"] == "weight_out_of_range"
        assert state["latest"]["weight"] == 0.0
        assert 0 <= state["last_line_age_sec"] < 600
        assert daemon.get(f"{SCALES}/default")[1]["latest"]["reading_id"] == state["latest"]["reading_id"]
    assert daemon.get(f"{SCALES}/nowhere")[:2] == (
        404,
        {"ok": False, "error": "unknown_scale", "message": "등록되지 않은 저울입니다"},
    )


def test_unstable_scale_is_refused_until_it_was_stable_for_long_enough(tmp_path: Path) -> None:
    with running(tmp_path, scale={"require_stable_ms": 300}) as daemon:
        scale = daemon.scale()
        scale.sendall(b"ST,+00053.26 kg\r\n")
        until(daemon.latest_is(53.26), "the weight")
        until(lambda: verdict(daemon) is None, "stability")
        scale.sendall(b"US,+00020.00 kg\r\n")
        until(lambda: verdict(daemon) == "unstable", "a moving pan")
        assert daemon.commit()[1]["error"] == "unstable"
        scale.sendall(b"ST,+00020.00 kg\r\n")
        until(lambda: verdict(daemon) is None, "stability")
        scale.sendall(b"OL\r\n")
        until(lambda: verdict(daemon) == "unstable", "an overload")
        scale.sendall(b"ST,+00020.00 kg\r\n")
        until(lambda: verdict(daemon) is None, "stability")
        scale.close()
        until(lambda: verdict(daemon) == "unstable", "a lost connection")
        assert daemon.commit()[1]["error"] == "unstable"


def test_scale_with_net_weights_only_is_told(tmp_path: Path) -> None:
    with running(tmp_path, scale={"accept": ["gross"]}) as daemon:
        daemon.weigh(b"ST,NT,+00010.00 kg")
        until(lambda: daemon.commit()[1]["error"] == "only_net", "the refusal")
        status, body, _ = daemon.get(LATEST)
        assert (status, body["error"]) == (404, "no_data")
        assert "NT" in body["message"]
        assert any("net weights only" in problem for problem in daemon.get("/healthz")[1]["problems"])


def test_accepted_net_weight_is_committed(tmp_path: Path) -> None:
    with running(tmp_path, scale={"accept": ["gross", "net"]}) as daemon:
        daemon.weigh(b"ST,NT,+00010.00 kg")
        until(daemon.latest_is(10.0), "the weight")
        assert daemon.get(LATEST)[1]["kind"] == "net"
        assert daemon.commit()[0] == 200


def test_override_is_refused_where_it_is_not_configured(tmp_path: Path) -> None:
    with running(tmp_path, scale={"max_kg": 100}) as daemon:
        daemon.weigh(b"ST,+00150.00 kg")
        until(daemon.latest_is(150.0), "the weight")
        status, body, _ = daemon.commit(override={"reason": "I want to"})
        assert (status, body["error"]) == (409, "override_not_allowed")


def test_scale_that_was_not_emptied_stays_held_over_a_kill(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, scale=KEYS)
    daemon.start()
    try:
        weigh(daemon, "53.26")
        number = daemon.commit("CY1")[1]["id"]
        daemon.kill()
        daemon.start()
        weigh(daemon, "53.27")
        assert verdict(daemon) == "not_rearmed"
        empty(daemon)
        weigh(daemon, "53.28")
        body = daemon.commit("CY1")[1]
        assert body["error"] == "duplicate"
        assert str(number) in body["message"]
        assert daemon.commit("CY2")[0] == 200
    finally:
        daemon.end()


def test_guards_change_with_a_reload(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        daemon.weigh(b"ST,+00150.00 kg")
        until(daemon.latest_is(150.0), "the weight")
        assert verdict(daemon) is None
        daemon.configure(scale={"max_kg": 100})
        daemon.reload()
        assert verdict(daemon) == "weight_out_of_range"


def test_check_weigh_is_judged_shown_and_kept(tmp_path: Path) -> None:
    limits = {"warning_kg": 0.02, "control_kg": 0.05, "when_out": "refuse"}
    daemon = Daemon(tmp_path, scale={"check_weigh": limits, "idle_timeout_sec": 600})
    daemon.start()

    def check(nominal: Any) -> tuple[int, Any]:
        body = json.dumps({"nominal_kg": nominal}).encode()
        return daemon.request("POST", f"{SCALES}/default/check-weigh", body)[:2]

    try:
        assert check(20.0)[1]["error"] == "no_stable_weight"
        for wrong in (None, "20", 0, -1, True, 1e9):
            assert check(wrong)[0] == 400
        scale = daemon.scale()
        scale.sendall(b"ST,+00020.06 kg\r\n")
        until(daemon.latest_is(20.06), "the weight")
        status, body = check(20.0)
        assert (status, body["state"], body["deviation_kg"]) == (200, "out", 0.06)
        assert daemon.commit()[1]["error"] == "out_of_control"
        daemon.kill()
        daemon.start()
        assert daemon.get(SCALES)[1]["scales"][0]["passport"]["last_check"]["shown_kg"] == 20.06
        scale = daemon.scale()
        scale.sendall(b"ST,+00020.03 kg\r\n")
        until(daemon.latest_is(20.03), "the weight")
        assert daemon.commit()[1]["error"] == "out_of_control", "it has not been checked again"
        assert check(20.0)[1]["state"] == "warning"
        assert daemon.commit()[1]["warnings"] == ["check_weigh_warning"]
    finally:
        daemon.end()
