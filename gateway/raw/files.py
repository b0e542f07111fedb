"""Raw CSV files by name, and their lines read back.

``<machine>/YYYYMMDD_<sensor>.csv`` holds the header ``time,data`` and a line a sample, ``HH:MM:SS,<number>``, in the
order of arrival; ``.csv.gz`` is such a file compressed.
"""

import contextlib
import gzip
import io
import os
import re
import zlib
from dataclasses import dataclass
from datetime import date
from operator import attrgetter
from typing import Final

from gateway.model.names import forms_of, name_of
from gateway.raw.lines import read_through

HEADER: Final = b"time,data\n"


_NAME: Final = re.compile(r"(\d{4})(\d\d)(\d\d)_(.+)\.csv(\.gz)?", re.ASCII | re.DOTALL)


#: What reading a file may raise; the latter two where a compressed one is broken.
ReadError: Final = (OSError, EOFError, zlib.error)


class UnreadableFile(OSError):
    """A raw file cannot be read; the text says which, and why."""


@dataclass(frozen=True, slots=True)
class RawFile:
    """One sensor's samples of one day.

    :ivar compressed: whether it is ``.csv.gz``.
    """

    day: date
    compressed: bool
    machine: str
    sensor: str
    path: str

    @property
    def order(self) -> tuple[date, bool, str, str]:
        """By what files are sorted: by day; what came after a day's file was compressed is behind that."""
        return self.day, not self.compressed, self.machine, self.sensor

    def open(self) -> io.BufferedIOBase:
        """Its content, decompressed.

        :raises OSError: it cannot be opened.
        """
        if not self.compressed:
            # It may have been compressed since it was found.
            with contextlib.suppress(FileNotFoundError):
                return open(self.path, "rb")
        return gzip.open(self.path if self.compressed else f"{self.path}.gz", "rb")


def machines(directory: str) -> list[str]:
    """The machines that have a folder of raw files, sorted.

    :raises OSError: the directory cannot be read.
    """
    with os.scandir(directory) as entries:
        return sorted({name for entry in entries if (name := name_of(entry.name)) is not None and entry.is_dir()})


def path_of(directory: str, name: str, pattern: str = "{}") -> str:
    """Return the path of a file or folder that is named after a machine or a sensor.

    An older version may have written the name decomposed (NFD): if only that path exists, it is used.

    :param pattern: pattern of the file name.
    """
    path, *older = (os.path.join(directory, pattern.format(form)) for form in forms_of(name))
    if older and not os.path.exists(path) and os.path.exists(older[0]):
        return older[0]
    return path


def raw_files(directory: str, machine: str) -> list[RawFile]:
    """A machine's raw files, by day.

    Of a file and a compressed one that holds all of it, which both stand there when a kill came between, the latter is
    given.

    :raises OSError: the directory cannot be read.
    """
    found: dict[str, RawFile] = {}
    try:
        with os.scandir(path_of(directory, machine)) as entries:
            for entry in entries:
                file = raw_file(machine, entry.path)
                if file is not None and entry.is_file(follow_symlinks=False):
                    found[entry.path] = file
    except (FileNotFoundError, NotADirectoryError):
        return []
    for path in [path for path in found if f"{path}.gz" in found]:
        if holds_all(f"{path}.gz", path):
            del found[path]
    return sorted(found.values(), key=attrgetter("order"))


def raw_file(machine: str, path: str) -> RawFile | None:
    """The raw file that a path names; ``None`` where it names none."""
    match = _NAME.fullmatch(os.path.basename(path))
    sensor = None if match is None else name_of(match[4])
    if match is None or sensor is None:
        return None
    try:
        day = date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return None
    return RawFile(day, match[5] is not None, machine, sensor, path)


def holds_all(compressed: str, path: str) -> bool:
    """Whether a compressed file holds all that a file does: it was given the same time of change."""
    try:
        return os.stat(compressed).st_mtime_ns == os.stat(path).st_mtime_ns
    except OSError:
        return False


def size_of(file: io.BufferedIOBase) -> int:
    """How many bytes a file holds, decompressed; a compressed one is read for it."""
    return file.seek(0, os.SEEK_END) if isinstance(file, io.BufferedReader) else read_through(file)
