"""A pickle is data: replays the opcodes of a pickle and builds containers, numbers and texts, never an object.

Knows nothing of tensors. No global is imported, no callable is called but the ones handed in, and the
result is never walked, compared or printed here. Own interpreter, because the C one resolves extension
codes without asking, sizes its memo by an attacker's number, and hashes what it is given as a key.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loraforge.errors import FileError

MOST_BYTES, MOST_OPCODES, MOST_STACK, MOST_DEPTH = 256 << 20, 5_000_000, 100_000, 1_000
"""A SAT checkpoint with T5 and VAE has about 1 MB, 200,000 opcodes and a depth of 10."""


class HostileError(FileError):
    """The pickle is built to run code or to exhaust the reader."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """What stands where a pickle wanted an object of a type we do not build."""

    name: str


@dataclass(frozen=True, slots=True)
class Global:
    """A dotted name a pickle mentions."""

    name: str


_RUNS_CODE = frozenset(
    "os posix nt subprocess sys runpy importlib pty shutil socket ctypes code codeop webbrowser commands asyncio "
    "pdb bdb timeit cProfile profile pickle _pickle marshal operator pip pydoc urllib requests http platform.popen "
    "builtins.eval builtins.exec builtins.compile builtins.open builtins.__import__ builtins.breakpoint builtins.input "
    "torch.load torch.hub torch.jit torch.storage._load_from_bytes numpy.load numpy.testing".split()
)
"""Modules and functions no training checkpoint has a use for. Safety does not rest on this list: nothing
is ever imported. It lets us say that a file is hostile, instead of reading past it."""


_RUNS_CODE_ANYWHERE = frozenset(
    "os sys subprocess posix nt importlib ctypes builtins eval exec system popen __import__ __globals__".split()
)
"""The same behind any module, as in `somewhere.os.system`."""


def _runs_code(name: str) -> bool:
    words = name.replace("__builtin__", "builtins", 1).split(".")
    starts = any(".".join(words[:n]) in _RUNS_CODE for n in range(1, len(words) + 1))
    return starts or not _RUNS_CODE_ANYWHERE.isdisjoint(words[1:])


def load(
    data: bytes, where: str, calls: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]
) -> tuple[Any, tuple[str, ...]]:
    """The value a pickle describes, and the dotted names it mentions.

    `calls` maps the dotted names that may be called to what stands in for them; any other call gives
    an Opaque. `persistent` resolves persistent ids.

    Raises HostileError or FileError, naming the opcode or global met.
    """
    if len(data) > MOST_BYTES:
        raise HostileError(f"{where}: its pickle has {len(data)} bytes; no checkpoint needs more than {MOST_BYTES}.")
    machine = _Machine(where, calls, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            machine.count += 1
            if machine.count > MOST_OPCODES or len(machine.marks) > MOST_DEPTH or len(machine.stack) > MOST_STACK:
                raise HostileError(
                    f"{where}: its pickle is larger or deeper than any checkpoint's (opcode {machine.count})."
                )
            step = _STEPS.get(opcode.name)
            if step is None:
                raise HostileError(f"{where}: its pickle uses {opcode.name}, which no checkpoint needs.")
            step(machine, argument)
    except (HostileError, FileError):
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise FileError(f"{where}: its pickle is damaged ({type(error).__name__}: {error}).") from error
    return machine.result, tuple(sorted(machine.globals))


class _Machine:
    def __init__(self, where: str, calls: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]) -> None:
        self.where, self.calls, self.persistent = where, calls, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.globals: set[str] = set()
        self.count = 0
        self.result: Any = None

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
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

    def call(self, function: Any, arguments: Any) -> Any:
        known = self.calls.get(function.name) if isinstance(function, Global) else None
        if known is not None and isinstance(arguments, tuple):
            return known(*arguments)
        return Opaque(function.name if isinstance(function, Global | Opaque) else type(function).__name__)

    def set_items(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # a key is hashed: a deep tuple would overflow the stack, and huge numbers can all share one hash
                plain = key is None or isinstance(key, str | bytes) or (isinstance(key, int) and abs(key) < 1 << 63)
                target[key if plain else Opaque(type(key).__name__)] = value

    def build(self) -> None:
        self.stack.pop()  # the state of an object we did not build, or of an OrderedDict's attributes


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)


def _reduce(m: _Machine, _: Any) -> None:
    arguments = m.stack.pop()
    m.stack[-1] = m.call(m.stack[-1], arguments)


def _new(m: _Machine, count: int) -> None:
    del m.stack[-count:]
    m.stack[-1] = Opaque(getattr(m.stack[-1], "name", "object"))


def _stack_global(m: _Machine, _: Any) -> None:
    attribute, module = m.stack.pop(), m.stack.pop()
    if not (isinstance(attribute, str) and isinstance(module, str)):
        raise ValueError("a global is named by something else than text")
    m.push(m.name(f"{module}.{attribute}"))


def _object(m: _Machine, name: str | None) -> None:
    items = m.since_mark()
    m.push(Opaque(m.name(name.replace(" ", ".", 1)).name if name else getattr(items[0], "name", "object")))


def _tuple(size: int) -> Callable[[_Machine, Any], None]:
    def step(m: _Machine, _: Any) -> None:
        if len(m.stack) < size:
            raise IndexError("stack underflow")
        items = tuple(m.stack[len(m.stack) - size :])
        del m.stack[len(m.stack) - size :]
        m.push(items)

    return step


def _set_items(m: _Machine, _: Any) -> None:
    items = m.since_mark()
    m.set_items(m.stack[-1], items)


def _append(m: _Machine, _: Any) -> None:
    item = m.stack.pop()
    _extend(m.stack[-1], [item])


def _set_item(m: _Machine, _: Any) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.set_items(m.stack[-1], [key, value])


def _appends(m: _Machine, _: Any) -> None:
    items = m.since_mark()
    _extend(m.stack[-1], items)


def _dictionary(m: _Machine, _: Any) -> None:
    items, table = m.since_mark(), dict[Any, Any]()
    m.set_items(table, items)
    m.push(table)


def _opaque_set(m: _Machine, _: Any) -> None:
    m.since_mark()
    m.push(Opaque("builtins.frozenset"))


def _pop(m: _Machine, _: Any) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.since_mark()


def _forget(m: _Machine, _: Any) -> None:
    m.since_mark()


def _stop(m: _Machine, _: Any) -> None:
    if m.marks:
        raise ValueError("a mark is never closed")
    m.result = m.stack.pop()


def _nothing(m: _Machine, _: Any) -> None:
    pass


def _literal(m: _Machine, value: Any) -> None:
    m.push(value)


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda m, _: m.push(value)


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(
        "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
        "SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split(),
        _literal,
    ),
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": _tuple(0),
    "EMPTY_SET": _constant(Opaque("builtins.set")),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "LIST": lambda m, _: m.push(m.since_mark()),
    "DICT": _dictionary,
    "FROZENSET": _opaque_set,
    "MARK": lambda m, _: m.mark(),
    "POP": _pop,
    "POP_MARK": _forget,
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _forget,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "PUT": lambda m, i: m.put(i),
    "BINPUT": lambda m, i: m.put(i),
    "LONG_BINPUT": lambda m, i: m.put(i),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "GET": lambda m, i: m.push(m.memo[i]),
    "BINGET": lambda m, i: m.push(m.memo[i]),
    "LONG_BINGET": lambda m, i: m.push(m.memo[i]),
    "GLOBAL": lambda m, name: m.push(m.name(name.replace(" ", ".", 1))),
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": lambda m, _: m.push(m.persistent(m.stack.pop())),
    "REDUCE": _reduce,
    "NEWOBJ": lambda m, _: _new(m, 1),
    "NEWOBJ_EX": lambda m, _: _new(m, 2),
    "INST": _object,
    "OBJ": _object,
    "BUILD": lambda m, _: m.build(),
    "STOP": _stop,
}
"""Extension codes, out-of-band buffers and textual persistent ids are missing on purpose."""
