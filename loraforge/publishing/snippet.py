"""The Python code in a model card: complete, at strength 1.0, with the settings that the base model needs.

Its lines are in snippet.toml. The classes come from the architecture's TOML, the settings from variants.toml; a model
without settings there runs with those of Diffusers.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from loraforge.facts.variants import known_settings, table
from loraforge.names.layout import Architecture, Variant
from loraforge.tables import package_table

EXAMPLE = "A panda plays the guitar by a stream in a bamboo forest, soft light, calm water"
_DEFAULT_SIZE = (480, 720)
"""Height and width that the pipeline takes by default, for all released models but 1.5."""
_HELPERS = {"to-video": "export_to_video", "image": "load_image", "video": "load_video"}
"""What a task begins or ends with -> the function of Diffusers for it."""


def snippet(
    repo: str, base: str | None, form: str, weights: str, arch: Architecture, variant: Variant | None, prompt: str
) -> str | None:
    """Markdown: how to install and run what is in `repo`; None if no known Python library runs it as it is."""
    if variant is None or not variant.pipeline or form not in ("diffusers", "peft", "pipeline", "transformer"):
        return None
    if base is None and form != "pipeline":
        return None
    wants, task = known_settings(variant.name), arch.pipelines[variant.pipeline]
    words = {form, task.partition("-")[0], "to-video" if task.endswith("video") else "to-image"}
    transformer, helpers = arch.transformer_of(variant), [helper for word, helper in _HELPERS.items() if word in words]
    classes = [variant.pipeline, *([transformer] if form == "transformer" else [])]
    values: dict[str, Any] = {"torch_dtype": "bfloat16"}
    if wants:
        values = {**asdict(wants), "frames": wants.frames_rule.replace(", ", " frames, ")}
        classes.append(wants.scheduler)
        odd_size = (wants.height, wants.width) != _DEFAULT_SIZE
        odd_text = wants.max_sequence_length != table()["defaults"]["max_sequence_length"]
        words |= {"settings", *["size"] * odd_size, *["long-text"] * odd_text}
    values |= {
        "repo": repo, "base": base, "weights": weights, "pipeline": variant.pipeline, "transformer": transformer,
        "name": variant.name, "classes": ", ".join(sorted(classes)), "helpers": ", ".join(helpers),
        "dtype": f"torch_dtype=torch.{values['torch_dtype']}",
        "fps_argument": f", fps={wants.fps}" if wants else "",
        "prompt": repr(prompt).replace("<!--", "\\x3c!--"),  # which would end our section of the card
    }  # fmt: skip
    lines = [line.split("|", 1) for line in package_table("publishing/snippet")["lines"].splitlines()]
    return "\n".join(text[1:].format(**values) for when, text in lines if not when.strip() or words & {*when.split()})
