"""Errors of operators and scales, as scripts of a dock.

Each begins with the cylinder of the weighing before on the pan, which was committed. After it the operator weighs as he
should, unless something was committed.
"""

import asyncio
from decimal import Decimal
from typing import Any, Final

from tests.support.plant import STABLE_SEC, Dock, Script, Weighing, kg

#: Reasons for which no guard can detect an error without master data.
_LEANING: Final = "stable for longer than require_stable_ms"
_WITHIN_BAND: Final = "smaller than zero_band_kg"
_CAP: Final = "a weight like any other"
_NUMBER: Final = "a number like any other"
_TWICE: Final = "two damaged lines agree"
_SILENT: Final = "younger than commit_max_age_sec"


async def none(dock: Dock, weighing: Weighing) -> None:
    """Make no error."""


async def left_on(dock: Dock, weighing: Weighing) -> None:
    weighing.variant = dock.dice.choice(("untouched", "jolted", "lifted"))
    load = dock.scale.load
    if weighing.variant == "lifted":
        dock.scale.put(load / 2)
        await dock.scale.settle()
    if weighing.variant != "untouched":
        dock.scale.put(load)
    latest = await dock.ready(weighing, load)
    await dock.press_wrongly(weighing, reading=latest if dock.dice.random() < 0.5 else None)


async def not_settled(dock: Dock, weighing: Weighing) -> None:
    weighing.variant = dock.dice.choice(("moving", "moving", "plateau", "plateau", "leaning"))
    await dock.empty()
    scale = dock.scale
    if weighing.variant == "moving":
        scale.put(weighing.weight, moving=6)
        await scale.lines(1)
        await dock.press_wrongly(weighing, reading=await dock.latest() if dock.dice.random() < 0.5 else None)
        return
    low = kg(float(weighing.weight) * dock.dice.uniform(0.5, 0.98))
    is_leaning = weighing.variant == "leaning"
    began = asyncio.get_running_loop().time()
    moving = scale.line("US", weighing.weight)
    scale.injected.extend([moving, *[scale.line("ST", low)] * (15 if is_leaning else 2), moving, moving])
    scale.put(weighing.weight, moving=1)
    await scale.lines(10 if is_leaning else 2)
    await dock.press_wrongly(weighing, reading=await dock.latest())
    if is_leaning or asyncio.get_running_loop().time() - began >= STABLE_SEC:
        # On a slow machine a short plateau may be a long one for the gateway.
        weighing.excuse = _LEANING
    await scale.settle()


async def empty_pan(dock: Dock, weighing: Weighing) -> None:
    rest = dock.dice.choice((0, 0, 0.06, -0.06, 0.28))
    weighing.variant = str(rest)
    await dock.empty(kg(rest))
    await dock.press_wrongly(weighing, reading=await dock.latest() if dock.dice.random() < 0.5 else None)


async def rezero(dock: Dock, weighing: Weighing) -> None:
    weighing.variant = dock.dice.choice(("committed", "exchanged", "placed", "tool", "small tool"))
    scale = dock.scale
    tool = {"tool": kg(dock.dice.uniform(0.4, 3)), "small tool": kg(dock.dice.uniform(0.05, 0.25))}
    if weighing.variant == "placed":
        await dock.empty()
        scale.put(weighing.weight)
    elif weighing.variant in tool:
        await dock.empty(tool[weighing.variant])
    await scale.settle()
    scale.rezero()
    await scale.settle()
    await dock.press_wrongly(weighing)
    if weighing.variant == "small tool":
        weighing.excuse = _WITHIN_BAND
    if weighing.variant != "exchanged":
        await dock.empty()
        await dock.press_wrongly(weighing)
    scale.put(weighing.weight)
    if weighing.variant == "exchanged":
        # The pan passes through its true zero, which the scale shows below zero.
        scale.injected.append(scale.line("US", -scale.zero))
    await scale.settle()
    latest = await dock.allowed()
    await dock.press_wrongly(weighing, reading=latest)
    scale.put(Decimal(0) if not weighing.is_committed else scale.load)
    await scale.settle()
    scale.zero = Decimal(0)


async def cap_left_on(dock: Dock, weighing: Weighing) -> None:
    await dock.empty()
    cap = kg(dock.dice.uniform(0.3, 2.5))
    weighing.variant = "light" if cap <= 1 else "heavy"
    weighing.excuse = _CAP
    latest = await dock.ready(weighing, weighing.weight + cap)
    await dock.press_wrongly(weighing, reading=latest)


async def wrong_number(dock: Dock, weighing: Weighing) -> None:
    is_mistyped = dock.dice.random() < 0.2
    is_alike = weighing.other.group == weighing.cylinder.group
    weighing.variant = "unknown number" if is_mistyped else "same class" if is_alike else "other class"
    weighing.excuse = _NUMBER
    await dock.empty()
    latest = await dock.ready(weighing, weighing.weight)
    number = f"X{weighing.cylinder.number}" if is_mistyped else weighing.other.number
    await dock.press_wrongly(weighing, number, latest)


