"""An interpreter of pickles that knows what weights need and nothing else.

A pickle is a program for a small machine. Python's own runs it as it is, and a few hundred bytes
may have it hash a tuple of 2^40 parts, or copy one dictionary a million times. This one builds
texts, numbers, tuples, lists, dictionaries and what a table of known names makes of them; every
operation takes time and memory in proportion to the file's bytes.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol, runtime_checkable

from pyratok_jax.errors import quoted, short

MAX_OPERATIONS = 1 << 21
_MAX_KEY = 1 << 63
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_IGNORED = {"PROTO", "FRAME"}


class RefusedError(Exception):
    """Something in a pickle that no weights need."""


@runtime_checkable
class Stateful(Protocol):
    """What a known name makes, where a pickle gives it a state later."""

    def set_state(self, state: object) -> None:
        """Take the state. Raises: RefusedError."""


Known = Mapping[tuple[str, str], object]


def run(file: BinaryIO, known: Known, persistent: Callable[[object], object]) -> object:
    """What a pickle builds; the file is left behind it.

    Args:
        file: at the pickle's beginning.
        known: by module and name; those that are functions may be called, with the arguments that
            the file gives.
        persistent: makes an object of the identity of one that lies elsewhere.

    Raises:
        RefusedError: an operation, name or value that no weights need.
        Exception: whatever a damaged pickle comes to.
    """
    machine = _Machine(known, persistent)
    for number, (operation, argument, _) in enumerate(pickletools.genops(file), start=1):
        if number > MAX_OPERATIONS:
            raise RefusedError(f"more than {MAX_OPERATIONS} operations")
        if operation.name == "STOP":
            return machine.stack.pop()
        machine.do(operation.name, argument)
    raise EOFError("it ends before its end")


class _Machine:
    def __init__(self, known: Known, persistent: Callable[[object], object]) -> None:
        self.stack: list[Any] = []
        self._known, self._persistent = known, persistent
        self._below: list[list[Any]] = []  # Of each mark, what was there before it.
        self._memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """One operation with the argument that follows it in the file."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        elif name not in _IGNORED:
            raise RefusedError(f"the operation {name}")

    def mark(self, _: None) -> None:
        self._below.append(self.stack)
        self.stack = []

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._marked()

    def pop_mark(self, _: None) -> None:
        self._marked()

    def duplicate(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def put(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else int(place)] = self.stack[-1]

    def get(self, place: int) -> None:
        self.stack.append(self._memo[int(place)])

    def empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def tuple_of_marked(self, _: None) -> None:
        items = tuple(self._marked())
        self.stack.append(items)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise RefusedError("a tuple of nothing")
        items = tuple(self.stack[-count:])
        self.stack[-count:] = [items]

    def empty_list(self, _: None) -> None:
        self.stack.append([])

    def list_of_marked(self, _: None) -> None:
        items = self._marked()
        self.stack.append(items)

    def append(self, _: None) -> None:
        item = self.stack.pop()
        self._list().append(item)

    def appends(self, _: None) -> None:
        items = self._marked()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise RefusedError("entries of what is no list")
        return self.stack[-1]

    def empty_dict(self, _: None) -> None:
        self.stack.append({})

    def dict_of_marked(self, _: None) -> None:
        items = self._marked()
        self.stack.append({})
        self._set(items)

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_items(self, _: None) -> None:
        items = self._marked()
        self._set(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedError("entries of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A tuple's hash takes as long as it has parts, however often they are the same one.
            plain = key is None or isinstance(key, str | float) or (
                isinstance(key, int) and abs(key) < _MAX_KEY
            )  # fmt: skip
            if not plain:
                raise RefusedError(f"a dictionary with a {type(key).__name__} for a key")
            target[key] = value

    def name(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self._push_known(module, name)

    def name_of_stack(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_known(module, name)

    def _push_known(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("a name that is no text")
        if (module, name) not in self._known:
            raise RefusedError(short(f"{module}.{name}", 100))
        self.stack.append(self._known[module, name])

    def call(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not callable(function) or not isinstance(arguments, tuple):
            raise RefusedError("a call of what is no function")
        self.stack.append(function(*arguments))

    def build(self, _: None) -> None:
        state = self.stack.pop()
        # Attributes of dictionaries are not needed.
        if isinstance(self.stack[-1], Stateful):
            self.stack[-1].set_state(state)

    def find(self, _: None) -> None:
        self.stack.append(self._persistent(self.stack.pop()))


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark, "POP": _Machine.pop, "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "PUT": _Machine.put, "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get, "BINGET": _Machine.get, "LONG_BINGET": _Machine.get,
    "EMPTY_TUPLE": _Machine.empty_tuple, "TUPLE": _Machine.tuple_of_marked,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "EMPTY_LIST": _Machine.empty_list, "LIST": _Machine.list_of_marked,
    "APPEND": _Machine.append, "APPENDS": _Machine.appends,
    "EMPTY_DICT": _Machine.empty_dict, "DICT": _Machine.dict_of_marked,
    "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name, "STACK_GLOBAL": _Machine.name_of_stack,
    "REDUCE": _Machine.call, "BUILD": _Machine.build, "BINPERSID": _Machine.find,
}  # fmt: skip


def whole_number(value: object, most: int, what: str) -> int:
    """A number of a pickle that is within 0 .. `most`.

    Raises:
        RefusedError: it is not.
    """
    if not isinstance(value, int) or not 0 <= value <= most:
        found = quoted(value) if isinstance(value, int | float | str) and _is_short(value) else ""
        raise RefusedError(f"{what} {found or type(value).__name__}")
    return int(value)


def _is_short(value: float | str) -> bool:
    return abs(value) < _MAX_KEY if isinstance(value, int | float) else len(value) < 1000
