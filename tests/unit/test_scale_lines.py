"""Lines of scales: the expected reading of each; any other bytes give a WireError."""

import itertools
import subprocess
import sys
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.errors import WireError
from gateway.wire.scale import HEAVIEST_KG, KILOGRAMS, Fields, ScaleLine, has_http_request, parse_line, read_lines
from tests.support.scale_forms import framing_ends

CASES = Path(__file__).parent.parent / "cases" / "scale" / "lines.tsv"

QUIET = settings(max_examples=300, deadline=None, derandomize=True, database=None)

#: Pieces that a reading is made of, and some that only look so.
PIECES = [
    *(
        "ST",
        "US",
        "OL",
        "st",
        "NT",
        "TR",
        "GS",
        "@23",
        ",",
        " , ",
        "+",
        "-",
        " ",
        "_",
        "kg",
        "KG",
        "g",
        "lb",
        "oz",
        "t",
    ),
    *("0", "00053", "53.26", "99999999", ".995", ".", "E+19", "9" * 16, "\x00", "\x02", "\x85", "\u212a", "\u0665"),
]


def rows() -> list[tuple[bytes, list[str]]]:
    lines = CASES.read_text("ascii").splitlines()
    cases = [line.split("\t") for line in lines if not line.startswith("#")]
    return [(text.encode("ascii").decode("unicode_escape").encode("latin-1"), rest) for text, *rest in cases]


ROWS = rows()


def without_framing(line: bytes) -> str:
    line = line[framing_ends(line) :]
    end = next(end for end in range(len(line) + 1) if framing_ends(line[end:]) == len(line) - end)
    # A lamp byte is not text.
    return line[:end].decode("ascii", "replace")


def weight_of(line: str) -> Decimal:
    weight = parse_line(line.encode()).weight
    assert weight is not None
    return weight


@pytest.mark.parametrize(("line", "expected"), ROWS, ids=[repr(line)[:60] for line, _ in ROWS])
def test_parse_line_case_gives_expected_reading(line: bytes, expected: list[str]) -> None:
    if expected == ["reject"]:
        with pytest.raises(WireError):
            parse_line(line)
        return
    status, weight, kind = expected
    found = parse_line(line)
    assert found[:4] == (status, Decimal(weight) if weight else None, kind, without_framing(line))
    assert found.unit == "kg" if status == "OL" else found.raw.lower().endswith(found.unit)


def test_cases_are_found() -> None:
    # An empty file would pass every test.
    assert len(ROWS) > 50
    assert {rest[0] for _, rest in ROWS} == {"ST", "US", "HD", "OL", "reject"}


@pytest.mark.parametrize(
    "line",
    [
        "ST,+00053.26 \u212ag",  # KELVIN SIGN, whose lower case is k
        "\ufb06,+00053.26 kg",  # LATIN SMALL LIGATURE ST, whose upper case is ST
        "\ufb05,+00053.26 kg",  # LATIN SMALL LIGATURE LONG S T
        "\u017ft,+00053.26 kg",  # LATIN SMALL LETTER LONG S
        "U\u017f,+00053.26 kg",
        "ST,G\u017f,+00053.26 kg",
        "\uff33\uff34,+00053.26 kg",  # full-width ST
        "ST,+\uff15\uff13 kg",  # full-width digits
        "ST,+\u0665\u0663 kg",  # ARABIC-INDIC digits
        "ST,+5\u00b2 kg",  # SUPERSCRIPT TWO
        "ST,\u221253 kg",  # MINUS SIGN
        "ST\uff0c+53 kg",  # full-width comma
        "ST,+53\u066b26 kg",  # ARABIC DECIMAL SEPARATOR
        "ST,\u00a053 kg",  # NO-BREAK SPACE
        "ST,+53 \u338f",  # SQUARE KG
        "@\u0662\u0663ST,+53 kg",
        "O\u029f,+53 kg",  # LATIN LETTER SMALL CAPITAL L
        "\u200bST,+53 kg",  # a ZERO WIDTH SPACE is no control character and no blank
    ],
    ids=ascii,
)
def test_parse_line_lookalike_is_rejected(line: str) -> None:
    with pytest.raises(WireError):
        parse_line(line.encode())


