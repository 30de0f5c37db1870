"""The manifest of a run: everything it depended on, so that it can be repeated to the last bit of the latents."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loraforge import __version__
from loraforge.errors import FileError, LoraforgeError, command, recorded, told
from loraforge.givensettings import Settings, checked
from loraforge.running import versions
from loraforge.runplan import RunPlan

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
        from loraforge.scan import scan

        for part, (adapter, _) in zip(self.adapters, plan.adapters, strict=True):
            if adapter.source and scan(adapter.source.file, adapter.keys) != part.digest:
                raise LoraforgeError(
                    f"{told(adapter.source.path)} has changed since the manifest was written: its tensors are others.",
                    command("loraforge", "inspect", adapter.source.path),
                )


def manifest_of(plan: RunPlan, latents: str, **how: Any) -> Manifest:
    """The manifest of a run that gave these latents; `how`: stated, anyway, device, offload, tiling, slicing."""
    from loraforge.scan import scan

    parts = []
    for adapter, strength in plan.adapters:
        source = adapter.source
        parts.append(
            Part(
                _path(source.path) if source else "made-in-python",
                scan(source.file, adapter.keys) if source else "",
                strength,
                tuple(sorted({w.scaling for delta in adapter.modules.values() for w in delta})),
                f"{adapter.scale.provenance}: {adapter.scale.source}",
            )
        )
    return Manifest(
        base=_path(plan.base.path),
        variant=plan.variant,
        pipeline=plan.pipeline,
        adapters=tuple(parts),
        prompt=plan.prompt,
        negative_prompt=plan.negative_prompt,
        image=str(plan.image) if plan.image else None,
        video=str(plan.video) if plan.video else None,
        settings=dict(plan.settings),
        latents=latents,
        versions=versions(),
        **how,
    )


def _path(path: Path) -> str:
    """How it is found again: its address with the commit where it is on the Hub."""
    pinned = recorded(path)
    return pinned if pinned.startswith("hf://") else str(path)


def read_manifest(path: Path) -> Manifest:
    """A manifest. Raises FileError where it is none."""
    try:
        said = json.loads(path.read_text("utf-8"))
        if said.pop("schema", None) != SCHEMA:
            raise ValueError(f"it does not say schema {SCHEMA}")
        parts = tuple(Part(**{**part, "scalings": tuple(part["scalings"])}) for part in said.pop("adapters"))
        return Manifest(**said, adapters=parts)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}.", command("ls", "-l", path.parent)) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = str(error).partition("\n")[0][:200]
        raise FileError(f"{path} is no manifest of `loraforge run`: {why}.", "loraforge run --help") from error
