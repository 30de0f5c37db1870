"""Build a CogVideoX pipeline as a plan says, and run it: the same numbers every time the plan is the same.

Sources: diffusers CogVideoXPipeline, CogVideoXImageToVideoPipeline, CogVideoXVideoToVideoPipeline (`__call__`, their
offload methods); CogVideo inference/cli_demo.py (VAE slicing and tiling).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loraforge.adapter.adapter import Adapter
from loraforge.errors import LoraforgeError, Try, adding
from loraforge.live.acting import TypeTooNarrowError
from loraforge.live.load_into import EXTRA, load_into, set_strength
from loraforge.live.plan import FROM_IMAGE, FROM_VIDEO, OFFLOADS, RunPlan, component_sizes
from loraforge.live.state import layers
from loraforge.media.video import read_image, read_video
from loraforge.text import command, told

if TYPE_CHECKING:
    from loraforge.algebra.lora import Array

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of an element."""
ROOM = 1.1
"""What loading takes beside the weights, as a factor. A choice: activations depend on size, tiling and offload."""
Progress = Callable[[int, int], None]
"""Is told how many steps are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Clip:
    """What one call made."""

    latents: Any
    """Before the VAE: [1, frames, channels, height, width], as the last step left them, in float32."""
    frames: Array
    """uint8 [frames, height, width, 3]."""

    @property
    def digest(self) -> str:
        """`sha256:...` of the latents' bytes in float32."""
        return f"sha256:{hashlib.sha256(self.latents.numpy().tobytes()).hexdigest()}"


def device_of(wanted: str) -> str:
    """The device a run is on: what was asked for, else the first that is there. Raises LoraforgeError."""
    try:
        import torch
    except ImportError as error:
        raise LoraforgeError(f"a run needs {error.name}, which is not installed here.", EXTRA) from error
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, found in there.items() if found)
    if not there.get(wanted.partition(":")[0], False):
        raise LoraforgeError(
            f"there is no device {wanted} here.", *(adding("--device", n) for n, f in there.items() if f)
        )
    return wanted


def check_offload(offload: str, device: str) -> None:
    """Raise LoraforgeError where there is nothing to offload from."""
    if offload not in OFFLOADS:
        raise LoraforgeError(f"--offload {offload} is none of {', '.join(OFFLOADS)}.", adding("--offload", "model"))
    if offload in ("model", "sequential") and device == "cpu":
        raise LoraforgeError(
            f"--offload {offload} moves weights between a GPU and the machine's memory, and the run is on the CPU.",
            adding("--offload", "none"),
        )


def check_memory(plan: RunPlan, device: str, offload: str) -> None:
    """Raise LoraforgeError where the weights alone do not fit, with the option that needs less."""
    dtype = str(plan.settings["torch_dtype"])
    scale = ITEM[dtype] / ITEM.get(_stored(plan), 2)
    parts = {name: int(size * scale) for name, size in component_sizes(plan.base).items()}
    free, where = _free(device)
    needed = {"none": sum(parts.values()), "model": max(parts.values())}.get(offload, 0) * ROOM
    if needed <= free:
        return
    less = "model" if offload == "none" else "sequential"
    text = f"the weights need {needed / 1e9:.1f} GB of {where} in {dtype}, and {free / 1e9:.1f} GB are free."
    raise LoraforgeError(
        text, adding("--offload", less) if device != "cpu" else adding("--check", why="the transformer alone")
    )


def _stored(plan: RunPlan) -> str:
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    file = plan.base.files[0]
    return names.get(next(iter(file.tensors.values())).dtype, "bfloat16")


def _free(device: str) -> tuple[float, str]:
    import psutil  # accelerate, which peft needs, brings it
    import torch

    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0]), "GPU memory"
    return float(psutil.virtual_memory().available), "memory"


