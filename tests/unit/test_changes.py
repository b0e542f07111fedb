"""Differences between configurations, and the reload that applies them."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from gateway.assembly import reload as reload_module
from gateway.assembly.reload import Reload
from gateway.assembly.scales import ScaleParts, Scales
from gateway.config.changes import RESTART, changed_keys, restart_keys, with_values_of
from gateway.config.problems import Problem
from gateway.config.scale_settings import ScaleConnection
from gateway.config.settings import Settings
from gateway.ingest.scale import ScaleFactory
from gateway.runtime.listener import PortDirectory, StartError
from tests.support.logs import silent_log
from tests.support.runtime import make_runtime


def settings(**sections: Any) -> Settings:
    return Settings.model_validate(sections)


# -- differences


@pytest.mark.parametrize(
    ("before", "after", "keys"),
    [
        ({}, {}, []),
        ({}, {"limits": {"body_bytes": 1}}, ["limits.body_bytes"]),
        ({"timezone": "UTC"}, {"timezone": "Asia/Seoul"}, ["timezone"]),
        ({}, {"auth": {}}, ["auth"]),
        ({"auth": {"anonymous": "read"}}, {"auth": {}}, ["auth.anonymous"]),
        (
            {"scales": {"a": {"listen": "tcp:1"}, "b": {"listen": "tcp:2"}}},
            {"scales": {"b": {"listen": "tcp:3"}, "c": {"listen": "tcp:1"}}},
            ["scales.a", "scales.b", "scales.c"],
        ),
        ({"machines": {"Saw": {"allow": "::1"}}}, {}, ["machines.Saw"]),
    ],
)
def test_changed_keys_name_every_difference(before: Any, after: Any, keys: list[str]) -> None:
    assert changed_keys(settings(**before), settings(**after)) == keys


def test_keys_that_take_a_restart_exist_and_keep_their_values() -> None:
    known = {"stat", "timezone"} | {
        f"{section}.{key}"
        for section, value in Settings().model_dump().items()
        if isinstance(value, dict) and section not in {"stat", "scales", "machines"}
        for key in value
    }
    assert known >= RESTART
    before = settings(timezone="UTC")
    after = settings(timezone="Asia/Seoul", server={"port": 1, "names": "plant.example"}, data={"path": "x"})
    held = restart_keys(before, after)
    assert held == ["server.port", "data.path", "timezone"]
    target = with_values_of(before, after, held)
    assert (target.timezone, target.server.port, target.data.path) == ("UTC", 8080, "data")
    assert target.server.names == ("plant.example",)
    assert restart_keys(before, target) == []


# -- scales


class FakeListener:
    """Listener of a port, of which each can be bound once."""

    def __init__(self, bound: set[str], line: str) -> None:
        self.bound, self.line = bound, line
        self.is_accepting = False

    def listen(self) -> None:
        if self.line in self.bound:
            raise StartError(f"{self.line} is in use")
        self.bound.add(self.line)

    def accept(self) -> None:
        assert self.line in self.bound
        self.is_accepting = True

    def stop(self) -> None:
        self.bound.discard(self.line)
        self.is_accepting = False


class FakeService:
    """Service that dials a scale."""

    def __init__(self) -> None:
        self.running = False

    def startService(self) -> None:
        self.running = True

    def stopService(self) -> None:
        self.running = False


class Plant:
    """Scales with listeners of names instead of ports."""

    def __init__(self, **lines: Any) -> None:
        self.bound: set[str] = set()
        self.runtime = make_runtime(Clock(), scales=lines)
        self.ports = PortDirectory()
        self.scales = Scales(self.build, settings(scales=lines), self.runtime.live, self.ports, Clock())
        for listener in self.scales.listeners:
            listener.listen()
            listener.accept()
        self.scales.startService()

    def build(
        self, settings: Settings, scale_id: str, line: ScaleConnection, factory: ScaleFactory | None
    ) -> ScaleParts:
        runtime = self.runtime
        log = silent_log(runtime.clock, runtime.counters)
        factory = factory or ScaleFactory(scale_id, runtime.bus, runtime.clock, runtime.counters, log, 10)
        if line.listen is not None:
            return ScaleParts(line, factory, cast(Any, FakeListener(self.bound, line.listen)), None)
        return ScaleParts(line, factory, None, cast(Any, FakeService()))

    def change(self, **lines: Any) -> "Deferred[None]":
        return Deferred.fromCoroutine(self.scales.change(settings(scales=lines)))

    def factories(self) -> dict[str, ScaleFactory]:
        return {factory.scale_id: factory for factory in self.scales.factories}


def failure_of(done: "Deferred[None]") -> BaseException | None:
    failures: list[Any] = []
    done.addErrback(failures.append)
    return failures[0].value if failures else None


def test_unchanged_scales_keep_their_parts() -> None:
    plant = Plant(a={"listen": "one"}, b={"connect": "two"})
    before, listeners = plant.factories(), plant.scales.listeners
    plant.change(a={"listen": "one", "idle_timeout_sec": 3}, b={"connect": "two"})
    assert plant.factories() == before
    assert plant.scales.listeners == listeners
    assert plant.runtime.live.idle_timeout("a") == 3


def test_scales_come_and_go() -> None:
    plant = Plant(a={"listen": "one"}, b={"connect": "two"})
    plant.change(c={"listen": "one"}, d={"connect": "three"})
    assert plant.bound == {"one"}
    assert sorted(plant.runtime.live.scale_ids()) == ["c", "d"]
    assert plant.ports.scale_listeners == plant.scales.listeners
    assert all(cast(Any, listener).is_accepting for listener in plant.scales.listeners)


def test_port_in_use_leaves_everything_as_it_was() -> None:
    plant = Plant(a={"listen": "one"}, b={"listen": "two"})
    plant.bound.add("foreign")
    before = plant.factories()
    error = failure_of(plant.change(a={"listen": "three"}, c={"listen": "foreign"}))
    assert isinstance(error, StartError)
    assert plant.bound == {"one", "two", "foreign"}
    assert plant.factories() == before
    assert all(cast(Any, listener).is_accepting for listener in plant.scales.listeners)


def test_scale_that_listens_elsewhere_keeps_its_connections_and_a_dialled_one_does_not() -> None:
    plant = Plant(a={"listen": "one"}, b={"connect": "two"})
    before = plant.factories()
    plant.change(a={"listen": "three"}, b={"connect": "four"})
    assert plant.factories()["a"] is before["a"]
    assert plant.factories()["b"] is not before["b"]
    plant.scales.close()
    plant.scales.stopService()


def test_addresses_of_a_line_come_and_go_without_a_new_connection() -> None:
    plant = Plant(l={"listen": "one", "addresses": {"01": "a", "02": "b"}})
    live, before = plant.runtime.live, plant.factories()
    assert sorted(live.scale_ids()) == ["a", "b"]
    protocol = before["l"].buildProtocol(None)
    assert protocol is not None
    protocol.makeConnection(StringTransport())
    plant.change(l={"listen": "one", "addresses": {"02": "b", "03": "c"}, "prefix": "x"}, b={"via": "l"})
    assert plant.factories() == before
    assert {scale_id: live.is_connected("scale", scale_id) for scale_id in live.scale_ids()} == {"b": True, "c": True}
    assert before["l"].options.prefix == b"x"


def test_line_that_becomes_a_scale_gets_new_connections() -> None:
    plant = Plant(l={"listen": "one", "addresses": {"01": "a"}})
    before = plant.factories()
    protocol = before["l"].buildProtocol(None)
    assert protocol is not None
    transport = StringTransport()
    protocol.makeConnection(transport)
    plant.change(l={"listen": "one"})
    assert transport.disconnecting
    protocol.connectionLost(Failure(ConnectionDone()))
    assert plant.factories()["l"] is not before["l"]
    assert plant.runtime.live.scale_ids() == ["l"]


def test_scale_moves_from_its_own_line_to_an_address() -> None:
    plant = Plant(a={"connect": "two"}, l={"listen": "one", "addresses": {"01": "b"}})
    own, line = (plant.factories()[name].buildProtocol(None) for name in ("a", "l"))
    assert own is not None
    assert line is not None
    for protocol in (own, line):
        protocol.makeConnection(StringTransport())
    plant.change(l={"listen": "one", "addresses": {"01": "b", "02": "a"}})
    own.connectionLost(Failure(ConnectionDone()))
    assert plant.runtime.live.is_connected("scale", "a")
    assert [scale.scale_id for scale in plant.scales.readings()] == ["b", "a"]


# -- the reload


class FakePool:
    """Thread pool that runs everything at once."""

    def callInThreadWithCallback(
        self, done: Callable[[bool, Any], None], work: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> None:
        try:
            result = work(*args, **kwargs)
        except Exception:  # the caller gets it, whatever it is
            from twisted.python.failure import Failure

            done(False, Failure())
        else:
            done(True, result)


class FakeReactor(Clock):
    """Reactor whose threads are calls."""

    def getThreadPool(self) -> FakePool:
        return FakePool()

    def callFromThread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        function(*args, **kwargs)


class Reloading:
    """Reload of a gateway with one part, and the lines that it logs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plant = Plant(a={"listen": "one"})
        self.found: tuple[Settings | None, Sequence[Problem]] = settings(scales={"a": {"listen": "one"}}), []
        self.applied: list[int] = []
        self.problem: str | None = None
        self.said: list[str] = []
        for level in ("info", "warn", "error", "failure"):
            monkeypatch.setattr(reload_module.log, level, self._say, raising=False)
        reactor = cast(Any, FakeReactor())
        steps = {"part": self._prepare}
        self.reload = Reload(
            reactor, lambda: self.found, settings(scales={"a": {"listen": "one"}}), self.plant.scales, steps
        )

    def _say(self, text: str, **fields: Any) -> None:
        self.said.append(text.format(**fields))

    def _prepare(self, target: Settings) -> Callable[[], None]:
        if self.problem is not None:
            raise StartError(self.problem)
        return lambda: self.applied.append(target.limits.body_bytes)

    def run(self) -> list[str]:
        self.said.clear()
        Deferred.fromCoroutine(self.reload.run())
        return self.said


