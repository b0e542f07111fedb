"""Passports of scales in ``/metrics`` and ``/readyz``."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from twisted.internet.task import Clock

from gateway.assembly.commits import passport_problems
from gateway.assembly.parts import Runtime
from gateway.assembly.status import connect_passports
from gateway.weighing.passport import CheckWeigh
from tests.support.runtime import make_runtime

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)

LIMITS = {"warning_kg": 0.05, "control_kg": 0.1, "every_days": 7, "calibration_due": "2026-07-02"}


def make(**check_weigh: object) -> Runtime:
    """Return a runtime at :data:`NOW` with two scales, of which ``bench`` has no limits."""
    reactor = Clock()
    reactor.advance(NOW.timestamp())
    scales = {"dock": {"listen": "tcp:1"}, "bench": {"listen": "tcp:2", "check_weigh": None}}
    return make_runtime(reactor, scale={"check_weigh": {**LIMITS, **check_weigh}}, scales=scales)


def check(runtime: Runtime, shown: str, days_ago: int = 0) -> None:
    """Note a check of the scale ``dock`` with 20 kg."""
    made = CheckWeigh(NOW - timedelta(days=days_ago), Decimal(20), Decimal(shown), "operator")
    runtime.guards.of("dock").passport.check = made


def gauges(runtime: Runtime) -> dict[str, dict[str, float]]:
    """Return the values of the passports' gauges by metric and scale."""
    return {
        family.name: {sample.labels["scale_id"]: sample.value for sample in family.samples}
        for family in runtime.counters.registry.collect()
        if family.name.startswith(("cynow_scale_check", "cynow_scale_zero", "cynow_scale_calibration"))
    }


def test_gauges_of_scales_without_check_and_zero_readings_are_absent() -> None:
    runtime = make()
    connect_passports(runtime)
    assert gauges(runtime) == {
        "cynow_scale_check_deviation_kg": {},
        "cynow_scale_zero_drift_kg": {},
        "cynow_scale_zero_noise_kg": {},
        "cynow_scale_calibration_due_days": {"dock": 2.0},
    }


def test_gauges_show_last_check_and_zero() -> None:
    runtime = make()
    connect_passports(runtime)
    check(runtime, "19.97")
    for weight in ("0.01", "0.03") * 5:
        runtime.guards.of("bench").receive("ST", Decimal(weight), "gross", "kg", 0.0)
    found = gauges(runtime)
    assert found["cynow_scale_check_deviation_kg"] == {"dock": pytest.approx(-0.03)}
    assert found["cynow_scale_zero_drift_kg"] == {"bench": pytest.approx(0.02)}
    assert found["cynow_scale_zero_noise_kg"] == {"bench": pytest.approx(0.01)}


def test_gauge_of_overdue_calibration_is_negative() -> None:
    runtime = make(calibration_due="2026-06-20")
    connect_passports(runtime)
    assert gauges(runtime)["cynow_scale_calibration_due_days"] == {"dock": -10.0}


@pytest.mark.parametrize(
    ("shown", "days_ago", "said"),
    [
        ("20.02", 0, None),
        # A warning is for the next adjustment, and degrades nothing.
        ("20.07", 0, None),
        ("20.02", 7, None),
        ("20.02", 8, "every_days"),
        ("20.10", 0, "control_kg"),
        ("19.90", 0, "control_kg"),
    ],
)
def test_scale_out_of_control_or_overdue_is_a_problem(shown: str, days_ago: int, said: str | None) -> None:
    runtime = make()
    check(runtime, shown, days_ago)
    problems = passport_problems(runtime)
    assert len(problems) == (said is not None)
    assert all(problem.startswith("scale dock: ") and f"check_weigh.{said}" in problem for problem in problems)


def test_scale_without_check_and_with_past_calibration_has_two_problems() -> None:
    problems = passport_problems(make(calibration_due="2026-06-29"))
    assert ["every_days" in problems[0], "calibration_due" in problems[1]] == [True, True]


def test_calibration_is_valid_on_its_last_day() -> None:
    runtime = make(calibration_due="2026-06-30")
    check(runtime, "20.00")
    assert passport_problems(runtime) == []
