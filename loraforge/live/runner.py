"""Builds a CogVideoX pipeline from a plan, and runs it: the same plan always gives the same numbers.

Sources: diffusers CogVideoXPipeline, CogVideoXImageToVideoPipeline, CogVideoXVideoToVideoPipeline (`__call__`, their
offload methods); CogVideo inference/cli_demo.py (VAE slicing and tiling).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from loraforge.algebra.dtypes import BYTES
from loraforge.algebra.lora import Array
from loraforge.errors import LoraforgeError, Try, adding, of_pipeline
from loraforge.live.acting import TypeTooNarrowError
from loraforge.live.load_into import load_into, set_strength
from loraforge.live.plan import FROM_IMAGE, FROM_VIDEO, OFFLOADS, Adapters, RunPlan
from loraforge.live.state import layers
from loraforge.media.video import read_image, read_video
from loraforge.text import command, told

ROOM = 1.1
"""The factor on the size of the weights that loading needs: a rough one, without activations."""
Progress = Callable[[int, int], None]
"""Called with the number of steps that are done, and the number of all."""


@dataclass(frozen=True, slots=True)
class Clip:
    """The result of one call of the pipeline."""

    latents: Any
    """After the last step, before the VAE: float32 [1, frames, channels, height, width]."""
    frames: Array
    """uint8 [frames, height, width, 3]."""

    @property
    def digest(self) -> str:
        """`sha256:...` of the latents' bytes in float32."""
        return f"sha256:{hashlib.sha256(self.latents.numpy().tobytes()).hexdigest()}"


def device_of(name: str) -> str:
    """The device of a run; for `auto` the first that this machine has. Raises LoraforgeError if it has no such one."""
    with of_pipeline("a run"):
        import torch
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    devices = [name for name, is_available in available.items() if is_available]
    if name == "auto":
        return devices[0]
    if name.partition(":")[0] not in devices:
        raise LoraforgeError(f"there is no device {name} here.", *(adding("--device", other) for other in devices))
    return name


def check_offload(offload: str, device: str) -> None:
    """Raise LoraforgeError if the offload is unknown, or the device has no memory of its own to free."""
    if offload not in OFFLOADS:
        raise LoraforgeError(f"--offload {offload} is none of {', '.join(OFFLOADS)}.", adding("--offload", "model"))
    if offload in ("model", "sequential") and device == "cpu":
        text = f"--offload {offload} moves weights between a GPU and the machine's memory, and the run is on the CPU."
        raise LoraforgeError(text, adding("--offload", "none"))


def check_memory(plan: RunPlan, device: str, offload: str) -> None:
    """Raise LoraforgeError if the weights alone do not fit, with the option that needs less memory."""
    import psutil  # a dependency of accelerate, and so of peft
    import torch

    dtype = plan.settings["torch_dtype"]
    stored = BYTES[next(iter(plan.base.files[0].tensors.values())).dtype]
    files = [list(component.glob("*.safetensors")) for component in plan.base.path.iterdir()]
    sizes = [sum(file.stat().st_size for file in each) * getattr(torch, dtype).itemsize / stored for each in files]
    here = psutil.virtual_memory().available, "memory"
    free, where = (torch.cuda.mem_get_info(device)[0], "GPU memory") if device.startswith("cuda") else here
    needed = {"none": sum(sizes), "model": max(sizes)}.get(offload, 0) * ROOM
    if needed > free:
        less = adding("--offload", "model" if offload == "none" else "sequential")
        text = f"the weights need {needed / 1e9:.1f} GB of {where} in {dtype}, and {free / 1e9:.1f} GB are free."
        raise LoraforgeError(text, less if device != "cpu" else adding("--check", why="the transformer alone"))


class Adapted:
    """A transformer with adapters in it, each at its strength."""

    def __init__(self, module: Any, adapters: Adapters) -> None:
        self.module = module
        self.names = []
        for n, (adapter, strength) in enumerate(adapters, 1):
            try:
                self.names.append((load_into(module, adapter, strength, name=f"adapter_{n}").name, strength))
            except TypeTooNarrowError as error:
                error.remedies = (adding("--settings", "torch_dtype=float32", why="a wider type"),)
                raise

    def at(self, factor: float) -> None:
        """Set every adapter to `factor` times its strength; 0 gives the base model."""
        for name, strength in self.names:
            set_strength(self.module, name, factor * strength)

    def weights(self) -> float:
        """sqrt(sum |D|^2 / sum |W|^2) over the adapted weights; D is the sum of all updates at factor 1.

        Needs the memory of one weight. Call it before an offload, which takes the weights away.
        """
        self.at(1.0)
        update = weight = 0.0
        for _, layer in layers(self.module):
            deltas = [layer.get_delta_weight(name).float() for name, _ in self.names if name in layer.scaling]
            update += float(sum(deltas[1:], deltas[0]).norm()) ** 2
            weight += float(layer.get_base_layer().weight.detach().float().norm()) ** 2
        return math.sqrt(update / weight) if weight else 0.0


