"""A run of the simulated plant against a real daemon, and its comparison with ``scale_weight_log``."""

import asyncio
import io
import random
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import Any, Final

import psycopg2

from tests.support.daemon import free_ports, running
from tests.support.plant import CENT, CLASSES, GUARDS, TOLERANCE, Cylinder, Dock, Weighing, cylinder, kg
from tests.support.plant_errors import SCRIPTS, perform
from tests.support.postgres import Server

_QUERY: Final = "SELECT tare_kg, net_kg FROM ma_cylinders WHERE cylinder_no = %(cylinder_no)s"


@dataclass(slots=True)
class Tally:
    """The outcome of one kind of weighing.

    :ivar weighings: number of weighings.
    :ivar refused: erroneous commits that were refused, by error code.
    :ivar right: weighings with one row, which is right.
    :ivar undetectable: wrong rows that no guard could have refused, by variant and reason.
    :ivar wrong: wrong rows that a guard should have refused.
    :ivar missing: weighings without a row.
    :ivar good_refused: refusals of correct commits, by error code.
    """

    weighings: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    right: int = 0
    undetectable: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    good_refused: Counter[str] = field(default_factory=Counter)


def planned(count: int, docks: int, errors: float, seed: int) -> list[list[Weighing]]:
    """Return the weighings of each dock; the first of each is good.

    :param errors: part of the weighings with an error; each kind comes equally often.
    """
    dice = random.Random(seed)
    kinds = [kind for kind in SCRIPTS if kind != "good"]
    found: list[list[Weighing]] = [[] for _ in range(docks)]
    turn = 0
    for number in range(count):
        is_good = number < docks or dice.random() >= errors
        kind = "good" if is_good else kinds[turn % len(kinds)]
        turn += not is_good
        group = dice.randrange(len(CLASSES))
        mine = cylinder(f"CY{number:06}", group, dice)
        shift = dice.randrange(len(CLASSES)) if kind != "scale unplugged" else 1
        other = cylinder(f"CX{number:06}", (group + shift) % len(CLASSES), dice)
        is_return = dice.random() < 0.1
        weight = mine.tare + kg(dice.uniform(0.5, 5)) if is_return else mine.full + kg(dice.uniform(-0.2, 0.2))
        found[number % docks].append(Weighing(kind, "RETURN" if is_return else "SHIP", mine, other, weight))
    return found


def run(folder: Path, plan: list[list[Weighing]], *, with_master: bool, seconds: float = inf) -> dict[str, Tally]:
    """Let docks weigh against a daemon of its own; return the outcome by kind.

    :param seconds: time after which no weighing is begun.
    """
    if not with_master:
        _weigh(folder, plan, {}, seconds)
        return compared(folder, plan, with_master=False)
    server = Server()
    try:
        server.start()
        _fill(server, (each for weighings in plan for weighing in weighings for each in _cylinders(weighing)))
        settings = {"cylinders": {"url": server.url, "query": _QUERY, "tolerance_kg": float(TOLERANCE)}}
        _weigh(folder, plan, settings, seconds)
    finally:
        server.remove()
    return compared(folder, plan, with_master=True)


def _cylinders(weighing: Weighing) -> tuple[Cylinder, Cylinder]:
    return weighing.cylinder, weighing.other


def _fill(server: Server, cylinders: Iterable[Cylinder]) -> None:
    rows = "".join(f"{each.number}\t{each.tare}\t{CLASSES[each.group][2]}\n" for each in cylinders)
    with closing(psycopg2.connect(server.url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE ma_cylinders (cylinder_no text PRIMARY KEY, tare_kg numeric, net_kg numeric)")
        cursor.copy_from(io.StringIO(rows), "ma_cylinders")
        connection.commit()


def _weigh(folder: Path, plan: list[list[Weighing]], settings: dict[str, Any], seconds: float) -> None:
    ports = free_ports(len(plan))
    names = [f"dock-{number:03}" for number in range(len(plan))]
    lines = {name: {"listen": f"tcp:{port}:interface=127.0.0.1"} for name, port in zip(names, ports, strict=True)}
    with running(folder, scale=GUARDS, scales=lines, **settings) as daemon:
        docks = [Dock(name, daemon.port, port, random.Random(name)) for name, port in zip(names, ports, strict=True)]

        end = time.monotonic() + seconds

        def is_over() -> bool:
            return time.monotonic() > end

        async def work() -> None:
            await asyncio.gather(
                *(dock.work(weighings, perform, is_over) for dock, weighings in zip(docks, plan, strict=True))
            )

        asyncio.run(work())


def compared(folder: Path, plan: list[list[Weighing]], *, with_master: bool) -> dict[str, Tally]:
    """Compare the rows of ``scale_weight_log`` with the truth."""
    rows: dict[str, list[tuple[str, Decimal]]] = defaultdict(list)
    with closing(sqlite3.connect(folder / "db" / "cynow-gateway.sqlite3")) as connection:
        for number, gross in connection.execute("SELECT cylinder_no, gross_kg FROM scale_weight_log ORDER BY id"):
            # The six digits of the number name the weighing.
            rows[number[-6:]].append((number, Decimal(str(gross))))
    tallies = {kind: Tally() for kind in SCRIPTS}
    for weighings in plan:
        for weighing in filter(lambda each: each.is_done, weighings):
            _judge(tallies[weighing.kind], weighing, rows.pop(weighing.cylinder.number[-6:], []), with_master)
    assert not rows, "commits of nobody"
    return tallies


def _judge(tally: Tally, weighing: Weighing, rows: list[tuple[str, Decimal]], with_master: bool) -> None:
    tally.weighings += 1
    tally.refused.update(weighing.errors)
    tally.good_refused.update(weighing.refused)
    text = f"{weighing.variant}: {weighing.event} of {weighing.cylinder.number} of {weighing.weight} kg: {rows}"
    right = [row for row in rows if _is_right(weighing, *row)]
    wrong = [row for row in rows if not _is_right(weighing, *row)]
    if not rows:
        tally.missing.append(text)
    elif len(rows) > 1:
        tally.wrong.append(text)
    elif right:
        tally.right += 1
    elif weighing.excuse and (weighing.is_unchecked or not _is_implausible(weighing, *wrong[0], with_master)):
        late = ", master too slow" if with_master and _is_implausible(weighing, *wrong[0], with_master) else ""
        tally.undetectable[f"{weighing.variant}{late} ({weighing.excuse})"] += 1
    else:
        tally.wrong.append(text)


def _is_right(weighing: Weighing, number: str, gross: Decimal) -> bool:
    return number == weighing.cylinder.number and abs(gross - weighing.weight) <= 2 * CENT


def _is_implausible(weighing: Weighing, number: str, gross: Decimal, with_master: bool) -> bool:
    """Return whether the master data show that a row is wrong."""
    if not with_master or weighing.event != "SHIP":
        return False
    return any(each.number == number and abs(gross - each.full) > TOLERANCE for each in _cylinders(weighing))
