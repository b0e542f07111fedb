"""Master data of cylinders: reading rows, decisions, and the balance of a cylinder."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from gateway.cylinders.balance import CylinderVisit, balance
from gateway.cylinders.master import CylinderRecord, judge, read_record

TODAY = date(2026, 11, 29)
FULL = CylinderRecord(Decimal("53.2"), Decimal(20), date(2027, 1, 31))


# -- rows


@pytest.mark.parametrize(
    ("value", "weight"),
    [
        (Decimal("53.20"), "53.20"),
        (53.2, "53.2"),
        (53, "53"),
        ("53.20   ", "53.20"),
        (" 053.20", "53.20"),
    ],
)
def test_weight_of_any_type_is_read(value: Any, weight: str) -> None:
    record, unreadable = read_record({"tare_kg": value, "net_kg": value})
    assert (record.tare_kg, record.net_kg, unreadable) == (Decimal(weight), Decimal(weight), [])


@pytest.mark.parametrize("value", ["53,2", "NaN", float("inf"), "1e9", 0, "-3", True, b"53", date(2026, 1, 1)])
def test_weight_that_cannot_be_one_is_unknown_and_reported(value: Any) -> None:
    assert read_record({"tare_kg": value}) == (CylinderRecord(), ["tare_kg"])


@pytest.mark.parametrize(
    "value",
    [
        date(2027, 1, 31),
        datetime(2027, 1, 31, 9, tzinfo=UTC),
        "20270131",
        "2027-01-31",
        "2027/01/31  ",
        "2027-01-31 09:00:00",
        20270131,
    ],
)
def test_date_of_any_type_is_read(value: Any) -> None:
    record, unreadable = read_record({"test_due": value})
    assert (record.test_due, unreadable) == (date(2027, 1, 31), [])


@pytest.mark.parametrize("value", ["00000000", "20270231", "31.01.2027", "2027-0131", "soon", 7])
def test_date_that_is_none_is_unknown_and_reported(value: Any) -> None:
    assert read_record({"test_due": value}) == (CylinderRecord(), ["test_due"])


@pytest.mark.parametrize(
    ("value", "is_blocked"),
    [
        *[(True, True), (False, False), ("Y  ", True), ("n", False), ("1", True), ("0", False), ("t", True)],
        *[("f", False), (1, True), (0, False), ("  ", False), (None, False), (Decimal(1), True)],
    ],
)
def test_flag_of_any_type_is_read(value: Any, is_blocked: bool) -> None:
    record, unreadable = read_record({"blocked": value})
    assert (record.is_blocked, unreadable) == (is_blocked, [])


def test_flag_that_is_neither_counts_as_not_blocked_and_is_reported() -> None:
    assert read_record({"blocked": "?"}) == (CylinderRecord(), ["blocked"])


def test_absent_and_blank_columns_are_unknown_and_not_reported() -> None:
    assert read_record({}) == (CylinderRecord(), [])
    assert read_record({"tare_kg": "     ", "net_kg": None, "test_due": "", "other": 3}) == (CylinderRecord(), [])


# -- decisions


def judged(record: CylinderRecord, event_type: str, gross: str) -> Any:
    return judge(record, event_type, Decimal(gross), Decimal("1.0"), TODAY)


@pytest.mark.parametrize("gross", ["72.20", "73.20", "74.20"])
def test_full_cylinder_within_the_tolerance_ships_with_its_net_weight(gross: str) -> None:
    judgement = judged(FULL, "SHIP", gross)
    assert (judgement.error, judgement.errors, judgement.message) == (None, (), "")
    net = float(Decimal(gross) - Decimal("53.2"))
    assert judgement.fields == {"checked": True, "tare_kg": 53.2, "net_kg": net, "remaining_kg": None}


@pytest.mark.parametrize("gross", ["72.19", "74.21", "53.20", "0.00"])
def test_shipment_outside_the_tolerance_is_implausible(gross: str) -> None:
    judgement = judged(FULL, "SHIP", gross)
    assert (judgement.error, judgement.errors) == ("implausible_weight", ("implausible_weight",))
    for text in (judgement.message, judgement.message_en):
        assert "72.20" in text
        assert "74.20" in text
        assert gross in text
    assert "expected 72.20 to 74.20 kg" in judgement.message_en


@pytest.mark.parametrize(("gross", "remaining"), [("54.00", 0.8), ("53.20", 0.0), ("50.00", -3.2), ("73.20", 20.0)])
def test_return_has_the_remaining_gas_even_below_zero(gross: str, remaining: float) -> None:
    judgement = judged(FULL, "RETURN", gross)
    assert judgement.error is None
    assert judgement.fields == {"checked": True, "tare_kg": 53.2, "net_kg": None, "remaining_kg": remaining}


@pytest.mark.parametrize("event_type", ["SHIP", "RETURN"])
def test_blocked_cylinder_is_refused_for_every_event(event_type: str) -> None:
    record = CylinderRecord(Decimal("53.2"), Decimal(20), None, is_blocked=True)
    judgement = judged(record, event_type, "73.20")
    assert judgement.error == "cylinder_blocked"
    assert "사용이 중지된" in judgement.message
    assert judgement.fields["checked"] is True


@pytest.mark.parametrize(("due", "error"), [(date(2026, 11, 28), "cylinder_blocked"), (TODAY, None)])
def test_cylinder_is_overdue_from_the_day_after_its_test(due: date, error: str | None) -> None:
    judgement = judged(CylinderRecord(None, None, due), "RETURN", "60.00")
    assert judgement.error == error
    assert ("2026-11-28" in judgement.message_en) is (error is not None)


def test_both_errors_are_listed_with_the_block_first() -> None:
    record = CylinderRecord(Decimal("53.2"), Decimal(20), None, is_blocked=True)
    judgement = judged(record, "SHIP", "10.00")
    assert (judgement.error, judgement.errors) == ("cylinder_blocked", ("cylinder_blocked", "implausible_weight"))


@pytest.mark.parametrize("record", [CylinderRecord(), CylinderRecord(Decimal(50)), CylinderRecord(None, Decimal(20))])
def test_without_tare_or_nominal_net_every_weight_ships(record: CylinderRecord) -> None:
    judgement = judged(record, "SHIP", "1.00")
    assert judgement.error is None
    assert judgement.fields["checked"] is True
    assert judgement.fields["net_kg"] == (None if record.tare_kg is None else -49.0)


# -- balance


def visit(event_type: str, gross: str, hour: int, tare: str | None = "50") -> CylinderVisit:
    time = datetime(2026, 11, 29, hour, tzinfo=UTC)
    return CylinderVisit(event_type, Decimal(gross), time, None if tare is None else Decimal(tare))


def test_balance_of_no_commit_is_zero() -> None:
    result = balance([])
    assert (str(result.shipped_kg), str(result.returned_kg), str(result.consumed_kg), result.pairs) == (
        "0",
        "0",
        "0",
        0,
    )
    assert (result.is_out, result.tare_bound_kg, result.tare_drift_kg) == (False, None, None)


def test_balance_counts_consumption_of_completed_pairs_in_any_order() -> None:
    result = balance([visit("SHIP", "71", 3), visit("RETURN", "52.5", 2), visit("SHIP", "70", 1)])
    assert (result.shipped_kg, result.returned_kg) == (Decimal(41), Decimal("2.5"))
    assert (result.consumed_kg, result.pairs, result.is_out) == (Decimal("17.5"), 1, True)


def test_balance_leaves_commits_without_a_partner_or_a_tare_out_of_the_consumption() -> None:
    events = [visit("RETURN", "51", 1), visit("SHIP", "70", 2, None), visit("RETURN", "52", 3), visit("SHIP", "70", 4)]
    result = balance([*events, visit("SHIP", "70", 5), visit("CHECK", "1", 6), visit("RETURN", "55", 7)])
    assert (result.shipped_kg, result.returned_kg) == (Decimal(40), Decimal(8))
    assert (result.consumed_kg, result.pairs) == (Decimal(15), 1)


def test_return_below_the_tare_shows_its_drift() -> None:
    result = balance([visit("RETURN", "48.5", 1), visit("RETURN", "50.3", 2)])
    assert (result.tare_bound_kg, result.tare_drift_kg) == (Decimal("48.5"), Decimal("1.5"))
    assert balance([visit("RETURN", "50.3", 2)]).tare_drift_kg == 0
    assert balance([visit("RETURN", "50.3", 2, None)]).tare_drift_kg is None
