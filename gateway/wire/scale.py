"""Lines of A&D weighing scales: ``ST , +000053.26 _kg``.

The format is A&D's standard format (FG-K series instruction manual, "Data format"): a status header, an
optional second header for net and tare, a signed number and a unit, separated by commas. Devices in the field
add blanks, an underscore before the unit, an address (``@23``), framing bytes or a decimal comma.
"""

import re
from collections.abc import Iterator
from decimal import Decimal, localcontext
from typing import Final, NamedTuple, TypeAlias

from gateway.wire.errors import WireError

#: Kilograms in one unit. The pound is exact since 1959 (international yard and pound agreement); an ounce is a
#: sixteenth of it.
KILOGRAMS: Final = {
    "kg": Decimal(1),
    "g": Decimal("0.001"),
    "t": Decimal(1000),
    "lb": Decimal("0.45359237"),
    "oz": Decimal("0.028349523125"),
}

#: The largest weight that ``scale_weight_log.gross_kg``, a ``numeric(10,2)``, can hold after rounding half up.
HEAVIEST_KG: Final = Decimal("99999999.995")

_KINDS: Final = {"GS": "gross", "NT": "net", "TR": "tare"}

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")

# Runs are possessive (``*+``): a line of blanks costs its length, not its fourth power. re.ASCII: without it a Kelvin
# sign is a K and an Arabic digit a digit. 15 digits are more than any scale shows (A&D: 8) and keep a weight in any
# unit far from the decimal context's precision.
_WEIGHT: Final = re.compile(
    r"(?:@[0-9]{2})?(ST|US) *+, *+(?:(GS|NT|TR) *+, *+)?([+-]?) *+([0-9]{1,15}+)(?:[.,]([0-9]{1,9}+))? *+_? *+"
    r"(KG|G|LB|OZ|T)",
    re.ASCII | re.IGNORECASE,
)
_OVERLOAD: Final = re.compile(
    r"(?:@[0-9]{2})?OL *+, *+(?:(GS|NT|TR) *+, *+)?[+-]? *+(?:[0-9.,]++(?:E[+-]?[0-9]++)?)? *+_? *+(?:KG|G|LB|OZ|T)?",
    re.ASCII | re.IGNORECASE,
)

# What most scales send always is a part of _WEIGHT: gross, in kilograms, and too short to be too heavy. Any other line,
# the last group, goes the long way. Latin-1 makes every byte one character, so that a line can be had back as it was.
_LINES: Final = re.compile(
    r"(?:((ST|US) ?, ?([+-]?[0-9]{1,7}+(?:\.[0-9]{1,9}+)?+) {0,9}+_?kg)|([^\r\n]*+))(?:\r\n?+|\n)"
)


class ScaleLine(NamedTuple):
    """What one line says.

    :ivar status: ``ST`` stable, ``US`` unstable, ``OL`` overload.
    :ivar weight: kilograms, exact; ``None`` for an overload, which never has one.
    :ivar kind: ``gross``, ``net`` or ``tare``.
    :ivar raw: the line as text, as :func:`text_of` gives it.
    """

    status: str
    weight: Decimal | None
    kind: str
    raw: str


#: The fields of a :class:`ScaleLine`.
Fields: TypeAlias = tuple[str, Decimal | None, str, str]


def text_of(line: bytes) -> str:
    """The line as it is kept: UTF-8 with replacement, control characters left out, stripped."""
    return _CONTROLS.sub("", line.decode("utf-8", "replace")).strip()


def read_lines(data: bytes) -> Iterator[Fields | bytes]:
    """Lines with their ends (CR LF, LF, CR): what each says or, where that is not plain, the line without its end.

    For a plain line it is what :func:`parse_line` gives, at a fifth of the cost.
    """
    for raw, status, digits, line in _LINES.findall(data.decode("latin-1")):
        if raw:
            weight = Decimal(digits)
            # Scales show -0.00.
            yield status, weight if weight else weight.copy_abs(), "gross", raw
        else:
            yield line.encode("latin-1")


def parse_line(line: bytes) -> ScaleLine:
    """Read one line, without its line end.

    :raises WireError: where the line is no reading.
    """
    raw = text_of(line)
    found = _WEIGHT.fullmatch(raw)
    if found is None:
        overload = _OVERLOAD.fullmatch(raw)
        if overload is None:
            raise WireError("not a reading of a scale")
        return ScaleLine("OL", None, _kind(overload[1]), raw)
    status, header, sign, whole, fraction, unit = found.groups()
    number = Decimal(f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}")
    if not number:
        # Scales show -0.00.
        number = number.copy_abs()
    unit = unit.lower()
    if unit == "kg":
        weight = number
    else:
        with localcontext(prec=40):
            weight = number * KILOGRAMS[unit]
    if abs(weight) >= HEAVIEST_KG:
        raise WireError("heavier than any scale weighs")
    return ScaleLine(status.upper(), weight, _kind(header), raw)


def _kind(header: str | None) -> str:
    return "gross" if header is None else _KINDS[header.upper()]
