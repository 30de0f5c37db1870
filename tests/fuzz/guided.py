"""Fuzzes one parser: what reaches a line after a line as no input before it is changed further."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from fuzz.mutate import changed
from fuzz.parsers import Parser
from fuzz.watch import Watch
from loraforge.errors import LoraforgeError

ROOT = Path(__file__).parents[2] / "loraforge"
_watch: dict[str, Watch] = {}


def watched(root: Path, hosts: tuple[str, ...] = ()) -> Watch:
    """The watch of this process."""
    watch = _watch.setdefault("", Watch(root, hosts=hosts))
    watch.root = str(root.resolve())
    return watch


class Reached:
    """The pairs of lines, one after the other, that were reached in some files so far."""

    def __init__(self, files: tuple[str, ...]) -> None:
        self.names = {str(ROOT / f"{file}.py") for file in files}
        self.ever, self.now = set[tuple[int, int, int]](), set[tuple[int, int, int]]()
        self.traces = bool(files) and sys.gettrace() is None  # not under coverage.py

    def _global(self, frame: FrameType, _event: str, _value: Any) -> Any:
        if frame.f_code.co_filename not in self.names:
            return None
        code, last = id(frame.f_code), [0]

        def local(frame: FrameType, event: str, _value: Any) -> Any:
            if event == "line":
                self.now.add((code, last[0], frame.f_lineno))
                last[0] = frame.f_lineno
            return local

        return local

    def during(self, call: Callable[[], object]) -> Callable[[], object]:
        def traced() -> None:
            sys.settrace(self._global)
            try:
                call()
            finally:
                sys.settrace(None)

        return traced if self.traces else call

    def is_new(self) -> bool:
        fresh = not self.now <= self.ever
        self.ever |= self.now
        self.now = set()
        return fresh


def part(parser: Parser) -> Callable[[Path, Random, Callable[[], bool]], Iterator[list[dict[str, Any]]]]:
    """What run.py calls: the seeds as they are, then changes of them and of what was new.

    The folder in FUZZ_CORPUS keeps what was new, for the next run: under coverage.py nothing is traced here.
    """

    def executions(place: Path, rng: Random, go_on: Callable[[], bool]) -> Iterator[list[dict[str, Any]]]:
        kept = Path(os.environ["FUZZ_CORPUS"], parser.name) if "FUZZ_CORPUS" in os.environ else None
        findings = sorted((Path(__file__).parent / "findings").glob(f"{parser.name}.*"))
        corpus = [*parser.seeds(), *(path.read_bytes() for path in findings)]
        reached, number = Reached(parser.files), 0
        corpus += [path.read_bytes() for path in sorted(kept.iterdir())] if kept and kept.is_dir() else []
        watch = watched(place.parent)
        while go_on():
            if number < len(corpus):
                data = corpus[number]
            else:
                data = changed(parser.change, rng, rng.choice(corpus[-40:] if rng.random() < 0.5 else corpus))
                while rng.random() < 0.25:
                    data = changed(parser.change, rng, data)
            number += 1
            folder = place / f"{number}"
            folder.mkdir()

            def call(data: bytes = data, folder: Path = folder) -> None:
                with suppress(LoraforgeError):
                    parser.read(data, folder)

            wrong = watch.faults(reached.during(call), len(data) + (1 << 20))
            if reached.is_new() and len(data) < 100_000 and data not in corpus:
                corpus.append(data)
                if kept:
                    kept.mkdir(parents=True, exist_ok=True)
                    (kept / sha256(data).hexdigest()[:16]).write_bytes(data)
            shutil.rmtree(folder)
            yield [{"what": f"{parser.name}: {line}", "input": data} for line in wrong]

    return executions
