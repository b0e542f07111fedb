"""Names, and the JSON forms of records."""

import json
import math
from array import array
from datetime import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.model.names import is_name
from gateway.model.records import (
    Batch,
    Commit,
    CommitEntry,
    Fault,
    Presence,
    Reading,
    Record,
    SensorBatch,
    Silence,
    Update,
)
from gateway.model.timestamps import rfc3339, wall_time
from gateway.timeseries.finite import finite

SEOUL = ZoneInfo("Asia/Seoul")
NOW = datetime(2025, 12, 18, 10, 11, 12, 123456, SEOUL)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "ShotBlast",
        "shot_blast-vib.1:x y",
        "쇼트블라스트",
        "진동1",
        "Αντλία",
        "насос",
        "ポンプ",
        "\u0663\u0664",  # ARABIC-INDIC digits
        "\u0967",  # DEVANAGARI DIGIT ONE
        "...",
        ".hidden",
        "-",
        " ",
        "a" * 64,
        "가" * 64,
        "\U00010400" * 59,  # 236 bytes; 238 are allowed
        "\U00010400" * 59 + "ab",
    ],
    ids=ascii,
)
def test_valid_names_are_accepted(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a/b",
        "/",
        "../x",
        "a\\b",
        "a\0",
        "\0",
        "a\nb",
        "a\tb",
        "a\x7f",
        "a\x85",
        "*",
        "a*",
        "a?b",
        'a"b',
        "a'b",
        "a;b",
        "a%b",
        "a+b",
        "a,b",
        "a\u200bb",  # ZERO WIDTH SPACE
        "a\u202eb",  # RIGHT-TO-LEFT OVERRIDE
        "a\u00a0b",  # NO-BREAK SPACE
        "a\u2028b",
        "\ufeffa",
        "\u00b2",  # SUPERSCRIPT TWO: a number, but not a digit
        "\u2167",  # ROMAN NUMERAL EIGHT
        "\u0301",  # a combining accent alone
        "\U0001f600",
        "\ud800",
        "a\udfff",
        "\ue000",  # private use
        "a" * 65,
        "가" * 65,
        "\U00010400" * 60,  # 240 bytes in 60 characters
        "\U00010400" * 59 + "abc",
    ],
    ids=ascii,
)
def test_invalid_names_are_rejected(text: str) -> None:
    assert not is_name(text)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.one_of(st.text(max_size=70), st.text("ab. -_:/\0가\U00010400", min_size=1, max_size=70)))
def test_name_is_valid_as_file_name_and_topic_segment(text: str) -> None:
    if not is_name(text):
        return
    # NAME_MAX of Linux.
    assert len(f"20251218_{text}.csv.zst".encode()) <= 255
    assert text.isprintable()
    assert text not in {".", ".."}
    assert not {"/", "\0", "*"} & set(text)