@pytest.fixture
def reloading(monkeypatch: pytest.MonkeyPatch) -> Reloading:
    return Reloading(monkeypatch)


def test_reload_applies_all_and_names_the_rest(reloading: Reloading) -> None:
    lines = {"a": {"listen": "one"}, "b": {"listen": "two"}}
    reloading.found = settings(scales=lines, limits={"body_bytes": 7}, timezone="UTC"), []
    assert reloading.run() == [
        "SIGHUP: the configuration is reloaded; changed: scales.b, limits.body_bytes",
        "SIGHUP: restart the gateway to change timezone",
    ]
    assert reloading.applied == [7]
    assert reloading.plant.bound == {"one", "two"}


@pytest.mark.parametrize("kind", ["unreadable", "fatal", "file", "port"])
def test_reload_with_a_problem_changes_nothing(reloading: Reloading, kind: str) -> None:
    lines: dict[str, Any] = {"a": {"listen": "one"}}
    match kind:
        case "unreadable":
            reloading.found = None, [Problem("", "x.yaml: no such file")]
        case "fatal":
            reloading.found = settings(scales={"b": {"listen": "two"}}), [Problem("limits", "wrong")]
        case "file":
            reloading.found = settings(scales={"b": {"listen": "two"}}), []
            reloading.problem = "auth.tokens_file: wrong"
        case "port":
            reloading.plant.bound.add("two")
            reloading.found = settings(scales={**lines, "b": {"listen": "two"}}), []
    said = reloading.run()
    assert said[-1] == "SIGHUP: the configuration is not reloaded, and nothing has changed"
    assert reloading.applied == []
    assert reloading.plant.runtime.live.scale_ids() == ["a"]


def test_reload_with_a_warning_goes_on(reloading: Reloading) -> None:
    found, _ = reloading.found
    reloading.found = found, [Problem("scale.port", "has no effect", is_fatal=False)]
    said = reloading.run()
    assert said[0] == "SIGHUP: scale.port: has no effect"
    assert "is reloaded" in said[1]


def test_part_that_cannot_change_does_not_stop_the_others(reloading: Reloading) -> None:
    def fail(_: Settings) -> Callable[[], None]:
        return lambda: cast(None, 1 / 0)

    reloading.reload._steps = {"broken": fail, "part": reloading._prepare}
    said = reloading.run()
    assert said[0] == "SIGHUP: cannot change broken"
    assert reloading.applied == [65536]
