from __future__ import annotations

from pathlib import Path

import pytest
from helpers.hub import Hub
from helpers.oracle import Case
from helpers.pushed import BASE


@pytest.fixture
def style(hub: Hub, tmp_path: Path) -> Path:
    """A file as `convert` leaves it, and the base model's card on the Hub."""
    hub.add(BASE, {"README.md": b"---\nlicense: other\nlicense_link: LICENSE\n---\n# 5B\n"})
    out = tmp_path / "made" / "style"
    run = Case("sat_5b_r8").run(tmp_path / "run")
    done = hub.run("convert", run, "--to", "diffusers", "--base-model", "THUDM/CogVideoX-5b", "-o", out)
    assert done.returncode == 0, done.stderr
    hub.log.clear()
    return out
