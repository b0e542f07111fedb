"""Size of the reads of one connection of a DAQ program."""

from typing import Final

#: Minimum and maximum bytes of one read: at first enough for a usual message; larger if a read was full, up to about
#: 7,000 samples. Much larger buffers would fragment the memory.
MIN_READ: Final = 4 * 1024
MAX_READ: Final = 64 * 1024

#: Maximum CPU seconds of a full read; a connection that exceeds it gets smaller reads.
_MAX_SECONDS: Final = 0.03


class ReadSize:
    """Maximum bytes of one read, which follows the CPU time that full reads take.

    :ivar size: current maximum.
    """

    __slots__ = ("_is_slow", "size")

    def __init__(self) -> None:
        self.size = MIN_READ
        self._is_slow = False

    def adapt(self, spent: float) -> bool:
        """Adapt to a full read: larger if it was quick, the smallest from now on if it was slow.

        :param spent: CPU seconds that it took.
        :returns: whether the size has changed.
        """
        before = self.size
        if spent > _MAX_SECONDS:
            self._is_slow = True
            self.size = MIN_READ
        elif not self._is_slow and 4 * spent <= _MAX_SECONDS:
            self.size = min(4 * before, MAX_READ)
        return self.size != before
