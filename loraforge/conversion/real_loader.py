"""Runs the real loader on a file and reads back which modules it fills, with what tensors, at what scaling.

The base model is a shell of the right shape whose weights are all views of a single zero: a 5B takes no memory.
Needs `loraforge[pipeline]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.differences import whole
from loraforge.adapter.fits import fits, placed
from loraforge.algebra.lora import Delta, LoraWeight
from loraforge.errors import FormatError, LoraforgeError, Try, no_such, of_pipeline
from loraforge.files.texts import read_json
from loraforge.fusion.with_torch import as_array
from loraforge.names.diffusers_config import Placed, entries, filled, sizes
from loraforge.names.layout import COMPONENTS, Architecture, Variant
from loraforge.scale.rule import Scale
from loraforge.text import command


def load_back(file: Path, adapter: Adapter, loader: str, base: Path | None = None) -> Adapter:
    """What `loader` (one of LOADERS) has in its layers after it loaded the adapter file.

    `base`: a folder with the transformer's config.json; None makes one from the adapter's shapes. Raises LoraforgeError
    when the loader is not installed, refuses the file or fills no module.
    """
    if loader not in LOADERS:
        raise no_such("loader", loader, LOADERS)
    arch = adapter.model
    if not arch.transformer or not arch.pipelines:
        text = f"--in {loader} fills a model of Diffusers, and the data of {arch.title} names no class of one"
        raise LoraforgeError(f"{text}: config._class_name and pipelines.", command("loraforge", "layouts", arch.name))
    with of_pipeline(f"--in {loader}, the real loader,"):
        import diffusers
        import peft
    try:
        shell = _shell(adapter, base)
        LOADERS[loader](file, shell, next(iter(arch.pipelines)))
    except LoraforgeError:
        raise
    except Exception as error:  # a loader may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        text = f"{loader} refuses {file}: {reason.rstrip('.')}."
        way = "" if base else " --base names the folder with the config.json of its base model."
        raise LoraforgeError(text + way, command("loraforge", "inspect", file)) from error
    version = {"diffusers": diffusers, "peft": peft}[loader].__version__
    layers, biases = _layers(shell)
    scale = Scale("recorded", f"the scaling of {loader} {version}'s own layers")
    return Adapter(adapter.architecture, "diffusers", layers, scale, biases)


def _diffusers(file: Path, shell: Any, pipeline: str) -> None:
    kind = _class(pipeline)
    state, *_, metadata = kind.lora_state_dict(str(file.parent), weight_name=file.name, return_lora_metadata=True)
    component = next(name for name in COMPONENTS if hasattr(kind, f"load_lora_into_{name}"))
    into = getattr(kind, f"load_lora_into_{component}")
    alphas = {"network_alphas": None} if "network_alphas" in signature(into).parameters else {}  # without a default
    into(state, **{component: shell}, metadata=metadata, **alphas)


def _peft(file: Path, shell: Any, _: str) -> None:
    from peft import PeftModel

    PeftModel.from_pretrained(shell, str(file.parent))


LOADERS: Mapping[str, Callable[[Path, Any, str], None]] = {"diffusers": _diffusers, "peft": _peft}
_SAMPLE = 9
"""Frames, rows and columns of the sample that a shell is configured for."""


def _class(name: str) -> Any:
    """A class of Diffusers. Raises LoraforgeError if the installed version has none of this name."""
    import diffusers

    if not hasattr(diffusers, name):
        text = f"diffusers {diffusers.__version__}, which is installed here, has no {name}."
        raise LoraforgeError(text, Try("pip install --upgrade diffusers"))
    return getattr(diffusers, name)


def _shell(adapter: Adapter, base: Path | None) -> Any:
    """The transformer, every tensor of it a view of a single zero."""
    import torch

    config = _config(adapter) if base is None else _read(base)
    kind = _class(str(config.get("_class_name", adapter.model.transformer)))
    with torch.device("meta"):
        model = kind.from_config(config)
    zero = torch.zeros((), dtype=torch.float32)
    for module in model.modules():
        for name, tensor in module.named_parameters(recurse=False):
            module.register_parameter(name, torch.nn.Parameter(zero.expand(tensor.shape), requires_grad=False))
        for name, tensor in module.named_buffers(recurse=False):
            module.register_buffer(name, zero.expand(tensor.shape))
    return model


def _read(base: Path) -> dict[str, Any]:
    every = [*(base / name / "config.json" for name in COMPONENTS), base / "config.json"]
    path = next((p for p in every if p.is_file()), None)
    if path is None:
        raise FormatError(f"--base {base} has no config.json of a transformer.")
    return read_json(path, "the configuration of a transformer", command("cat", path), kind=FormatError)


def _config(adapter: Adapter) -> dict[str, Any]:
    """A transformer configuration that gives every adapted module the shape of its LoRA."""
    arch, every, known = adapter.model, placed(adapter), dict[str, int]()
    released = next(iter(fits(adapter)), None)
    if released:  # sizes of heads, and lists of blocks, are no shapes of a LoRA
        known = {f"blocks {segment}": released.depth(segment) for segment in arch.segments}
        known |= arch.solved(released).values
    config = filled(entries(arch, released or _variant(arch, every)), sizes(arch, every) | known, any_share=True)
    # tables of positions are computed for the sample, and no LoRA is made for them
    return {name: min(value, _SAMPLE) if name.startswith("sample_") else value for name, value in config.items()}


def _variant(arch: Architecture, every: Sequence[Placed]) -> Variant | None:
    """A variant with all adapted segments and as many dimensions in the telling weight; else the first, or None."""
    present = {segment: shape for _, segment, _, shape in every}
    shape = present.get(arch.told_by)
    whole = [variant for variant in arch.variants if not variant.absent & present.keys()]
    able = [variant for variant in whole if not shape or len(shape) == len(variant.shapes[arch.told_by])]
    return next(iter([*able, *arch.variants]), None)


def _layers(model: Any) -> tuple[dict[str, Delta], dict[str, Delta]]:
    """Module path -> the update its LoRA layer makes; and bias -> what the layer adds to it."""
    from peft.tuners.lora import LoraLayer

    layers, biases = dict[str, Delta](), dict[str, Delta]()
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for adapter in layer.lora_A:
            A, B = (as_array(factors[adapter].weight) for factors in (layer.lora_A, layer.lora_B))
            magnitudes = layer.lora_magnitude_vector
            magnitude = as_array(magnitudes[adapter].weight).reshape(-1) if adapter in magnitudes else None
            rank, kernel = A.shape[0], A.shape[2:]
            scaling = float(layer.scaling[adapter])
            weight = LoraWeight(A.reshape(rank, -1), B.reshape(-1, rank), scaling, magnitude, kernel)
            path = name.removeprefix("base_model.model.")
            layers[path] = (weight,)
            if (bias := layer.lora_B[adapter].bias) is not None:
                biases[f"{path}.bias"] = whole(as_array(bias), scaling)
    return layers, biases
