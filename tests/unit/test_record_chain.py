"""The chain of the record: contents, heads, and tampering by somebody with all rights."""

import hashlib
import json
import sqlite3
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.record.chain import (
    GENESIS,
    ChainBroken,
    EntryStamp,
    Head,
    HeadCheck,
    Row,
    encode_entry,
    find_heads,
    gateway_in_heads,
    link,
    parse_head,
    verify,
)
from gateway.record.table import append_entry, read_head, read_rows
from tests.support.record import new_record, tamper, verify_against

STAMP = EntryStamp("dock:1", "commit", "2025-12-18T10:11:12+09:00")


def chain(count: int) -> list[Row]:
    rows: list[Row] = []
    previous = GENESIS
    for number in range(1, count + 1):
        content = encode_entry(number, STAMP, {"gross_kg": f"{number}.00"})
        previous = link(previous, content)
        rows.append((number, content, previous))
    return rows


def broken(rows: list[Row]) -> str:
    with pytest.raises(ChainBroken) as raised:
        list(verify(rows))
    return str(raised.value)


def test_content_is_canonical_json() -> None:
    content = encode_entry(7, STAMP, {"z": "저울", "a": None})
    fields = json.loads(content)
    assert content.decode() == json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    assert fields["number"] == 7
    assert fields["gateway"] == "dock:1"
    assert fields["kind"] == "commit"


def test_content_of_text_that_is_not_unicode_raises_value_error() -> None:
    with pytest.raises(ValueError, match="UTF-8"):
        encode_entry(1, STAMP, {"a": "\ud800"})


def test_hash_can_be_recomputed_by_hand() -> None:
    previous = bytes(32)
    for _, content, digest in chain(3):
        previous = hashlib.sha256(previous + content).digest()
        assert digest == previous


def test_intact_chain_is_verified() -> None:
    assert list(verify(chain(5))) == chain(5)
    assert list(verify([])) == []


def test_changed_entry_is_named() -> None:
    rows = chain(5)
    rows[2] = (3, rows[2][1].replace(b"3.00", b"9.00"), rows[2][2])
    assert broken(rows) == "entry 3: it was changed: its hash is not that of its content and of the entry before it"


def test_changed_hash_is_named() -> None:
    rows = chain(5)
    rows[3] = (4, rows[3][1], bytes(32))
    assert broken(rows).startswith("entry 4: it was changed")


def test_entry_of_another_type_is_named() -> None:
    rows = chain(2)
    rows[1] = (2, rows[1][1].decode(), rows[1][2])  # type: ignore[assignment]
    assert broken(rows) == "entry 2: it was changed: it is not binary data"


def test_entry_without_number_is_named() -> None:
    rows = chain(2)
    rows[1] = (2, b"{}", rows[1][2])
    assert broken(rows) == "entry 2: it was changed: its content has no number"


def test_removed_entry_is_named() -> None:
    rows = chain(5)
    del rows[1]
    assert broken(rows) == "entry 2: it was removed; the next entry is 3"


def test_added_entry_is_named() -> None:
    rows = chain(5)
    added = (3, rows[1][1], rows[1][2])
    rows[2:] = [added, *((number + 1, content, digest) for number, content, digest in rows[2:])]
    assert broken(rows) == "entry 3: it was added: its content is that of entry 2"


def test_entry_before_the_first_is_named() -> None:
    assert broken([(0, b"", b""), *chain(1)]).startswith("entry 1: an entry with number 0 was added")


def test_moved_entries_are_named() -> None:
    rows = chain(5)
    rows[1], rows[3] = (2, *rows[3][1:]), (4, *rows[1][1:])
    assert broken(rows) == "entry 2: it was removed or moved: the content of entry 4 is in its place"


# -- heads


@given(st.text(min_size=1, max_size=64), st.integers(1, 10**17), st.binary(min_size=32, max_size=32))
def test_head_is_found_in_any_text(gateway: str, number: int, digest: bytes) -> None:
    head = Head(gateway_in_heads(gateway), number, digest)
    assert parse_head(f" {head}\n") == head
    assert find_heads(f"2025-12-18T10:00:00+0900 [record] record: head {head}\n") == [head]
    assert find_heads(json.dumps({"head": str(head)}, ensure_ascii=False)) == [head]


def test_several_heads_are_found() -> None:
    heads = [Head("a:b", number, bytes([number]) * 32) for number in (1, 2)]
    assert find_heads("\n".join(map(str, heads))) == heads


@pytest.mark.parametrize("text", ["", "gw:1:00", "gw:0:" + "0" * 64, "gw:1:" + "0" * 65, "1:" + "0" * 64])
def test_text_without_head_is_refused(text: str) -> None:
    assert find_heads(text) == []
    with pytest.raises(ValueError, match="not a head"):
        parse_head(text)


def test_heads_of_other_gateways_are_counted() -> None:
    check = HeadCheck({"a"}, [Head("b", 1, GENESIS), Head("a", 1, GENESIS)])
    check.feed(1, GENESIS)
    check.finish(1)
    assert (check.foreign, check.checked) == (1, 1)


def test_recomputed_record_contradicts_a_head() -> None:
    check = HeadCheck({"a"}, [Head("a", 2, b"2" * 32), Head("a", 4, b"4" * 32)])
    check.feed(2, b"2" * 32)
    with pytest.raises(ChainBroken, match="entry 3: the record was recomputed: entry 4") as raised:
        check.feed(4, b"5" * 32)
    assert raised.value.number == 3


def test_record_that_was_cut_off_contradicts_a_head() -> None:
    check = HeadCheck({"a"}, [Head("a", 4, b"4" * 32)])
    with pytest.raises(ChainBroken, match="entry 3: it was removed: the record ends before it"):
        check.finish(2)


# -- tampering


def test_every_tampering_is_found_against_one_head(tmp_path: Path) -> None:
    path = tmp_path / "record.sqlite3"
    head = new_record(path, 300)
    random = Random(15)
    connection = sqlite3.connect(path, isolation_level=None)
    kinds = set()
    for _ in range(150):
        connection.execute("BEGIN")
        kind, number = tamper(connection, random, head.number)
        found = verify_against(connection, head)
        connection.execute("ROLLBACK")
        assert found is not None, f"{kind} of entry {number} was not found"
        if not kind.startswith("recompute"):
            assert found.number == number, kind
        kinds.add(kind)
    assert verify_against(connection, head) is None
    assert len(kinds) == 8
    connection.close()


def test_append_continues_after_rollback(tmp_path: Path) -> None:
    path = tmp_path / "record.sqlite3"
    head = new_record(path, 3)
    connection = sqlite3.connect(path, isolation_level=None)
    for _ in range(2):
        connection.execute("BEGIN")
        appended = append_entry(connection, STAMP, {"a": 1})
        assert appended.number == 4
        connection.execute("ROLLBACK")
    assert read_head(connection, head.gateway) == head
    append_entry(connection, STAMP, {"a": 2})
    assert [row[0] for row in verify(read_rows(connection))] == [1, 2, 3, 4]
    connection.close()
