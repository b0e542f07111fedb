"""Guards of a scale: each refusal, its order, and what ends it."""

import itertools
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from gateway.config.scale_settings import CheckWeighSettings, ScaleConnection
from gateway.model.records import ALLOWED
from gateway.weighing.commits import Attempt, RecentCommit, RecentCommits
from gateway.weighing.guard import ScaleGuard, rounded_kg
from gateway.weighing.passport import CheckWeigh, Passport
from gateway.weighing.registry import Guards

SHIP = Attempt("CY001", "SHIP")
OTHER = Attempt("CY002", "SHIP")


class Scale:
    """A guard, with a clock of its own and the lines of a scale."""

    def __init__(self, **keys: object) -> None:
        numbers = itertools.count(1)
        settings = ScaleConnection.model_validate({"listen": "tcp:1", "idle_timeout_sec": 10, **keys})
        self.guard = ScaleGuard(settings, lambda: f"r{next(numbers)}")
        self.guard.set_connected(True)
        self.now = 100.0

    def line(
        self, weight: str | None, status: str = "ST", kind: str = "gross", unit: str = "kg", after: float = 0.0
    ) -> None:
        self.now += after
        self.guard.receive(status, None if weight is None else Decimal(weight), kind, unit, self.now)

    def settle(self, weight: str, seconds: float = 1.0) -> None:
        for _ in range(4):
            self.line(weight, after=seconds / 4)
        self.now += 0.01

    def error(self) -> str | None:
        return self.guard.verdict(self.now).error

    def errors(self, attempt: Attempt = SHIP) -> list[str | None]:
        firm, open_to_reason = self.guard.judge(attempt, self.now)
        return [verdict.error for verdict in (*firm, *open_to_reason)]

    def commit(self, attempt: Attempt = SHIP, name: str = "1") -> None:
        assert not self.errors(attempt)
        self.guard.confirm(self.guard.reserve(attempt, self.now), name)


def test_guard_without_keys_refuses_negative_weights_only() -> None:
    scale = Scale()
    assert scale.error() == "no_stable_weight"
    for weight, expected in (("-53.26", "negative_weight"), ("0.00", None), ("900", None), ("-0.004", None)):
        scale.line(weight)
        assert scale.error() == expected
    scale.line("50", "US")
    scale.guard.set_connected(False)
    scale.now += 1e6
    assert scale.error() is None, "as it was"
    scale.commit()
    scale.commit()


@pytest.mark.parametrize(
    ("weight", "unit", "is_out"),
    [
        ("0.49", "kg", True),
        ("0.5", "kg", False),
        ("150", "kg", False),
        ("150.01", "kg", True),
        ("53.26", "lb", True),
    ],
)
def test_weight_outside_the_range_or_in_another_unit_is_refused(weight: str, unit: str, is_out: bool) -> None:
    scale = Scale(min_kg=0.5, max_kg=150, unit="kg")
    scale.line(weight, unit=unit)
    assert scale.error() == ("weight_out_of_range" if is_out else None)
    marks = scale.guard.receive("US", Decimal(weight), "gross", unit, scale.now)
    assert marks[2] is is_out, "the event says it, stable or not"


@pytest.mark.parametrize(
    ("status", "kind"), [("US", "gross"), ("OL", "gross"), ("HD", "hold"), ("ST", "net"), ("ST", "tare")]
)
def test_line_that_is_no_accepted_stable_weight_begins_the_wait_again(status: str, kind: str) -> None:
    scale = Scale(require_stable_ms=500)
    scale.line("53.26")
    scale.now += 0.499
    assert scale.error() == "unstable"
    scale.now += 0.002
    assert scale.error() is None
    scale.line(None if status == "OL" else "53.26", status, kind)
    assert scale.error() == "unstable"
    scale.now += 60
    assert scale.error() == "unstable", "no stable line has come since"
    scale.settle("53.26")
    assert scale.error() is None


def test_other_load_begins_the_wait_again_and_a_flicker_does_not() -> None:
    scale = Scale(require_stable_ms=500, zero_band_kg=0.3)
    scale.settle("0.00")
    scale.line("53.26")
    assert scale.error() == "unstable", "it may still settle"
    scale.settle("53.26")
    scale.line("53.28")
    assert scale.error() is None


