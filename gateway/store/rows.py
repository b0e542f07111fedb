"""Rows of periods, the same for every backend: columns of a bucket, and the computation of longer periods."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import lru_cache
from statistics import fmean
from typing import Any, Final, TypeAlias

from gateway.model.entries import ClosedHour
from gateway.model.timestamps import rfc3339
from gateway.store.interface import Encode
from gateway.timeseries.bucket import Bucket
from gateway.timeseries.calendar import FULL_MINUTES, MADE_OF, minutes_of

#: Columns of a bucket in the order of :func:`values_of`, and their types in SQL.
BUCKET_COLUMNS: Final = {
    "count": "INTEGER",
    "minutes": "INTEGER",
    "total": "REAL",
    "total_rest": "REAL",
    "magnitudes": "REAL",
    "magnitudes_rest": "REAL",
    "squares": "REAL",
    "squares_rest": "REAL",
    "min": "REAL",
    "min_time": "TIMESTAMP",
    "max": "REAL",
    "max_time": "TIMESTAMP",
}

#: Number of items that are encoded at a time. So few reuse the memory of those before them; a whole page would need
#: hundreds of new pages of memory, which take longer than the encoding.
CHUNK: Final = 256

_NOTHING: Final = dict.fromkeys(("count", "min", "min_time", "max", "max_time", "rms", "std", "coverage"))


@dataclass(frozen=True, slots=True)
class Row:
    """Row of a period.

    :ivar mean: mean, the column ``data``.
    :ivar bucket: bucket of the samples; ``None`` if only the mean is known.
    """

    mean: float
    bucket: Bucket | None


#: Bucket and ``raw_end`` of a stored hour; no bucket if only the mean is known.
StoredHour: TypeAlias = tuple[Bucket | None, int | None]


def encoded(items: list[Any], encode: Encode | None) -> list[Any]:
    """Return the ``items`` of a page."""
    if encode is None:
        return items
    return [encode(items[begin : begin + CHUNK]) for begin in range(0, len(items), CHUNK)]


def values_of(bucket: Bucket | None) -> tuple[Any, ...]:
    """Return the values of :data:`BUCKET_COLUMNS`."""
    if bucket is None:
        return (None,) * len(BUCKET_COLUMNS)
    return (
        bucket.count,
        bucket.minutes,
        bucket.total,
        bucket.total_rest,
        bucket.magnitudes,
        bucket.magnitudes_rest,
        bucket.squares,
        bucket.squares_rest,
        bucket.least,
        bucket.least_at,
        bucket.greatest,
        bucket.greatest_at,
    )


def bucket_of(values: Sequence[Any]) -> Bucket | None:
    """Return the bucket with some values of :data:`BUCKET_COLUMNS`; ``None`` if the row has no count."""
    return Bucket(*values) if values[0] is not None else None


def merge_hour(hour: ClosedHour, stored: StoredHour | None) -> tuple[Row, int | None]:
    """Return the row of a closed hour, and its ``raw_end``.

    If the hour has a row already because the clock was set back, its samples are added to that row. An hour that
    replaces its row says nothing new about the raw file.

    :param stored: bucket and ``raw_end`` of the stored row; ``None`` if the row is missing.
    """
    bucket, raw_end = stored or (None, hour.raw_end)
    if hour.replaces or bucket is None:
        bucket = hour.bucket
    else:
        # If a sum is beyond a double, a row without the new samples is better than none.
        with contextlib.suppress(OverflowError):
            bucket.merge(hour.bucket)
    if not hour.replaces:
        raw_end = hour.raw_end
    return Row(bucket.mean(hour.mode), bucket), raw_end


def made_of(period: str, mode: str, rows: Sequence[Row]) -> Row:
    """Return the row of a day, a month or a year, computed from the rows in it.

    A row without a count, as the old server wrote them, weighs as one full period at the mean rate of the others; then
    the result has no count either.

    :param rows: at least one row.
    :raises OverflowError: a sum is beyond a double.
    """
    counted = [(row.mean, row.bucket) for row in rows if row.bucket is not None]
    whole = Bucket()
    for _, bucket in counted:
        whole.merge(bucket)
    if len(counted) == len(rows):
        return Row(whole.mean(mode), whole)
    others = [row.mean for row in rows if row.bucket is None]
    if not counted:
        return Row(fmean(others), None)
    weight = FULL_MINUTES[MADE_OF[period]] * whole.count / whole.minutes
    total = math.fsum([*(mean * bucket.count for mean, bucket in counted), *(mean * weight for mean in others)])
    return Row(total / (whole.count + weight * len(others)), None)


def detail_of(period: str, start: float | None, bucket: Bucket | None, zone: tzinfo) -> dict[str, Any]:
    """Return the fields that ``?detail=1`` adds to an item.

    :param start: start of the period, in seconds since 1970; ``None`` if it is not known.
    """
    if start is None:
        return {**_NOTHING, "start": None}
    began, minutes = _extent(period, start, zone)
    if bucket is None:
        return {**_NOTHING, "start": began}
    return {
        "count": bucket.count,
        "min": bucket.least,
        "min_time": bucket.least_at,
        "max": bucket.greatest,
        "max_time": bucket.greatest_at,
        "rms": bucket.rms(),
        "std": bucket.deviation(),
        "coverage": min(1.0, bucket.minutes / minutes),
        "start": began,
    }


@lru_cache(maxsize=4096)
def _extent(period: str, start: float, zone: tzinfo) -> tuple[str, float]:
    """Return the start and the minutes of a period; cached, because all sensors of a machine have the same periods."""
    began = datetime.fromtimestamp(start, zone)
    return rfc3339(began), minutes_of(period, began)
