"""A simulated plant: docks with a scale on a TCP line, their operators, and the truth about each weighing.

The scripts of the errors are in :mod:`tests.support.plant_errors`, the comparison with the table of commits in
:mod:`tests.support.plant_truth`.
"""

import asyncio
import contextlib
import json
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from tests.support.daemon import PATIENCE

#: Guards with the recommended values.
GUARDS: Final[dict[str, Any]] = {
    "commit_max_age_sec": 10,
    "line_pattern_lock": True,
    "min_kg": 1,
    "max_kg": 150,
    "unit": "kg",
    "require_stable_ms": 500,
    "zero_band_kg": 0.3,
    "accept": ["gross"],
    "duplicate_window_sec": 60,
    "override": False,
}

STABLE_SEC: Final = 0.5
TOLERANCE: Final = Decimal(1)

#: Seconds between two lines of a scale.
PERIOD: Final = 0.1

#: Seconds after which a page does not use its connection again.
MAX_IDLE: Final = 30.0

#: Lines of a moving pan.
MOVING: Final = 2

#: Part of the stable lines whose last digit flickers.
FLICKER: Final = 0.001

#: By class: tare, its spread, and gas when full, in kilograms.
CLASSES: Final = ((14.0, 1.5, 20), (26.0, 2.5, 50), (60.0, 3.0, 47))

CENT: Final = Decimal("0.01")


def kg(value: float) -> Decimal:
    return Decimal(value).quantize(CENT)


@dataclass(frozen=True, slots=True)
class Cylinder:
    """A cylinder as the plant's table knows it."""

    number: str
    group: int
    tare: Decimal

    @property
    def full(self) -> Decimal:
        return self.tare + CLASSES[self.group][2]


def cylinder(number: str, group: int, dice: random.Random) -> Cylinder:
    tare, spread, _ = CLASSES[group]
    return Cylinder(number, group, kg(dice.uniform(tare - spread, tare + spread)))


@dataclass(slots=True)
class Weighing:
    """One weighing: the truth, and what became of it.

    :ivar other: another cylinder, whose number may be taken for this one's.
    :ivar excuse: why no guard can detect the error; empty if one can.
    :ivar is_unchecked: whether a commit was answered without the master data.
    :ivar is_committed: whether a commit was taken.
    :ivar is_done: whether it has ended.
    :ivar refused: errors that a correct weighing got.
    :ivar errors: errors that a wrong weighing got.
    """

    kind: str
    event: str
    cylinder: Cylinder
    other: Cylinder
    weight: Decimal
    variant: str = ""
    excuse: str = ""
    is_unchecked: bool = False
    is_committed: bool = False
    is_done: bool = False
    refused: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Client:
    """One keep-alive connection of a page."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def request(self, method: str, path: str, body: bytes = b"", key: str | None = None) -> tuple[int, Any]:
        now = asyncio.get_running_loop().time()
        if now - self._used > MAX_IDLE:
            # The gateway closes an idle connection.
            self.close()
        self._used = now
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        extra = "" if key is None else f"Idempotency-Key: {key}\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)).lower()
        length = int(answer.partition(b"content-length:")[2].split(b"\r\n")[0])
        content = await asyncio.wait_for(reader.readexactly(length), PATIENCE)
        return int(answer.split(b" ", 2)[1]), json.loads(content)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Scale:
    """An A&D scale that sends a line every 100 ms.

    :ivar load: kilograms on the pan.
    :ivar zero: load at the last RE-ZERO.
    :ivar moving: lines for which the pan still moves.
    :ivar injected: lines that go out instead of the scale's own.
    """

    def __init__(self, port: int, dice: random.Random) -> None:
        self._port = port
        self._dice = dice
        self._writer: asyncio.StreamWriter | None = None
        self.load = Decimal(0)
        self._before = Decimal(0)
        self.zero = Decimal(0)
        self.moving = 0
        self.unit = "kg"
        self.factor = Decimal(1)
        self.is_silent = False
        self.is_overloaded = False
        self.injected: deque[bytes] = deque()
        self._sent = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def connect(self) -> None:
        _, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    def unplug(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @property
    def shown(self) -> Decimal:
        return self.load - self.zero

    def put(self, load: Decimal, moving: int = MOVING) -> None:
        """Change what is on the pan, which then moves for some lines."""
        self._before, self.load, self.moving = self.load, load, moving

    def rezero(self) -> None:
        self.zero = self.load

    def line(self, status: str, weight: Decimal) -> bytes:
        return f"{status},{weight / self.factor:+09.2f} {self.unit}\r\n".encode()

    def _next(self) -> bytes:
        if self.injected:
            return self.injected.popleft()
        if self.is_overloaded:
            return b"OL,+9999.99 kg\r\n"
        if self.moving:
            self.moving -= 1
            part = Decimal(self._dice.uniform(0, 0.95))
            # A cylinder that is exchanged for another is lifted first.
            between = min(self._before, self.load) * part if self._dice.random() < 0.5 else Decimal(0)
            return self.line("US", between - self.zero)
        flicker = self._dice.choice((-CENT, CENT)) if self._dice.random() < FLICKER else 0
        return self.line("ST", self.shown + flicker)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            if self._writer is not None and not self.is_silent:
                self._writer.write(self._next())
                with contextlib.suppress(ConnectionError):
                    await self._writer.drain()
            self._sent += 1
            ready = [each for target, each in self._waiting if target <= self._sent]
            self._waiting = [each for each in self._waiting if each[0] > self._sent]
            for each in ready:
                each.set_result(None)

    async def lines(self, count: int) -> None:
        """Wait until so many further lines went out."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._sent + count, done))
        await done

    async def settle(self) -> None:
        """Wait until the pan rests and two stable lines went out."""
        await self.lines(len(self.injected) + self.moving + 2)


