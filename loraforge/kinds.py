"""Says what a tensor file is when it is no adapter, from its names alone, and what to give instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from loraforge.errors import FormatError, command, listed
from loraforge.layout import architecture
from loraforge.tensorfile import TensorFile

SAT_PREFIX = "model.diffusion_model."
_SAT_RUN = "Give the mp_rank_00_model_states.pt that the LoRA run wrote."
_LORA_RUN = "Give the checkpoint your LoRA run wrote, not its base model."


def not_an_adapter(file: TensorFile, wanted: str = "adapter") -> FormatError:
    """The refusal of a file that holds no `wanted`."""
    for what, instead, place, is_it in _KINDS:
        if is_it(file):
            return FormatError(
                f"{file.path} is {what}, and holds no {wanted}. {instead}",
                command("ls", "-l", place(file.path.absolute())),
            )
    keys = listed(list(file.tensors), 3) or "none"
    return FormatError(
        f"{file.path} holds no {wanted}. It has {len(file.tensors)} tensors, with names like {keys}.",
        command("loraforge", "inspect", "--skeleton", file.path),
    )


def base_modules(keys: Sequence[str]) -> dict[str, str]:
    """Layout -> a key of a base weight of CogVideoX in that layout, where there is one."""
    found = {}
    for name, layout in architecture("cogvideox").layouts.items():
        for key in keys:
            path = (
                key.removeprefix(SAT_PREFIX)
                .removesuffix(".weight")
                .removesuffix(".original")
                .removesuffix(".base_layer")
            )
            if key.endswith(".weight") and layout.locate(path):
                found[name] = key
                break
    return found


def _any(*starts: str) -> Callable[[TensorFile], bool]:
    return lambda file: any(key.startswith(starts) for key in file.tensors)


def _optimizer(file: TensorFile) -> bool:
    return "optimizer_state_dict" in file.tops or {"state", "param_groups"} <= set(file.tops)


def _peft(file: TensorFile) -> bool:
    return any(".lora_A." in key or ".lora_B." in key for key in file.tensors)


def _folder(path: Path) -> Path:
    return path.parent


def _run(path: Path) -> Path:
    return path.parent.parent


_KINDS: tuple[tuple[str, str, Callable[[Path], Path], Callable[[TensorFile], bool]], ...] = (
    ("an optimizer state", "Give the weights that were saved beside it.", _folder, _optimizer),
    (
        "a checkpoint of a Diffusers or PEFT trainer",
        "Give the pytorch_lora_weights.safetensors that trainer saved.",
        _run,
        _peft,
    ),
    ("a full CogVideoX transformer", _LORA_RUN, _run, lambda file: bool(base_modules(list(file.tensors)))),
    ("a T5 text encoder", _SAT_RUN, _folder, _any("shared.", "encoder.block.", "conditioner.")),
    ("a VAE", _SAT_RUN, _folder, _any("encoder.", "decoder.", "first_stage_model.", "loss.")),
)
