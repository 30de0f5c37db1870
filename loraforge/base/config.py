"""Diffusers' config.json of a base model: from its shapes, its variant, and the configuration of its SAT run.

Sources: diffusers models/transformers/cogvideox_transformer_3d.py (the entries), CogVideo
tools/convert_weight_sat2hf.py (`get_transformer_init_kwargs`), the config.json of the released models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from loraforge.base.model import BaseModel
from loraforge.base.positions import grid
from loraforge.errors import ConversionError, FileError, Try, adding, names_in
from loraforge.files.texts import read_json, read_yaml
from loraforge.format.sat_names import CONFIG
from loraforge.names.diffusers_config import entries, filled, fixed, like, sizes
from loraforge.names.layout import COMPONENT, Variant
from loraforge.scale.origin import own_entry
from loraforge.text import command, listed, shown

PIXELS = 8
"""Pixels of a video per latent row and column: what the VAE reduces."""
_POSITIONS = "mixins.pos_embed.pos_embedding"
"""SAT's table of positions: a model has it if its positions are learned, or not rotary."""


def variant_of(base: BaseModel) -> Variant:
    """The one released model that it resembles. Raises ConversionError if none or several could be it."""
    possible = [variant for variant in base.variants if not _speaks_against(base, variant)]
    kinds = {str(entries(base.architecture, variant)): variant for variant in reversed(possible)}
    if len(kinds) == 1:
        return next(iter(kinds.values()))
    names = " or ".join(variant.name for variant in possible)
    text = f"{names}, and its other names do not tell which" if possible else f"no released {base.architecture.title}"
    look = names_in(base.files[0].path)
    raise ConversionError(f"{base.path} has the shapes of {text}.", look)


def _speaks_against(base: BaseModel, variant: Variant) -> bool:
    """Whether its tables of positions or its config.json exclude the variant; the shapes of weights do not."""
    expected = fixed(base.architecture, variant)
    if base.layout == "sat":
        learned, rotary = (expected[f"use_{kind}_positional_embeddings"] for kind in ("learned", "rotary"))
        return (_POSITIONS in base.parameters) != (learned or not rotary)
    own = own_config(base)
    stated = [item for other in base.architecture.variants for item in other.config.items()]
    switches = {name for name, on in stated if isinstance(on, bool | str)}  # training can change the numbers
    return any(own[name] != expected[name] for name in switches & own.keys() & expected.keys())


def own_config(base: BaseModel) -> dict[str, Any]:
    """The config.json of a Diffusers base; empty if it has none. Raises FileError if an entry is of no such kind."""
    file = base.folder / "config.json"
    config = read_json(file) if base.kind in ("pipeline", COMPONENT) and file.is_file() else {}
    known = [entries(base.architecture, variant) for variant in base.architecture.variants]
    for name, value in config.items():
        examples = [entry[name] for entry in known if name in entry]
        if examples and not any(like(value, example) for example in examples):
            look = Try(command("cat", file), f"{name} is {shown(examples[0])} in the released model")
            raise FileError(f"{file}: {name} is {shown(value)}, which no {base.architecture.title} can have.", look)
    return config


def diffusers_config(base: BaseModel, variant: Variant, sample: str | None = None) -> tuple[dict[str, Any], str]:
    """The entries of config.json, sorted, and the source of those that do not follow from shapes.

    `sample`: frames, height and width in pixels, as `49x480x720`; it replaces what the base states. Raises
    ConversionError if the architecture's data lists no entries, or if learned positions have another size.
    """
    if not base.architecture.config:
        text = f"the configuration of {base.architecture.title} in Diffusers is not known: its data has no [config]."
        raise ConversionError(text, command("loraforge", "layouts", base.architecture.name))
    expected = entries(base.architecture, variant)
    given = {} if sample is None else _sample(sample)
    if not expected.keys() >= given.keys():
        raise ConversionError(f"--sample is for positions that are learned, which {base.architecture.title} has not.")
    stated, where = _configured(base)
    config = filled(expected, sizes(base.architecture, base.placed)) | stated | given
    if lacking := sorted(expected.keys() - config.keys()):
        text = f"{base.path} is not a whole {base.architecture.title}: no weight tells {listed(lacking, 3)}."
        raise ConversionError(text)
    where = "--sample" if given else where or f"{variant.name} as released"
    if shape := base.shape(_POSITIONS):
        of_text = shape[-2] - math.prod(grid(config))
        if given and of_text > 0:
            config["max_text_seq_length"] = of_text
        elif of_text != config["max_text_seq_length"] and config["use_learned_positional_embeddings"]:
            raise _other_size(base, config, shape[-2], where)
    return dict(sorted(config.items())), where


