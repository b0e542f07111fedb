"""Cross-checks of scales that share a line, and of the commands to scales."""

from collections.abc import Iterator
from typing import Final

from gateway.config.problems import Problem
from gateway.config.scale_settings import ADDRESS_FIELD
from gateway.config.settings import Settings

#: Keys of a line that have no effect on a scale that shares another's line.
_OF_LINE: Final = ("poll", "prefix", "discard_ms", "addresses", "allow", "tls")


def scale_problems(settings: Settings) -> Iterator[Problem]:
    """Yield every problem of lines with addresses, of scales that share a line, and of commands."""
    yield from _address_problems(settings)
    yield from _via_problems(settings)
    yield from _poll_problems(settings)


def _address_problems(settings: Settings) -> Iterator[Problem]:
    """Yield a problem for each address whose scale has another line or address, or the name of a line."""
    places: dict[str, str] = {}
    for name, line in settings.scales.items():
        for address, scale_id in (line.addresses or {}).items():
            key = f"scales.{name}.addresses.{address}"
            earlier = places.setdefault(scale_id, key)
            own = settings.scales.get(scale_id)
            if earlier != key:
                yield Problem(key, f"{scale_id!r} is also the scale of {earlier}; give each address its own scale")
            elif own is not None and own.via is None:
                yield Problem(
                    key,
                    f"scales.{scale_id} has a line of its own; remove the address, or write scales.{scale_id}:"
                    f" {{via: {name}}}",
                )
            elif own is not None and own.via != name:
                yield Problem(key, f"scales.{scale_id}.via names another line; write via: {name}")


def _via_problems(settings: Settings) -> Iterator[Problem]:
    """Yield a problem for each scale whose line does not list it, and for its keys that only a line has."""
    for scale_id, scale in settings.scales.items():
        if scale.via is None:
            continue
        line = settings.scales.get(scale.via)
        if line is None or scale_id not in (line.addresses or {}).values():
            yield Problem(
                f"scales.{scale_id}.via",
                f"scales.{scale.via} does not list {scale_id!r} in its addresses; add its address there",
            )
        for key in _OF_LINE:
            if key in scale.model_fields_set:
                yield Problem(
                    f"scales.{scale_id}.{key}",
                    f"has no effect: it is for a line; move it to scales.{scale.via}",
                    is_fatal=False,
                )


def _poll_problems(settings: Settings) -> Iterator[Problem]:
    """Yield a problem for each command with an address on a line without addresses."""
    lines = settings.lines()
    for name, line in lines.items():
        if line.poll is None or line.addresses is not None:
            continue
        # Without an entry of its own, the line has the commands of `scale`.
        is_own = name in settings.scales and "poll" in settings.scales[name].model_fields_set
        for key in ("command", "at_connect"):
            if ADDRESS_FIELD in getattr(line.poll, key):
                section = f"scales.{name}" if is_own else "scale"
                yield Problem(
                    f"{section}.poll.{key}",
                    f"{ADDRESS_FIELD} stands for an address, and the line of {name!r} has no addresses; list them in"
                    " scales.<id>.addresses, or write the address itself",
                )
