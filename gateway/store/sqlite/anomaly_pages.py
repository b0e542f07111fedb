"""Pages of anomalies, of one machine or of all machines."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from gateway.store.interface import Page, StoreUnavailable
from gateway.store.sqlite import queries
from gateway.store.sqlite.machine_db import MachineDatabases


@dataclass(frozen=True, slots=True)
class _Position:
    """The last row of a page of anomalies of all machines.

    :ivar left_out: machines that could not be read, and are left out of the further pages too.
    """

    time: Any
    machine: str = ""
    id: int = queries.BEHIND_IDS
    left_out: frozenset[str] = frozenset()

    def of(self, machine: str) -> tuple[Any, int]:
        """Return the time and id behind which the rows of a machine continue; rows of one time are by machine."""
        if machine == self.machine:
            return self.time, self.id
        return self.time, queries.BEFORE_IDS if machine < self.machine else queries.BEHIND_IDS


def anomalies_of(
    databases: MachineDatabases, machine: str, bounds: tuple[str, str], after: tuple[Any, int] | None, limit: int | None
) -> Page:
    """Return a page of one machine's anomalies, ascending in time; this blocks."""
    query = partial(queries.anomalies, bounds=bounds, after=after or (bounds[0], queries.BEFORE_IDS), limit=limit)
    rows = databases.ask(machine, query)
    items = [_item(machine, time, score, threshold) for time, _, score, threshold in rows]
    return Page(items, rows[-1][:2] if len(rows) == queries.page_size(limit) else None)


def newest_anomalies(
    databases: MachineDatabases, bounds: tuple[str, str], after: _Position | None, limit: int | None
) -> Page:
    """Return a page of all machines' anomalies, newest first; this blocks, and holds at most the rows of two pages.

    Machines that cannot be read are left out, so that one locked or damaged file does not hide the others.
    """
    position = after or _Position(bounds[1])
    size = queries.page_size(limit)
    left_out = set(position.left_out)
    since: Any = bounds[0]
    rows: list[tuple[Any, str, int, Any, Any]] = []
    for machine in databases.names():
        if databases.is_closing:
            raise StoreUnavailable("the gateway is stopping")
        if machine in left_out:
            continue
        query = partial(queries.newest_anomalies, since=since, after=position.of(machine), limit=limit)
        try:
            found = databases.ask(machine, query, or_empty=False)
        except StoreUnavailable as error:
            databases.warn(
                f"{machine} out",
                "the anomalies of all machines leave out {machine}: {error}",
                machine=machine,
                error=error,
            )
            left_out.add(machine)
            continue
        rows += [(time, machine, *further) for time, *further in found]
        # A stable sort keeps the order of rows of one time.
        rows.sort(key=lambda row: str(row[0]), reverse=True)
        if len(rows) >= size:
            del rows[size:]
            since = rows[-1][0]
    items = [_item(machine, time, score, threshold) for time, machine, _, score, threshold in rows]
    return Page(items, _Position(*rows[-1][:3], frozenset(left_out)) if len(rows) == size else None)


def _item(machine: str, time: Any, score: Any, threshold: Any) -> dict[str, Any]:
    return {"name": machine, "time": str(time), "score": score, "threshold": threshold}
