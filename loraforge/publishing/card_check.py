"""What the Hub requires of a model card, checked before anything is sent.

Sources: hub-docs model-cards.md (fields, base_model, licence), huggingface.js tasks (pipeline tags).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from loraforge.hub.address import is_repo

RELATIONS = ("adapter", "merge", "finetune", "quantized")
TASKS = tuple(
    """text-to-video image-to-video video-to-video text-to-image image-to-image unconditional-image-generation
    image-text-to-video image-text-to-image text-to-3d image-to-3d text-to-speech text-to-audio text-generation
    image-text-to-text any-to-any""".split()
)
_LISTS = ("tags", "datasets", "language", "metrics")


def problems(card: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a card's fields, one sentence each."""
    bases = card.get("base_model", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not is_repo(base):
            yield f"base_model is {base!r:.100}, which is no id of a repository (user/name)"
    relation = card.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        yield f"base_model_relation is {relation!r:.60}; it can be {', '.join(RELATIONS)}"
    yield from _licence(card)
    task = card.get("pipeline_tag")
    if task is not None and task not in TASKS:
        yield f"pipeline_tag is {task!r:.60}, which is no task of the Hub for such a model"
    for key in _LISTS:
        value = card.get(key)
        words = isinstance(value, list) and all(isinstance(v, str) for v in value)
        if not (words or value is None or (isinstance(value, str) and key != "tags")):
            yield f"{key} is {value!r:.60}; it must be a list of words"
    for key in ("library_name", "instance_prompt"):
        if card.get(key) is not None and not isinstance(card[key], str):
            yield f"{key} is {card[key]!r:.60}; it must be a text"
    yield from _widget(card.get("widget"))


def _licence(card: Mapping[str, Any]) -> Iterator[str]:
    licence, name, link = (card.get(key) for key in ("license", "license_name", "license_link"))
    one = licence[0] if isinstance(licence, list) and licence else licence
    if one is not None and not (isinstance(one, str) and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", one)):
        yield f"license is {one!r:.60}, which is no identifier (apache-2.0, other, ...)"
    if (name or link) and one != "other" and name is not None:
        yield f"license_name is {name!r:.60} beside license {one!r:.60}: it goes with license other"
    if one == "other" and not (name or link):
        yield "license is other, with neither license_name nor license_link to say which"
    if link is not None and not (isinstance(link, str) and re.match(r"https?://|LICENSE|[\w.-]+$", link)):
        yield f"license_link is {link!r:.100}, which is neither an address nor a file of the repository"


def _widget(widget: Any) -> Iterator[str]:
    if widget is not None and not isinstance(widget, list):
        yield f"widget is {widget!r:.60}; it must be a list of a text and an output each"
        return
    for entry in widget or ():
        if not isinstance(entry, dict):
            yield f"widget has {entry!r:.60} in it; each must have a text and an output"