class Adapted:
    """A transformer with adapters in it, each at a strength."""

    def __init__(self, module: Any, adapters: Sequence[tuple[Adapter, float]]) -> None:
        self.module = module
        self.names = []
        for n, (adapter, strength) in enumerate(adapters, 1):
            try:
                self.names.append((load_into(module, adapter, strength, name=f"adapter_{n}").name, strength))
            except TypeTooNarrowError as error:
                error.remedies = (adding("--settings", "torch_dtype=float32", why="a wider type"),)
                raise

    def at(self, factor: float) -> None:
        """Let every adapter act at `factor` times the strength it was given; 0 is the base model."""
        for name, strength in self.names:
            set_strength(self.module, name, factor * strength)

    def weights(self) -> float:
        """sqrt(sum |D|^2 / sum |W|^2) over the weights that are adapted; D is what all adapters add at factor 1.

        Takes the memory of one weight. To be asked before weights are offloaded, which leaves their shapes alone here.
        """
        self.at(1.0)
        changed = there = 0.0
        for _, layer in layers(self.module):
            held = [layer.get_delta_weight(name).float() for name, _ in self.names if name in layer.scaling]
            changed += float(sum(held[1:], held[0]).norm()) ** 2
            there += float(layer.get_base_layer().weight.detach().float().norm()) ** 2
        return math.sqrt(changed / there) if there else 0.0