@pytest.mark.parametrize(
    ("line", "raw"),
    [
        (b"\x02ST,+00053.26 kg\x03", "ST,+00053.26 kg"),
        (b"\x1bST,+53 kg\x1b", "ST,+53 kg"),
        (b"\x07\xc2\x85ST,+53 kg\xc2\x9f", "ST,+53 kg"),  # C1 controls, two bytes each
        (b"\xff\xf1\xff\xfd\x03ST,+53 kg\xff\xf9 \xff\xfb\x01", "ST,+53 kg"),  # telnet commands and options
        (b"\xff\xfb,ST,+53 kg", "ST,+53 kg"),  # RFC 2217's option is a comma
        (b"\xff\xfa\x18\x01XTERM\xff\xff\xff\xf0ST,+53 kg", "ST,+53 kg"),
        (b"\xff\x00\x02@23ST,+53 kg\xff\xff", "@23ST,+53 kg"),
        (b"\x00 ST,+53 kg \x00 ", "ST,+53 kg"),
        (b"ST,+53 kg\t", "ST,+53 kg"),
    ],
)
def test_parse_line_raw_has_no_framing(line: bytes, raw: str) -> None:
    found = parse_line(line)
    assert found.raw == raw
    assert found.weight in {Decimal(53), Decimal("53.26")}


@pytest.mark.parametrize(
    "line",
    [
        b"ST\x00,\x07+53\x7f kg\x1b",
        b"ST,\xc2\x85+53 kg",
        b"@23\x02ST,+53 kg",
        b"ST,+5\xff\xf13 kg",
        b"ST,+5\xff\xfb\x013 kg",
        b"ST,+53 k\xff\xfa\x2c\xff\xf0g",
        b"ST,\t+53 kg",
    ],
)
def test_parse_line_framing_inside_is_no_reading(line: bytes) -> None:
    with pytest.raises(WireError):
        parse_line(line)