def test_scale_that_lost_its_connection_is_not_stable() -> None:
    scale = Scale(require_stable_ms=500)
    scale.settle("53.26")
    scale.guard.set_connected(False)
    assert scale.error() == "unstable"
    scale.guard.set_connected(True)
    assert scale.error() == "unstable", "nothing was heard since"
    scale.settle("53.26")
    assert scale.error() is None


def test_scale_must_be_empty_between_two_commits() -> None:
    scale = Scale(zero_band_kg=0.3)
    scale.line("53.26")
    scale.commit()
    assert scale.error() == "not_rearmed"
    scale.line("60.00")
    scale.line("0.31")
    scale.line("0.00", "US")
    assert scale.error() == "not_rearmed", "not empty, or not stable"
    scale.line("-0.30")
    scale.line("61.00")
    assert scale.error() is None


@pytest.mark.parametrize("status", ["ST", "US"])
def test_scale_set_to_zero_under_a_load_needs_a_new_zero(status: str) -> None:
    scale = Scale(zero_band_kg=0.3)
    scale.settle("53.26")
    scale.commit()
    scale.settle("0.00")
    # The cylinder is still there, and is taken off now.
    scale.line("-53.26", status)
    scale.settle("46.74")
    assert scale.error() == "not_rearmed"
    scale.settle("0.00")
    scale.settle("100.00")
    scale.commit(OTHER)


def test_weight_below_zero_within_the_band_keeps_the_scale_armed() -> None:
    scale = Scale(zero_band_kg=0.3)
    for below in ("-0.30", "-0.04"):
        scale.settle(below)
        scale.settle("53.26")
        assert scale.error() is None
    unguarded = Scale()
    unguarded.settle("-53.26")
    unguarded.settle("46.74")
    assert unguarded.error() is None


def test_scale_below_zero_while_a_commit_is_written_is_not_armed_after_it() -> None:
    scale = Scale(zero_band_kg=0.3)
    scale.settle("53.26")
    reservation = scale.guard.reserve(SHIP, scale.now)
    scale.settle("0.00")
    scale.settle("-53.26")
    scale.guard.release(reservation)
    scale.settle("46.74")
    assert scale.error() == "not_rearmed"


def test_scale_of_net_weights_is_armed_by_a_net_zero() -> None:
    scale = Scale(zero_band_kg=0.3, accept=["net"])
    scale.line("53.26", kind="net")
    scale.commit()
    assert scale.error() == "not_rearmed"
    scale.line("0.00", kind="net")
    scale.line("60.00", kind="net")
    assert scale.error() is None


def test_second_commit_while_the_first_is_written_is_refused() -> None:
    scale = Scale(zero_band_kg=0.3)
    scale.line("53.26")
    reservation = scale.guard.reserve(SHIP, scale.now)
    assert scale.errors(OTHER) == ["not_rearmed"]
    scale.guard.release(reservation)
    assert scale.errors(OTHER) == [], "the first was not written"


def test_scale_emptied_while_a_commit_is_written_is_armed_after_it() -> None:
    scale = Scale(zero_band_kg=0.3)
    scale.line("53.26")
    reservation = scale.guard.reserve(SHIP, scale.now)
    scale.line("0.00")
    scale.line("60.00")
    assert scale.errors(OTHER) == ["not_rearmed"], "its outcome is not known"
    scale.guard.confirm(reservation, "1")
    assert scale.errors(OTHER) == []


def test_repeated_request_in_doubt_passes_and_another_does_not() -> None:
    scale = Scale(zero_band_kg=0.3, duplicate_window_sec=60)
    scale.line("53.26")
    keyed = Attempt("CY001", "SHIP", key="k")
    assert scale.errors(keyed) == []
    scale.guard.keep_in_doubt(scale.guard.reserve(keyed, scale.now))
    assert scale.errors(keyed) == []
    assert scale.errors(OTHER) == ["not_rearmed"]
    scale.line("0")
    scale.line("60")
    assert scale.errors(OTHER) == [], "an emptied scale is free, whatever became of the commit"


