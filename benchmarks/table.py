"""Rows of figures, what they are measured against, and their goals."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    :param what: the work.
    :param figure: the gateway's, with its unit.
    :param goal: in words; empty where there is none.
    :param met: whether the goal is met; ``None`` where there is none.
    :param peer: what the same work took of the peer or the bare loop in the same run, with its name and unit.
    :param ratio: of the two, as the goal means it.
    """

    what: str
    figure: str
    goal: str = ""
    met: bool | None = None
    peer: str = ""
    ratio: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def table(rows: Iterable[Row]) -> str:
    """The rows as text, in columns."""
    cells = [("what", "this gateway", "peer or bare loop", "ratio", "goal", "")] + [
        (
            row.what,
            row.figure,
            row.peer,
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.goal,
            {True: "met", False: "MISSED", None: ""}[row.met],
        )
        for row in rows
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(6)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in cells)
