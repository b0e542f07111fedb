"""URL of the database, from the configuration or from its file."""

import contextlib
from pathlib import Path

from gateway.doctor.plant import Plant


def has_server(plant: Plant) -> bool:
    """Return whether the store is on a PostgreSQL server."""
    database = plant.settings.database
    return database.url is not None or database.url_file is not None


def database_url(plant: Plant) -> str:
    """Return the URL of the PostgreSQL server.

    :raises OSError, ValueError: its file cannot be read, or is not UTF-8.
    """
    database = plant.settings.database
    if database.url is not None or database.url_file is None:
        return database.url or ""
    return Path(plant.path_of(database.url_file)).read_text("utf-8").strip()


def database_hosts(plant: Plant) -> list[str]:
    """Return the hosts of the PostgreSQL server; empty if the URL cannot be read, which another check reports."""
    if has_server(plant):
        import psycopg2  # takes 20 ms
        from psycopg2.extensions import parse_dsn

        with contextlib.suppress(OSError, ValueError, psycopg2.Error):
            parameters: dict[str, str] = parse_dsn(database_url(plant))
            if "hostaddr" not in parameters:
                return parameters.get("host", "").split(",")
    return []