@pytest.mark.parametrize(
    "line",
    [
        b"\xffST,+53 kg",  # no telnet command
        b"\xff@ST,+53 kg",
        b"\xff\xfbST,+53 kg",  # its option is lost
        b"\xff\xfa\x18ST,+53 kg",  # without an end
        b"ST,+53 kg\xff",
        b"ST,+53 kg\xff\xfb",
        b"\x80ST,+53 kg",
        "\ufeffST,+53 kg".encode(),
        "\u00a0ST,+53 kg".encode(),
        "ST,+53 kg\u3000".encode(),
    ],
)
def test_parse_line_other_bytes_around_are_rejected(line: bytes) -> None:
    with pytest.raises(WireError):
        parse_line(line)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # First headers and second ones, with and without their blank, in any case.
        (b"ST,GS,+1.0kg", ("ST", "1.0", "gross")),
        (b"ST,G,+1.0kg", ("ST", "1.0", "gross")),
        (b"ST,G ,+1.0kg", ("ST", "1.0", "gross")),
        (b"st , g , +1.0 kg", ("ST", "1.0", "gross")),
        (b"ST,NT,+1.0kg", ("ST", "1.0", "net")),
        (b"ST,N ,+1.0kg", ("ST", "1.0", "net")),
        (b"us,n,+1.0kg", ("US", "1.0", "net")),
        (b"ST,TR,+1.0kg", ("ST", "1.0", "tare")),
        (b"ST,PT,+1.0kg", ("ST", "1.0", "tare")),
        (b"ST,T ,+1.0kg", ("ST", "1.0", "tare")),
        (b"ST,t,+1.0kg", ("ST", "1.0", "tare")),
        (b"ST,T,+1.0t", ("ST", "1000.0", "tare")),
        (b"HD,+1.0kg", ("HD", "1.0", "hold")),
        (b"HD,GS,+1.0kg", ("HD", "1.0", "hold")),
        (b"hd , NT , +1.0 kg", ("HD", "1.0", "hold")),
        (b"ST,HD,+1.0kg", ("ST", "1.0", "hold")),
        (b"US,HD,+1.0kg", ("US", "1.0", "hold")),
        # A comma before the unit, beside a decimal comma too.
        (b"ST,+1.0,kg", ("ST", "1.0", "gross")),
        (b"ST,+1.0 , kg", ("ST", "1.0", "gross")),
        (b"ST,+1,5,kg", ("ST", "1.5", "gross")),
        (b"ST,NT,-   1,5, lb", ("ST", "-0.680388555", "net")),
        (b"ST,+1,kg", ("ST", "1", "gross")),
        # An overload, whatever its number and unit.
        (b"OL", ("OL", None, "gross")),
        (b"OL kg", ("OL", None, "gross")),
        (b"\x02OL \x03", ("OL", None, "gross")),
        (b"OL,GS,+^^^^^^^kg", ("OL", None, "gross")),
        (b"OL,NT,+^^^^^^^kg", ("OL", None, "net")),
        (b"OL,+9999999E+19 lb:oz", ("OL", None, "gross")),
        (b"OL,QT,+99999999PC", ("OL", None, "gross")),
        (b"OLD", None),
        (b"OL.", None),
        (b"OL-1 kg", None),
        (b"OL_kg", None),
        (b"O L,kg", None),
        (b"OL\x00,kg", None),
        (b"OL,+99\x0099 kg", None),
        (b"OL,\xb1 kg", None),
        (b"OL,", ("OL", None, "gross")),
        (b"OL,GS,", ("OL", None, "gross")),
        (b"OL,GS,+9999999E+19, kg", ("OL", None, "gross")),
        (b"ol,n ,-9999999e+19 PCS", ("OL", None, "net")),
        (b"OL,+99999999 %", ("OL", None, "gross")),
        (b"OL,HD,-------- kg", ("OL", None, "hold")),
        (b"OL,+53.26 kg", ("OL", None, "gross")),
        (b"OL,GS,1\xe4,99999999 kg", ("OL", None, "gross")),
        (b"OL,NT,1\r,99999999 kg", ("OL", None, "net")),
        (b"OL,\x00 kg", None),
        # Numbers that are not weights, and unknown headers.
        (b"QT,+00000012 PC", None),
        (b"ST,QT,+00000012 PC", None),
        (b"ST,GS,+00000012 PC", None),
        (b"ST,+00000012 %", None),
        (b"ST,+9999999E+19 kg", None),
        (b"HD,+9999999E+19 kg", None),
        (b"HD,", None),
        (b"HD,OL,+1.0kg", None),
        (b"GS,ST,+1.0kg", None),
        (b"ST,GS,NT,+1.0kg", None),
        (b"ST,GS +1.0kg", None),
        (b"ST,G S,+1.0kg", None),
        (b"ST,  ,+1.0kg", None),
        (b"ST,P ,+1.0kg", None),
        (b"ST,TA,+1.0kg", None),
        (b"ST,+1.0,,kg", None),
        (b"ST,+1.0,_kg", None),
        (b"ST,+1.0,", None),
        (b"ST,,kg", None),
        (b"ST,+1,5.0,kg", None),
        (b"ST,+1.5,0,kg", None),
    ],
)
def test_parse_line_forms_and_their_neighbours(line: bytes, expected: tuple[str, str | None, str] | None) -> None:
    if expected is None:
        with pytest.raises(WireError):
            parse_line(line)
    else:
        status, weight, kind = expected
        assert parse_line(line)[:3] == (status, None if weight is None else Decimal(weight), kind)


