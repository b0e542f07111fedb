"""The stack of the pickle machine: values, marks and the memo of one pickle, with the bounds on their number."""

from array import array
from typing import Final, NamedTuple

from gateway.wire.errors import WireError
from gateway.wire.values import MAX_CONTAINERS, NOTHING, TOO_MANY, DictValue, ListValue, Numbers, Value

#: Maximum instructions of one pickle. A number, and an instruction that appends a single number, do not count.
MAX_INSTRUCTIONS: Final = 65_536


class DoubleRun(NamedTuple):
    """Consecutive doubles of a pickle.

    :ivar start: position of the first one in the bytes that were handed in.
    :ivar end: position after the last one.
    :ivar numbers: array that holds them.
    """

    start: int
    end: int
    numbers: Numbers


class PickleStack:
    """The state of one pickle that is being read.

    :param limit: maximum bytes of a text.
    :ivar values: values on the stack; consecutive numbers are one array.
    :ivar done: whether STOP was read; the pickle's value is then in ``value``.
    :ivar runs: runs of doubles, up to a maximum number.
    :ivar skip: bytes of a long text or integer that are still to be skipped; -1: all up to the end of the line.
    :ivar is_in_text: whether the last number was in decimal text.
    """

    __slots__ = (
        "_containers",
        "_floor",
        "_marks",
        "_memo",
        "done",
        "instructions",
        "is_in_text",
        "limit",
        "runs",
        "skip",
        "value",
        "values",
    )

    def __init__(self, limit: int) -> None:
        self.done = False
        self.value: Value = NOTHING
        self.runs: list[DoubleRun] = []
        self.limit = limit
        self.instructions = 0
        self.skip = 0
        self.is_in_text = False
        self.values: list[Value] = []
        #: Height of the stack at the innermost MARK; nothing below it may be popped.
        self._floor = 0
        self._marks: list[int] = []
        self._memo: dict[int, Value] = {}
        self._containers = 0

    def count(self) -> None:
        """Count an instruction."""
        self.instructions += 1
        if self.instructions > MAX_INSTRUCTIONS:
            raise WireError("more instructions than any message needs")

    # -- pop

    def pop(self) -> Value:
        """Remove and return the top value; of a run of numbers, the last number."""
        top = self.top()
        if type(top) is array:
            number = top.pop()
            if not top:
                self.values.pop()
            return array("d", (number,))
        return self.values.pop()

    def top(self) -> Value:
        """Return the top value without removing it; a run of numbers counts as one."""
        if len(self.values) <= self._floor:
            raise WireError("an instruction without its operand")
        return self.values[-1]

    def top_list(self) -> ListValue:
        """Return the list on top, to which values are appended."""
        target = self.top()
        if not isinstance(target, ListValue) or target.frozen:
            raise WireError("an APPEND to a value that is not an open list")
        return target

    def top_dict(self) -> DictValue:
        """Return the dict on top, in which items are set."""
        target = self.top()
        if not isinstance(target, DictValue) or target.frozen:
            raise WireError("a SETITEM on a value that is not an open dict")
        return target

    def pop_result(self) -> Value:
        """Remove and return the only value: the value of the whole pickle."""
        if self._marks or len(self.values) != 1:
            raise WireError("a pickle with no value or with several")
        value = self.pop()
        if self.values:
            raise WireError("a pickle with no value or with several")
        return value

    # -- push

    def push_numbers(self, numbers: Numbers) -> None:
        """Push numbers; a run that was received in pieces is joined again."""
        stack = self.values
        if len(stack) > self._floor and type(stack[-1]) is array:
            stack[-1].extend(numbers)
        else:
            stack.append(numbers)

    def push_container(self, container: ListValue | DictValue) -> None:
        """Push a new list, tuple or dict."""
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            raise WireError(TOO_MANY)
        self.values.append(container)

    # -- marks

    def mark(self) -> None:
        """Push a MARK."""
        self._marks.append(self._floor)
        self._floor = len(self.values)

    def pop_mark(self) -> list[Value]:
        """Remove the innermost MARK; remove and return the values above it."""
        if not self._marks:
            raise WireError("an instruction without its MARK")
        values = self.values[self._floor :]
        del self.values[self._floor :]
        self._floor = self._marks.pop()
        return values

    # -- memo

    def memoize(self) -> None:
        """Store the top value at the next index of the memo."""
        self.put(len(self._memo))

    def put(self, index: int) -> None:
        """Store the top value in the memo."""
        if index > MAX_INSTRUCTIONS:
            raise WireError("a memo larger than any message needs")
        top = self.top()
        self._memo[index] = top[-1:] if type(top) is array else top

    def get(self, index: int) -> None:
        """Push a value of the memo."""
        value = self._memo.get(index)
        if value is None:
            raise WireError("a memo index that was never written")
        if type(value) is array:
            self.push_numbers(value[:])
        else:
            self.values.append(value)
