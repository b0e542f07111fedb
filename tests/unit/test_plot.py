"""Points of a plot, compared with all samples: no peak is lost, and no sample counts twice."""

import gzip
import math
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.raw import lines, plot
from gateway.raw.damage import DamageLog
from gateway.raw.files import HEADER, raw_files
from gateway.raw.plot import Plot
from gateway.runtime.clock import WallClock
from gateway.runtime.metrics import Counters

SEOUL = ZoneInfo("Asia/Seoul")
BERLIN = ZoneInfo("Europe/Berlin")

DAY = datetime(2025, 12, 18, tzinfo=SEOUL)

#: Times have milliseconds; a double has a resolution of a quarter of a microsecond today.
ROUNDING = 0.001 + 2e-6


@dataclass(frozen=True)
class Sample:
    """A sample and its assumed time of arrival, in seconds since 1970."""

    time: Fraction
    value: float


class Folder:
    """Raw files of one sensor and their samples."""

    def __init__(self, path: Path, zone: tzinfo = SEOUL) -> None:
        self.path = path
        self.zone = zone
        self.samples: list[Sample] = []
        (path / "M").mkdir(parents=True, exist_ok=True)

    def write(
        self, day: date, seconds: Iterable[tuple[datetime, Sequence[float]]], *, compressed: bool = False
    ) -> None:
        """Write the file of a day with the samples of each second."""
        text = bytearray(HEADER)
        for second, values in seconds:
            clock = f"{second.astimezone(self.zone):%H:%M:%S}"
            text += b"".join(f"{clock},{value!r}\n".encode() for value in values)
            its = int(second.timestamp())
            self.samples += [Sample(its + Fraction(n, len(values)), value) for n, value in enumerate(values)]
        path = self.path / "M" / f"{day:%Y%m%d}_v.csv"
        if compressed:
            path.with_suffix(".csv.gz").write_bytes(gzip.compress(text, 1))
        else:
            path.write_bytes(text)

    def pages(self, begin: datetime, end: datetime, most: int) -> Iterator[list[dict[str, Any]]]:
        damage = DamageLog(WallClock(self.zone), Counters())
        return Plot(self.zone, begin, end, most, damage, date.min).points(raw_files(str(self.path), "M"))

    def points(self, begin: datetime, end: datetime, most: int) -> list[dict[str, Any]]:
        return [point for page in self.pages(begin, end, most) for point in page]

    def within(self, begin: datetime, end: datetime) -> list[Sample]:
        """Return the finite samples of a range, by time."""
        first, last = exactly(begin), exactly(end)
        its = (sample for sample in self.samples if first <= sample.time < last and math.isfinite(sample.value))
        return sorted(its, key=lambda sample: sample.time)

    def check(self, begin: datetime, end: datetime, most: int) -> list[dict[str, Any]]:
        """Return the points, after comparing each with the samples of its interval."""
        points = self.points(begin, end, most)
        samples = self.within(begin, end)
        assert sum(point["count"] for point in points) == len(samples)
        assert len(points) <= most
        width = (end.timestamp() - begin.timestamp()) / most
        first = 0
        for point in points:
            its = samples[first : first + point["count"]]
            first += point["count"]
            assert (point["min"], point["max"]) == (min(s.value for s in its), max(s.value for s in its))
            start = datetime.fromisoformat(point["time"]).timestamp()
            assert start - ROUNDING <= its[0].time
            assert its[-1].time <= start + width + ROUNDING
        times = [datetime.fromisoformat(point["time"]).timestamp() for point in points]
        assert all(earlier <= later for earlier, later in pairwise(times))
        return points