def test_parse_line_decimal_comma_has_at_most_five_digits() -> None:
    assert weight_of("ST,+1,00005 kg") == Decimal("1.00005")
    with pytest.raises(WireError):
        parse_line(b"ST,+1,000053 kg")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1",
        b"POST / HTTP/1.0\r\n\r\nST,+1 kg\r\n",
        b"ST,+1 kg\nPUT http://a.example/ HTTP/1.1\n",
        b"\r\n\r\nM-SEARCH * HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"OPTIONS\t*\tHTTP/1.1\n",
        b"x HTTP/3",
        b"GET / http/1.1\r\n",
    ],
)
def test_has_http_request_request_line_is_found(data: bytes) -> None:
    assert has_http_request(data)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\n", b"GET /HTTP/1.1", b"HTTP/", b" HTTP/", b"GET / HTTP"])
def test_has_http_request_other_lines_are_not_found(data: bytes) -> None:
    assert not has_http_request(data)


@pytest.mark.parametrize("status", ["ST", "US"])
@pytest.mark.parametrize(("header", "kind"), [("", "gross"), ("GS,", "gross"), ("NT,", "net"), ("tr , ", "tare")])
def test_parse_line_header_gives_kind(status: str, header: str, kind: str) -> None:
    found = parse_line(f"{status},{header}+0012.34kg".encode())
    assert (found.status, found.kind, found.weight) == (status, kind, Decimal("12.34"))


@pytest.mark.parametrize(("header", "kind"), [("", "gross"), ("GS,", "gross"), ("nt,", "net"), ("TR , ", "tare")])
@pytest.mark.parametrize("rest", ["+9999999E+19", "-9999999E+19 kg", "    kg", "", "+000000.00 _kg"])
def test_parse_line_overload_has_kind_without_weight(header: str, kind: str, rest: str) -> None:
    found = parse_line(f"OL,{header}{rest}".encode())
    assert (found.status, found.kind, found.weight) == ("OL", kind, None)


@pytest.mark.parametrize(
    ("number", "unit"),
    [
        # The column numeric(10,2) rounds half up: .995 would need a digit more than it has.
        ("99999999.99", "kg"),
        ("99999999.994", "kg"),
        ("99999999.994999999", "kg"),
        ("99999999994.999", "g"),
        ("99999.999994", "t"),
        ("000000099999999", "kg"),
    ],
)
def test_parse_line_largest_weight_is_read(number: str, unit: str) -> None:
    expected = Decimal(number) * KILOGRAMS[unit]
    assert weight_of(f"ST,+{number} {unit}") == expected
    assert weight_of(f"ST,-{number} {unit}") == -expected


@pytest.mark.parametrize(
    "number",
    [
        "99999999.995 kg",
        "100000000 kg",
        "99999999995 g",
        "99999.999995 t",
        "999999999999999 kg",
        "999999999999999.999999999 oz",
        "220462262.19 lb",  # 99 999 999.996 kg
    ],
)
def test_parse_line_weight_beyond_the_column_is_rejected(number: str) -> None:
    for sign in ("+", "-"):
        with pytest.raises(WireError):
            parse_line(f"ST,{sign}{number}".encode())


def test_parse_line_too_many_digits_are_rejected() -> None:
    assert weight_of("ST," + "5".rjust(15, "0") + "." + "1" * 9 + " kg") == Decimal("5.111111111")
    for number in ("5".rjust(16, "0"), "5." + "1" * 10, "5.", ".5"):
        with pytest.raises(WireError):
            parse_line(f"ST,{number} kg".encode())


FACTORS = {
    "kg": Fraction(1),
    "g": Fraction(1, 1000),
    "t": Fraction(1000),
    "lb": Fraction(45359237, 100_000_000),
    "oz": Fraction(45359237, 1_600_000_000),
}


@QUIET
@given(
    sign=st.sampled_from(["", "+", "-"]),
    whole=st.integers(0, 999_999).map(str),
    fraction=st.text("0123456789", max_size=9),
    point=st.sampled_from(".,"),
    unit=st.sampled_from(sorted(FACTORS)),
    precision=st.sampled_from([3, 28]),
)
def test_parse_line_units_are_exact(
    sign: str, whole: str, fraction: str, point: str, unit: str, precision: int
) -> None:
    # 999999 t exceed the column.
    whole = whole[:4] if unit == "t" else whole
    fraction = fraction[:5] if point == "," else fraction
    number = whole + (point + fraction if fraction else "")
    # The decimal context of the caller must not matter.
    with localcontext(prec=precision):
        weight = weight_of(f"ST,{sign}{number} {unit}")
    assert Fraction(weight) == Fraction(sign + number.replace(",", ".")) * FACTORS[unit]


