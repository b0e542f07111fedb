"""The wall clock that may step, and what is held of it."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.runtime.clock import HELD, WallClock, zone_named

START = datetime(2025, 12, 18, 10, 11, tzinfo=UTC).timestamp()


class Clocks:
    """A wall clock and one that never steps."""

    def __init__(self, zone: str = "Asia/Seoul") -> None:
        self.wall = START
        self.monotonic = 1000.0
        self.clock = WallClock(ZoneInfo(zone), lambda: self.wall, lambda: self.monotonic)

    def go_on(self, seconds: float, step: float = 0.0) -> None:
        self.wall += seconds + step
        self.monotonic += seconds

    def now(self) -> float:
        return self.clock.now().timestamp() - START


def test_now_is_the_wall_clock_of_the_zone() -> None:
    assert Clocks().clock.now().isoformat() == "2025-12-18T19:11:00+09:00"
    assert Clocks("Asia/Kolkata").clock.now().isoformat() == "2025-12-18T15:41:00+05:30"
    assert zone_named("Asia/Kolkata") == ZoneInfo("Asia/Kolkata")


@pytest.mark.parametrize("step", [0.001, 1.0, 30.0, HELD])
def test_a_small_step_back_is_waited_out(step: float) -> None:
    clocks = Clocks()
    assert clocks.now() == 0
    clocks.go_on(0, -step)
    assert clocks.now() == 0
    clocks.go_on(step / 2)
    assert clocks.now() == 0
    clocks.go_on(step / 2 + 0.5)
    assert clocks.now() == pytest.approx(0.5)
    clocks.go_on(1)
    assert clocks.now() == pytest.approx(1.5)


def test_a_larger_step_back_is_taken() -> None:
    clocks = Clocks()
    clocks.now()
    clocks.go_on(0, -HELD - 0.001)
    assert clocks.now() == pytest.approx(-60.001)
    clocks.go_on(1)
    assert clocks.now() == pytest.approx(-59.001)


def test_a_step_forward_is_taken_and_what_follows_is_judged_by_it() -> None:
    clocks = Clocks()
    clocks.now()
    clocks.go_on(0, 86_400)
    assert clocks.now() == 86_400
    clocks.go_on(0, -86_400)
    assert clocks.now() == 0
    clocks.go_on(0, -30)
    assert clocks.now() == 0


def test_small_steps_back_add_up() -> None:
    clocks = Clocks()
    clocks.now()
    for _ in range(3):
        clocks.go_on(0, -20)
        assert clocks.now() == 0
    clocks.go_on(0, -20)
    assert clocks.now() == -80


def test_what_nobody_has_seen_is_not_held() -> None:
    clocks = Clocks()
    clocks.go_on(0, -30)
    assert clocks.now() == -30


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-59, 300)), max_size=30))
def test_time_never_goes_back_a_little(moves: list[tuple[float, float]]) -> None:
    clocks = Clocks()
    seen = [clocks.now()]
    for seconds, step in moves:
        clocks.go_on(seconds, step)
        seen.append(clocks.now())
        # A datetime has whole microseconds.
        assert seen[-1] >= clocks.wall - START - 1e-5, "it is never behind the wall clock"
    for earlier, later in itertools.pairwise(seen):
        assert later >= earlier or later < earlier - HELD + 1e-5


def test_an_hour_that_comes_twice_is_no_step() -> None:
    clocks = Clocks("Europe/Berlin")
    clocks.wall = datetime(2025, 10, 26, 0, 59, 59, tzinfo=UTC).timestamp()
    assert clocks.clock.now().isoformat() == "2025-10-26T02:59:59+02:00"
    clocks.clock.step()
    clocks.go_on(1)
    assert clocks.clock.now().isoformat() == "2025-10-26T02:00:00+01:00"
    assert clocks.clock.step() == 0


# -- steps


def test_steps_are_told_once() -> None:
    clocks = Clocks()
    assert clocks.clock.step() == 0
    clocks.go_on(1)
    assert clocks.clock.step() == 0
    clocks.go_on(1, 3600)
    assert clocks.clock.step() == 3600
    assert clocks.clock.step() == 0
    clocks.go_on(1, -1.5)
    clocks.go_on(1, -2)
    assert clocks.clock.step() == -3.5


def test_a_small_step_back_is_told_though_it_is_held() -> None:
    clocks = Clocks()
    clocks.now()
    clocks.go_on(0, -30)
    clocks.now()
    assert clocks.clock.step() == -30


def test_a_suspended_machine_is_a_step() -> None:
    # The clock that never steps stands still meanwhile.
    clocks = Clocks()
    clocks.clock.step()
    clocks.wall += timedelta(hours=8).total_seconds()
    assert clocks.clock.step() == 8 * 3600