class Running:
    """A pipeline with its adapters in it. Call `place` before `clip`."""

    def __init__(self, plan: RunPlan, *, tiling: bool, slicing: bool) -> None:
        import diffusers

        self.plan, chosen = plan, plan.settings
        pipeline, scheduler = getattr(diffusers, plan.pipeline), getattr(diffusers, chosen["scheduler"])
        self.pipe = _loaded(pipeline, plan.base.path, chosen)
        spacing = {"timestep_spacing": chosen["timestep_spacing"]}
        with _diffusers(f"set {told(plan.base.path)} up"):
            self.pipe.scheduler = scheduler.from_config(self.pipe.scheduler.config, **spacing)
            self.adapted = Adapted(self.pipe.transformer, plan.adapters)
            if tiling and _tiles_fit(self.pipe.vae):
                self.pipe.vae.enable_tiling()
            if slicing:
                self.pipe.vae.enable_slicing()
            self.pipe.set_progress_bar_config(disable=True)

    def place(self, device: str, offload: str) -> None:
        """Put the weights on the device, or enable one of `OFFLOADS`."""
        with _quiet(), _diffusers(f"place it on {device} with --offload {offload}"):
            if offload == "none":
                self.pipe.to(device)
            elif offload == "model":
                self.pipe.enable_model_cpu_offload(device=device)
            elif offload == "sequential":
                self.pipe.enable_sequential_cpu_offload(device=device)
            else:
                import torch
                from diffusers import hooks

                library: Any = hooks  # its lazy names have no types
                where = {"onload_device": torch.device(device), "offload_device": torch.device("cpu")}
                for part in self.pipe.components.values():
                    if isinstance(part, torch.nn.Module):
                        library.apply_group_offloading(part, offload_type="leaf_level", **where)

    def clip(self, progress: Progress = lambda _done, _all: None) -> Clip:
        """Make one video, from the noise of the plan's seed. Raises LoraforgeError if it is NaN or infinite."""
        import torch

        latents: Any = None

        def step(_pipe: Any, number: int, _time: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
            nonlocal latents
            latents = tensors["latents"]
            progress(number + 1, self.pipe.num_timesteps)
            return {}

        with torch.no_grad(), _diffusers("run it with these settings"):
            frames = self.pipe(**self._arguments(), output_type="np", callback_on_step_end=step).frames[0]
        if not np.isfinite(frames).all() or not bool(latents.isfinite().all()):
            dtype = self.plan.settings["torch_dtype"]
            raise LoraforgeError(
                f"the run came out as NaN or infinity in {dtype}: the video would be black.",
                *([] if dtype == "bfloat16" else [adding("--settings", "torch_dtype=bfloat16", why="a wider range")]),
                adding("--strength", "1", why="as trained"),
            )
        return Clip(latents.float().cpu(), np.clip(np.rint(frames * 255), 0, 255).astype(np.uint8))

    def _arguments(self) -> dict[str, Any]:
        """The arguments of one call, with a new generator: each use of a generator changes its state."""
        import torch

        chosen, plan = self.plan.settings, self.plan
        names = ("guidance_scale", "use_dynamic_cfg", "num_inference_steps", "height", "width", "max_sequence_length")
        call: dict[str, Any] = {name: chosen[name] for name in names}
        call |= {"prompt": plan.prompt, "negative_prompt": plan.negative_prompt or None}
        call["generator"] = torch.Generator(chosen["generator_device"]).manual_seed(chosen["seed"])
        if plan.pipeline == FROM_IMAGE:
            call["image"] = read_image(plan.inputs["image"])
        if plan.pipeline == FROM_VIDEO:
            from PIL import Image

            frames = read_video(plan.inputs["video"])[0][: chosen["num_frames"]]
            call["video"] = [Image.fromarray(frame) for frame in frames]
        else:
            call["num_frames"] = chosen["num_frames"]
        return call


def transformer_of(plan: RunPlan, device: str) -> Adapted:
    """The transformer without its pipeline, with its adapters in it."""
    from diffusers import CogVideoXTransformer3DModel

    adapted = Adapted(_loaded(CogVideoXTransformer3DModel, plan.base.folder, plan.settings), plan.adapters)
    with _diffusers(f"place it on {device}"):
        adapted.module.to(device)
    return adapted


def _loaded(kind: Any, path: Path, settings: Mapping[str, Any]) -> Any:
    import torch

    with _quiet(), _diffusers(f"load {told(path)}"):
        return kind.from_pretrained(str(path), torch_dtype=getattr(torch, settings["torch_dtype"]))


def _tiles_fit(vae: Any) -> bool:
    """Whether tiles of latents and of frames overlap by the same share; if rounding differs, frames change size."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    sides = (
        (vae.tile_latent_min_height, vae.tile_sample_min_height, vae.tile_overlap_factor_height),
        (vae.tile_latent_min_width, vae.tile_sample_min_width, vae.tile_overlap_factor_width),
    )
    return all(int(latent * (1 - lap)) * factor == int(sample * (1 - lap)) for latent, sample, lap in sides)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the progress bars of the libraries, and a warning about an argument that older versions need."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs: tuple[Any, ...] = (diffusers_log, transformers_log)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch_dtype", FutureWarning)
        warnings.filterwarnings("ignore", "Cannot enable progress bars", UserWarning)
        level = diffusers_log.get_verbosity()
        diffusers_log.set_verbosity_error()  # it warns that float16 cannot run on a CPU, where it does run
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
    """Wraps calls into Diffusers: any error in them becomes a LoraforgeError that it cannot do `what`."""
    try:
        yield
    except (LoraforgeError, MemoryError):
        raise
    except Exception as error:  # a library raises what it likes
        name = type(error).__name__
        text = next(iter(str(error).strip().splitlines()), "")[:300]
        remedies = [adding("--offload", "sequential")] if name == "OutOfMemoryError" else [
            Try(command("loraforge", "explain", f"{name}: {text}"), "what is known of it")
        ]  # fmt: skip
        raise LoraforgeError(f"diffusers {version('diffusers')} cannot {what} ({name}: {text}).", *remedies) from error


def versions() -> dict[str, str]:
    """Library -> version, for those that a run depends on."""
    return {name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "numpy")}