@QUIET
@given(st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join).map(str.encode)))
def test_parse_line_any_bytes_give_reading_or_wire_error(line: bytes) -> None:
    try:
        found = parse_line(line)
    except WireError:
        return
    assert isinstance(found, ScaleLine)
    assert found.status in {"ST", "US", "HD", "OL"}
    assert found.kind in {"gross", "net", "tare", "hold"}
    assert (found.weight is None) == (found.status == "OL")
    assert found.weight is None or abs(found.weight) < HEAVIEST_KG
    assert found.raw == without_framing(line)
    # Besides a lamp byte only ASCII is accepted, and the raw text of a reading gives the same reading.
    assert found.raw.replace("\ufffd", "").isascii()
    assert parse_line(found.raw.replace("\ufffd", "\xff").encode("latin-1")) == found


@QUIET
@given(
    st.sampled_from([line for line, rest in ROWS if rest != ["reject"]]),
    st.text("\x00\x01\x02\x03\x07\x09\x1b\x1f\x20\x7f", max_size=6),
    st.text("\x00\x01\x02\x03\x07\x09\x1b\x1f\x20\x7f", max_size=6),
)
def test_parse_line_framing_around_changes_nothing(line: bytes, before: str, after: str) -> None:
    assert parse_line(before.encode() + line + after.encode()) == parse_line(line)


#: Lines as most scales send them, which are read many at a time.
PLAIN = [
    b"ST,+00012.34 kg",
    b"ST , +000053.26 _kg",
    b"US,-00000.05 kg",
    b"US , -000012.3 _kg",
    b"ST,+0000150 kg",
    b"ST,+00000.00 kg",
    b"ST,-00000.00 kg",
    b"ST,9999999.999999999  kg",
]

#: Parts of a line: first those of the common form, then those of some scales, and of no scale.
PARTS = [
    ["", " ", "\x02", "@23", "@"],
    ["ST", "US", "OL", "st", "Us", "SU", ""],
    [",", " , ", " ,", ", ", "  ,  ", "", ",,", ",NT,", ",GS , "],
    ["+", "-", "", "+ ", "--"],
    ["00053", "0", "0000000", "9999999", "99999999", "000000000000001", "0000000000000001", "", "\u0665"],
    [".26", "", ".0", ".995", ".999999999", ".9999999999", ".", ",5", "..5"],
    [" ", "", "  ", " " * 9, " " * 10, "\t"],
    ["", "_", "__", "_ "],
    ["kg", "KG", "Kg", "g", "lb", "kgs", "\u212ag", ""],
    ["", " ", "\x03", "\x85", "\xff"],
]

#: Lines of the common form that cover each pair of parts.
NEARLY_PLAIN = list(
    dict.fromkeys(
        "".join({first: one, second: other}.get(place, parts[0]) for place, parts in enumerate(PARTS)).encode()
        for first, second in itertools.combinations(range(len(PARTS)), 2)
        for one in PARTS[first]
        for other in PARTS[second]
    )
)

LINE_ENDS = st.sampled_from([b"\r\n", b"\n", b"\r"])


def exactly(line: Fields) -> tuple[object, ...]:
    """Return a line in a form in which 1.0 differs from 1.00 and -0 from 0."""
    status, weight, kind, raw, unit = line
    return status, None if weight is None else weight.as_tuple(), kind, raw, unit


def agree(line: bytes, found: Fields | bytes) -> bool:
    """Return whether the result for a line is the line itself or its reading."""
    return found == line if isinstance(found, bytes) else exactly(found) == exactly(parse_line(line))


