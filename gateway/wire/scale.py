"""Lines of weighing scales: ``ST , +000053.26 _kg``.

The base is A&D's standard format (FG-K series instruction manual, "Data format"): a status header, an optional second
header, a signed number and a unit, separated by commas. Some devices add blanks, an underscore or a comma
before the unit, an address (``@23``) or a decimal comma; CAS indicators add an ID and a lamp byte. Control bytes and
telnet negotiation count as framing before the status and after the unit. Between them every byte must belong to a known
form: no byte is removed there, so that a damaged line cannot become another weight.
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
    "G ": "gross",
    "GS": "gross",
    "N": "net",
    "N ": "net",
    "NT": "net",
    "T": "tare",
    "T ": "tare",
    "TR": "tare",
    "PT": "tare",
    "HD": "hold",
}

# Runs are possessive (``*+``): a line of blanks costs its length, not its fourth power. re.ASCII: without it a Kelvin
# sign is a K and an Arabic digit a digit. Latin-1 makes every byte of a line one character.
_FLAGS: Final = re.ASCII | re.IGNORECASE | re.DOTALL | re.VERBOSE

FRAMING: Final = r"""(?:
    [\x00-\x20\x7f]                                     # blanks and control bytes
  | \xc2[\x80-\x9f]                                     # C1 control characters, as UTF-8
  | \xff[\xfb-\xfe].                                    # telnet: WILL, WONT, DO, DONT and an option
  | \xff\xfa(?:[^\xff]|\xff[^\xf0])*+\xff\xf0           # telnet: a subnegotiation, up to its end
  | \xff[\x00-\x1f\x7f-\xf9\xff]                        # telnet: any other command
)*+"""

ADDRESS: Final = r"(?:@[0-9]{2})?+"
_HEADER: Final = r"(?:(GS?+|NT?+|TR?+|PT|HD)\ *+,\ *+)?+"
_UNIT: Final = r"(KG|G|LB|OZ|T)"


def _form(core: str) -> "re.Pattern[str]":
    """Compile a form of lines: framing, the content as the first group, and framing."""
    return re.compile(f"{FRAMING}({ADDRESS}{core}){FRAMING}", _FLAGS)


# 15 digits are more than any scale shows (A&D: 8) and keep a weight in any unit far from the decimal context's
# precision. A decimal comma has at most 5 digits after it: a CAS line that lost its lamp byte, `ST,GS,1,00005326 kg`,
# must not be read as 1.00005326 kg.
_WEIGHT: Final = _form(
    rf"(ST|US|HD)\ *+,\ *+{_HEADER}([+-]?+)\ *+([0-9]{{1,15}}+)(?:\.([0-9]{{1,9}}+)|,([0-9]{{1,5}}+))?+"
    rf"\ *+[,_]?+\ *+{_UNIT}"
)

# CAS, 22 bytes with CR LF: the lamp byte is eight bits and may have any value.
_CAS_START: Final = r"(GS|NT|TR|PT|HD|[GNT]\ ),[!-~].,"
_CAS_WEIGHT: Final = _form(
    rf"(ST|US|HD),{_CAS_START}(?=[-+.0-9\ ]{{8}}\ )\ *+([+-]?+)\ *+([0-9]++)(?:\.([0-9]++))?+(?<=,.{{8}})"
    rf"\ {{1,2}}{_UNIT}"
)

# An overload has no weight, so any printable text may follow, or nothing.
_OVERLOAD: Final = _form(rf"OL(?![!-+\--~])(?:\ *+,\ *+{_HEADER})?+(?:\ *+[!-~]++)*+")
_CAS_OVERLOAD: Final = _form(rf"OL,{_CAS_START}(?:\ *+[!-~]++)*+")

# The most common form is a subset of _WEIGHT: gross, in kilograms, and too short to exceed the maximum weight. Any
# other line, the last group, is parsed by parse_line.
_LINES: Final = re.compile(
    r"(?:((ST|US) ?, ?([+-]?[0-9]{1,7}+(?:\.[0-9]{1,9}+)?+) {0,9}+_?kg)|([^\r\n]*+))(?:\r\n?+|\n)"
)

_NOT_TEXT: Final = re.compile(r"[^ -~]")

_HTTP_VERSION: Final = re.compile(rb"[ \t]HTTP/[0-9]", re.IGNORECASE)

#: Number of trailing bytes that :func:`has_http_request` must see again together with the bytes that follow.
HTTP_OVERLAP: Final = 7


class ScaleLine(NamedTuple):
    """The content of one line.

    :ivar status: ``ST`` stable, ``US`` unstable, ``HD`` hold, ``OL`` overload.
    :ivar weight: kilograms, exact; ``None`` for an overload, which never has one.
    :ivar kind: ``gross``, ``net``, ``tare`` or ``hold``.
    :ivar raw: the line without the framing around it; a byte that is not text (CAS's lamp byte) is U+FFFD.
    :ivar unit: unit of the line in lower case; ``kg`` for an overload.
    """

    status: str
    weight: Decimal | None
    kind: str
    raw: str
    unit: str


#: The fields of a :class:`ScaleLine`.
Fields: TypeAlias = tuple[str, Decimal | None, str, str, str]


def read_lines(data: bytes) -> Iterator[Fields | bytes]:
    """Split lines with their ends (CR LF, LF, CR), and parse those of the most common form.

    Yield the same fields as :func:`parse_line` for each line of that form, at a fifth of the cost, and any other line
    unparsed, without its end.
    """
    for raw, status, digits, line in _LINES.findall(data.decode("latin-1")):
        if raw:
            weight = Decimal(digits)
            # Scales show -0.00.
            yield status, weight if weight else weight.copy_abs(), "gross", raw, "kg"
        else:
            yield line.encode("latin-1")


def parse_line(line: bytes) -> ScaleLine:
    """Parse one line, without its line end.

    :raises WireError: the line is not a valid reading.
    """
    text = line.decode("latin-1")
    found = _WEIGHT.fullmatch(text)
    if found is not None:
        raw, status, header, sign, whole, after_point, after_comma, unit = found.groups("")
        fraction = after_point or after_comma
    elif (found := _CAS_WEIGHT.fullmatch(text)) is not None:
        raw, status, header, sign, whole, fraction, unit = found.groups("")
    elif (found := _OVERLOAD.fullmatch(text) or _CAS_OVERLOAD.fullmatch(text)) is not None:
        return ScaleLine("OL", None, _KINDS[(found[2] or "").upper()], _NOT_TEXT.sub("\ufffd", found[1]), "kg")
    else:
        raise WireError("not a reading of a scale")
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
        raise WireError("a weight of 99999999.995 kg or more")
    status = status.upper()
    kind = "hold" if status == "HD" else _KINDS[header.upper()]
    # Only a lamp byte may not be text; a printable ASCII line needs no replacement.
    shown = raw if raw.isascii() and raw.isprintable() else _NOT_TEXT.sub("\ufffd", raw)
    return ScaleLine(status, weight, kind, shown, unit)


def prefix_form(prefix: bytes) -> "re.Pattern[bytes]":
    """Return the pattern of a prefix at the beginning of a line, with framing before it."""
    return re.compile(FRAMING.encode("latin-1") + re.escape(prefix), _FLAGS)


def has_http_request(data: bytes) -> bool:
    """Return whether bytes hold the end of an HTTP request line, whatever its method, target and version.

    A scale's line never contains a blank and ``HTTP/1``.
    """
    # Searching for plain bytes first is fast, however many bytes there are.
    return b"http/" in data.lower() and _HTTP_VERSION.search(data) is not None


def is_tls_handshake(data: bytes) -> bool:
    """Return whether bytes begin like a TLS ClientHello (RFC 8446, 5.1).

    A browser repeats a session ticket of another server in it, which may contain line ends and whole lines.
    """
    return data.startswith(b"\x16\x03") and b"\0" <= data[2:3] <= b"\x04"
