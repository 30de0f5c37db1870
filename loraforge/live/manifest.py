"""The manifest of a run: everything the run depended on, so that it can be repeated with the same latents."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraforge._version import __version__
from loraforge.errors import LoraforgeError
from loraforge.files.digest import scan
from loraforge.files.texts import read_json
from loraforge.foreign import reading
from loraforge.live.plan import RunPlan
from loraforge.live.runner import versions
from loraforge.text import command, recorded, told

SCHEMA = "loraforge.manifest.v1"


def check_inputs(manifest: Mapping[str, Any], plan: RunPlan) -> None:
    """Raise LoraforgeError if an adapter, the image or the video is not the one of this run."""
    for part, (adapter, _) in zip(manifest["adapters"], plan.adapters, strict=True):
        if adapter.source and scan(adapter.source.file, adapter.keys) != part["digest"]:
            text = f"{told(adapter.source.path)} has changed since the manifest was written: its tensors differ."
            raise LoraforgeError(text, command("loraforge", "inspect", adapter.source.path))
    for name, path in plan.inputs.items():
        before = manifest["inputs"].get(name)
        if before and str(path) == manifest[name] and _digest(path) != before:
            raise LoraforgeError(f"{path} is not the {name} of the manifest.")


def manifest_of(
    plan: RunPlan, latents: str, folder: Path, *, factor: float, stated: Mapping[str, Any], **how: Any
) -> dict[str, Any]:
    """The manifest of a run that gave `latents` at `factor` times the plan's strengths; it is written to `folder`.

    `how` has the fields anyway, device, offload, tiling and slicing. It follows schemas/manifest.schema.json.
    """
    adapters = []
    for adapter, strength in plan.adapters:
        source, scale = adapter.source, f"{adapter.scale.provenance}: {adapter.scale.portable}"
        path = _path(source.path, folder) if source else "made-in-python"
        digest = scan(source.file, adapter.keys) if source else ""
        part = {"path": path, "digest": digest, "strength": factor * strength}
        adapters.append({**part, "scalings": adapter.scalings, "scale": scale})
    return {
        "schema": SCHEMA, "base": _path(plan.base.path, folder), "variant": plan.variant, "pipeline": plan.pipeline,
        "adapters": adapters, "stated": stated, "prompt": plan.prompt, "negative_prompt": plan.negative_prompt,
        "image": None, "video": None, **{name: _path(path, folder) for name, path in plan.inputs.items()},
        "inputs": {name: _digest(path) for name, path in plan.inputs.items()}, "settings": plan.settings, **how,
        "latents": latents, "versions": versions(), "tool": f"loraforge {__version__}",
    }  # fmt: skip


def _path(path: Path, folder: Path) -> str:
    """The path as it is recorded: a Hub address with its commit, an absolute path, or one relative to `folder`."""
    if (pinned := recorded(path)).startswith("hf://"):
        return pinned
    return str(path) if path.is_absolute() else Path(os.path.relpath(path, folder)).as_posix()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest; its relative paths are resolved against its own folder. Raises FileError if it is not one."""
    from loraforge.plugin.schema_check import first_fault

    what = "a manifest of `loraforge run`"
    manifest = read_json(path, what)
    with reading(path, what):
        if fault := first_fault(manifest, "manifest"):
            raise ValueError(fault)
    named = [(manifest, key) for key in ("base", "image", "video")]
    for table, key in (*named, *((part, "path") for part in manifest["adapters"])):
        text = table[key]
        if text and not text.startswith("hf://") and not Path(text).is_absolute():
            table[key] = str(path.parent / text)
    return manifest