def exactly(time: datetime) -> Fraction:
    since = time.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return Fraction(since // timedelta(microseconds=1), 1_000_000)


def spread(random: Random, first: int, last: int, groups: int, per_second: int) -> dict[int, list[float]]:
    """Return a strategy of samples in some seconds of a range."""
    seconds = sorted(random.sample(range(first, last), min(groups, last - first)))
    return {second: [random.gauss(0, 1) for _ in range(random.randint(1, per_second))] for second in seconds}


def two_days(folder: Folder, random: Random, groups: int, per_second: int, *, compressed: bool = False) -> None:
    for back in (1, 0):
        day = DAY - timedelta(days=back)
        seconds = spread(random, 0, 86400, groups, per_second)
        folder.write(
            day.date(),
            ((day + timedelta(seconds=second), values) for second, values in seconds.items()),
            compressed=compressed and back == 1,
        )


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_points_cover_all_samples_of_their_intervals(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    random = data.draw(st.randoms(use_true_random=True))
    folder = Folder(tmp_path_factory.mktemp("raw"))
    groups, per_second = data.draw(st.sampled_from([(0, 1), (3, 3), (400, 1), (60, 40), (5, 700)]))
    two_days(folder, random, groups, per_second, compressed=data.draw(st.booleans()))
    begin = DAY + timedelta(seconds=data.draw(st.integers(-90_000, 90_000)))
    end = begin + timedelta(seconds=data.draw(st.sampled_from([1, 2, 59, 3600, 86400, 100_000, 200_000])))
    most = data.draw(st.sampled_from([1, 2, 3, 7, 100, 1000, 100_000]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK", data.draw(st.sampled_from([64, 1000, 4096, lines._BLOCK])))
        folder.check(begin, end, most)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("block", [16, 100, 257, 4096])
def test_second_that_the_end_of_a_block_divides_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, compressed: bool
) -> None:
    folder = Folder(tmp_path)
    second = DAY + timedelta(hours=10)
    folder.write(
        DAY.date(),
        [(second + timedelta(seconds=n), [n + k / 100 for k in range(64)]) for n in range(4)],
        compressed=compressed,
    )
    monkeypatch.setattr(lines, "_BLOCK", block)
    # A point is an eighth of a second, so its samples are right only if the second is joined.
    points = folder.check(second, second + timedelta(seconds=4), 32)
    assert [point["count"] for point in points] == [8] * 32


def test_infinite_samples_are_left_out_and_keep_their_time(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    second = DAY + timedelta(hours=10)
    nan, inf = math.nan, math.inf
    folder.write(
        DAY.date(),
        [
            (second, [nan, 1.0, inf, 2.0]),
            (second + timedelta(seconds=1), [nan, -inf]),
            (second + timedelta(seconds=2), [1.7e308, 1.7e308, -1.7e308]),
        ],
    )
    points = folder.check(second, second + timedelta(seconds=3), 12)
    times = [point["time"][17:23] for point in points]
    assert times == ["00.250", "00.750", "02.000", "02.250", "02.500"]
    (whole,) = folder.check(second, second + timedelta(seconds=3), 1)
    assert (whole["min"], whole["max"], whole["count"]) == (-1.7e308, 1.7e308, 5)


def test_short_range_has_one_point_per_sample(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    second = DAY + timedelta(hours=10)
    folder.write(DAY.date(), [(second + timedelta(seconds=n), [n + k / 30 for k in range(30)]) for n in range(10)])
    points = folder.check(second + timedelta(seconds=2), second + timedelta(seconds=5), 1000)
    assert [point["count"] for point in points] == [1] * 90
    assert [point["min"] for point in points] == [n + k / 30 for n in (2, 3, 4) for k in range(30)]
    assert points[0]["time"] == "2025-12-18T10:00:02.000+09:00"


@pytest.mark.parametrize("per_second", [3, 5, 10, 30, 50])
def test_adjacent_ranges_have_each_sample_once(tmp_path: Path, per_second: int) -> None:
    folder = Folder(tmp_path)
    second = DAY + timedelta(hours=10)
    folder.write(DAY.date(), [(second + timedelta(seconds=n), [float(n)] * per_second) for n in range(3)])
    for step in (100, 200, 250, 333, 700):
        begins = [second + timedelta(milliseconds=ms) for ms in range(0, 3000 + step, step)]
        counts = [sum(point["count"] for point in folder.points(begin, end, 10)) for begin, end in pairwise(begins)]
        assert sum(counts) == 3 * per_second, (step, counts)


def test_range_may_begin_and_end_within_a_second(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    second = DAY + timedelta(hours=10)
    folder.write(DAY.date(), [(second, [0.0, 1.0, 2.0, 3.0])])
    points = folder.check(second + timedelta(milliseconds=300), second + timedelta(milliseconds=700), 10)
    assert [point["min"] for point in points] == [2.0]


@pytest.mark.parametrize("compressed", [False, True])
def test_repeated_hour_is_distinguished_by_its_offset(tmp_path: Path, compressed: bool) -> None:
    folder = Folder(tmp_path, BERLIN)
    midnight = datetime(2025, 10, 26, tzinfo=BERLIN)
    hours = [datetime.fromtimestamp(midnight.timestamp() + 3600 * n, BERLIN) for n in range(25)]
    folder.write(
        midnight.date(),
        [
            (datetime.fromtimestamp(hour.timestamp() + 600 * n, BERLIN), [float(number), -float(number)])
            for number, hour in enumerate(hours)
            for n in range(6)
        ],
        compressed=compressed,
    )
    for number, hour in enumerate(hours):
        end = datetime.fromtimestamp(hour.timestamp() + 3600, BERLIN)
        (point,) = folder.check(hour, end, 1)
        assert (point["max"], point["count"]) == (number, 12)
        assert point["time"] == hour.isoformat("T", "milliseconds")
    assert [hours[n].isoformat()[11:] for n in (2, 3)] == ["02:00:00+02:00", "02:00:00+01:00"]
    assert len(folder.check(midnight, datetime(2025, 10, 27, tzinfo=BERLIN), 25)) == 25
    # A range in another zone gives points in the configured zone.
    (point,) = folder.check(datetime(2025, 10, 26, 1, tzinfo=UTC), datetime(2025, 10, 26, 2, tzinfo=UTC), 1)
    assert (point["max"], point["time"]) == (3.0, "2025-10-26T02:00:00.000+01:00")


def test_range_of_a_day_of_23_hours(tmp_path: Path) -> None:
    folder = Folder(tmp_path, BERLIN)
    midnight = datetime(2025, 3, 30, tzinfo=BERLIN)
    hours = [datetime.fromtimestamp(midnight.timestamp() + 3600 * n, BERLIN) for n in range(23)]
    folder.write(midnight.date(), [(hour, [float(n)]) for n, hour in enumerate(hours)])
    points = folder.check(midnight, datetime(2025, 3, 31, tzinfo=BERLIN), 23)
    assert [point["time"][11:13] for point in points] == ["00", "01", *(f"{hour:02}" for hour in range(3, 24))]


def test_clock_set_back_within_the_range_merges_repeated_times(tmp_path: Path) -> None:
    """Repeated times are one interval with the samples of both."""
    folder = Folder(tmp_path)
    hour = DAY + timedelta(hours=10)
    minutes = [*range(30), *range(10, 40)]
    folder.write(DAY.date(), [(hour + timedelta(minutes=n), [float(k)]) for k, n in enumerate(minutes)])
    for most in (1, 4, 40, 1000):
        points = folder.points(hour, hour + timedelta(minutes=40), most)
        assert len(points) <= most
        assert sum(point["count"] for point in points) == 60
        times = [point["time"] for point in points]
        assert times == sorted(times)


def test_range_includes_samples_after_the_clock_was_set_back(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    hour = DAY + timedelta(hours=10)
    minutes = [*range(30), *range(10, 40)]
    folder.write(DAY.date(), [(hour + timedelta(minutes=n), [float(k)]) for k, n in enumerate(minutes)])
    points = folder.points(hour + timedelta(minutes=5), hour + timedelta(minutes=20), 1)
    # 15 minutes, of which 10 repeat.
    assert [(point["count"], point["max"]) for point in points] == [(25, 39.0)]


def test_lines_after_the_compression_of_a_file_are_read_too(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(DAY.date(), [(DAY + timedelta(hours=n), [float(n)]) for n in range(12)], compressed=True)
    folder.write(DAY.date(), [(DAY + timedelta(hours=n), [float(n)]) for n in range(12, 24)])
    for most in (1, 5, 24):
        points = folder.check(DAY, DAY + timedelta(days=1), most)
        assert len(points) == most


def test_range_without_samples_has_no_points(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    hour = DAY + timedelta(hours=10)
    assert folder.points(hour, hour + timedelta(hours=1), 10) == []
    folder.write(DAY.date(), [(hour, [1.0])])
    for begin, end in (
        (hour, hour),
        (hour - timedelta(hours=1), hour),
        (hour + timedelta(seconds=1), hour + timedelta(days=3)),
        (hour - timedelta(days=40), hour - timedelta(days=39)),
    ):
        assert folder.points(begin, end, 10) == []


def test_other_lines_are_skipped(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    path = tmp_path / "M" / "20251218_v.csv"
    torn = b"10:00:01,10:00:02,5.0\n\n25:00:00,1.0\nrubbish\n\xff\xfe\n10:00:03,3.0\n10:00:03,9"
    path.write_bytes(HEADER + b"10:00:00,1.0\n" + torn)
    points = folder.points(DAY, DAY + timedelta(days=1), 86400)
    assert [(point["time"][11:19], point["min"], point["count"]) for point in points] == [
        ("10:00:00", 1.0, 1),
        ("10:00:03", 3.0, 1),
    ]
    path.write_bytes(b"")
    assert folder.points(DAY, DAY + timedelta(days=1), 10) == []


def test_files_of_other_days_are_not_opened(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(DAY.date(), [(DAY, [1.0])])
    (tmp_path / "M" / "20251217_v.csv.gz").write_bytes(b"broken")
    assert len(folder.points(DAY, DAY + timedelta(days=1), 10)) == 1
    with pytest.raises(OSError, match="gzip"):
        folder.points(DAY - timedelta(hours=1), DAY + timedelta(days=1), 10)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("most", [10, 100_000])
def test_plot_of_a_day_has_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool, most: int
) -> None:
    folder = Folder(tmp_path)
    monkeypatch.setattr(lines, "_BLOCK", 16 * 1024)
    monkeypatch.setattr(plot, "_SAMPLES_PER_TURN", 1000)
    seconds = range(0, 72_000, 10)
    text = (
        HEADER
        + "".join(
            f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02},{second / 7!r}\n" for second in seconds
        ).encode()
    )
    path = tmp_path / "M" / "20251218_v.csv"
    if compressed:
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(text, 1))
    else:
        path.write_bytes(text)
    pages = folder.pages(DAY, DAY + timedelta(seconds=72_000), most)
    sizes, count = [], 0
    tracemalloc.start()
    try:
        for page in pages:
            sizes.append(len(page))
            count += sum(point["count"] for point in page)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 7200
    assert sum(sizes) == (10 if most == 10 else 7200)
    assert max(sizes) <= 1000
    # One turn of points, some blocks of lines, and the arrays; all points would take 2.5 MiB.
    assert peak < 1.2 * 2**20
