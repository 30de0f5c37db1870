"""A manifest refuses another image or video than that of its run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from loraforge.errors import LoraforgeError
from loraforge.live.manifest import check_inputs
from loraforge.live.plan import RunPlan


@pytest.mark.parametrize("name", ["image", "video"])
def test_another_file_of_the_same_name_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"before")
    base: Any = None  # is not looked at
    plan = RunPlan(base, (), "CogVideoX-5B", {}, (), inputs={name: file})
    manifest: dict[str, Any] = {"image": None, "video": None, name: str(file), "adapters": []}
    manifest["inputs"] = {name: hashlib.sha256(b"before").hexdigest()}
    check_inputs(manifest, plan)
    file.write_bytes(b"after")
    with pytest.raises(LoraforgeError, match=f"is not the {name} of the manifest"):
        check_inputs(manifest, plan)
