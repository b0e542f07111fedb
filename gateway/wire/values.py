"""Plain data of frames, pickled or in JSON: text, numbers, lists, tuples and dicts.

Only data that a message can hold is kept. Numbers are kept as doubles in an array, eight bytes each; values that
messages never hold (None, booleans, text too long for any name, numbers that exceed a double) become an
:class:`UnsupportedValue`. So the memory of a frame is a small multiple of its size, whatever its content.
"""

from array import array
from typing import Final, TypeAlias

from gateway.wire.errors import WireError, shown_text

#: Maximum depth of nesting: ``("DataUpdate", {sensor: {"data": [...]}})`` is a tuple of a dict of dicts of lists.
MAX_DEPTH: Final = 4

#: Maximum lists, tuples and dicts in one frame; a sensor has two.
MAX_CONTAINERS: Final = 4096

TOO_DEEP: Final = "lists and dicts are nested deeper than any message needs"
TOO_MANY: Final = "more lists and dicts than any message needs"


class UnsupportedValue:
    """A placeholder for a value that messages never hold, and that is not kept.

    :ivar word: description of the value, for a log line.
    """

    __slots__ = ("word",)

    def __init__(self, word: str) -> None:
        self.word = word


NOTHING: Final = UnsupportedValue("None")
BOOLEAN: Final = UnsupportedValue("a boolean")
HUGE: Final = UnsupportedValue("a number beyond a double")
LONG_TEXT: Final = UnsupportedValue("text of more than 1,000 bytes")

Numbers: TypeAlias = "array[float]"
Value: TypeAlias = "str | Numbers | UnsupportedValue | ListValue | DictValue"


class ListValue:
    """A list or a tuple.

    :ivar numbers: numbers in it, in order.
    :ivar others: other values in it, in order.
    :ivar odd_at: number of numbers before the first other value.
    :ivar depth: depth of nesting, 1 if it contains no list or dict.
    :ivar frozen: whether nothing may be added: it is a tuple, or is contained in another list or dict.
    """

    __slots__ = ("depth", "frozen", "numbers", "odd_at", "others")

    def __init__(self, *, frozen: bool = False) -> None:
        self.numbers: Numbers = array("d")
        self.others: list[Value] = []
        self.odd_at = 0
        self.depth = 1
        self.frozen = frozen

    def extend(self, values: list[Value]) -> None:
        """Add values; an array stands for its numbers."""
        for value in values:
            if type(value) is array:
                if self.numbers:
                    self.numbers.extend(value)
                else:
                    # The array belongs to this list alone.
                    self.numbers = value
            else:
                self.depth = max(self.depth, _depth_around(value))
                if not self.others:
                    self.odd_at = len(self.numbers)
                self.others.append(value)


class DictValue:
    """A dict.

    :ivar items: values by keys that are text; a single number is an array of length one.
    :ivar depth: depth of nesting, 1 if it contains no list or dict.
    :ivar frozen: whether nothing may be set: it is contained in another list or dict.
    :ivar odd: whether there was a key that is not text. Its value is not kept, because chosen numbers could collide.
    """

    __slots__ = ("depth", "frozen", "items", "odd")

    def __init__(self) -> None:
        self.items: dict[str, Value] = {}
        self.depth = 1
        self.frozen = False
        self.odd = False

    def set(self, key: Value, value: Value) -> None:
        """Set one item."""
        self.depth = max(self.depth, _depth_around(value))
        if isinstance(key, str):
            self.items[key] = value
        elif isinstance(key, DictValue) or (isinstance(key, ListValue) and not key.frozen):
            raise WireError("a dict with a list or a dict for a key")
        else:
            self.odd = True

    def set_items(self, values: list[Value]) -> None:
        """Set items from keys and values in turn; an array stands for its numbers."""
        key: Value | None = None
        for value in values:
            count = len(value) if type(value) is array else 1
            if key is not None:
                self.set(key, value[:1] if type(value) is array else value)
                key = None
                count -= 1
            elif type(value) is not array:
                key = value
                continue
            # In the rest of a run, at least every second number is in the position of a key.
            if count > 1:
                self.odd = True
            if count % 2 and type(value) is array:
                key = value[-1:]
        if key is not None:
            raise WireError("a key without a value")


# As a tuple: isinstance takes five times as long with a union.
_CONTAINERS: Final = (ListValue, DictValue)


def _depth_around(value: Value) -> int:
    """Return the depth of a container that holds this value, and freeze the value.

    A container that is frozen once another one holds it keeps its depth, and cannot become part of a cycle. Picklers
    never add to such a container.
    """
    if isinstance(value, _CONTAINERS):
        value.frozen = True
        if value.depth >= MAX_DEPTH:
            raise WireError(TOO_DEEP)
        return value.depth + 1
    return 1


def describe(value: Value) -> str:
    """Return a description of a value, for a log line."""
    if isinstance(value, str):
        return f"text {shown_text(value)}"
    if isinstance(value, ListValue):
        return "a list"
    if isinstance(value, DictValue):
        return "a dict"
    return value.word if isinstance(value, UnsupportedValue) else "a number"
