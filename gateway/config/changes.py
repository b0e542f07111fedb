"""Differences between two configurations, and the keys that a running gateway cannot change."""

from collections.abc import Collection
from typing import Final

from pydantic import BaseModel

from gateway.config.settings import Settings

#: Sections whose entries are named one by one.
_NAMED: Final = frozenset({"scales", "machines"})

#: Keys that take a restart: ports and files that stay open, and the rules by which stored data were computed.
RESTART: Final = frozenset(
    {
        "server.host",
        "server.port",
        "server.tcp_port",
        "server.share_ports",
        "server.own_port",
        "logger.path",
        "database.path",
        "database.url",
        "database.url_file",
        "database.spool_mb",
        "database.max_tickets",
        "gateway.name",
        "cylinders.query",
        "cylinders.url",
        "cylinders.cache_size",
        "data.path",
        "limits.backlog_events",
        "limits.backlog_bytes",
        "stat",
        "timezone",
    }
)


def changed_keys(before: Settings, after: Settings) -> list[str]:
    """Return the keys whose values differ; a scale or a machine is one key."""
    keys: list[str] = []
    for section in Settings.model_fields:
        old, new = getattr(before, section), getattr(after, section)
        if old == new:
            continue
        if section in _NAMED:
            keys += [f"{section}.{name}" for name in {**old, **new} if old.get(name) != new.get(name)]
        elif isinstance(old, BaseModel) and isinstance(new, BaseModel):
            fields = type(old).model_fields
            keys += [f"{section}.{key}" for key in fields if getattr(old, key) != getattr(new, key)]
        else:
            keys.append(section)
    return keys


def restart_keys(before: Settings, after: Settings) -> list[str]:
    """Return the changed keys that a running gateway cannot change."""
    return [key for key in changed_keys(before, after) if key in RESTART]


def with_values_of(running: Settings, settings: Settings, keys: Collection[str]) -> Settings:
    """Return settings in which some keys have the values of the running ones."""
    for key in keys:
        section, _, name = key.partition(".")
        value = getattr(running, section)
        if name:
            value = getattr(settings, section).model_copy(update={name: getattr(value, name)})
        settings = settings.model_copy(update={section: value})
    return settings
