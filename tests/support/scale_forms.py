"""The documented forms of a scale's line, written down once more without the parser's patterns.

Tests hold the parser against it: where a damaged line is of none of these forms, it must be no reading.
"""

from decimal import Decimal, localcontext

KINDS = {"G": "gross", "GS": "gross", "N": "net", "NT": "net", "T": "tare", "TR": "tare", "PT": "tare", "HD": "hold"}

UNITS = {
    "KG": Decimal(1),
    "G": Decimal("0.001"),
    "T": Decimal(1000),
    "LB": Decimal("0.45359237"),
    "OZ": Decimal("0.028349523125"),
}

#: A weight of a line: status, kilograms, kind, the line without framing, and its unit.
Weight = tuple[str, Decimal, str, str, str]


def framing_ends(line: bytes) -> int:
    """Return how many bytes of framing a line begins with."""
    at = 0
    while at < len(line):
        byte, following = line[at], line[at + 1 : at + 2]
        if byte <= 0x20 or byte == 0x7F:
            at += 1
        elif byte == 0xC2 and following and 0x80 <= following[0] <= 0x9F:
            at += 2
        elif byte != 0xFF or not following:
            return at
        elif following[0] in {0xFB, 0xFC, 0xFD, 0xFE}:
            if at + 2 == len(line):
                return at
            at += 3
        elif following[0] == 0xFA:
            end = at + 2
            while line[end : end + 2] != b"\xff\xf0":
                if end >= len(line):
                    return at
                end += 2 if line[end] == 0xFF else 1
            at = end + 2
        elif 0x20 <= following[0] < 0x7F:
            return at
        else:
            at += 2
    return at


def weight_of(line: bytes) -> Weight | None:
    """Return what a line weighs, or nothing where it is of no form of a weight."""
    line = line[framing_ends(line) :]
    for end in range(len(line), 0, -1):
        # The unit is the last that is no framing.
        if line[end - 1 : end] in b"gGtTbBzZ" and framing_ends(line[end:]) == len(line) - end:
            found = _cas(line[:end]) or _fields(line[:end])
            if found is not None:
                return found
    return None


def _fields(line: bytes) -> Weight | None:
    if not all(0x20 <= byte < 0x7F for byte in line):
        return None
    text = line.decode("ascii")
    first, *rest = _without_address(text).split(",")
    status = first.rstrip(" ").upper()
    if status not in {"ST", "US", "HD"} or not rest:
        return None
    kind = "gross"
    if len(rest) > 1 and rest[0].strip(" ").upper() in KINDS:
        kind = KINDS[rest.pop(0).strip(" ").upper()]
    number, unit = _split_unit(",".join(rest))
    number = number.rstrip(" ")
    if number[-1:] in {",", "_"}:
        number = number[:-1].rstrip(" ")
    number = number.lstrip(" ")
    sign, number = (number[0], number[1:].lstrip(" ")) if number[:1] in {"+", "-"} else ("", number)
    mark = "," if "," in number else "."
    whole, point, fraction = number.partition(mark)
    longest = 5 if mark == "," else 9
    if not _is_number(whole, 15) or (point and not _is_number(fraction, longest)):
        return None
    return _weight(status, sign + whole + (f".{fraction}" if point else ""), unit, kind, text)


def _cas(line: bytes) -> Weight | None:
    start = 3 if line[:1] == b"@" else 0
    head, tail = line[start : start + 9], line[start + 9 :]
    if len(head) < 9 or head[2:3] + head[5:6] + head[8:9] != b",,," or not 0x21 <= head[6] < 0x7F:
        return None
    if not all(0x20 <= byte < 0x7F for byte in line[: start + 6] + tail):
        return None
    if start and _without_address(line[:3].decode("ascii")):
        return None
    status, header = head[:2].decode("ascii").upper(), head[3:5].decode("ascii").upper()
    if status not in {"ST", "US", "HD"} or header not in {"GS", "NT", "TR", "PT", "HD", "G ", "N ", "T "}:
        return None
    data, rest = tail[:8].decode("ascii"), tail[8:].decode("ascii")
    unit = rest.lstrip(" ").upper()
    if len(rest) - len(unit) not in {1, 2} or unit not in UNITS or len(data) != 8:
        return None
    number = data.lstrip(" ")
    sign, number = (number[0], number[1:].lstrip(" ")) if number[:1] in {"+", "-"} else ("", number)
    whole, point, fraction = number.partition(".")
    if not _is_number(whole, 8) or (point and not _is_number(fraction, 8)):
        return None
    raw = "".join(chr(byte) if 0x20 <= byte < 0x7F else "\ufffd" for byte in line)
    return _weight(status, sign + number, unit, KINDS[header.strip()], raw)


def _weight(status: str, number: str, unit: str, kind: str, raw: str) -> Weight | None:
    if unit not in UNITS:
        return None
    with localcontext(prec=40):
        weight = Decimal(number) * UNITS[unit]
    if abs(weight) >= Decimal("99999999.995"):
        return None
    return status, weight, "hold" if status == "HD" else kind, raw, unit.lower()


def _without_address(text: str) -> str:
    return text[3:] if text[:1] == "@" and _is_number(text[1:3], 2) and len(text) >= 3 else text


def _split_unit(text: str) -> tuple[str, str]:
    for length in (2, 1):
        if text[-length:].upper() in UNITS:
            return text[:-length], text[-length:].upper()
    return text, ""


def _is_number(text: str, longest: int) -> bool:
    return 0 < len(text) <= longest and text.isascii() and text.isdigit()
