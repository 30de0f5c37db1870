"""The manifest of a run: everything it depended on, so that it can be repeated to the last bit of the latents."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loraforge._version import __version__
from loraforge.errors import FileError, LoraforgeError
from loraforge.facts.given_settings import Settings, checked
from loraforge.files.digest import scan
from loraforge.live.plan import RunPlan
from loraforge.live.runner import versions
from loraforge.text import command, recorded, told

SCHEMA = "loraforge.manifest.v1"


@dataclass(frozen=True, slots=True)
class Part:
    """An adapter of a run."""

    path: str
    """As it was typed; of the Hub, with its commit."""
    digest: str
    strength: float
    scalings: tuple[float, ...]
    scale: str
    """How well the scale of training is known, and who said it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A run that was made. Its JSON follows schemas/manifest.schema.json."""

    base: str
    variant: str
    pipeline: str
    adapters: tuple[Part, ...]
    stated: dict[str, Any]
    """What the user stated of the scale of training: options of `run` and their values."""
    prompt: str
    negative_prompt: str
    image: str | None
    video: str | None
    inputs: dict[str, str]
    """Image or video -> its sha256."""
    settings: dict[str, Any]
    anyway: bool
    """Whether settings that are wrong for the model were wanted."""
    device: str
    offload: str
    tiling: bool
    slicing: bool
    latents: str
    """Digest of the latents at full strength, in float32."""
    versions: dict[str, str]
    tool: str = f"loraforge {__version__}"

    def text(self) -> str:
        """The file."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    def given(self, more: Settings) -> Settings:
        """Its settings, and what is stated over them."""
        return {**checked(self.settings.items()), **more}

    def check(self, plan: RunPlan) -> None:
        """Raise LoraforgeError where an adapter is not the one that was run."""
        for part, (adapter, _) in zip(self.adapters, plan.adapters, strict=True):
            if adapter.source and scan(adapter.source.file, adapter.keys) != part.digest:
                raise LoraforgeError(
                    f"{told(adapter.source.path)} has changed since the manifest was written: its tensors are others.",
                    command("loraforge", "inspect", adapter.source.path),
                )
        for name, path in (("image", plan.image), ("video", plan.video)):
            if name in self.inputs and str(path) == str(getattr(self, name)) and _digest(path) != self.inputs[name]:
                raise LoraforgeError(f"{path} is another {name} than the manifest's.", command("ls", "-l", str(path)))


def manifest_of(plan: RunPlan, latents: str, folder: Path, *, factor: float, **how: Any) -> Manifest:
    """The manifest, to lie in `folder`, of a run that gave these latents at `factor` times the plan's strengths.

    `how`: stated, anyway, device, offload, tiling, slicing.
    """
    parts = []
    for adapter, strength in plan.adapters:
        source = adapter.source
        parts.append(
            Part(
                _path(source.path, folder) if source else "made-in-python",
                scan(source.file, adapter.keys) if source else "",
                factor * strength,
                tuple(sorted({w.scaling for delta in adapter.modules.values() for w in delta})),
                f"{adapter.scale.provenance}: {adapter.scale.portable}",
            )
        )
    return Manifest(
        base=_path(plan.base.path, folder),
        variant=plan.variant,
        pipeline=plan.pipeline,
        adapters=tuple(parts),
        prompt=plan.prompt,
        negative_prompt=plan.negative_prompt,
        image=_path(plan.image, folder) if plan.image else None,
        video=_path(plan.video, folder) if plan.video else None,
        inputs={name: _digest(path) for name, path in (("image", plan.image), ("video", plan.video)) if path},
        settings=dict(plan.settings),
        latents=latents,
        versions=versions(),
        **how,
    )


def _path(path: Path, folder: Path) -> str:
    """How it is found again: from the manifest's folder where it was given so; of the Hub, its address and commit."""
    pinned = recorded(path)
    if pinned.startswith("hf://") or path.is_absolute():
        return pinned if pinned.startswith("hf://") else str(path)
    return Path(os.path.relpath(path, folder)).as_posix()


def _digest(path: Path | None) -> str:
    with Path(path or "").open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(path: Path) -> Manifest:
    """A manifest, its paths from where one is. Raises FileError where it is none."""
    from loraforge.plugin.schema_check import first_fault

    try:
        said = json.loads(path.read_text("utf-8"))
        fault = first_fault(said, "manifest")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}.", command("ls", "-l", path.parent)) from error
    except (ValueError, RecursionError) as error:
        fault = str(error).partition("\n")[0][:200]
    if fault:
        raise FileError(f"{path} is no manifest of `loraforge run`: {fault}.", command("ls", "-l", path))
    found = {key: value for key, value in said.items() if key != "schema"}
    for key in ("base", "image", "video"):
        found[key] = found[key] and _from(found[key], path.parent)
    parts = ({**part, "path": _from(part["path"], path.parent)} for part in found["adapters"])
    found["adapters"] = tuple(Part(**{**part, "scalings": tuple(part["scalings"])}) for part in parts)
    return Manifest(**found)


def _from(text: str, folder: Path) -> str:
    return text if text.startswith("hf://") or Path(text).is_absolute() else str(folder / text)
