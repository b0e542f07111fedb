"""Plain data as it comes off the wire, pickled or in JSON: text, numbers, lists, tuples and dicts.

Only data that a message can hold is kept. Numbers are kept as doubles in an array, eight bytes each; values that
messages never hold (None, booleans, text too long for any name, numbers that exceed a double) become an
:class:`UnsupportedValue`. So a frame costs a small multiple of its own size, whatever its content.
"""

from array import array
from typing import Final, TypeAlias

from gateway.wire.errors import WireError, shown_text

#: ``("DataUpdate", {sensor: {"data": [...]}})`` is a tuple of a dict of dicts of lists.
MAX_DEPTH: Final = 4

#: Lists, tuples and dicts in one frame; a sensor takes two.
MAX_CONTAINERS: Final = 4096

TOO_DEEP: Final = "lists and dicts are nested deeper than any message needs"
TOO_MANY: Final = "more lists and dicts than any message needs"


class UnsupportedValue:
    """Placeholder for a value that messages never hold, and that is not kept.

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

    :ivar numbers: the numbers in it, in order.
    :ivar others: everything else in it, in order.
    :ivar odd_at: number of numbers before the first of these.
    :ivar frozen: nothing can be added any more, for it is a tuple or stands in another container.
    """

    __slots__ = ("depth", "frozen", "numbers", "odd_at", "others")

    def __init__(self, *, frozen: bool = False) -> None:
        self.numbers: Numbers = array("d")
        self.others: list[Value] = []
        self.odd_at = 0
        self.depth = 1
        self.frozen = frozen

    def extend(self, values: list[Value]) -> None:
        for value in values:
            if type(value) is array:
                if self.numbers:
                    self.numbers.extend(value)
                else:
                    # Nobody else has it.
                    self.numbers = value
            else:
                self.depth = max(self.depth, _depth_around(value))
                if not self.others:
                    self.odd_at = len(self.numbers)
                self.others.append(value)


class DictValue:
    """A dict.

    :ivar items: what stands under text; a number alone is an array of one.
    :ivar odd: whether anything stood under a key that is no text. It is not kept: chosen numbers would collide.
    """

    __slots__ = ("depth", "frozen", "items", "odd")

    def __init__(self) -> None:
        self.items: dict[str, Value] = {}
        self.depth = 1
        self.frozen = False
        self.odd = False

    def set(self, key: Value, value: Value) -> None:
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
    """The depth of a container that holds this value, which from here on stays as it is.

    That a container is frozen once it stands in another keeps depths true and cycles out. The pickler never adds
    to a container that it has put away.
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
