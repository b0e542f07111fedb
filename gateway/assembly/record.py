"""The record of commits: its file, and the publication of its head."""

from collections.abc import Callable

from gateway.assembly.parts import Paths, Runtime, StoreParts
from gateway.config.settings import Settings
from gateway.record.publisher import HeadPublisher
from gateway.runtime.listener import StartError
from gateway.store.interface import StoreUnavailable


def build_publisher(runtime: Runtime, settings: Settings, paths: Paths, parts: StoreParts) -> HeadPublisher:
    """Build the service that publishes the head of the record."""
    publish_to = settings.record.publish_to
    return HeadPublisher(runtime.reactor, runtime.clock, runtime.counters, parts.record, publish_to, paths.folder)


def check_record(parts: StoreParts) -> None:
    """Check the version of the record's own file before any other file is opened, and so changed.

    :raises StartError: the file cannot be used.
    """
    if parts.record_file is not None:
        _start(parts.record_file.check_version)


def open_record(parts: StoreParts) -> None:
    """Open the file of the record, if it has one of its own. This may block: the reactor is not running yet.

    :raises StartError: the file cannot be used.
    """
    if parts.record_file is not None:
        _start(parts.record_file.open)


def _start(step: Callable[[], None]) -> None:
    try:
        step()
    except StoreUnavailable as error:
        raise StartError(f"database.path: {error}") from error


async def close_record(parts: StoreParts) -> None:
    """Write the waiting entries and close the file of the record."""
    if parts.record_file is not None:
        await parts.record_file.close()
