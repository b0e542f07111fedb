"""Lines of weighing scales: ``ST , +000053.26 _kg``.

The base is A&D's standard format (FG-K series instruction manual, "Data format"): a status header, an optional second
header, a signed number and a unit, separated by commas. Devices in the field add blanks, an underscore or a comma
before the unit, an address (``@23``) or a decimal comma; CAS indicators add an ID and a lamp byte. Control bytes and
telnet negotiation count as framing before the status and after the unit. Between them every byte must belong to a known
form: no byte is ever removed there, so that a damaged line cannot become another weight.
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

_KINDS: Final = {
    "": "gross",
    "G": "gross",
    "GS": "gross",
    "N": "net",
    "NT": "net",
    "T": "tare",
    "TR": "tare",
    "PT": "tare",
    "HD": "hold",
}

# Runs are possessive (``*+``): a line of blanks costs its length, not its fourth power. Patterns of bytes know no
# letter and no digit but ASCII's.
_FLAGS: Final = re.IGNORECASE | re.DOTALL | re.VERBOSE

_FRAMING: Final = rb"""(?:
    [\x00-\x20\x7f]                                     # blanks and control bytes
  | \xc2[\x80-\x9f]                                     # C1 control characters, as UTF-8
  | \xff[\xfb-\xfe].                                    # telnet: WILL, WONT, DO, DONT and an option
  | \xff\xfa(?:[^\xff]|\xff[^\xf0])*+\xff\xf0           # telnet: a subnegotiation, up to its end
  | \xff[\x00-\x1f\x7f-\xf9\xff]                        # telnet: any other command
)*+"""

_BEFORE: Final = re.compile(_FRAMING, _FLAGS)

_ADDRESS: Final = rb"(?:@[0-9]{2})?+"
_HEADER: Final = rb"(?:(GS?+|NT?+|TR?+|PT|HD)\ *+,\ *+)?+"
_UNIT: Final = rb"(KG|G|LB|OZ|T)"

# 15 digits are more than any scale shows (A&D: 8) and keep a weight in any unit far from the decimal context's
# precision. A decimal comma has at most 5 digits after it: a CAS line that lost its lamp byte, `ST,GS,1,00005326 kg`,
# must not be read as 1.00005326 kg.
_WEIGHT: Final = re.compile(
    rb"("
    + _ADDRESS
    + rb"(ST|US|HD)\ *+,\ *+"
    + _HEADER
    + rb"([+-]?+)\ *+([0-9]{1,15}+)(?:\.([0-9]{1,9}+)|,([0-9]{1,5}+))?+\ *+[,_]?+\ *+"
    + _UNIT
    + rb")"
    + _FRAMING,
    _FLAGS,
)

# CAS, 22 bytes with CR LF: the lamp byte is eight bits and may have any value.
_CAS_START: Final = rb"(GS|NT|TR|PT|HD|[GNT]\ ),[!-~].,"
_CAS_WEIGHT: Final = re.compile(
    rb"("
    + _ADDRESS
    + rb"(ST|US|HD),"
    + _CAS_START
    + rb"(?=[-+.0-9\ ]{8}\ )\ *+([+-]?+)\ *+([0-9]++)(?:\.([0-9]++))?+(?<=,.{8})\ {1,2}"
    + _UNIT
    + rb")"
    + _FRAMING,
    _FLAGS,
)

# An overload has no weight, so that its number and unit need no meaning.
_ANY_UNIT: Final = rb"(?:[A-Z%][A-Z0-9%/]{0,5}+)?+"
_OVERLOAD: Final = re.compile(
    rb"("
    + _ADDRESS
    + rb"OL\ *+,\ *+"
    + _HEADER
    + rb"[+-]?+\ *+[-0-9.,]*+(?:E[+-]?+[0-9]++)?+\ *+[,_]?+\ *+"
    + _ANY_UNIT
    + rb")"
    + _FRAMING,
    _FLAGS,
)
_CAS_OVERLOAD: Final = re.compile(
    rb"(" + _ADDRESS + rb"OL," + _CAS_START + rb"[ -~]{8}\ {0,2}" + _ANY_UNIT + rb")" + _FRAMING, _FLAGS
)

# What most scales send always is a part of _WEIGHT: gross, in kilograms, and too short to be too heavy. Any other line,
# the last group, goes the long way. Latin-1 makes every byte one character, so that a line can be had back as it was.
_LINES: Final = re.compile(
    r"(?:((ST|US) ?, ?([+-]?[0-9]{1,7}+(?:\.[0-9]{1,9}+)?+) {0,9}+_?kg)|([^\r\n]*+))(?:\r\n?+|\n)"
)

_NO_TEXT: Final = re.compile(r"[^ -~]")

_HTTP_VERSION: Final = re.compile(rb"[ \t]HTTP/[0-9]")

#: The end of unread bytes that :func:`has_http_request` needs to see again with those that follow, in bytes.
HTTP_OVERLAP: Final = 7


class ScaleLine(NamedTuple):
    """The content of one line.

    :ivar status: ``ST`` stable, ``US`` unstable, ``HD`` hold, ``OL`` overload.
    :ivar weight: kilograms, exact; ``None`` for an overload, which never has one.
    :ivar kind: ``gross``, ``net``, ``tare`` or ``hold``.
    :ivar raw: the line without the framing around it; a byte that is no text (CAS's lamp byte) is U+FFFD.
    """

    status: str
    weight: Decimal | None
    kind: str
    raw: str


#: The fields of a :class:`ScaleLine`.
Fields: TypeAlias = tuple[str, Decimal | None, str, str]


def read_lines(data: bytes) -> Iterator[Fields | bytes]:
    """Split lines with their ends (CR LF, LF, CR), and parse those of the most common form.

    Yield the fields of each line of that form, which are those that :func:`parse_line` gives, at a fifth of the cost;
    any other line as it is, without its end.
    """
    for raw, status, digits, line in _LINES.findall(data.decode("latin-1")):
        if raw:
            weight = Decimal(digits)
            # Scales show -0.00.
            yield status, weight if weight else weight.copy_abs(), "gross", raw
        else:
            yield line.encode("latin-1")


def parse_line(line: bytes) -> ScaleLine:
    """Parse one line, without its line end.

    :raises WireError: the line is no reading.
    """
    # The first group of every match: there is always at least nothing before a status.
    start = len(_BEFORE.match(line)[0])  # type: ignore[index]  # it matches any bytes
    if found := _WEIGHT.fullmatch(line, start):
        raw, status, header, sign, whole, after_point, after_comma, unit = found.groups(b"")
        return _weighed(raw, status, header, sign + whole, after_point or after_comma, unit)
    if found := _CAS_WEIGHT.fullmatch(line, start):
        raw, status, header, sign, whole, fraction, unit = found.groups(b"")
        return _weighed(raw, status, header, sign + whole, fraction, unit)
    if found := _OVERLOAD.fullmatch(line, start) or _CAS_OVERLOAD.fullmatch(line, start):
        return ScaleLine("OL", None, _kind(found[2] or b""), _text(found[1]))
    raise WireError("not a reading of a scale")


def has_http_request(data: bytes) -> bool:
    """Return whether bytes hold the end of an HTTP request line, whatever its method, target and version.

    No line of a scale holds a blank and ``HTTP/1``.
    """
    # Looking for plain bytes takes next to no time, and hardly anything else is ever asked.
    return b"HTTP/" in data and _HTTP_VERSION.search(data) is not None


def _weighed(raw: bytes, status: bytes, header: bytes, whole: bytes, fraction: bytes, unit: bytes) -> ScaleLine:
    number = Decimal((whole + b"." + fraction if fraction else whole).decode("ascii"))
    if not number:
        # Scales show -0.00.
        number = number.copy_abs()
    unit_name = unit.decode("ascii").lower()
    if unit_name == "kg":
        weight = number
    else:
        with localcontext(prec=40):
            weight = number * KILOGRAMS[unit_name]
    if abs(weight) >= HEAVIEST_KG:
        raise WireError("heavier than any scale weighs")
    status_name = status.decode("ascii").upper()
    return ScaleLine(status_name, weight, "hold" if status_name == "HD" else _kind(header), _text(raw))


def _kind(header: bytes) -> str:
    return _KINDS[header.decode("ascii").strip().upper()]


def _text(raw: bytes) -> str:
    return _NO_TEXT.sub("\ufffd", raw.decode("latin-1"))
