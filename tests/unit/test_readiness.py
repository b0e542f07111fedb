"""The state of each part, asked of its sources."""

from gateway.runtime.readiness import PARTS, Readiness


def test_without_sources_every_part_is_ready() -> None:
    report = Readiness().report()
    assert (report.state, report.is_ready, tuple(report.parts)) == ("ready", True, PARTS)
    assert {part.state for part in report.parts.values()} == {"ready"}


def test_degraded_part_leaves_the_gateway_ready() -> None:
    readiness = Readiness()
    readiness.watch("scales", "degraded", lambda: ["scale dock-1 is not connected"])
    report = readiness.report()
    assert (report.state, report.is_ready) == ("degraded", True)
    assert report.parts["scales"].state == "degraded"
    assert report.parts["scales"].details == ["scale dock-1 is not connected"]
    assert report.parts["store"].state == "ready"


def test_part_that_is_down_makes_the_gateway_not_ready_until_its_source_is_silent() -> None:
    readiness = Readiness()
    problems = ["PostgreSQL is unavailable: refused"]
    readiness.watch("store", "down", lambda: problems)
    readiness.watch("scales", "degraded", lambda: ["scale dock-1 is not connected"])
    assert (readiness.report().state, readiness.report().is_ready) == ("down", False)
    problems.clear()
    assert (readiness.report().state, readiness.report().is_ready) == ("degraded", True)


def test_worst_source_decides_and_a_line_of_two_sources_is_shown_once() -> None:
    readiness = Readiness()
    readiness.watch("store", "degraded", lambda: ["statistics wait", "commits are refused: damaged"])
    readiness.watch_one("store", "down", lambda: "damaged", "commits are refused: ")
    part = readiness.report().parts["store"]
    assert (part.state, part.details) == ("down", ["statistics wait", "commits are refused: damaged"])


def test_source_of_one_line_may_have_none() -> None:
    readiness = Readiness()
    readiness.watch_one("raw", "down", lambda: None)
    assert readiness.report().parts["raw"].state == "ready"