async def wrong_unit(dock: Dock, weighing: Weighing) -> None:
    await dock.empty()
    scale = dock.scale
    scale.unit, scale.factor = dock.dice.choice((("lb", Decimal("0.45359237")), ("g", Decimal("0.001"))))
    weighing.variant = scale.unit
    latest = await dock.ready(weighing, weighing.weight)
    await dock.press_wrongly(weighing, reading=latest)
    scale.unit, scale.factor = "kg", Decimal(1)


async def lost_digit(dock: Dock, weighing: Weighing) -> None:
    weighing.variant = dock.dice.choice(("once", "once", "once", "once", "twice alike"))
    await dock.empty()
    await dock.ready(weighing, weighing.weight)
    scale = dock.scale
    line = scale.line("ST", weighing.weight)
    at = dock.dice.randrange(len(line) - 2)
    damaged = line[:at] + line[at + 1 :]
    count = 1
    if weighing.variant == "twice alike":
        count = 2
        weighing.excuse = _TWICE
    scale.injected.extend([damaged] * count)
    await scale.lines(count)
    await dock.press_wrongly(weighing, reading=await dock.latest() if dock.dice.random() < 0.5 else None)
    await scale.settle()


async def unplugged(dock: Dock, weighing: Weighing) -> None:
    weighing.variant = dock.dice.choice(("closed", "closed", "closed", "committed", "committed", "long", "short"))
    scale = dock.scale
    if weighing.variant != "committed":
        # Another cylinder stands on the scale, and is exchanged while the cable is out.
        await dock.empty()
        await dock.ready(weighing, weighing.other.full)
    before = await dock.latest()
    if weighing.variant == "closed":
        scale.unplug()
        await dock.sees(lambda latest: not latest["commit"]["allowed"], "a lost connection")
    else:
        scale.is_silent = True
    scale.put(weighing.weight)
    if weighing.variant == "short":
        weighing.excuse = _SILENT
    if weighing.variant == "long":
        await dock.sees(lambda latest: latest["commit"]["error"] == "stale_weight", "an old weight", every=0.5)
    await dock.press_wrongly(weighing, reading=before if dock.dice.random() < 0.5 else None)
    scale.is_silent = False
    if weighing.variant == "closed":
        await scale.connect()
    await scale.settle()


async def overloaded(dock: Dock, weighing: Weighing) -> None:
    weighing.variant = dock.dice.choice(("OL", "above max_kg"))
    await dock.empty()
    scale = dock.scale
    await dock.ready(weighing, weighing.weight)
    if weighing.variant == "OL":
        scale.is_overloaded = True
        await scale.lines(2)
        await dock.press_wrongly(weighing, reading=await dock.latest() if dock.dice.random() < 0.5 else None)
        scale.is_overloaded = False
    else:
        latest = await dock.ready(weighing, kg(dock.dice.uniform(150.01, 180)))
        await dock.press_wrongly(weighing, reading=latest)


async def double_click(dock: Dock, weighing: Weighing) -> None:
    weighing.variant = dock.dice.choice(("at once", "one after the other", "with a key"))
    await dock.empty()
    latest = await dock.ready(weighing, weighing.weight)
    number, key = weighing.cylinder.number, weighing.cylinder.number if weighing.variant == "with a key" else None
    if weighing.variant == "one after the other":
        answers = [await dock.press(weighing, number, latest), await dock.press(weighing, number, latest)]
    else:
        first = dock.press(weighing, number, latest, key=key)
        answers = list(await asyncio.gather(first, dock.press(weighing, number, latest, key=key, second=True)))
    note(weighing, answers)


async def two_operators(dock: Dock, weighing: Weighing) -> None:
    weighing.variant = dock.dice.choice(("at once", "afterwards", "old page"))
    number, other = weighing.cylinder.number, weighing.other.number
    old = await dock.latest()
    await dock.empty()
    latest = await dock.ready(weighing, weighing.weight)
    if weighing.variant == "old page":
        await dock.press_wrongly(weighing, other, old)
    elif weighing.variant == "afterwards":
        note(weighing, [await dock.press(weighing, number, latest), await dock.press(weighing, other, latest)])
    else:
        weighing.excuse = _NUMBER
        orders = [(number, False), (other, True)]
        dock.dice.shuffle(orders)
        presses = [dock.press(weighing, each, latest, second=second) for each, second in orders]
        note(weighing, list(await asyncio.gather(*presses)))


def note(weighing: Weighing, answers: list[tuple[int, Any]]) -> None:
    """Note the refusals of requests of which one at most may be taken."""
    weighing.errors += [body["error"] for status, body in answers if status != 200]


SCRIPTS: Final[dict[str, Script]] = {
    "good": none,
    "previous cylinder left on": left_on,
    "put on before it settled": not_settled,
    "empty pan": empty_pan,
    "RE-ZERO under load": rezero,
    "cap left on": cap_left_on,
    "wrong cylinder number": wrong_number,
    "wrong unit": wrong_unit,
    "lost digit": lost_digit,
    "scale unplugged": unplugged,
    "overloaded": overloaded,
    "double click": double_click,
    "two operators": two_operators,
}


async def perform(dock: Dock, weighing: Weighing) -> None:
    await SCRIPTS[weighing.kind](dock, weighing)