class Running:
    """A pipeline with its adapters in it; `place` it before its first clip."""

    def __init__(self, plan: RunPlan, *, tiling: bool, slicing: bool) -> None:
        import diffusers
        import torch

        dtype = getattr(torch, str(plan.settings["torch_dtype"]))
        kind = getattr(diffusers, plan.pipeline)
        self.plan = plan
        with _quiet(), _diffusers(f"load {told(plan.base.path)}"):
            self.pipe = kind.from_pretrained(str(plan.base.path), torch_dtype=dtype)
        scheduler = getattr(diffusers, str(plan.settings["scheduler"]))
        spacing = {"timestep_spacing": plan.settings["timestep_spacing"]}
        self.pipe.scheduler = scheduler.from_config(self.pipe.scheduler.config, **spacing)
        self.adapted = Adapted(self.pipe.transformer, plan.adapters)
        if tiling and _tiles_fit(self.pipe.vae):
            self.pipe.vae.enable_tiling()
        if slicing:
            self.pipe.vae.enable_slicing()
        self.pipe.set_progress_bar_config(disable=True)

    def place(self, device: str, offload: str) -> None:
        """Put the weights where they are to be while it runs."""
        with _quiet(), _diffusers(f"place it on {device} with --offload {offload}"):
            self._place(device, offload)

    def _place(self, device: str, offload: str) -> None:
        if offload == "none":
            self.pipe.to(device)
        elif offload == "model":
            self.pipe.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            self.pipe.enable_sequential_cpu_offload(device=device)
        else:
            import torch
            from diffusers import hooks

            library: Any = hooks  # which loads its names when they are asked for
            where = {"onload_device": torch.device(device), "offload_device": torch.device("cpu")}
            for part in self.pipe.components.values():
                if isinstance(part, torch.nn.Module):
                    library.apply_group_offloading(part, offload_type="leaf_level", **where)

    def clip(self, progress: Progress = lambda _done, _all: None) -> Clip:
        """One video, from the noise of the plan's seed."""
        import torch

        held: dict[str, Any] = {}

        def step(_pipe: Any, number: int, _time: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
            held["latents"] = tensors["latents"]
            progress(number + 1, self.pipe.num_timesteps)
            return {}

        with torch.no_grad(), _diffusers("run it with these settings"):
            made = self.pipe(**self.arguments(), output_type="np", callback_on_step_end=step).frames[0]
        if not np.isfinite(made).all() or not bool(held["latents"].isfinite().all()):
            dtype = self.plan.settings["torch_dtype"]
            raise LoraforgeError(
                f"the run came out as NaN or infinity in {dtype}: the video would be black.",
                *([] if dtype == "bfloat16" else [adding("--settings", "torch_dtype=bfloat16", why="a wider range")]),
                adding("--strength", "1", why="as trained"),
            )
        return Clip(held["latents"].float().cpu(), np.clip(np.rint(made * 255), 0, 255).astype(np.uint8))

    def arguments(self) -> dict[str, Any]:
        """The call, with noise anew: a generator goes on from call to call."""
        import torch

        chosen, plan = self.plan.settings, self.plan
        names = ("guidance_scale", "use_dynamic_cfg", "num_inference_steps", "height", "width", "max_sequence_length")
        call: dict[str, Any] = {name: chosen[name] for name in names}
        call |= {"prompt": plan.prompt, "negative_prompt": plan.negative_prompt or None}
        where = torch.device(str(chosen["generator_device"]))
        call["generator"] = torch.Generator(where).manual_seed(int(str(chosen["seed"])))
        if plan.pipeline == FROM_IMAGE and plan.image:
            call["image"] = read_image(plan.image)
        if plan.pipeline == FROM_VIDEO and plan.video:
            from PIL import Image

            frames = read_video(plan.video)[0][: int(str(chosen["num_frames"]))]
            call["video"] = [Image.fromarray(frame) for frame in frames]
        else:
            call["num_frames"] = chosen["num_frames"]
        return call


def transformer_of(plan: RunPlan, device: str) -> Adapted:
    """The transformer without its pipeline, with its adapters in it."""
    import torch
    from diffusers import CogVideoXTransformer3DModel

    kind: Any = CogVideoXTransformer3DModel  # its class methods have no types
    dtype = getattr(torch, str(plan.settings["torch_dtype"]))
    with _quiet(), _diffusers(f"load {told(plan.base.folder)}"):
        module = kind.from_pretrained(str(plan.base.folder), torch_dtype=dtype)
    found = Adapted(module, plan.adapters)
    module.to(device)
    return found


def _tiles_fit(vae: Any) -> bool:
    """Whether tiles of the latents and of the frames overlap alike: where rounding parts them, frames change size."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    sides = (
        (vae.tile_latent_min_height, vae.tile_sample_min_height, vae.tile_overlap_factor_height),
        (vae.tile_latent_min_width, vae.tile_sample_min_width, vae.tile_overlap_factor_width),
    )
    return all(int(latent * (1 - lap)) * factor == int(sample * (1 - lap)) for latent, sample, lap in sides)


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading without the bars of three libraries, and without the warning about a name that older ones need."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs: tuple[Any, ...] = (diffusers_log, transformers_log)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch_dtype", FutureWarning)
        warnings.filterwarnings("ignore", "Cannot enable progress bars", UserWarning)
        level = diffusers_log.get_verbosity()
        diffusers_log.set_verbosity_error()  # float16 runs on a CPU, whatever it says
        for log in logs:
            log.disable_progress_bar()
        try:
            yield
        finally:
            diffusers_log.set_verbosity(level)
            for log in logs:
                log.enable_progress_bar()


@contextmanager
def _diffusers(what: str) -> Iterator[None]:
    """Around calls into Diffusers: what they raise becomes one message."""
    try:
        yield
    except (LoraforgeError, MemoryError):
        raise
    except Exception as error:  # a library raises what it likes
        name, version = type(error).__name__, versions()["diffusers"]
        text = next(iter(str(error).strip().splitlines()), "")[:300]
        remedies = [adding("--offload", "sequential")] if name == "OutOfMemoryError" else [
            Try(command("loraforge", "explain", f"{name}: {text}"), "what is known of it")
        ]  # fmt: skip
        raise LoraforgeError(f"diffusers {version} cannot {what} ({name}: {text}).", *remedies) from error


def versions() -> dict[str, str]:
    """What a run depends on beside its plan."""
    from importlib.metadata import version

    names: Sequence[str] = ("torch", "diffusers", "transformers", "peft", "numpy")
    return {name: version(name) for name in names}