def test_read_lines_nearly_common_form_equals_parse_line() -> None:
    data = b"".join(line + b"\n" for line in NEARLY_PLAIN)
    found = list(read_lines(data))
    differ = [line for line, says in zip(NEARLY_PLAIN, found, strict=True) if not agree(line, says)]
    assert differ == []
    # Lines of both kinds were among them.
    assert 100 < sum(isinstance(says, bytes) for says in found) < len(found) - 100


@QUIET
@given(st.lists(st.tuples(st.sampled_from(PLAIN + NEARLY_PLAIN), LINE_ENDS), max_size=5))
def test_read_lines_many_lines_equal_parse_line(lines: list[tuple[bytes, bytes]]) -> None:
    data = b"".join(line + end for line, end in lines)
    found = list(read_lines(data))
    # The LF of a split CR LF gives a blank line; bytes.splitlines knows the same three ends.
    assert len(found) == len(data.splitlines())
    assert all(agree(line, says) for line, says in zip(data.splitlines(), found, strict=True))


@QUIET
@given(st.binary(max_size=200))
def test_read_lines_other_lines_are_returned_unchanged(data: bytes) -> None:
    assert list(read_lines(data + b"\n")) == (data + b"\n").splitlines()


@pytest.mark.parametrize("line", PLAIN)
def test_read_lines_common_form_is_parsed(line: bytes) -> None:
    (found,) = read_lines(line + b"\r\n")
    assert not isinstance(found, bytes)
    assert exactly(found) == exactly(parse_line(line))


@pytest.mark.parametrize(("line", "expected"), ROWS, ids=[repr(line)[:60] for line, _ in ROWS])
def test_read_lines_case_among_others_gives_expected_reading(line: bytes, expected: list[str]) -> None:
    before, found, after = read_lines(b"ST,+1 kg\r" + line + b"\r\nUS,+2 kg\n")
    assert (before, after) == (
        ("ST", Decimal(1), "gross", "ST,+1 kg", "kg"),
        ("US", Decimal(2), "gross", "US,+2 kg", "kg"),
    )
    assert agree(line, found)
    assert isinstance(found, bytes) or expected != ["reject"]


BLANK_LINES = [
    start + " " * (1024 - len(start) - len(end)) + end
    for start in (
        *("ST,", "ST", "US,NT,+", "ST,1", "OL", "OL,", "OL,+", "OL,NT,", "OL,9", "@23OL , "),
        *("HD,G ", "ST,1,", "ST,GS,1x,", "ST,GS,1x,+", "OL,9E+1", "OL,9,", "OL,PC", "OL,GS,1x,", "ST,1kg"),
    )
    for end in ("x", "_x", "")
] + [
    start + middle * ((1024 - len(start)) // len(middle)) + end
    for start in ("", "ST,1kg", "OL,")
    for middle in ("\xff\xfa", "\xff\xff", "\xff\xfb\x01", "\xc2\x85", "\xff\xfa\xff\xf0", "\xff")
    for end in ("x", "")
]

PARSE_ALL = """
import resource, sys
from gateway.wire.scale import WireError, parse_line, read_lines
resource.setrlimit(resource.RLIMIT_CPU, (5, 6))
for line in sys.stdin.read().split("\\n"):
    print(repr(line[:12]), flush=True)
    list(read_lines(line.encode("latin-1") + b"\\n"))
    try:
        parse_line(line.encode("latin-1"))
    except WireError:
        pass
"""


def test_parse_line_long_line_of_blanks_is_fast() -> None:
    # In a separate process, which the system ends after 5 s of CPU: a pattern that tries all ways to split 1 KiB of
    # blanks would block the reactor for an hour.
    child = subprocess.run(
        [sys.executable, "-c", PARSE_ALL],
        cwd=Path(__file__).parent.parent.parent,
        input="\n".join(BLANK_LINES),
        capture_output=True,
        text=True,
        check=False,
    )
    begun = child.stdout.splitlines()
    assert child.returncode == 0, f"ended in line {len(begun)} of {len(BLANK_LINES)}: {begun[-1:]} {child.stderr}"
    assert len(begun) == len(BLANK_LINES)
