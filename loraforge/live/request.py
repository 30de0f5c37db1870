"""The options of a run, which may override those in the manifest of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraforge.errors import LoraforgeError
from loraforge.facts.given_settings import Settings, checked
from loraforge.live.manifest import Manifest


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The options of `run`. A manifest or the base model decides those that are None or empty."""

    adapters: tuple[str | Path, ...]
    strength: tuple[float, ...]
    stated: Mapping[str, Any]
    """The keywords of `Stated`: the scale at which the adapters were trained."""
    base: str | Path | None
    prompt: str
    negative_prompt: str
    image: str | Path | None
    video: str | Path | None
    given: Settings
    like: str | None
    anyway: bool
    device: str
    offload: str | None
    tiling: bool | None
    slicing: bool | None
    check: bool
    compare: tuple[float, ...]
    out: str | Path | None
    force: bool
    files: tuple[str | Path, ...]
    """The manifest, and files of settings (or KEY=VALUE)."""
    again: Manifest | None = None
    """The run that is repeated."""

    def over(self, again: Manifest) -> RunRequest:
        """The same run, with its open options taken from `again`. Raises LoraforgeError if it names adapters."""
        if self.adapters:
            raise LoraforgeError("the manifest names its adapters: give it alone.", "loraforge run --help")
        words = ("base", "prompt", "negative_prompt", "image", "video", "offload", "anyway")
        flags = ("tiling", "slicing")
        same = {name: getattr(again, name) for name in words if not getattr(self, name)}
        same |= {name: getattr(again, name) for name in flags if getattr(self, name) is None}
        return replace(
            self,
            **same,
            adapters=tuple(part.path for part in again.adapters),
            strength=self.strength or tuple(part.strength for part in again.adapters),
            stated=self.stated if any(self.stated.values()) else again.stated,
            given={**checked(again.settings.items()), **self.given},
            device=again.device if self.device == "auto" else self.device,
            again=again,
        )

    @property
    def inputs(self) -> list[str | Path]:
        """The files it reads, beside the adapters and the base."""
        return [file for file in (self.image, self.video, *self.files) if file and "=" not in str(file)]

    @property
    def how(self) -> dict[str, Any]:
        """The options of how it is computed, with their defaults."""
        tiling, slicing = self.tiling is not False, self.slicing is not False
        return {"offload": self.offload or "none", "tiling": tiling, "slicing": slicing}