def test_duplicate_within_the_window_names_the_earlier_commit() -> None:
    scale = Scale(duplicate_window_sec=60)
    scale.line("53.26")
    scale.commit(SHIP, "123")
    scale.now += 59
    (verdict,) = scale.guard.judge(SHIP, scale.now)[1]
    assert verdict.error == "duplicate"
    assert "123" in verdict.message
    assert "123" in verdict.english
    assert scale.errors(OTHER) == []
    assert scale.errors(Attempt("CY001", "RETURN")) == []
    assert scale.errors(Attempt("CY001", "SHIP", key="k")) == [], "a key tells requests apart"
    scale.now += 1.1
    assert scale.errors(SHIP) == []


def test_reading_id_stays_while_the_value_stays() -> None:
    scale = Scale()
    scale.line("53.26")
    first = scale.guard.reading_id
    assert first
    scale.line("53.26")
    scale.line("53.27", "US")
    scale.line("53.26")
    assert scale.guard.reading_id == first
    assert scale.errors(Attempt("C", "SHIP", reading_id=first)) == []
    scale.line("53.27")
    assert scale.guard.reading_id != first
    assert scale.errors(Attempt("C", "SHIP", reading_id=first)) == ["reading_changed"]
    assert scale.errors(Attempt("C", "SHIP", reading_id=scale.guard.reading_id)) == []


def test_refusals_come_in_the_order_of_the_contract() -> None:
    scale = Scale(min_kg=1, require_stable_ms=500, zero_band_kg=0.3, duplicate_window_sec=60)
    scale.settle("53.26")
    scale.commit()
    scale.settle("0.5")
    assert scale.errors() == ["weight_out_of_range", "not_rearmed", "duplicate"]
    scale.line("0.4", "US")
    assert scale.errors() == ["weight_out_of_range", "unstable", "not_rearmed", "duplicate"]
    scale.line("-1")
    assert scale.errors()[0] == "negative_weight"


def test_age_guard_refuses_an_old_weight() -> None:
    scale = Scale(commit_max_age_sec=10)
    scale.line("53.26")
    scale.now += 10
    assert scale.error() is None
    scale.now += 0.1
    assert scale.error() == "stale_weight"


def test_scale_with_net_weights_only_says_so_where_accept_is_set() -> None:
    without, with_gross, with_net = Scale(), Scale(accept=["gross"]), Scale(accept=["gross", "net"])
    for scale in (without, with_gross, with_net):
        scale.line("10", kind="net")
    assert [scale.error() for scale in (without, with_gross, with_net)] == ["no_stable_weight", "only_net", None]
    with_gross.line("53.26")
    with_gross.line("10", kind="net", after=5)
    assert with_gross.error() is None, "a gross weight came a moment ago"
    with_gross.line("10", kind="net", after=5)
    assert with_gross.error() == "only_net"
    with_gross.line("53.26")
    assert with_gross.error() is None


def test_undone_commit_arms_its_scale() -> None:
    scale = Scale(zero_band_kg=0.3, duplicate_window_sec=60)
    scale.line("53.26")
    scale.commit(SHIP, "7")
    scale.guard.note_undone("CY009", "SHIP", "6")
    assert scale.errors(OTHER) == ["not_rearmed"], "an older commit was undone"
    scale.guard.note_undone("CY001", "SHIP", "7")
    assert scale.errors(SHIP) == []


def test_commit_of_another_gateway_holds_the_scale() -> None:
    scale = Scale(zero_band_kg=0.3, duplicate_window_sec=60)
    scale.line("53.26")
    scale.guard.note_commit("CY001", "SHIP", "9", scale.now)
    assert scale.errors() == ["not_rearmed", "duplicate"]


def test_guards_keep_the_state_of_a_scale_over_a_reload() -> None:
    line = ScaleConnection.model_validate({"listen": "tcp:1", "zero_band_kg": 0.3})
    guards = Guards({"a": line})
    guard = guards.of("a")
    guard.receive("ST", Decimal(50), "gross", "kg", 1.0)
    guard.confirm(guard.reserve(SHIP, 1.0), "1")
    guards.update({"a": line.model_copy(update={"max_kg": Decimal(40)}), "b": line})
    assert guards.of("a") is guard
    assert [each.error for each in guard.judge(SHIP, 1.0)[1]] == ["weight_out_of_range", "not_rearmed"]
    guards.update({"a": ScaleConnection(listen="tcp:1")})
    assert guard.verdict(1.0) == ALLOWED
    assert set(guards.own()) == {"a"}


