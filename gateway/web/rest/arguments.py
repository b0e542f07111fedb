"""Parsing of query arguments: times, numbers, flags and texts."""

import re
from collections.abc import Collection
from datetime import datetime, time, timedelta, tzinfo
from typing import Final

from twisted.web.http import Request

from gateway.web.http.answers import Refusal, argument

#: A time whose plus sign was not escaped in the query, and therefore arrives as a blank.
_LOST_PLUS: Final = re.compile(r"(\d\d:\d\d[\d:.]*) (\d\d(:?\d\d)?)")

#: Control characters, which no stored text has.
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_FLAGS: Final = {"1": True, "true": True, "0": False, "false": False}


def time_argument(request: Request, name: str, zone: tzinfo, *, whole_day: bool) -> datetime | None:
    """Return a time of the query in ISO 8601; without an offset it is local time.

    :param whole_day: whether a date without a time means the end of that day.
    :raises Refusal: ``invalid_request``.
    """
    text = argument(request, name)
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(_LOST_PLUS.sub(r"\1+\2", text))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        if whole_day and len(text) <= len("2025-12-18"):
            moment = datetime.combine(moment.date() + timedelta(days=1), time(), moment.tzinfo)
        if not 1970 <= moment.year < 9999:
            raise ValueError("a year outside 1970 to 9998")
        return moment.astimezone(zone)
    except (ValueError, OverflowError) as error:
        raise Refusal(400, "invalid_request", f"{name}: ISO 8601 시각이어야 합니다") from error


def number_argument(request: Request, name: str, default: int, maximum: int) -> int:
    """Return a whole number from 1 to ``maximum``.

    :raises Refusal: ``invalid_request``.
    """
    text = argument(request, name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= maximum):
        raise Refusal(400, "invalid_request", f"{name}: 1에서 {maximum} 사이의 정수여야 합니다")
    return int(text)


def text_argument(request: Request, name: str, max_length: int = 50) -> str | None:
    """Return a text without surrounding blanks; ``None`` if it is absent or empty.

    :raises Refusal: ``invalid_request``.
    """
    text = (argument(request, name) or "").strip()
    if len(text) > max_length:
        raise Refusal(400, "invalid_request", f"{name}: {max_length}자 이하여야 합니다")
    if _CONTROLS.search(text):
        raise Refusal(400, "invalid_request", f"{name}: 제어 문자를 포함할 수 없습니다")
    return text or None


def choice_argument(request: Request, name: str, choices: Collection[str]) -> str | None:
    """Return one of some texts; ``None`` if it is absent or empty.

    :raises Refusal: ``invalid_request``.
    """
    text = argument(request, name) or None
    if text is not None and text not in choices:
        raise Refusal(400, "invalid_request", f"{name}: {', '.join(choices)} 중 하나여야 합니다")
    return text


def flag_argument(request: Request, name: str) -> bool:
    """Return a flag; false if it is absent or empty.

    :raises Refusal: ``invalid_request``.
    """
    text = choice_argument(request, name, _FLAGS)
    return text is not None and _FLAGS[text]


def is_plain(text: str) -> bool:
    """Return whether a text has no control characters."""
    return _CONTROLS.search(text) is None
