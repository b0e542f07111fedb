"""Names of machines, sensors and scales: which are valid, and their canonical forms."""

import unicodedata
from functools import lru_cache
from typing import Final

#: Punctuation that a machine's or a sensor's name may hold beside letters and digits.
_NAME_MARKS: Final = frozenset(" _-.:")

#: Unicode categories of letters and decimal digits, and of marks that may follow them: vowel signs, accents.
_NAME_CATEGORIES: Final = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Nd"})
_MARK_CATEGORIES: Final = frozenset({"Mn", "Mc", "Me"})

#: Maximum characters of a name, counted in NFC.
MAX_NAME: Final = 64

#: A name becomes a file name with at most 17 bytes more (``YYYYMMDD_`` before, ``.csv.gz~`` behind it), and
#: Linux allows 255.
_MAX_NAME_BYTES: Final = 238

#: Maximum characters of text that may become a name: one character in NFC is at most four in any other form.
_MAX_UNCOMPOSED: Final = 4 * MAX_NAME


def is_name(text: str) -> bool:
    """Return whether a text in NFC is a valid name of a machine, a sensor or a scale.

    A name has 1 to 64 characters: letters with their marks and digits of any script, space, ``_ - . :``; not ``.`` or
    ``..``.
    """
    return name_of(text) is not None


def name_of(text: str) -> str | None:
    """Return a name in its stored and compared form (NFC); ``None`` if the text is not a valid name."""
    # Names repeat, but text that is clearly not a name must not fill the cache.
    return _name_of(text) if 1 <= len(text) <= _MAX_UNCOMPOSED else None


@lru_cache(maxsize=4096)
def _name_of(text: str) -> str | None:
    name = unicodedata.normalize("NFC", text)
    return name if name_problem(name) is None else None


def name_problem(text: str) -> str | None:
    """Return the reason why a text is not a valid name; ``None`` if it is valid."""
    if not text:
        return "it is empty"
    if len(text) > _MAX_UNCOMPOSED:
        return f"it has {len(text)} characters; {MAX_NAME} are allowed"
    name = unicodedata.normalize("NFC", text)
    before = ""
    for character in name:
        category = unicodedata.category(character)
        if category in _MARK_CATEGORIES:
            if before not in _NAME_CATEGORIES and before not in _MARK_CATEGORIES:
                return f"{character!a} is not allowed without a letter before it"
        elif character not in _NAME_MARKS and category not in _NAME_CATEGORIES:
            return f"{character!r} is not allowed"
        before = category
    if name in {".", ".."}:
        return "'.' and '..' are not allowed"
    if len(name) > MAX_NAME:
        return f"it has {len(name)} characters; {MAX_NAME} are allowed"
    size = len(name.encode())
    return f"it has {size} bytes in UTF-8; {_MAX_NAME_BYTES} are allowed" if size > _MAX_NAME_BYTES else None


def forms_of(name: str) -> tuple[str, ...]:
    """Return a name, and the decomposed form (NFD) that an older version may have used for files and tables."""
    if name.isascii():
        return (name,)
    decomposed = unicodedata.normalize("NFD", name)
    return (name,) if decomposed == name else (name, decomposed)
