"""Opening and closing of the record of commits."""

from gateway.assembly.parts import StoreParts
from gateway.runtime.listener import StartError
from gateway.store.interface import StoreUnavailable


def open_record(parts: StoreParts) -> None:
    """Open the file of the record, if it has one of its own. This may block: the reactor is not running yet.

    :raises StartError: the file cannot be used.
    """
    if parts.record_file is not None:
        try:
            parts.record_file.open()
        except StoreUnavailable as error:
            raise StartError(f"database.path: {error}") from error


async def close_record(parts: StoreParts) -> None:
    """Write the waiting entries and close the file of the record."""
    if parts.record_file is not None:
        await parts.record_file.close()
