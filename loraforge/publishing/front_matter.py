"""The YAML at the head of a model card: reading it, merging fields into it without changing the rest, and its check.

Sources: hub-docs model-cards.md (fields, base_model, licence), huggingface.js tasks (pipeline tags).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import yaml

from loraforge.errors import HubError, Try
from loraforge.foreign import reading
from loraforge.hub.address import is_repo

_FENCE = "---"
_LONG = 1 << 30
"""Line width for PyYAML, so that no line is folded."""
_MOST = 100_000
"""Values in the head of a card; a part that is referred to twice counts twice."""
RELATIONS = ("adapter", "merge", "finetune", "quantized")
TASKS = tuple(
    """text-to-video image-to-video video-to-video text-to-image image-to-image unconditional-image-generation
    image-text-to-video image-text-to-image text-to-3d image-to-3d text-to-speech text-to-audio text-generation
    image-text-to-text any-to-any""".split()
)
_LISTS = ("tags", "datasets", "language", "metrics")


def split(card: str) -> tuple[str, str]:
    """The YAML between the first two lines of `---`, empty if there is none, and the text after it."""
    card = card.removeprefix("\ufeff").replace("\r\n", "\n")
    lines = card.lstrip().split("\n")  # as the Hub, which passes over empty lines before the first
    if lines[0].rstrip() != _FENCE:
        return "", card
    end = next((n for n, line in enumerate(lines) if n and line.rstrip() == _FENCE), None)
    if end is None:
        return "", card
    return "".join(f"{line}\n" for line in lines[1:end]), "\n".join(lines[end + 1 :])


def join(front: str, body: str) -> str:
    """The card with this YAML and text."""
    return f"{_FENCE}\n{front}{_FENCE}\n{body}"


def fields(front: str, where: str) -> dict[str, Any]:
    """The fields of the YAML. Raises HubError if it is invalid or not a mapping."""
    with reading(f"the head of {where}", "YAML", edit(where), kind=HubError, then="Mend it there first."):
        front = f"\n{front}"  # so that lines are those of the card
        if _size(yaml.compose(front, Loader=yaml.SafeLoader), {}) > _MOST:
            raise ValueError("it is too large, or contains itself")
        values = yaml.safe_load(front)
        if values is not None and not isinstance(values, dict):
            raise ValueError("it is no table of fields")
    return values or {}


def _size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """The number of values in a part of the YAML; above the limit if it contains itself."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) not in known:
        known[id(node)] = _MOST + 1  # until it is counted
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = min(1 + sum(_size(part, known) for part in parts), _MOST + 1)
    return known[id(node)]


def edit(where: str) -> Try:
    """The remedy that opens the card at the address `where` in a browser."""
    return Try(f"python -m webbrowser {where}", "edit it there")


def merged(front: str, new: Mapping[str, Any]) -> str:
    """The YAML with these fields set, or removed if None. Lines, comments and order of all others stay.

    If single lines cannot be changed (an anchor in a value of ours, braces around everything), only the values stay.
    """
    old = yaml.safe_load(front) or {}
    changes = {key: value for key, value in new.items() if old.get(key) != value}
    if not changes:
        return front
    kept = {key: value for key, value in {**old, **changes}.items() if value is not None or key not in changes}
    wanted = written(kept)
    for longer in (True, False):
        made = _edited(front, old, changes, longer=longer)
        with suppress(Exception):  # whatever PyYAML raises, the text cannot be kept
            # compared as text: a YAML may refer to one part of itself many times
            if written(yaml.safe_load(made)) == wanted:
                return made
    return wanted


def _edited(front: str, old: Mapping[str, Any], changes: Mapping[str, Any], *, longer: bool) -> str:
    """The text with each value replaced, and new fields at the end. `longer`: lists are extended in place."""
    tree = yaml.compose(front, Loader=yaml.SafeLoader)
    table = tree if isinstance(tree, yaml.MappingNode) else None
    pairs = {key.value: (key, value) for key, value in table.value} if table else {}
    margin = " " * (table.start_mark.column if table else 0)
    for key in sorted(changes.keys() & pairs.keys(), key=lambda key: -pairs[key][0].start_mark.index):
        name, value = pairs[key]
        had, wants = old.get(key), changes[key]
        if longer and isinstance(had, list) and isinstance(wants, list) and wants[: len(had)] == had and value.value:
            front = _appended(front, value, wants[len(had) :])
        else:
            end = max(_end(front, value), name.end_mark.index + 1)
            text = "" if wants is None else _lines({key: wants}, margin).strip()
            if wants is None and front[end : end + 1] == "\n":
                end += 1  # the line of a removed field
            front = front[: name.start_mark.index] + text + front[end:]
    more = {key: value for key, value in changes.items() if key not in pairs and value is not None}
    return front + ("" if front.endswith("\n") or not front else "\n") + (_lines(more, margin) if more else "")


def _end(front: str, value: yaml.Node) -> int:
    """Where a value ends, without the comments after it, which YAML counts to a list or table."""
    end = int(value.end_mark.index)
    lines = front[value.start_mark.index : end].splitlines(keepends=True)
    while len(lines) > 1 and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        end -= len(lines.pop())
    return end - (len(lines[-1]) - len(lines[-1].rstrip()) if lines else 0)


def _appended(front: str, value: yaml.CollectionNode, more: list[Any]) -> str:
    """The text with more entries at the end of a list."""
    if value.flow_style:
        inside = yaml.safe_dump(more, default_flow_style=True, allow_unicode=True, width=_LONG).strip()[1:-1]
        end = value.end_mark.index - 1
        return f"{front[:end].rstrip()}, {inside}{front[end:]}"
    end = front.find("\n", _end(front, value))
    end = len(front) if end < 0 else end
    return f"{front[:end]}\n{_lines(more, ' ' * value.start_mark.column).rstrip()}{front[end:]}"


def _lines(values: Any, margin: str) -> str:
    return "".join(f"{margin}{line}\n" for line in written(values).splitlines())


def written(values: Mapping[str, Any] | list[Any]) -> str:
    """Fields as YAML, in this order, no line folded."""

    class Dumper(yaml.SafeDumper):
        """Escapes characters that PyYAML would read back as whitespace."""

        def represent_str(self, text: str) -> yaml.ScalarNode:
            odd = any(not c.isprintable() and c != "\n" for c in text)
            return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd else None)

    Dumper.add_representer(str, Dumper.represent_str)
    text = str(yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=_LONG))
    # what is left of characters that are not shown stands in quotes
    return re.sub(r"[^ -~\n]", lambda match: match[0] if match[0].isprintable() else f"\\U{ord(match[0]):08x}", text)


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
