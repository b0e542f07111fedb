"""Raw files: names, paths and listings.

``<machine>/YYYYMMDD_<sensor>.csv`` holds the header ``time,data`` and a line for each sample, ``HH:MM:SS,<number>``, in
the order of arrival; ``.csv.gz`` is such a file compressed.
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

#: Exceptions of reading a file; the latter two if a compressed one is broken.
ReadError: Final = (OSError, EOFError, zlib.error)


class UnreadableFile(OSError):
    """A raw file that cannot be read; the text names the file and the reason."""


@dataclass(frozen=True, slots=True)
class RawFile:
    """A raw file: the samples of one sensor of one day.

    :ivar compressed: whether it is a ``.csv.gz`` file.
    """

    day: date
    compressed: bool
    machine: str
    sensor: str
    path: str

    @property
    def order(self) -> tuple[date, bool, str, str]:
        """Return the sort key: by day, and a compressed file before the lines that came after its compression."""
        return self.day, not self.compressed, self.machine, self.sensor

    def open(self) -> io.BufferedIOBase:
        """Open the content, decompressed.

        :raises OSError: the file cannot be opened.
        """
        if not self.compressed:
            # The file may have been compressed since it was listed.
            with contextlib.suppress(FileNotFoundError):
                return open(self.path, "rb")
        return gzip.open(self.path if self.compressed else f"{self.path}.gz", "rb")


def machines(directory: str) -> list[str]:
    """Return the machines with a folder of raw files, sorted.

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
    """Return the raw files of a machine, by day.

    After a kill during compression, a file and its complete compressed file may both exist; only the latter counts.

    :raises OSError: the directory cannot be read.
    """
    by_path: dict[str, RawFile] = {}
    try:
        with os.scandir(path_of(directory, machine)) as entries:
            for entry in entries:
                file = raw_file(machine, entry.path)
                if file is not None and entry.is_file(follow_symlinks=False):
                    by_path[entry.path] = file
    except (FileNotFoundError, NotADirectoryError):
        return []
    for path in [path for path in by_path if f"{path}.gz" in by_path]:
        if is_complete(f"{path}.gz", path):
            del by_path[path]
    return sorted(by_path.values(), key=attrgetter("order"))


def raw_file(machine: str, path: str) -> RawFile | None:
    """Return the raw file of a path; ``None`` if the name is not that of a raw file."""
    match = _NAME.fullmatch(os.path.basename(path))
    sensor = None if match is None else name_of(match[4])
    if match is None or sensor is None:
        return None
    try:
        day = date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return None
    return RawFile(day, match[5] is not None, machine, sensor, path)


def is_complete(compressed: str, path: str) -> bool:
    """Return whether a compressed file holds the whole content of a file, by its equal modification time."""
    try:
        return os.stat(compressed).st_mtime_ns == os.stat(path).st_mtime_ns
    except OSError:
        return False


def size_of(file: io.BufferedIOBase) -> int:
    """Return the size of the content in bytes, decompressed; a compressed file is read to its end."""
    return file.seek(0, os.SEEK_END) if isinstance(file, io.BufferedReader) else read_through(file)
