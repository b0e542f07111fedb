"""Names of machines and sensors: validity, stored form, and use in topics and files."""

import os
import unicodedata
from pathlib import Path

import pytest

from gateway.bus.topics import parse_topic
from gateway.model.names import forms_of, is_name, name_of, name_problem
from gateway.raw import files

NFC = "진동기"
NFD = unicodedata.normalize("NFD", NFC)


@pytest.mark.parametrize(
    "name",
    [
        *("a", "ShotBlast", "Vib 1_2-3.4:5", "진동기", "振动", "Ω", "٣", "é", "ß"),
        *("कंपन", "तापमान", "हिन्दी", "อุณหภูมิ", "เครื่องสั่น", "ที่", "வெப்பநிலை", "কম্পন", "درجة", "شِدّة", "བོད", "ខ្មែរ"),
        *("é".join("ab"), "e\u0301", "a\u0301\u0302", "๑๒๓", "१२३", "a" * 64, "가" * 64),
    ],
)
def test_name_may_have_letters_marks_and_digits_of_any_script(name: str) -> None:
    assert is_name(name)
    assert name_problem(name) is None
    kept = name_of(name)
    assert kept is not None
    assert kept == unicodedata.normalize("NFC", name)
    for form in ("NFC", "NFD"):
        assert name_of(unicodedata.normalize(form, name)) == kept


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "..", "a/b", "a\\b", "a#", "a\0", "a\n", "a\t", "a*", "a?", "a%", "a~", "a\u200d", "a\ufeff", "😀"),
        *("a\u202e", "\ud800", "a" * 65, "가" * 65, "\U00010400" * 60, "\u0301", " \u0301", "_\u0301a", "Ⅷ", "½", "²"),
        "가" * 64 + "\u0301",
        "a" * 100_000,
    ],
)
def test_name_problem_says_the_reason(text: str) -> None:
    assert not is_name(text)
    assert name_of(text) is None
    problem = name_problem(text)
    assert problem is not None
    assert problem.isprintable()
    assert len(problem) < 100


def test_characters_of_a_name_are_counted_in_nfc() -> None:
    assert len(unicodedata.normalize("NFD", "각" * 64)) == 192
    assert name_of(unicodedata.normalize("NFD", "각" * 64)) == "각" * 64
    assert not is_name(unicodedata.normalize("NFD", "각" * 65))


def test_longest_name_fits_into_a_file_name() -> None:
    for character in ("가", "\U00010400", "a", "é"):
        longest = max((character * count for count in range(1, 65) if is_name(character * count)), key=len)
        assert len(f"20251218_{longest}.csv.gz~".encode()) <= 255


def test_forms_of_a_name_are_nfc_and_nfd() -> None:
    assert forms_of("ShotBlast") == ("ShotBlast",)
    assert forms_of(NFC) == (NFC, NFD)
    assert forms_of("振动") == ("振动",)


def test_topic_has_the_stored_name_of_the_machine() -> None:
    assert parse_topic(f"machine/{NFD}") == ("machine", NFC)
    assert parse_topic(f"machine/{NFD}/samples") == ("machine", NFC, "samples")
    # The id of a scale stays as it is configured.
    assert parse_topic(f"scale/{NFD}") == ("scale", NFD)


def test_raw_files_of_an_older_version_are_found_by_the_stored_name(
    tmp_path: Path,
) -> None:
    folder = os.path.join(tmp_path, NFD)
    os.makedirs(folder)
    old = os.path.join(folder, f"20251218_{NFD}.csv")
    with open(old, "wb") as file:
        file.write(files.HEADER)
    assert files.machines(str(tmp_path)) == [NFC]
    (found,) = files.raw_files(str(tmp_path), NFC)
    assert (found.machine, found.sensor, found.path) == (NFC, NFC, old)
    # New lines are appended to the same file.
    assert files.path_of(folder, NFC, "20251218_{}.csv") == old
    assert files.path_of(folder, NFC, "20251219_{}.csv") == os.path.join(folder, f"20251219_{NFC}.csv")
