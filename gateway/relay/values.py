"""Values in the messages between gateways, checked. Each function raises :class:`WireError` on an invalid value."""

import math
from collections.abc import Mapping
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Any, Final

from gateway.model.names import name_of
from gateway.model.records import ALLOWED, Arrival, CommitDetail, Verdict
from gateway.wire.errors import WireError
from gateway.wire.scale import HEAVIEST_KG

#: Limit of times, about the year 8900: :class:`datetime` takes earlier ones in every time zone.
_MAX_TIME: Final = 2.2e11

#: Fields of the master data in the details of a commit.
_CYLINDER_FIELDS: Final = ("checked", "tare_kg", "net_kg", "remaining_kg")


def is_text(value: Any, max_length: int) -> bool:
    """Return whether a value is a text of at most some characters that can be encoded as UTF-8."""
    # Half a surrogate pair cannot be encoded for subscribers.
    return isinstance(value, str) and len(value) <= max_length and not any("\ud800" <= c <= "\udfff" for c in value)


def is_positive(value: Any) -> bool:
    """Return whether a value is a positive integer of 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63


def read_text(value: Any, max_length: int) -> str:
    """Return a text of at most some characters."""
    if not is_text(value, max_length):
        raise WireError(f"a value is not a text of at most {max_length} characters")
    return str(value)


def read_name(value: Any) -> str:
    """Return the name of a scale, machine or sensor."""
    # A peer of an older version may send the name decomposed.
    name = name_of(value) if isinstance(value, str) else None
    if name is None:
        raise WireError("a name is not valid")
    return name


def read_scale(item: Mapping[str, Any]) -> str:
    """Return the scale of an item."""
    scale_id = read_name(item["scale"])
    if len(scale_id) > 50:
        raise WireError("the name of a scale has more than 50 characters")
    return scale_id


def read_flag(value: Any) -> bool:
    """Return a flag."""
    if not isinstance(value, bool):
        raise WireError("a flag is neither true nor false")
    return value


def read_number(value: Any) -> float:
    """Return a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError("a value is not a number")
    return float(value)


def read_seconds(value: Any) -> float:
    """Return a duration in seconds."""
    seconds = read_number(value)
    if not 0 <= seconds < math.inf:
        raise WireError("a duration is not valid")
    return seconds


def read_arrival(value: Any) -> Arrival | None:
    """Return an arrival; ``None`` if it is not known."""
    if value is None:
        return None
    token, arrived = value
    return Arrival(read_text(token, 64), read_seconds(arrived))


def read_weight(value: Any) -> Decimal:
    """Return a weight in kilograms."""
    weight = Decimal(read_text(value, 64))
    # A commit rounds a weight to 0.01, which would need much memory for an extreme exponent.
    if not weight.is_finite() or abs(weight) >= HEAVIEST_KG or weight.adjusted() < -40:
        raise WireError("a weight is not valid")
    return weight


def read_time(value: Any, zone: tzinfo) -> datetime:
    """Return a time of the configured zone.

    :param value: seconds since 1970.
    """
    seconds = read_number(value)
    if not 0 <= seconds < _MAX_TIME:
        raise WireError("a time is not valid")
    return datetime.fromtimestamp(seconds, zone)


def read_judgement(item: Mapping[str, Any]) -> tuple[str, str, Verdict, bool, bool | None]:
    """Return what the gateway of a scale says of a reading: its unit, id, verdict, range and acceptance."""
    accepted = item.get("accepted")
    return (
        read_text(item.get("unit", "kg"), 8),
        read_text(item.get("id", ""), 64),
        _read_verdict(item.get("verdict")),
        read_flag(item.get("out", False)),
        None if accepted is None else read_flag(accepted),
    )


def _read_verdict(value: Any) -> Verdict:
    if value is None:
        return ALLOWED
    error, message, english = value
    return Verdict(read_text(error, 64), read_text(message, 500), read_text(english, 500))


def read_detail(value: Any) -> CommitDetail:
    """Return the details of a commit; without any, those of an older version."""
    if value is None:
        return CommitDetail()
    override, undo_of = value.get("override"), value.get("undo_of")
    figures = {name: value[name] for name in _CYLINDER_FIELDS if name in value}
    for figure in figures.values():
        if figure is not None and not isinstance(figure, bool | int | float):
            raise WireError("a figure of a cylinder is not valid")
    return CommitDetail(
        by=read_text(value["by"], 64),
        override=None if override is None else read_text(override, 200),
        overridden=tuple(read_text(each, 64) for each in value.get("overridden", ())),
        warnings=tuple(read_text(each, 64) for each in value.get("warnings", ())),
        undo_of=undo_of if undo_of is None or is_positive(undo_of) else None,
        cylinder=figures or None,
    )
