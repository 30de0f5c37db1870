"""Reads a pickle as data: replays its opcodes and builds containers, numbers and texts, never an object.

Knows nothing of tensors. No global is imported, only the callables passed in are called, and the result is
never walked, compared or printed here. This is an interpreter of our own, because the one in C resolves extension
codes without asking, sizes its memo by a number from the file, and hashes any object as a key.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loraforge.errors import FileError
from loraforge.foreign import reading

MOST_BYTES, MOST_OPCODES, MOST_STACK, MOST_DEPTH = 256 << 20, 5_000_000, 100_000, 1_000
"""A SAT checkpoint with T5 and VAE has about 1 MB, 200,000 opcodes and a depth of 10."""


class HostileError(FileError):
    """The pickle is built to run code or to exhaust the reader."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """In place of an object of a type that is not built: its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Global:
    """A dotted name in a pickle, which is not imported."""

    name: str


_RUNS_CODE = frozenset(
    "os posix nt subprocess sys runpy importlib pty shutil socket ctypes code codeop webbrowser commands asyncio "
    "pdb bdb timeit cProfile profile pickle _pickle marshal operator pip pydoc urllib requests http platform.popen "
    "builtins.eval builtins.exec builtins.compile builtins.open builtins.__import__ builtins.breakpoint builtins.input "
    "torch.load torch.hub torch.jit torch.storage._load_from_bytes numpy.load numpy.testing".split()
)
"""Modules and functions that no training checkpoint needs. Safety does not depend on this list, because nothing
is ever imported: it is there to call a file hostile instead of ignoring the name."""

_RUNS_CODE_ANYWHERE = frozenset(
    "os sys subprocess posix nt importlib ctypes builtins eval exec system popen __import__ __globals__".split()
)
"""The same after any module, as in `somewhere.os.system`."""


def _runs_code(name: str) -> bool:
    words = name.replace("__builtin__", "builtins", 1).split(".")
    starts = any(".".join(words[:n]) in _RUNS_CODE for n in range(1, len(words) + 1))
    return starts or not _RUNS_CODE_ANYWHERE.isdisjoint(words[1:])


def load(
    data: bytes, where: str, calls: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]
) -> tuple[Any, tuple[str, ...]]:
    """The value that a pickle describes, and the dotted names in it, sorted.

    `calls` maps the dotted names that may be called to the functions called in their place; any other call gives
    an Opaque. `persistent` resolves persistent ids.

    Raises HostileError or FileError that names the opcode or the global.
    """
    if len(data) > MOST_BYTES:
        raise HostileError(f"{where}: its pickle has {len(data)} bytes; no checkpoint needs more than {MOST_BYTES}.")
    machine = _Machine(where, calls, persistent)
    with reading(where, "data: its pickle is damaged"):
        for opcode, argument, _ in pickletools.genops(data):
            machine.count += 1
            if machine.count > MOST_OPCODES or len(machine.marks) > MOST_DEPTH or len(machine.stack) > MOST_STACK:
                what = f"larger or deeper than any checkpoint's (opcode {machine.count})"
                raise HostileError(f"{where}: its pickle is {what}.")
            if opcode.name not in _STEPS:
                raise HostileError(f"{where}: its pickle uses {opcode.name}, which no checkpoint needs.")
            _STEPS[opcode.name](machine, argument)
        if machine.marks:
            raise ValueError("a mark is never closed")
        return machine.stack.pop(), tuple(sorted(machine.globals))


class _Machine:
    def __init__(self, where: str, calls: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]) -> None:
        self.where, self.calls, self.persistent = where, calls, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.globals: set[str] = set()
        self.count = 0

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def last(self, count: int) -> list[Any]:
        """The `count` topmost values, taken off the stack."""
        start = len(self.stack) - count
        if start < 0:
            raise IndexError("stack underflow")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def put(self, index: int) -> None:
        if index > self.count:  # picklers number their memo as they go
            raise HostileError(f"{self.where}: its pickle asks for memo slot {index} at opcode {self.count}.")
        self.memo[index] = self.stack[-1]

    def name(self, dotted: str) -> Global:
        if _runs_code(dotted):
            raise HostileError(
                f"{self.where}: its pickle calls for {dotted}, which runs code. This is no training checkpoint. "
                "Nothing of it was run. Delete it, and tell whoever shared it."
            )
        self.globals.add(dotted)
        return Global(dotted)

    def stack_global(self) -> None:
        module, attribute = self.last(2)
        if not (isinstance(attribute, str) and isinstance(module, str)):
            raise ValueError("a global is named by something else than text")
        self.push(self.name(f"{module}.{attribute}"))

    def reduce(self) -> None:
        function, arguments = self.last(2)
        known = self.calls.get(function.name) if isinstance(function, Global) else None
        if known is not None and isinstance(arguments, tuple):
            self.push(known(*arguments))
        else:
            self.opaque(function, arguments, default=type(function).__name__)

    def opaque(self, kind: Any, *_arguments: Any, default: str = "object") -> None:
        """Push an Opaque in place of the object that a type or a function would make."""
        self.push(Opaque(kind.name if isinstance(kind, Global | Opaque) else default))

    def append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if isinstance(target := self.stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # a key is hashed: a deep tuple would overflow the stack, and huge numbers can all share one hash
                plain = key is None or isinstance(key, str | bytes) or (isinstance(key, int) and abs(key) < 1 << 63)
                target[key if plain else Opaque(type(key).__name__)] = value

    def dictionary(self) -> None:
        items = self.since_mark()
        self.push({})
        self.set_items(items)


_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(
        "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
        "SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split(),
        _Machine.push,
    ),
    **dict.fromkeys("PROTO FRAME STOP".split(), lambda *_: None),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_SET": lambda m, _: m.push(Opaque("builtins.set")),
    "TUPLE1": lambda m, _: m.push(tuple(m.last(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.last(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.last(3))),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "LIST": lambda m, _: m.push(m.since_mark()),
    "DICT": lambda m, _: m.dictionary(),
    "FROZENSET": lambda m, _: m.opaque(Opaque("builtins.frozenset"), m.since_mark()),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.stack.pop() if m.stack else m.since_mark(),
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "APPEND": lambda m, _: m.append(m.last(1)),
    "APPENDS": lambda m, _: m.append(m.since_mark()),
    "ADDITEMS": lambda m, _: m.since_mark(),
    "SETITEM": lambda m, _: m.set_items(m.last(2)),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    **dict.fromkeys("PUT BINPUT LONG_BINPUT".split(), _Machine.put),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    **dict.fromkeys("GET BINGET LONG_BINGET".split(), lambda m, slot: m.push(m.memo[slot])),
    "GLOBAL": lambda m, name: m.push(m.name(name.replace(" ", ".", 1))),
    "STACK_GLOBAL": lambda m, _: m.stack_global(),
    "BINPERSID": lambda m, _: m.push(m.persistent(m.stack.pop())),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.opaque(*m.last(2)),
    "NEWOBJ_EX": lambda m, _: m.opaque(*m.last(3)),
    "INST": lambda m, name: m.opaque(m.name(name.replace(" ", ".", 1)), m.since_mark()),
    "OBJ": lambda m, _: m.opaque(m.since_mark()[0]),
    "BUILD": lambda m, _: m.stack.pop(),  # the state of an object that is not built, or an OrderedDict's attributes
}
"""Extension codes, out-of-band buffers and textual persistent ids are missing on purpose."""
