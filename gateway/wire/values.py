"""Plain data as it comes off the wire, pickled or in JSON: text, numbers, lists, tuples and dicts.

Only what a message can hold is kept. Numbers are kept as doubles in an array, eight bytes each; values that no
message holds (None, booleans, text too long for any name, numbers beyond a double) are all :data:`ODD`. So a frame
costs a small multiple of its own size, whatever it says.
"""

from array import array
from typing import Any, Final, TypeAlias

from gateway.wire.errors import WireError

#: ``("DataUpdate", {sensor: {"data": [...]}})`` is a tuple of a dict of dicts of lists.
MAX_DEPTH: Final = 4

#: Lists, tuples and dicts in one frame; a sensor takes two.
MAX_CONTAINERS: Final = 4096


class Odd:
    """The type of :data:`ODD`."""

    __slots__ = ()


ODD: Final = Odd()

Numbers: TypeAlias = "array[float]"
Value: TypeAlias = "str | Numbers | Odd | Sequence | Mapping"


class Sequence:
    """A list or a tuple.

    :ivar numbers: the numbers in it, in order.
    :ivar others: everything else in it, in order.
    :ivar frozen: nothing can be added any more, for it is a tuple or stands in another container.
    """

    __slots__ = ("depth", "frozen", "numbers", "others")

    def __init__(self, *, frozen: bool = False) -> None:
        self.numbers: Numbers = array("d")
        self.others: list[Value] = []
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
                self.others.append(value)


class Mapping:
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
        elif isinstance(key, Mapping) or (isinstance(key, Sequence) and not key.frozen):
            raise WireError("a dict with a list or a dict for a key")
        else:
            self.odd = True


# As a tuple: isinstance takes five times as long with a union.
_CONTAINERS: Final = (Sequence, Mapping)


def _depth_around(value: Value) -> int:
    """The depth of a container that holds this value, which from here on stays as it is.

    That a container is frozen once it stands in another keeps depths true and cycles out. The pickler never adds
    to a container that it has put away.
    """
    if isinstance(value, _CONTAINERS):
        value.frozen = True
        if value.depth >= MAX_DEPTH:
            raise WireError("nested too deep")
        return value.depth + 1
    return 1


def from_json(value: Any, depth: int = MAX_DEPTH) -> Value:
    """The same for what ``json.loads`` built.

    :param depth: how deep it may be nested.
    :raises WireError: it is nested deeper.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list | dict) and depth == 0:
        raise WireError("nested too deep")
    if isinstance(value, list):
        sequence = Sequence()
        if set(map(type, value)) <= {int, float}:
            sequence.numbers = _doubles(value)
            if len(sequence.numbers) < len(value):
                sequence.others.append(ODD)
        elif len(value) > MAX_CONTAINERS:
            # Whatever it holds: a long list of a message holds numbers only.
            sequence.others.append(ODD)
        else:
            sequence.extend([from_json(item, depth - 1) for item in value])
        return sequence
    if isinstance(value, dict):
        mapping = Mapping()
        for key, item in value.items():
            mapping.set(key, from_json(item, depth - 1))
        return mapping
    if type(value) in {int, float}:
        return _doubles([value]) or ODD
    return ODD


def _doubles(numbers: list[int | float]) -> Numbers:
    try:
        return array("d", numbers)
    except OverflowError:  # an integer beyond a double
        return array("d")
