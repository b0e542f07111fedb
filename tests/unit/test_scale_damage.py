"""Damaged lines of scales: a lost, doubled, changed or inserted byte must never become another weight."""

import random
from decimal import Decimal

import pytest

from gateway.wire.errors import WireError
from gateway.wire.scale import ScaleLine, parse_line, read_lines
from tests.support.scale_forms import weight_of

#: A line of each form that is a weight.
GOOD = [
    b"ST,+000153.26 kg",
    b"ST , +000053.26 _kg",
    b"US,-000012.3 _kg",
    b"ST,+0000150 kg",
    b"ST,+   53.26 kg",
    b"ST,   -53.26 kg",
    b"@23ST,+00053.26 kg",
    b"st,+000153.26 KG",
    b"\x02ST,+000153.26 kg\x03",
    b"\xff\xfb\x03\xff\xfd\x00ST,+000153.26 kg",
    b"\xff\xfa\x2c\x01\x00\x00\x09\x60\xff\xf0ST,+000153.26 kg\xff\xf1",
    b"ST,+00153,26 kg",
    b"ST,GS,+00153.26, kg",
    b"ST,GS,   53.26,kg",
    b"ST,+00153,26,kg",
    b"ST,GS,+0012.34kg",
    b"ST,G ,+00123.0kg",
    b"ST,NT,+0012.34kg",
    b"ST,N ,+00123.0kg",
    b"US,TR,+0001.20kg",
    b"ST,T ,+0001.20kg",
    b"ST,PT,+00001.00kg",
    b"HD,GS,+00010.00kg",
    b"HD,+00010.00 kg",
    b"ST,HD,+00010.00kg",
    b"ST,GS,1\xe4,00153.26 kg",
    b"ST,GS,=\xa0,  -53.26 kg",
    b"US,NT,0\xff,00005326  g",
    b"ST,GS,1\x07,00153.26  t",
    b"ST,+053260.0  g",
    b"ST,+00100.00 lb",
    b"ST,+00016.00 oz",
    b"ST,+0000.053 t",
]

#: Lines of an overload, which have no weight.
OVERLOADS = [
    b"OL,+9999999E+19",
    b"OL,+9999999E+19, kg",
    b"OL,-99999999PC",
    b"OL,              kg",
    b"OL,GS,+9999999E+19 kg",
    b"OL,GS,1\xe4,00000000 kg",
]

#: Bytes with a meaning in a line, which are inserted more often than by chance.
LIKELY = b"0123456789.,+-_ @EGHKLNOPSTUZgkt%\x00\x02\x03\x0a\x0d\x11\x13\x7f\x85\xc2\xf0\xfa\xfb\xff"

CHUNKS = 20
LINES_OF_A_CHUNK = 50_000


def weight_and_status(line: bytes) -> tuple[str, Decimal | None] | None:
    """Return the reading of a line, or nothing if it is not valid."""
    try:
        found = parse_line(line)
    except WireError:
        return None
    return found.status, found.weight


