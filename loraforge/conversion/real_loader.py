"""Asks the real loader what it makes of a file: which modules it fills, with what tensors, at what scaling.

The base model is a shell of the right shape whose weights are one zero, shown everywhere: a 5B takes no memory.
Needs `loraforge[pipeline]`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes

from loraforge.adapter.adapter import Adapter
from loraforge.algebra.lora import LoraWeight, rows
from loraforge.errors import FormatError, LoraforgeError, Try
from loraforge.names.catalog import architecture
from loraforge.scale.rule import Scale
from loraforge.text import command

if TYPE_CHECKING:
    from loraforge.algebra.lora import Array, Delta


def load_back(file: Path, adapter: Adapter, loader: str, base: Path | None = None) -> Adapter:
    """What `loader` (one of LOADERS) has in its layers after it loaded the adapter file.

    `base` is a folder with the config.json of the transformer; without it, one is made from the shapes
    of the adapter. Raises LoraforgeError when the loader is not installed, refuses the file or fills no module.
    """
    if loader not in LOADERS:
        raise LoraforgeError(f"there is no loader {loader!r}; there are {', '.join(LOADERS)}.")
    if adapter.architecture != "cogvideox":
        title = architecture(adapter.architecture).title
        raise LoraforgeError(f"--in {loader} builds a CogVideoX transformer, and this adapter is one of {title}.")
    try:
        import diffusers
        import peft
    except ImportError as error:
        raise LoraforgeError(
            f"--in {loader} runs the real loader, and {error.name} is not installed here.",
            Try("pip install 'loraforge[pipeline]'", "torch, diffusers, peft"),
        ) from error
    try:
        shell = _shell(adapter, base)
        LOADERS[loader](file, shell)
    except LoraforgeError:
        raise
    except Exception as error:  # a loader raises what it likes
        told = str(error).partition("\n")[0][:300] or type(error).__name__
        raise LoraforgeError(f"{loader} refuses {file}: {told}", command("loraforge", "inspect", file)) from error
    version = {"diffusers": diffusers, "peft": peft}[loader].__version__
    return Adapter(
        adapter.architecture,
        "diffusers",
        _layers(shell),
        Scale("recorded", f"the scaling of {loader} {version}'s own layers"),
    )


def _diffusers(file: Path, shell: Any) -> None:
    from diffusers import CogVideoXPipeline

    state, metadata = CogVideoXPipeline.lora_state_dict(
        str(file.parent), weight_name=file.name, return_lora_metadata=True
    )
    CogVideoXPipeline.load_lora_into_transformer(state, shell, metadata=metadata)


def _peft(file: Path, shell: Any) -> None:
    from peft import PeftModel

    PeftModel.from_pretrained(shell, str(file.parent))


LOADERS: Mapping[str, Callable[[Path, Any], None]] = {"diffusers": _diffusers, "peft": _peft}


def _shell(adapter: Adapter, base: Path | None) -> Any:
    """The transformer, every tensor of it a view of a single zero."""
    import torch
    from diffusers import CogVideoXTransformer3DModel

    kind: Any = CogVideoXTransformer3DModel  # its class methods have no types
    config = _config(adapter) if base is None else _read(base)
    with torch.device("meta"):
        model = kind.from_config(config)
    for module in model.modules():
        for name, tensor in module.named_parameters(recurse=False):
            nothing = torch.zeros((), dtype=torch.float32).expand(tensor.shape)
            module.register_parameter(name, torch.nn.Parameter(nothing, requires_grad=False))
        for name, tensor in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.zeros((), dtype=torch.float32).expand(tensor.shape))
    return model


def _read(base: Path) -> dict[str, Any]:
    path = next((p for p in (base / "transformer" / "config.json", base / "config.json") if p.is_file()), None)
    if path is None:
        raise FormatError(f"--base {base} has no config.json of a transformer.", command("ls", "-l", base))
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise FormatError(f"{path} is no transformer configuration ({error}).", command("cat", path)) from error


def _config(adapter: Adapter) -> dict[str, Any]:
    """A transformer configuration in which every module of the adapter has the shape its LoRA was made for."""
    arch = architecture(adapter.architecture)
    layout = arch.layouts[adapter.layout]
    shapes: dict[str, tuple[int, ...]] = {}
    blocks = 1
    for path, delta in adapter.modules.items():
        template, index = layout.locate(path) or (None, ())
        blocks = max([blocks, *(number + 1 for _, number in index)])
        segments = layout.modules[template] if template else ()
        for segment, size in zip(segments, arch.sizes(segments, rows(delta)) or (), strict=False):
            shapes[segment] = delta[0].base_shape(size)
    hidden = next((shapes[s][0] for s in ("q", "k", "v", "o", "ff_out", "patch", "text") if s in shapes), 0)
    hidden = hidden or next((shapes[s][1] for s in ("ff_in", "out", "q") if s in shapes), 1920)
    head = 64 if hidden % 64 == 0 else hidden
    patch = shapes.get("patch", (hidden, 16, 2, 2))
    linear = len(patch) == 2  # 1.5 puts two frames of 2 x 2 pixels into a linear layer
    out = shapes.get("out", (64, hidden))[0]
    config = {
        "num_attention_heads": hidden // head,
        "attention_head_dim": head,
        "num_layers": blocks,
        "in_channels": patch[1] // 8 if linear else patch[1],
        "out_channels": out // 8 if linear else out // 4,
        "text_embed_dim": shapes.get("text", (hidden, 4096))[1],
        "time_embed_dim": next((shapes[s][1] for s in ("mod1_video", "mod2_video", "out_mod") if s in shapes), 512),
        "ofs_embed_dim": shapes["ofs1"][0] if "ofs1" in shapes else None,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 9,
    }
    return config | ({"patch_size_t": 2, "patch_bias": False} if linear else {})


def _layers(model: Any) -> dict[str, Delta]:
    """Module path -> the update its LoRA layer makes."""
    from peft.tuners.lora import LoraLayer

    found: dict[str, Delta] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for adapter in layer.lora_A:
            A, B = (_numpy(factors[adapter].weight) for factors in (layer.lora_A, layer.lora_B))
            magnitudes = layer.lora_magnitude_vector
            magnitude = _numpy(magnitudes[adapter].weight).reshape(-1) if adapter in magnitudes else None
            rank, kernel = A.shape[0], A.shape[2:]
            scaling = float(layer.scaling[adapter])
            weight = LoraWeight(A.reshape(rank, -1), B.reshape(-1, rank), scaling, magnitude, kernel)
            found[name.removeprefix("base_model.model.")] = (weight,)
    return found


def _numpy(tensor: Any) -> Array:
    import torch

    plain = tensor.detach().cpu().contiguous()
    bits = plain.dtype == torch.bfloat16  # which numpy does not have
    array: Array = plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if bits else plain.numpy()
    return array
