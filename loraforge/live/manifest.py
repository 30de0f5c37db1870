"""The manifest of a run: everything the run depended on, so that it can be repeated with the same latents."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loraforge._version import __version__
from loraforge.errors import FileError, LoraforgeError
from loraforge.files.digest import scan
from loraforge.live.plan import RunPlan
from loraforge.live.runner import versions
from loraforge.text import command, recorded, told

SCHEMA = "loraforge.manifest.v1"


@dataclass(frozen=True, slots=True)
class Part:
    """An adapter of a run."""

    path: str
    """As it was typed; for the Hub, with the commit."""
    digest: str
    """Of the adapter's tensors; a file that has changed is not run again."""
    strength: float
    scalings: tuple[float, ...]
    scale: str
    """How well the scale of training is known, and from what source."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A run that was made. Its JSON follows schemas/manifest.schema.json."""

    base: str
    variant: str
    pipeline: str
    adapters: tuple[Part, ...]
    stated: dict[str, Any]
    """What the user stated about the scale of training: options of `run` and their values."""
    prompt: str
    negative_prompt: str
    image: str | None
    video: str | None
    inputs: dict[str, str]
    """`image` or `video` -> the sha256 of that file."""
    settings: dict[str, Any]
    anyway: bool
    """Whether the user allowed settings that are wrong for the model."""
    device: str
    offload: str
    tiling: bool
    slicing: bool
    latents: str
    """Digest of the latents at full strength, in float32."""
    versions: dict[str, str]
    tool: str = f"loraforge {__version__}"

    def text(self) -> str:
        """The JSON text of the file."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    def check(self, plan: RunPlan) -> None:
        """Raise LoraforgeError if an adapter, the image or the video is not the one of this run."""
        for part, (adapter, _) in zip(self.adapters, plan.adapters, strict=True):
            if adapter.source and scan(adapter.source.file, adapter.keys) != part.digest:
                text = f"{told(adapter.source.path)} has changed since the manifest was written: its tensors differ."
                raise LoraforgeError(text, command("loraforge", "inspect", adapter.source.path))
        for name, path in plan.inputs.items():
            if name in self.inputs and str(path) == getattr(self, name) and _digest(path) != self.inputs[name]:
                raise LoraforgeError(f"{path} is not the {name} of the manifest.", command("ls", "-l", str(path)))


def manifest_of(plan: RunPlan, latents: str, folder: Path, *, factor: float, **how: Any) -> Manifest:
    """The manifest of a run that gave `latents` at `factor` times the plan's strengths; it is written to `folder`.

    `how` has the fields stated, anyway, device, offload, tiling and slicing.
    """
    parts = []
    for adapter, strength in plan.adapters:
        source, scale = adapter.source, f"{adapter.scale.provenance}: {adapter.scale.portable}"
        path = _path(source.path, folder) if source else "made-in-python"
        digest = scan(source.file, adapter.keys) if source else ""
        parts.append(Part(path, digest, factor * strength, adapter.scalings, scale))
    return Manifest(
        base=_path(plan.base.path, folder), variant=plan.variant, pipeline=plan.pipeline, adapters=tuple(parts),
        prompt=plan.prompt, negative_prompt=plan.negative_prompt, settings=plan.settings, latents=latents,
        image=_path(plan.image, folder) if plan.image else None,
        video=_path(plan.video, folder) if plan.video else None,
        inputs={name: _digest(path) for name, path in plan.inputs.items()}, versions=versions(), **how,
    )  # fmt: skip


def _path(path: Path, folder: Path) -> str:
    """The path as it is recorded: a Hub address with its commit, an absolute path, or one relative to `folder`."""
    if (pinned := recorded(path)).startswith("hf://"):
        return pinned
    return str(path) if path.is_absolute() else Path(os.path.relpath(path, folder)).as_posix()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; its relative paths are resolved against its own folder. Raises FileError if it is not one."""
    from loraforge.plugin.schema_check import first_fault

    try:
        document = json.loads(path.read_text("utf-8"))
        fault = first_fault(document, "manifest")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}.", command("ls", "-l", path.parent)) from error
    except (ValueError, RecursionError) as error:
        fault = str(error).partition("\n")[0][:200]
    if fault:
        raise FileError(f"{path} is no manifest of `loraforge run`: {fault}.", command("ls", "-l", path))
    fields = {key: value for key, value in document.items() if key != "schema"}
    for key in ("base", "image", "video"):
        fields[key] = fields[key] and _resolved(fields[key], path.parent)
    for part in fields["adapters"]:
        part |= {"path": _resolved(part["path"], path.parent), "scalings": tuple(part["scalings"])}
    return Manifest(**{**fields, "adapters": tuple(Part(**part) for part in fields["adapters"])})


def _resolved(text: str, folder: Path) -> str:
    return text if text.startswith("hf://") or Path(text).is_absolute() else str(folder / text)