def other_size(base: BaseModel, config: Mapping[str, Any]) -> Iterator[str]:
    """A note if SAT's table of positions, which Diffusers computes, has another size than the configuration."""
    shape = base.shape(_POSITIONS)
    if shape and shape[-2] != config["max_text_seq_length"] + math.prod(grid(config)):
        yield (
            f"its table of {shape[-2]} positions is of another size than the configuration, which decides the default "
            "size of a video: --sample FRAMESxHEIGHTxWIDTH states it"
        )


def sample_of(base: BaseModel) -> dict[str, int]:
    """The sample that a base says it is for. A written SAT checkpoint keeps it in its header: it has no config.json."""
    stated = own_config(base) or _configured(base)[0]
    return {key: stated[key] for key in _SAMPLE if key in stated}


def _sample(text: str) -> dict[str, int]:
    sides = text.lower().split("x")
    if len(sides) != 3 or not all(side.isdecimal() and int(side) for side in sides):
        raise ConversionError(f"--sample {text!r:.40} is no FRAMESxHEIGHTxWIDTH.", adding("--sample", "49x480x720"))
    frames, height, width = map(int, sides)
    if height % PIXELS or width % PIXELS:
        larger = (-(-side // PIXELS) * PIXELS for side in (height, width))
        remedy = adding("--sample", "x".join(map(str, (frames, *larger))))
        raise ConversionError(f"--sample {text}: height and width are multiples of {PIXELS} pixels.", remedy)
    return {"sample_frames": frames, "sample_height": height // PIXELS, "sample_width": width // PIXELS}


def _other_size(base: BaseModel, config: Mapping[str, Any], positions: int, where: str) -> ConversionError:
    """The refusal, with remedies: the sizes with as many positions whose shape is nearest to the configured one."""
    text, patches, pixels = config["max_text_seq_length"], math.prod(grid(config)), PIXELS * config["patch_size"]
    frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
    area, rest = divmod(positions - text, frames)
    aspect = config["sample_width"] / config["sample_height"]
    sides = [(h, area // h) for h in range(1, max(area, 0) + 1) if area % h == 0 and not rest]
    near = sorted((s for s in sides if 1 / 3 <= s[0] / s[1] <= 3), key=lambda s: abs(math.log(s[1] / s[0] / aspect)))
    count = config["sample_frames"]
    ways = [adding("--sample", f"{count}x{h * pixels}x{w * pixels}", why="if so trained") for h, w in near[:4]]
    size = f"{count}x{config['sample_height'] * PIXELS}x{config['sample_width'] * PIXELS}"
    return ConversionError(
        f"{base.path} has {positions} learned positions, and {where} ({size}) has {text + patches}: it was "
        f"trained at another size. State it with --sample FRAMESxHEIGHTxWIDTH, in pixels, or put the run's {CONFIG} "
        "beside it.",
        *(ways or [Try(command("loraforge", "convert-base", "--help"))]),
    )


def _configured(base: BaseModel) -> tuple[dict[str, Any], str]:
    """The sample that a SAT run's training_config.yaml or the base's own header states, and which of them does.

    Anybody can write either, so entries that are no positive integers are left out.
    """
    folders = [base.folder, *base.folder.absolute().parents[:2]]
    path = next((f / CONFIG for f in folders if base.kind == "sat" and (f / CONFIG).is_file()), None)
    params = _at(read_yaml(path), "model", "network_config", "params") if path else None
    if isinstance(params, Mapping):
        sample, where = {name: _at(params, *keys) for name, keys in _SAMPLE.items()}, CONFIG
    else:
        sample, where = _at(own_entry(base.files[0].metadata), "base", "sample"), "the file's own header"
    counts = {name: count for name in _SAMPLE if type(count := _at(sample, name)) is int and count > 0}
    return counts, where if counts else ""


def _at(document: Any, *keys: str) -> Any:
    """What a document of mappings holds under these keys, None if it has no such entry."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document


_SAMPLE = {
    "sample_frames": ("num_frames",),
    "sample_height": ("latent_height",),
    "sample_width": ("latent_width",),
    "temporal_compression_ratio": ("time_compressed_rate",),
    "max_text_seq_length": ("modules", "pos_embed_config", "params", "text_length"),
}
"""Entries of config.json that only a table of positions tells -> where in `params` a SAT run states them."""
