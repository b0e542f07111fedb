"""Balance of a cylinder's gas over its commits, and the drift of its tare."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from gateway.store.interface import StoredCommit

_ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class CylinderVisit:
    """One commit of a cylinder.

    :ivar tare_kg: tare of the plant's table at that time; ``None`` if it was unknown.
    """

    event_type: str
    gross_kg: Decimal
    committed_at: datetime
    tare_kg: Decimal | None


@dataclass(frozen=True, slots=True)
class CylinderBalance:
    """Gas of one cylinder over its commits, in kg. Commits without a tare count in no sum.

    :ivar shipped_kg: net weight of all shipments.
    :ivar returned_kg: gas that came back.
    :ivar consumed_kg: gas shipped less gas returned, of the shipments that were followed by a return.
    :ivar pairs: number of these shipments.
    :ivar is_out: whether the last commit is a shipment, so that its gas is still with the customer.
    :ivar tare_bound_kg: the lowest weight at a return, which the tare cannot exceed; ``None`` without a return.
    :ivar tare_drift_kg: by how much the latest tare of the table exceeds that bound; 0 if it does not, ``None`` if
        either is unknown.
    """

    shipped_kg: Decimal
    returned_kg: Decimal
    consumed_kg: Decimal
    pairs: int
    is_out: bool
    tare_bound_kg: Decimal | None
    tare_drift_kg: Decimal | None


def balance(events: Iterable[CylinderVisit]) -> CylinderBalance:
    """Return the balance of a cylinder's commits, in any order; those of other types than SHIP and RETURN are ignored.

    A shipment and the next commit are a pair if that is a return. A shipment after a shipment, or a return after a
    return, has lost its partner (a commit was missed), and counts only in the sum of its own kind.
    """
    visits = sorted(
        (event for event in events if event.event_type in {"SHIP", "RETURN"}), key=lambda event: event.committed_at
    )
    shipped = returned = consumed = _ZERO
    pairs = 0
    before: CylinderVisit | None = None
    for visit in visits:
        gas = _gas(visit)
        if gas is not None and visit.event_type == "SHIP":
            shipped += gas
        elif gas is not None:
            returned += gas
            was_shipped = None if before is None or before.event_type != "SHIP" else _gas(before)
            if was_shipped is not None:
                consumed += was_shipped - gas
                pairs += 1
        before = visit
    bound = min((visit.gross_kg for visit in visits if visit.event_type == "RETURN"), default=None)
    tare = next((visit.tare_kg for visit in reversed(visits) if visit.tare_kg is not None), None)
    return CylinderBalance(
        shipped_kg=shipped,
        returned_kg=returned,
        consumed_kg=consumed,
        pairs=pairs,
        is_out=before is not None and before.event_type == "SHIP",
        tare_bound_kg=bound,
        tare_drift_kg=None if bound is None or tare is None else max(_ZERO, tare - bound),
    )


def balance_of(commits: Iterable[StoredCommit]) -> dict[str, Any]:
    """Return the JSON form of the balance of stored commits; those that were undone, and undo another, are left out."""
    visits = [
        CylinderVisit(
            stored.commit.entry.event_type,
            stored.commit.entry.gross_kg,
            stored.commit.entry.committed_at,
            None if (tare := stored.detail.get("tare_kg")) is None else Decimal(str(tare)),
        )
        for stored in commits
        if stored.undo_of is None and stored.undone_by is None
    ]
    found = balance(visits)
    return {
        "shipped_kg": float(found.shipped_kg),
        "returned_kg": float(found.returned_kg),
        "consumed_kg": float(found.consumed_kg),
        "pairs": found.pairs,
        "is_out": found.is_out,
        "tare_bound_kg": None if found.tare_bound_kg is None else float(found.tare_bound_kg),
        "tare_drift_kg": None if found.tare_drift_kg is None else float(found.tare_drift_kg),
    }


def _gas(visit: CylinderVisit) -> Decimal | None:
    return None if visit.tare_kg is None else visit.gross_kg - visit.tare_kg
