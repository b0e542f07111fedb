"""Pattern of the lines of one connection: their width and number of decimals."""

from decimal import Decimal
from typing import Final

from gateway.wire.scale import KILOGRAMS

#: Decimals that the conversion of a unit to kilograms adds to a weight.
_ADDED: Final = {unit: max(0, -int(factor.as_tuple().exponent)) for unit, factor in KILOGRAMS.items()}


class LinePattern:
    """The lock of one connection to the pattern of its last counted lines.

    A line whose character was lost, or whose decimal point moved, differs from the lines before it. It is held until
    the next line agrees with it. All lines that count since the last change have one pattern, so that one is kept.
    """

    __slots__ = ("_held", "_pattern")

    def __init__(self) -> None:
        self._pattern: tuple[int, int] | None = None
        self._held: tuple[int, int] | None = None

    def counts(self, weight: Decimal | None, raw: str, unit: str) -> bool:
        """Return whether a line counts; a line without a weight (an overload) always does, and changes nothing.

        :param weight: kilograms.
        :param unit: unit of the line.
        """
        if weight is None:
            return True
        pattern = len(raw), -int(weight.as_tuple().exponent) - _ADDED[unit]
        if self._pattern is None or pattern in (self._pattern, self._held):
            self._pattern, self._held = pattern, None
            return True
        self._held = pattern
        return False
