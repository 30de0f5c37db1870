"""A file is mapped once, whoever asks for it first."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loraforge.files import mapped


def test_threads_that_come_together_get_one_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two maps would close each other's handle, and a reader would get EBADF."""
    (tmp_path / "x").write_bytes(b"1234")
    known = mapped.state_of

    def slowly(file: Path | int) -> mapped.State:
        time.sleep(0.01)
        return known(file)

    made = list[object]()
    guard = mapped._guard

    def counted(memory: Any, pages: Any) -> None:
        made.append(memory)
        guard(memory, pages)

    monkeypatch.setattr(mapped, "state_of", slowly)
    monkeypatch.setattr(mapped, "_guard", counted)
    file = mapped.FileMap(tmp_path / "x")
    with ThreadPoolExecutor(8) as pool:
        maps = list(pool.map(lambda _: file.memory(), range(8)))
    assert len(made) == 1
    assert bytes(maps[0]) == b"1234"
