"""Master data of a cylinder, as the plant's table gives it, and the decision about a commit."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any, Final, Literal, TypeAlias

from gateway.model.records import Verdict

#: Columns of the plant's query; any of them may be absent.
COLUMNS: Final = ("tare_kg", "net_kg", "test_due", "blocked")

#: Error codes of the commits that the master data do not allow.
CylinderError: TypeAlias = Literal["implausible_weight", "cylinder_blocked"]

#: A weight of this many kilograms or more is not that of a cylinder.
_MAX_KG: Final = 100_000

_CENT: Final = Decimal("0.01")

#: Dates as text: 20270131, 2027-01-31, with a time after it or not.
_DATE: Final = re.compile(r"(\d{4})([-/.]?)(\d{2})\2(\d{2})(?:[T ].*)?")

_TRUE: Final = frozenset({"y", "yes", "t", "true", "1"})
_FALSE: Final = frozenset({"", "n", "no", "f", "false", "0"})


@dataclass(frozen=True, slots=True)
class CylinderRecord:
    """Master data of one cylinder.

    :ivar tare_kg: weight of the empty cylinder; ``None`` if unknown, as all weights and dates.
    :ivar net_kg: nominal weight of the gas in a full cylinder.
    :ivar test_due: last day on which its pressure test is valid.
    :ivar is_blocked: whether the plant has blocked it.
    """

    tare_kg: Decimal | None = None
    net_kg: Decimal | None = None
    test_due: date | None = None
    is_blocked: bool = False


@dataclass(frozen=True, slots=True)
class CylinderJudgement:
    """Decision about a commit, and the fields for its answer and event.

    :ivar error: error code of the refusal; ``None`` if the commit is allowed.
    :ivar message: Korean text that says why, and how to continue.
    :ivar message_en: the same in English.
    :ivar fields: ``checked``, and if that is true ``tare_kg``, ``net_kg`` and ``remaining_kg``.
    :ivar errors: all error codes that apply, ``error`` first: an override passes all of them.
    """

    error: CylinderError | None
    message: str
    message_en: str
    fields: Mapping[str, Any]
    errors: tuple[CylinderError, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Return the refusal, or that the commit is allowed."""
        return Verdict(self.error, self.message, self.message_en)


#: Decision without master data: the commit is allowed, and its answer says that nothing was checked.
UNCHECKED: Final = CylinderJudgement(None, "", "", {"checked": False})


def read_record(row: Mapping[str, Any]) -> tuple[CylinderRecord, list[str]]:
    """Return the record of a row, and the columns whose values cannot be read and count as unknown.

    :param row: values by column in lower case; text may be padded, as in columns of type CHAR.
    """
    unreadable: list[str] = []

    def value_of(column: str, read: Any) -> Any:
        value = row.get(column)
        if isinstance(value, str):
            value = value.strip()
        if value is None or value == "":
            return None
        try:
            return read(value)
        except (ValueError, InvalidOperation, OverflowError):
            unreadable.append(column)
            return None

    record = CylinderRecord(
        tare_kg=value_of("tare_kg", _read_weight),
        net_kg=value_of("net_kg", _read_weight),
        test_due=value_of("test_due", _read_date),
        is_blocked=bool(value_of("blocked", _read_flag)),
    )
    return record, unreadable


def _read_weight(value: Any) -> Decimal:
    """Return a weight above zero; a table writes 0 where nobody has weighed the cylinder."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise ValueError("not a number")  # noqa: TRY004  # as for a text that is not a number
    weight = Decimal(str(value))
    if not math.isfinite(weight) or not 0 < weight < _MAX_KG:
        raise ValueError("not a weight")
    return weight


def _read_date(value: Any) -> date:
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    match = _DATE.fullmatch(str(value))
    if match is None:
        raise ValueError("not a date")
    return date(int(match[1]), int(match[3]), int(match[4]))


def _read_flag(value: Any) -> bool:
    text = str(value).lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError("neither true nor false")


def judge(
    record: CylinderRecord, event_type: str, gross_kg: Decimal, tolerance_kg: Decimal, today: date
) -> CylinderJudgement:
    """Return the decision about a commit.

    A blocked or overdue cylinder is refused for every event. A full weight is expected on ``SHIP`` only, and only if
    both the tare and the nominal net weight are known.
    """
    refusals = [
        refusal
        for refusal in (_blocked(record, today), _implausible(record, event_type, gross_kg, tolerance_kg))
        if refusal is not None
    ]
    error, message, message_en = refusals[0] if refusals else (None, "", "")
    fields = _fields(record, event_type, gross_kg)
    return CylinderJudgement(error, message, message_en, fields, tuple(refusal[0] for refusal in refusals))


_Refusal: TypeAlias = tuple[CylinderError, str, str]

_OVERRIDE: Final = " 그래도 처리해야 하면 사유를 적어 다시 보내세요."
_OVERRIDE_EN: Final = ", or send the commit again with a reason (override)"


def _blocked(record: CylinderRecord, today: date) -> _Refusal | None:
    if record.is_blocked:
        text = "사용이 중지된 용기입니다. 용기를 따로 두고 담당자에게 확인하세요."
        english = "the plant has blocked this cylinder; put it aside and ask the person in charge"
    elif record.test_due is not None and record.test_due < today:
        due = record.test_due.isoformat()
        text = f"재검사 기한({due})이 지난 용기입니다. 용기를 따로 두고 재검사를 맡기세요."
        english = f"the test of this cylinder was due on {due}; put it aside for the test"
    else:
        return None
    return "cylinder_blocked", text + _OVERRIDE, english + _OVERRIDE_EN


def _implausible(record: CylinderRecord, event_type: str, gross_kg: Decimal, tolerance_kg: Decimal) -> _Refusal | None:
    tare, net = record.tare_kg, record.net_kg
    if event_type != "SHIP" or tare is None or net is None or abs(gross_kg - tare - net) <= tolerance_kg:
        return None
    gross, low, high = map(_shown, (gross_kg, tare + net - tolerance_kg, tare + net + tolerance_kg))
    text = (
        f"무게 {gross} kg이 이 용기의 충전 무게와 다릅니다. {low}~{high} kg이어야 합니다(용기 {_shown(tare)} kg, 가스"
        f" {_shown(net)} kg). 용기 번호, 충전 상태, 저울을 확인하고 다시 올리세요."
    )
    english = (
        f"{gross} kg is not the weight of this cylinder when it is full: expected {low} to {high} kg (tare"
        f" {_shown(tare)} kg, gas {_shown(net)} kg); check its number, its filling and the scale, and weigh again"
    )
    return "implausible_weight", text + _OVERRIDE, english + _OVERRIDE_EN


def _fields(record: CylinderRecord, event_type: str, gross_kg: Decimal) -> dict[str, Any]:
    """Return the fields of answers; a remaining weight below zero stays, since it shows a wrong tare."""
    gas = None if record.tare_kg is None else gross_kg - record.tare_kg
    return {
        "checked": True,
        "tare_kg": _number(record.tare_kg),
        "net_kg": _number(gas) if event_type == "SHIP" else None,
        "remaining_kg": _number(gas) if event_type == "RETURN" else None,
    }


def _number(weight: Decimal | None) -> float | None:
    # Adding 0 turns -0.00 into 0.00.
    return None if weight is None else float(weight.quantize(_CENT, ROUND_HALF_UP) + 0)


def _shown(weight: Decimal) -> str:
    return f"{weight.quantize(_CENT, ROUND_HALF_UP):f}"
