"""The model card: the fields that the Hub reads, and a text that says what the file is and how to run it.

The code in it is complete, at strength 1.0: its lines are in snippet.toml, the classes in the architecture's TOML, the
settings in variants.toml; a model without settings there runs with those of Diffusers. Sources: hub-docs
model-cards.md, model-cards-components.md, models-widgets.md; huggingface.js for the `lora` tag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from loraforge.facts.variants import settings, table
from loraforge.hub.address import is_repo, renamed
from loraforge.names.layout import Architecture, Variant
from loraforge.publishing.front_matter import fields, join, merged, split, written
from loraforge.scale.origin import is_command
from loraforge.tables import package_table
from loraforge.text import HUB, code, markdown

BEGIN, END = "<!-- loraforge: from here -->", "<!-- loraforge: to here; write outside of these two lines -->"
_MARK = "<!-- loraforge:"
EXAMPLE = "A panda plays the guitar by a stream in a bamboo forest, soft light, calm water"
_DEFAULT_SIZE = (480, 720)
"""Height and width that the pipeline takes by default, for all released models but 1.5."""
_HELPERS = {"to-video": "export_to_video", "image": "load_image", "video": "load_video"}
"""What a task begins or ends with -> the function of Diffusers for it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of what is published."""

    repo: str
    kind: str
    """`adapter`, or `merge` for base weights with adapters in them."""
    as_trained: bool
    """Whether the scale of training is known, and the file acts at it."""
    format: str
    """Of an adapter; of base weights, `pipeline`, `transformer` or `file`."""
    architecture: Architecture
    base_model: str | None
    variant: Variant | None
    """The released model that `base_model` is; None if it is not known."""
    weights: str
    """Name of the tensor file."""
    rows: tuple[tuple[str, str], ...]
    """Label and text of each fact of the training and the file."""
    commands: tuple[str, ...]
    """The commands that made the file, the oldest first."""
    trigger: str | None
    prompts: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    """Names in the repository, one for each of the first prompts."""
    example: str | None = None
    """The prompt of the snippet."""


def card_fields(facts: Facts, licence: Mapping[str, str]) -> dict[str, Any]:
    """The front matter, in the order of the Hub's documentation."""
    library = {"diffusers": "diffusers", "peft": "peft", "pipeline": "diffusers", "transformer": "diffusers"}
    name = library.get(facts.format)
    task = facts.architecture.pipelines.get(facts.variant.pipeline) if facts.variant else None
    kind, gallery = "lora" if facts.kind == "adapter" else "merge", "template:sd-lora" if facts.samples else ""
    tags = [word for word in (kind, name, task, facts.architecture.name, gallery) if word]
    made: dict[str, Any] = {
        **licence,
        "base_model": facts.base_model,
        "base_model_relation": facts.kind if facts.base_model else None,
        "library_name": name,
        "pipeline_tag": task,
        "tags": tags,
        "instance_prompt": facts.trigger,
        "widget": [
            {"text": prompt, **({"output": {"url": sample}} if sample else {})}
            for prompt, sample in zip_longest(facts.prompts, facts.samples)
        ],
    }
    return {key: value for key, value in made.items() if value not in (None, [])}


def new_card(facts: Facts, licence: Mapping[str, str]) -> str:
    """The first card of a repository."""
    title = facts.repo.partition("/")[2]
    gallery = "\n<Gallery />\n" if facts.samples else ""
    return join(written(card_fields(facts, licence)), f"\n# {title}\n{gallery}\n{section(facts)}\n")


def updated_card(old: str, facts: Facts, licence: Mapping[str, str], stated: frozenset[str]) -> tuple[str, list[str]]:
    """The card of a repository with our fields and section, and notes where the card says something else.

    What its owner wrote stays, except: fields that are `stated` now, lists without a word of ours, a base model that
    is not the id of a repository, and our section between its two marks.
    """
    front, body = split(old)
    had, notes = fields(front, f"https://huggingface.co/{facts.repo}/blob/main/README.md"), list[str]()
    new: dict[str, Any] = {}
    for key, value in card_fields(facts, licence).items():
        old_value = had.get(key)
        if key == "tags" and isinstance(old_value, str):
            old_value = [word.strip() for word in old_value.split(",") if word.strip()]
            words = ", ".join(old_value)
            notes.append(f"the card's tags were one text; they are a list now, {words:.100} among them")
        if key in ("tags", "widget") and isinstance(old_value, list | None):
            known = [entry for entry in old_value or () if not _replaced(entry, value)]
            new[key] = [*known, *(entry for entry in value if entry not in known)]
        elif old_value in (None, "", []) or key in stated:
            new[key] = value
            if isinstance(old_value, list) and [one for one in old_value if one != value]:
                notes.append(f"the card said {key} {old_value!s:.200}; it says {value} now, as you state")
        elif key == "base_model" and _same_base(old_value, value):
            new[key] = [value] if isinstance(old_value, list) else value
        elif key != "widget" and old_value != value:
            notes.append(f"the card says {key} {old_value!s:.100}, not {value!s:.100}: left as its owner has it")
    if "license" in stated:  # name and link belong to the old licence
        new |= {key: None for key in ("license_name", "license_link") if key in had and key not in new}
    if (BEGIN in body) != (END in body):
        notes.append("one of the two marks around our section is gone from the card: its text is left as it is")
        return join(merged(front, new), body), notes
    made = join(merged(front, new), _with_section(body, section(facts)))
    return (made.replace("\n", "\r\n") if old.count("\r\n") * 2 > old.count("\n") else made), notes


