"""Says what a tensor file is when it is no adapter, from its names alone, and what to give instead."""

from __future__ import annotations

from collections.abc import Callable

from loraforge.catalog import architectures
from loraforge.errors import NoAdapterError, command, listed
from loraforge.tensorfile import TensorFile

SAT_PREFIX = "model.diffusion_model."
_SAT_RUN = "Give the mp_rank_00_model_states.pt that the LoRA run wrote."
_PLUGIN = "The plugin loraforge-{} reads it, if the names of its modules are known: see docs/plugins.md."
_LORA_RUN = "Give the checkpoint your LoRA run wrote, not its base model."


def not_an_adapter(file: TensorFile, wanted: str = "adapter of a format this version reads") -> NoAdapterError:
    """The refusal of a file that holds no `wanted`."""
    folder = file.path.absolute().parent
    for what, instead, is_it in _KINDS:
        if is_it(file):
            remedy = "loraforge plugins list" if "adapter" in what else command("ls", "-l", folder)
            what = what.replace("{known}", " or ".join(arch.title for arch in architectures().values()))
            what = what.replace("{base}", _base(file) or "")
            return NoAdapterError(f"{file.path} is {what}, and holds no {wanted}. {instead}", remedy)
    names = f", with names like {listed(list(file.tensors), 3)}" if file.tensors else ""
    return NoAdapterError(
        f"{file.path} holds no {wanted}. It has {len(file.tensors)} tensors{names}.",
        command("loraforge", "inspect", "--skeleton", file.path),
    )


def _base(file: TensorFile) -> str | None:
    """The architecture of which weights of the most kinds of module are there, and at least three, in any layout."""
    stems = [_stem(key) for key in file.tensors if key.endswith(".weight")]
    counts = {
        arch.title: max(
            (len({p[0] for stem in stems if (p := layout.locate(stem))}) for layout in arch.layouts.values()), default=0
        )
        for arch in architectures().values()
    }
    best = max(counts, key=lambda title: counts[title])
    return best if counts[best] >= 3 else None


def _stem(key: str) -> str:
    """The module path of a base weight, as its trainers save it."""
    return key.removeprefix(SAT_PREFIX).removesuffix(".weight").removesuffix(".base_layer").removesuffix(".original")


def _any(*starts: str) -> Callable[[TensorFile], bool]:
    return lambda file: any(key.startswith(starts) for key in file.tensors)


def _optimizer(file: TensorFile) -> bool:
    return "optimizer_state_dict" in file.tops or {"state", "param_groups"} <= set(file.tops)


def _names(*parts: str) -> Callable[[TensorFile], bool]:
    return lambda file: any(part in key for key in file.tensors for part in parts)


def taken_out(file: TensorFile) -> tuple[TensorFile, tuple[str, ...]]:
    """The adapter alone, where a model was saved with its LoRA layers in it, and a note; any other file as it is."""
    mine = {key: info for key, info in file.tensors.items() if ".lora_" in key or "modules_to_save" in key}
    if not mine or not any(".base_layer." in key for key in file.tensors) or "ds_version" in file.tops:
        return file, ()
    note = f"took the adapter out of a model that was saved with its LoRA layers in it: {len(mine)} tensors of"
    return file.hiding(tensors=mine), (f"{note} {len(file.tensors)}",)


def of_training(file: TensorFile) -> bool:
    """Whether it is a trainer's own state: DeepSpeed's, or a whole model with PEFT's layers still in it."""
    return "ds_version" in file.tops or any(".base_layer." in key for key in file.tensors)


_KINDS: tuple[tuple[str, str, Callable[[TensorFile], bool]], ...] = (
    ("an optimizer state", "Give the weights that were saved beside it.", _optimizer),
    (
        "a checkpoint of a Diffusers or PEFT trainer",
        "Give the pytorch_lora_weights.safetensors that trainer saved.",
        lambda file: of_training(file) and _names(".lora_A.", ".base_layer.")(file),
    ),
    ("an adapter in kohya's names (lora_unet_...)", _PLUGIN.format("kohya"), _any("lora_unet_", "lora_te")),
    (
        "an adapter in ComfyUI's names",
        _PLUGIN.format("comfyui"),
        _any("diffusion_model.blocks.0.q.", "diffusion_model.transformer_blocks."),
    ),
    (
        "an adapter in DiffSynth's names",
        _PLUGIN.format("diffsynth"),
        lambda file: _any("blocks.")(file) and _names(".lora_A.")(file),
    ),
    (
        "an adapter with kohya's words (.lora_down., .lora_up.) behind Diffusers' names",
        "Diffusers stops at them: rename them to .lora_A. and .lora_B.",
        lambda file: (
            _any("transformer.transformer_blocks.", "transformer_blocks.")(file)
            and _names(".lora_down.", ".lora_up.")(file)
        ),
    ),
    (
        "an adapter whose modules are not named as those of {known}",
        "",
        _names(".lora_A.", ".lora_B.", ".lora_down.", ".lora.down."),
    ),
    ("a full {base} transformer", _LORA_RUN, lambda file: _base(file) is not None),
    ("a T5 text encoder", _SAT_RUN, _any("shared.", "encoder.block.", "conditioner.")),
    ("a VAE", _SAT_RUN, _any("encoder.", "decoder.", "first_stage_model.", "loss.")),
)
"""What it is, what to give instead, how it is told."""