class Dock:
    """A scale, and the operators at it."""

    def __init__(self, scale_id: str, http_port: int, scale_port: int, dice: random.Random) -> None:
        self.scale_id = scale_id
        self.dice = dice
        self.scale = Scale(scale_port, dice)
        self.page, self.second = Client(http_port), Client(http_port)

    async def latest(self) -> Any:
        return (await self.page.request("GET", f"/api/scale-gateway/latest/?scale_id={self.scale_id}"))[1]

    async def sees(self, condition: Callable[[Any], Any], what: str, every: float = PERIOD) -> Any:
        """Look at the page until it shows something; return what it shows."""
        end = asyncio.get_running_loop().time() + PATIENCE
        while True:
            latest = await self.latest()
            if condition(latest):
                return latest
            if asyncio.get_running_loop().time() > end:
                raise AssertionError(f"{self.scale_id}: waited in vain: {what}: {latest}")
            await asyncio.sleep(every)

    async def sees_weight(self, weight: Decimal) -> Any:
        return await self.sees(lambda latest: is_near(latest.get("weight"), weight), f"{weight} kg")

    async def press(
        self, weighing: Weighing, number: str, reading: Any = None, *, key: str | None = None, second: bool = False
    ) -> tuple[int, Any]:
        """Commit; ``reading`` is what the page shows, if the request says so."""
        fields = {"cylinder_no": number, "event_type": weighing.event, "scale_id": self.scale_id}
        if reading is not None:
            fields["reading_id"] = reading["reading_id"]
        client = self.second if second else self.page
        status, body = await client.request("POST", "/api/scale-gateway/commit/", json.dumps(fields).encode(), key)
        if status == 200:
            weighing.is_committed = True
            weighing.is_unchecked = weighing.is_unchecked or body.get("checked") is False
        return status, body

    async def press_wrongly(self, weighing: Weighing, number: str = "", reading: Any = None) -> None:
        """Commit in error, unless an error was committed before."""
        if weighing.is_committed:
            return
        status, body = await self.press(weighing, number or weighing.cylinder.number, reading)
        if status != 200:
            weighing.errors.append(body["error"])

    async def empty(self, rest: Decimal = Decimal(0)) -> None:
        """Take the load off, and wait until the scale has shown zero."""
        self.scale.put(rest)
        await self.scale.settle()

    async def ready(self, weighing: Weighing, load: Decimal) -> Any:
        """Put a load on the empty pan, and wait until the page allows a commit, or refuses it for good."""
        self.scale.put(load)
        await self.scale.settle()
        return await self.allowed()

    async def allowed(self) -> Any:
        weight = self.scale.shown
        # Not decided before; the condition is awaited, however long it takes.
        await self.scale.lines(3)

        def is_decided(latest: Any) -> bool:
            is_shown = is_near(latest.get("weight"), weight)
            return is_shown and latest["commit"]["error"] not in ("unstable", "stale_weight")

        return await self.sees(is_decided, f"a decision about {weight} kg")

    async def weigh(self, weighing: Weighing) -> None:
        """Weigh a cylinder as it should be, and try again where that is refused."""
        await self.empty(kg(self.dice.uniform(-0.05, 0.05)))
        latest = await self.ready(weighing, weighing.weight)
        for _ in range(5):
            status, body = await self.press(weighing, weighing.cylinder.number, latest)
            if status == 200:
                return
            weighing.refused.append(body["error"])
            latest = await self.allowed()

    async def work(self, weighings: list[Weighing], script: "Script", is_over: Callable[[], bool]) -> None:
        """Do the weighings one after the other, as long as there is time."""
        await self.scale.connect()
        lines = asyncio.create_task(self.scale.run())
        try:
            for weighing in weighings:
                if is_over():
                    break
                await script(self, weighing)
                if not weighing.is_committed:
                    await self.weigh(weighing)
                weighing.is_done = True
        finally:
            lines.cancel()
            self.scale.unplug()
            self.page.close()
            self.second.close()


Script = Callable[[Dock, Weighing], Awaitable[None]]


def is_near(shown: float | None, weight: Decimal) -> bool:
    return shown is not None and abs(Decimal(str(shown)) - weight) <= 2 * CENT
