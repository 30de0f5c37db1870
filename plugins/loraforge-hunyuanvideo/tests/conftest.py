"""No plugins but those a test loads; and the tests may import what they share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraforge.plugin.registry import Registry, use

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plugins but those a test loads, as --plugin does, and none in the next test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.setenv("LORAFORGE_PLUGINS", "")
    yield
    use(Registry())