@pytest.mark.parametrize(
    ("record", "topic", "event", "payload"),
    [
        (
            Reading("default", "ST", Decimal("53.26"), "gross", "ST , +000053.26 _kg", NOW),
            "scale/default",
            "reading",
            {
                "scale_id": "default",
                "status": "ST",
                "weight": 53.26,
                "raw": "ST , +000053.26 _kg",
                "received_at": "2025-12-18T10:11:12+09:00",
                "kind": "gross",
                "reading_id": None,
                "out_of_range": False,
                "commit": {"allowed": True, "error": None, "message": ""},
            },
        ),
        (
            Reading("dock-1", "OL", None, "net", "OL,NT,", NOW),
            "scale/dock-1",
            "reading",
            {
                "scale_id": "dock-1",
                "status": "OL",
                "weight": None,
                "raw": "OL,NT,",
                "received_at": "2025-12-18T10:11:12+09:00",
                "kind": "net",
                "reading_id": None,
                "out_of_range": False,
                "commit": {"allowed": True, "error": None, "message": ""},
            },
        ),
        (
            Commit(123, CommitEntry("dock-1", "CY1", "SHIP", Decimal("53.26"), "ST", NOW, NOW, "AS1", None)),
            "scale/dock-1",
            "commit",
            {
                "ok": True,
                "id": 123,
                "cylinder_no": "CY1",
                "event_type": "SHIP",
                "gross_kg": 53.26,
                "committed_at": "2025-12-18T10:11:12+09:00",
                "scale_id": "dock-1",
            },
        ),
        (
            Batch(
                "ShotBlast",
                {
                    "vib": SensorBatch("VIB", array("d", [1.5, math.nan, -2.5, math.inf, -math.inf])),
                    "temp": SensorBatch("TEMP", array("d")),
                },
                NOW,
            ),
            "machine/ShotBlast/samples",
            "samples",
            {"vib": {"type": "VIB", "data": [1.5, -2.5]}, "temp": {"type": "TEMP", "data": []}},
        ),
        (
            Fault("ShotBlast", 1.5, 1.0, NOW),
            "machine/ShotBlast",
            "anomaly",
            {"name": "ShotBlast", "time": "2025-12-18 10:11:12.123456", "score": 1.5, "threshold": 1.0},
        ),
        (
            Update("ShotBlast", "vib", 0.5, NOW.replace(minute=12, second=0, microsecond=0)),
            "machine/ShotBlast",
            "update",
            {"sensor_name": "vib", "data": 0.5, "time": "2025-12-18 10:12:00.000000"},
        ),
        (Presence("scale", "dock-1", connected=True), "scale/dock-1", "connected", {"scale_id": "dock-1"}),
        (Silence("dock-1", is_silent=True), "scale/dock-1", "silent", {"scale_id": "dock-1", "silent": True}),
        (Presence("machine", "A", connected=False), "machine/A", "disconnected", {"machine": "A"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_record_has_its_topic_event_and_payload(
    record: Record, topic: str, event: str, payload: dict[str, object]
) -> None:
    assert (record.topic, record.event) == (topic, event)
    assert record.payload() == payload
    # JSON has no NaN; clients may depend on the order.
    assert json.loads(json.dumps(record.payload(), allow_nan=False)) == payload
    assert list(record.payload()) == list(payload)


def test_commit_answer_does_not_name_the_scale() -> None:
    commit = Commit(1, CommitEntry("dock-1", "CY1", "RETURN", Decimal("0.10"), "ST", NOW, NOW))
    assert commit.answer() == {
        "ok": True,
        "id": 1,
        "cylinder_no": "CY1",
        "event_type": "RETURN",
        "gross_kg": 0.1,
        "committed_at": "2025-12-18T10:11:12+09:00",
    }


@pytest.mark.parametrize(
    ("status", "kind", "settled"),
    [
        ("ST", "gross", True),
        ("ST", "net", False),
        ("ST", "tare", False),
        ("US", "gross", False),
        ("OL", "gross", False),
    ],
)
def test_only_a_stable_gross_reading_is_settled(status: str, kind: str, settled: bool) -> None:
    assert Reading("default", status, Decimal(1), kind, "", NOW).settled is settled


@pytest.mark.parametrize(("score", "is_anomaly"), [(1.1, True), (1.0, False), (0.9, False)])
def test_fault_above_its_threshold_is_an_anomaly(score: float, is_anomaly: bool) -> None:
    assert Fault("A", score, 1.0, NOW).is_anomaly is is_anomaly


def test_wall_time_is_in_the_zone_of_the_time() -> None:
    assert rfc3339(NOW) == "2025-12-18T10:11:12+09:00"
    assert rfc3339(NOW, "milliseconds") == "2025-12-18T10:11:12.123+09:00"
    assert rfc3339(NOW.astimezone(ZoneInfo("Asia/Kolkata"))) == "2025-12-18T06:41:12+05:30"
    assert wall_time(NOW) == "2025-12-18 10:11:12"
    # Microseconds must not be left out if they are zero.
    assert wall_time(NOW.replace(microsecond=0), "microseconds") == "2025-12-18 10:11:12.000000"


def test_finite_returns_the_same_object_if_all_samples_are_finite() -> None:
    samples = array("d", [1.0, -2.0, 0.0])
    assert finite(samples) is samples
    empty = array("d")
    assert finite(empty) is empty


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([math.nan], []),
        ([1.0, math.nan, 2.0], [1.0, 2.0]),
        ([math.inf, 1.0, -math.inf], [1.0]),
        ([math.inf, -math.inf, math.nan], []),
        # A sum may exceed a double although all samples are finite.
        ([1.7e308, 1.7e308], [1.7e308, 1.7e308]),
        ([1.7e308, 1.7e308, -1.7e308, math.nan], [1.7e308, 1.7e308, -1.7e308]),
    ],
)
def test_finite_leaves_out_nan_and_infinities(samples: list[float], expected: list[float]) -> None:
    given_samples = array("d", samples)
    assert list(finite(given_samples)) == expected
    assert len(given_samples) == len(samples), "the samples themselves stay as they are, for the raw file"