def _replaced(entry: Any, new: Sequence[Any]) -> bool:
    """Whether an entry of the widget shows the same output as a new one, with another prompt."""
    shown = [one["output"] for one in new if isinstance(one, dict) and "output" in one]
    return isinstance(entry, dict) and entry.get("output") in shown and entry not in new


def _same_base(old: Any, new: str) -> bool:
    """Whether the old value is no repository (a path), or the same model under an earlier name."""
    (one,) = old if isinstance(old, list) and len(old) == 1 else (old,)
    return not isinstance(one, list) and (not is_repo(one) or renamed(str(one)) == new)


def _with_section(body: str, text: str) -> str:
    # the owner may have removed one of the marks: replace from the last beginning to the end that follows
    end = body.find(END, max(body.find(BEGIN), 0))
    begin = body.rfind(BEGIN, 0, max(end, 0))
    if begin >= 0:
        return body[:begin] + text + body[end + len(END) :]
    return f"{body.rstrip()}\n\n{text}\n"


def section(facts: Facts) -> str:
    """Our text about the file, between two marks that identify it later."""
    text = "\n".join(_section(facts))
    return f"{BEGIN}\n{text.replace(_MARK, _MARK.replace('<', '&lt;'))}\n{END}"


def snippet(
    repo: str, base: str | None, form: str, weights: str, arch: Architecture, variant: Variant | None, prompt: str
) -> str | None:
    """Markdown: how to install and run what is in `repo`; None if no known Python library runs it as it is."""
    if variant is None or not variant.pipeline or form not in ("diffusers", "peft", "pipeline", "transformer"):
        return None
    if base is None and form != "pipeline":
        return None
    wants = settings(variant.name) if variant.name in table()["variants"] else None
    task = arch.pipelines[variant.pipeline]
    if not task.endswith(("image", "video")):
        return None
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
        "component": arch.component,
        "loader": f"pipe.{arch.component}.load_lora_adapter" if variant.pipeline in arch.bare
        else "pipe.load_lora_weights",
        "name": variant.name, "classes": ", ".join(sorted(classes)), "helpers": ", ".join(helpers),
        "dtype": f"torch_dtype=torch.{values['torch_dtype']}",
        "fps_argument": f", fps={wants.fps}" if wants else "",
        "prompt": repr(prompt).replace("<!--", "\\x3c!--"),  # which would end our section of the card
    }  # fmt: skip
    lines = [line.split("|", 1) for line in package_table("publishing/snippet")["lines"].splitlines()]
    return "\n".join(text[1:].format(**values) for when, text in lines if not when.strip() or words & {*when.split()})


def _section(facts: Facts) -> Iterator[str]:
    model = facts.architecture, facts.variant
    use = snippet(facts.repo, facts.base_model, facts.format, facts.weights, *model, _prompt(facts))
    yield _what(facts)
    if facts.trigger:
        yield f"\nIts prompts have {code(facts.trigger, 200)} in them."
    yield "\n## Use\n"
    yield use or f"Load `{facts.weights}` at strength 1.0 in a program that reads the format {facts.format}."
    yield "\n## What it is\n"
    yield "| | |\n|---|---|"
    for label, text in facts.rows:
        yield f"| {label} | {markdown(text, 500)} |"
    if facts.commands:
        yield "\n## How it was made\n"
        yield "```sh"
        yield from filter(is_command, facts.commands)
        yield "```"


_UNKNOWN = "as loaders read it. No file records the scale of its training, so that may have been stronger or weaker."


def _what(facts: Facts) -> str:
    name = facts.base_model
    base = f"[{name}]({HUB}/{name})" if name else facts.architecture.title
    if facts.kind == "adapter":
        how = "that is the scale of its training." if facts.as_trained else _UNKNOWN
        return f"A LoRA for {base}, to be run at strength 1.0: {how}"
    return f"{base} with LoRA adapters added to its weights for good. No adapter is to be loaded on top."


def _prompt(facts: Facts) -> str:
    """The prompt of the snippet: one of the card, else an example after the trigger words."""
    if facts.example:
        return facts.example
    return f"{facts.trigger} {EXAMPLE[0].lower()}{EXAMPLE[1:]}" if facts.trigger else EXAMPLE
