"""The file of the states of scales: appended, replaced, damaged, and read again."""

import itertools
import json
import os
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from gateway.commits.armed_states import STATES_FILE, ArmedStates
from gateway.config.scale_settings import ScaleConnection
from gateway.runtime.clock import WallClock
from gateway.weighing.commits import Attempt
from gateway.weighing.guard import ScaleGuard


class Pool:
    """Runs jobs at once, or when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []
        self.is_held = False

    def callInThreadWithCallback(self, done: Callable[[bool, Any], None], job: Callable[..., Any], *args: Any) -> None:
        def run() -> None:
            try:
                result = job(*args)
            except OSError:
                done(False, Failure())
            else:
                done(True, result)

        self.jobs.append(run)
        if not self.is_held:
            self.run()

    def run(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()

    def callFromThread(self, call: Callable[..., None], *args: Any) -> None:
        call(*args)


class Plant:
    """Guards and their file."""

    def __init__(self, folder: Path) -> None:
        numbers = itertools.count(1)
        keys = {"listen": "tcp:1", "zero_band_kg": 0.3, "duplicate_window_sec": 60}
        settings = ScaleConnection.model_validate(keys)
        self.guards = {name: ScaleGuard(settings, lambda: f"r{next(numbers)}") for name in ("a", "b")}
        self.pool = Pool()
        self.path = folder / STATES_FILE
        clock = WallClock(UTC)
        pool = cast("ThreadPool", self.pool)
        self.states = ArmedStates(self.pool, clock, str(folder), lambda: self.guards, pool)
        self.clock = clock
        self.states.load()

    def commit(self, scale_id: str, name: str) -> "Deferred[None]":
        guard = self.guards[scale_id]
        reservation = guard.reserve(Attempt(f"CY{name}", "SHIP"), self.clock.monotonic())
        guard.confirm(reservation, name)
        return self.states.save()

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]


def test_save_appends_the_scale_that_changed_and_the_last_line_wins(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.commit("a", "1")
    plant.commit("a", "2")
    plant.states.save()
    assert [sorted(line) for line in plant.lines()] == [["a", "b"], ["a"]]
    again = Plant(tmp_path)
    assert (again.guards["a"].last_commit, again.guards["a"].is_armed) == ("2", False)
    assert [each.name for each in again.guards["a"].recent] == ["1", "2"]
    assert again.guards["b"].is_armed
    again.commit("b", "3")
    assert len(again.lines()) == 1


def test_saves_that_wait_share_a_line_and_all_are_told(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.commit("a", "1")
    plant.pool.is_held = True
    saves = [plant.commit("a", "2"), plant.commit("a", "3"), plant.commit("b", "4")]
    assert not any(each.called for each in saves)
    plant.pool.run()
    assert all(each.called for each in saves)
    assert [sorted(line) for line in plant.lines()] == [["a", "b"], ["a"], ["a", "b"]]


def test_unfinished_last_line_is_left_out_and_other_damage_is_not(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.commit("a", "1")
    plant.commit("b", "2")
    whole = plant.path.read_bytes()
    plant.path.write_bytes(whole[:-5])
    again = Plant(tmp_path)
    assert (again.guards["a"].last_commit, again.guards["b"].last_commit) == ("1", None)
    plant.path.write_bytes(b"x" + whole)
    assert Plant(tmp_path).guards["a"].is_armed


def test_file_of_the_version_before_is_read(tmp_path: Path) -> None:
    state = {"armed": False, "last": "7", "recent": [], "check": None}
    (tmp_path / STATES_FILE).write_text(json.dumps({"a": state}), "utf-8")
    assert Plant(tmp_path).guards["a"].last_commit == "7"


def test_lost_file_is_written_anew_and_a_failure_is_shown_until_then(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    plant.commit("a", "1")
    plant.path.unlink()
    assert plant.commit("b", "2").called
    assert plant.states.problem is not None
    plant.states.save_if_changed()
    assert plant.states.problem is None
    assert [sorted(line) for line in plant.lines()] == [["a", "b"]]


def test_long_file_and_a_close_leave_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant = Plant(tmp_path)
    monkeypatch.setattr("gateway.commits.armed_states._MAX_BYTES", 500)
    for number in range(20):
        plant.commit("a", str(number))
    assert os.path.getsize(plant.path) < 5000
    plant.commit("b", "x")
    plant.states.close()
    assert [sorted(line) for line in plant.lines()] == [["a", "b"]]
    del plant.guards["b"]
    plant.states.save()
    assert [sorted(line) for line in plant.lines()] == [["a"]]