def test_every_refusal_has_both_languages() -> None:
    scale = Scale(min_kg=1, require_stable_ms=500)
    for line in (("-5", "ST"), ("0.5", "ST"), ("50", "US")):
        scale.line(*line)
        verdict = scale.guard.verdict(scale.now)
        assert verdict.message
        assert verdict.english.isascii()
        assert not verdict.message.isascii()
        assert verdict.payload() == {"allowed": False, "error": verdict.error, "message": verdict.message}


def test_recent_commits_are_bounded() -> None:
    recent = RecentCommits()
    for number in range(2000):
        recent.add(RecentCommit(f"C{number}", "SHIP", str(number), float(number)))
    assert len(list(recent)) == 1000


def test_rounding_is_half_up_without_a_negative_zero() -> None:
    assert [str(rounded_kg(Decimal(text))) for text in ("53.265", "-0.004", "0.005")] == ["53.27", "0.00", "0.01"]


# -- passports

LIMITS = CheckWeighSettings.model_validate({"warning_kg": 0.02, "control_kg": 0.05, "every_days": 7})
CHECKED = datetime(2026, 1, 5, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("shown", "state"), [("20.01", "good"), ("20.02", "warning"), ("19.98", "warning"), ("19.95", "out")]
)
def test_passport_judges_a_check_by_its_limits(shown: str, state: str) -> None:
    passport = Passport()
    assert passport.state(LIMITS) == "unchecked"
    passport.check = CheckWeigh(CHECKED, Decimal(20), Decimal(shown), "operator")
    assert passport.state(LIMITS) == state
    assert passport.state(None) == "unchecked"


def test_passport_warns_of_what_is_due() -> None:
    passport, day = Passport(), CHECKED.date()
    assert passport.warnings(None, day) == []
    assert passport.warnings(LIMITS, day) == ["check_weigh_due"], "never checked"
    passport.check = CheckWeigh(CHECKED, Decimal(20), Decimal(20), "operator")
    assert passport.warnings(LIMITS, day + timedelta(days=7)) == []
    assert passport.warnings(LIMITS, day + timedelta(days=8)) == ["check_weigh_due"]
    due = LIMITS.model_copy(update={"calibration_due": date(2026, 1, 6), "every_days": None})
    assert passport.warnings(due, date(2026, 1, 6)) == []
    assert passport.warnings(due, date(2026, 1, 7)) == ["calibration_due"]


def test_passport_computes_drift_and_noise_of_the_zero() -> None:
    scale = Scale(zero_band_kg=0.3)
    passport = scale.guard.passport
    for number in range(9):
        scale.line("0.02" if number % 2 else "0.04")
    scale.line("53.26")
    scale.line("0.02", "US")
    scale.line("0.02", kind="tare")
    assert passport.zero_drift_kg is None, "too few"
    scale.line("0.02")
    assert passport.zero_drift_kg == pytest.approx(0.03)
    assert passport.zero_noise_kg == pytest.approx(0.01)


def test_scale_out_of_control_is_refused_or_warned_of_as_configured() -> None:
    for when_out, expected in (("refuse", "out_of_control"), ("warn", None)):
        scale = Scale(check_weigh={"control_kg": 0.05, "when_out": when_out})
        scale.line("20.06")
        scale.guard.passport.check = CheckWeigh(CHECKED, Decimal(20), Decimal("20.06"), "operator")
        assert scale.error() == expected
        assert scale.guard.passport.warnings(scale.guard.settings.check_weigh, CHECKED.date()) == ["out_of_control"]


def problem_of(scale: Scale) -> str | None:
    problem = scale.guard.weighing_problem(scale.now)
    return None if problem is None else problem.error


def test_check_needs_a_stable_current_weight() -> None:
    scale = Scale(require_stable_ms=500, zero_band_kg=0.3)
    assert problem_of(scale) == "no_stable_weight"
    scale.line("20")
    assert problem_of(scale) == "unstable"
    scale.settle("20")
    assert problem_of(scale) is None
    scale.guard.set_connected(False)
    assert problem_of(scale) == "unstable"