def damaged(chance: random.Random, line: bytes) -> bytes:
    """Return a line with a few bytes lost, doubled, changed or inserted."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = int(chance.random() * len(line))
        other = bytes((chance.choice(LIKELY) if chance.random() < 0.7 else int(chance.random() * 256),))
        how = int(chance.random() * 5)
        if how == 0:
            line = line[:at] + line[at + 1 :]
        elif how == 1:
            line = line[:at] + line[at : at + 1] + line[at:]
        elif how == 2:
            line = line[:at] + other + line[at + 1 :]
        elif how == 3:
            line = line[:at] + other + line[at:]
        else:
            # A part of the line is lost.
            line = line[:at] + line[at + int(chance.random() * 6) :]
    return line


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_parse_line_damaged_lines_give_no_wrong_weight(chunk: int) -> None:
    chance = random.Random(chunk)
    wrong: list[tuple[bytes, object]] = []
    readings = 0
    for line in GOOD + OVERLOADS:
        says = weight_and_status(line)
        assert says is not None
        data = b"\r\n".join(damaged(chance, line) for _ in range(LINES_OF_A_CHUNK // len(GOOD + OVERLOADS) + 1)) + b"\n"
        pieces = data.splitlines()
        for piece, fast in zip(pieces, read_lines(data), strict=True):
            found: object
            if isinstance(fast, bytes):
                if fast != piece:
                    wrong.append((piece, fast))
                found = weight_and_status(piece)
            else:
                found = fast[:2]
                if fast != parse_line(piece):
                    wrong.append((piece, fast))
            if found is None:
                continue
            readings += 1
            if found != says and found != ("OL", None):
                form = weight_of(piece)
                if form is None or form[:2] != found:
                    wrong.append((piece, found))
    assert wrong == []
    # Damaged lines of a form were among them, and others.
    assert LINES_OF_A_CHUNK / 10 < readings < LINES_OF_A_CHUNK * 0.9


@pytest.mark.parametrize("line", GOOD, ids=ascii)
def test_parse_line_undamaged_line_gives_its_weight(line: bytes) -> None:
    assert weight_of(line) == parse_line(line)


def test_parse_line_accepts_exactly_the_documented_forms() -> None:
    chance = random.Random("forms")
    for line in GOOD * 300:
        piece = damaged(chance, line)
        if b"\r" in piece or b"\n" in piece:
            continue
        try:
            found = parse_line(piece)
        except WireError:
            assert weight_of(piece) is None, piece
        else:
            assert found == (weight_of(piece) or found) if found.status == "OL" else found == weight_of(piece), piece


CONTROLS = [*range(0x20), 0x7F]


def says(data: bytes) -> list[ScaleLine]:
    """Return the readings among lines that are read together."""
    found = []
    for fields in read_lines(data):
        if isinstance(fields, bytes):
            try:
                found.append(parse_line(fields))
            except WireError:
                continue
        else:
            found.append(ScaleLine(*fields))
    return found


@pytest.mark.parametrize("line", GOOD, ids=ascii)
def test_parse_line_control_byte_at_any_place_gives_no_wrong_weight(line: bytes) -> None:
    (right,) = says(line + b"\r\n")
    core = next(at for at in range(len(line)) if line[at:].lower().startswith((b"st", b"us", b"hd", b"@")))
    unit_ends = len(line.rstrip(b"\x03\xff\xf1"))
    lamp = core + 7 if line[core + 8 : core + 9] == b"," and line[core + 5 : core + 6] == b"," else None
    for control in CONTROLS:
        byte = bytes([control])
        for place in range(len(line) + 1):
            replaced = line[:place] + byte + line[place + 1 :]
            inserted = line[:place] + byte + line[place:]
            for changed, last in ((replaced, place + 1), (inserted, place)):
                for reading in says(changed + b"\r\n"):
                    # It is outside of the content, ends a line before it, or is the lamp byte.
                    is_outside = last <= core or place >= unit_ends or control in b"\r\n"
                    assert is_outside or (place == lamp and changed is replaced), changed
                    assert (reading.weight, reading.kind) == (right.weight, right.kind), changed


@pytest.mark.parametrize("line", GOOD, ids=ascii)
@pytest.mark.parametrize(
    "noise",
    [
        b"\x80",
        b"\x85",
        b"\x9f",
        b"\xa0",
        b"\xff",
        b"\xff\xf1",
        b"\xff\xfb\x01",
        b"\xff\xfa\x18\xff\xf0",
        "\u0085".encode(),
        "\u00a0".encode(),
        "\ufeff".encode(),
        "\u200b".encode(),
        "\u200d".encode(),
        "\u2060".encode(),
        "\u00ad".encode(),
        "\uff15".encode(),
        "\u0665".encode(),
        "\u3000".encode(),
        "\ufffd".encode(),
    ],
    ids=ascii,
)
def test_parse_line_bytes_other_than_text_are_rejected(line: bytes, noise: bytes) -> None:
    start = next(at for at in range(len(line)) if line[at:].lower().startswith((b"st", b"us", b"hd", b"@")))
    end = len(line.rstrip(b"\x03\xff\xf1"))
    for place in range(start + 1, end):
        with pytest.raises(WireError):
            parse_line(line[:place] + noise + line[place:])


@pytest.mark.parametrize("lamp", range(256))
def test_parse_line_cas_lamp_byte_may_be_any(lamp: int) -> None:
    found = parse_line(b"ST,GS,1" + bytes([lamp]) + b",00053.26 kg")
    assert found[:3] == ("ST", Decimal("53.26"), "gross")
    shown = chr(lamp) if 0x20 <= lamp < 0x7F else "\ufffd"
    assert found.raw == f"ST,GS,1{shown},00053.26 kg"


@pytest.mark.parametrize("end", [b"\r", b"\n"])
def test_read_lines_cas_lamp_byte_that_ends_a_line_gives_no_weight(end: bytes) -> None:
    assert says(b"ST,GS,1" + end + b",00053.26 kg\r\n") == []


@pytest.mark.parametrize(
    "line",
    [
        b"ST,GS,1,00005326 kg",  # the lamp byte is lost
        b"ST,GS,\xe4,00053.26 kg",
        b"ST,GS,1\xe4,0053.26 kg",  # a digit is lost or doubled
        b"ST,GS,1\xe4,000053.26 kg",
        b"ST,GS,1\xe4,00053.26kg",
        b"ST,GS,1\xe4,00053.26   kg",
        b"ST,GS,1\xe4,00053,26 kg",
        b"ST,GS,1\xe4,53.26    kg",
        b"ST,GS,\x01\xe4,00053.26 kg",  # the device's ID is a character
        b"ST,GS,\xc3\xa4,00053.26 kg",
        b"ST,GS, \xe4,00053.26 kg",
        b"ST,GS,1\xe4 ,00053.26 kg",
        b"ST, GS,1\xe4,00053.26 kg",
        b"ST,1\xe4,00053.26 kg",
        b"ST,GS,1\xe4,+-053.26 kg",
        b"ST,GS,1\xe4,    .    kg",
        b"ST,GS,1\xe4,         kg",
        b"ST,GS,1\xe4,00053.26 PC",
    ],
    ids=ascii,
)
def test_parse_line_nearly_cas_is_rejected(line: bytes) -> None:
    with pytest.raises(WireError):
        parse_line(line)
