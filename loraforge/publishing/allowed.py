"""What of a header or configuration is published: the known entries and fields, each in a form that hides nothing.

allowed.toml has the forms. A list of what is secret is never complete; this one is of what is not. A plain short word
(a name without dots or slashes) cannot be told from any other, and passes where free text does.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

from loraforge.conversion.evidence import BASES, WORDS
from loraforge.files.tensorfile import KEY
from loraforge.files.texts import once
from loraforge.hub.address import renamed
from loraforge.names.catalog import architectures
from loraforge.names.lookalike import of_words
from loraforge.scale.origin import WITHHELD, is_command
from loraforge.scale.run_folders import places
from loraforge.scale.training_config import NAMES
from loraforge.tables import package_table
from loraforge.text import listed

_TABLE = package_table("publishing/allowed")
_NEVER, _COMPONENT = (re.compile(_TABLE[name]["pattern"]) for name in ("never", "components"))
_SCAFFOLD = NAMES | {"split_qkv", "algo", "lora_config", "params", "value"}
"""The keys of a training configuration that say what a number is."""


@cache
def _pattern(form: str) -> re.Pattern[str]:
    return re.compile(_TABLE["forms"][form]["pattern"])


def has_form(form: str, text: str) -> bool:
    """Whether a text is in a form of allowed.toml, and its words are words."""
    kind = _TABLE["forms"][form]
    if len(text) > kind["most"] or not _pattern(form).fullmatch(text):
        return False
    if kind.get("free"):
        return True
    text = re.sub(r"@[0-9a-f]{40}(?=/|$)", "", text)  # the commit in an address of the Hub
    return not _NEVER.search(text) and all(map(_is_word, re.findall(r"[^\W_]+", text)))


def _is_word(word: str) -> bool:
    """Whether letters and digits look like a word, not like a token, whose kinds of character change all the time."""
    runs = re.findall(r"[a-z]+|[A-Z]+|\d+|[^a-zA-Z\d]+", word)
    longest = {kind: max((len(run) for run in runs if kind(run)), default=0) for kind in (str.isupper, str.isdecimal)}
    changes = sum(not (one.isupper() and other.islower()) for one, other in pairwise(runs))
    lower = max((len(run) for run in runs if run.isascii() and run.islower()), default=0)
    few_capitals = longest[str.isupper] <= (5 if longest[str.isdecimal] else 15)
    short = len(word) <= 40 and lower <= 20 and longest[str.isdecimal] <= 8
    return short and few_capitals and changes <= min(2 + len(word) // 8, 5)


@dataclass(frozen=True)
class Allowed:
    """What may be published beside these tensors."""

    names: Iterable[str]
    """The names of the tensors."""
    base: str | None
    """The base model that the card names."""

    def header(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """The entries of a header that are published, rewritten where only a part of one is."""
        kept = {key: self._entry(key, text) for key, text in metadata.items()}
        return {key: text for key, text in kept.items() if text is not None}

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The published part of a PEFT configuration."""
        kept = self._fields(config, "config")
        if "base_model_name_or_path" in kept and self.base:
            kept["base_model_name_or_path"] = self.base
        return kept

    def component(self, config: Any) -> Any:
        """The published part of a model's or tokenizer's configuration: numbers, words and templates."""
        if isinstance(config, dict):
            entries = {key: self.component(value) for key, value in config.items() if has_form("name", key)}
            return {key: value for key, value in entries.items() if value != WITHHELD}
        if isinstance(config, list):
            return [value for value in map(self.component, config) if value != WITHHELD]
        forms = ("name", "version", "special", "module", "text", "template")
        free = not isinstance(config, str) or not config or any(has_form(form, config) for form in forms)
        return config if free else WITHHELD

    def index(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """The published part of the index of a model's shards."""
        places = table["weight_map"].items() if isinstance(table.get("weight_map"), dict) else ()
        known = {key: file for key, file in places if has_form("tensor", key) and has_form("shard", f"{file}")}
        return {"metadata": self.component(table.get("metadata")), "weight_map": known}

    def _entry(self, key: str, text: str) -> str | None:
        """The published text of an entry; None if it stays at home."""
        words, (component, _, word) = places()["header"], key.rpartition(".")
        if key == KEY:
            return rewritten(text, lambda value: self._fields(value, "own"))
        if key in words["configs"]:
            return rewritten(text, lambda value: self._fields(value, "config"))
        if key in words["documents"]:
            return rewritten(text, _numbers)
        if key in BASES:
            return self._base(text)
        if key in WORDS:
            return _model(text)
        if (mark := next((mark for mark in _marks(key) if mark in text), None)) is not None:
            return mark  # empty, if the entry tells by itself
        known = word in (*words["alpha"], *words["rank"], *words["rslora"])
        if known and (not component or _COMPONENT.fullmatch(component)):
            return text if has_form("number", text.strip()) or has_form("flag", text.strip()) else None
        form = _TABLE["header"].get(key)
        return text if form and has_form(form, text) else None

    def _fields(self, value: Any, table: str) -> dict[str, Any]:
        """The known fields of an object of JSON, in any depth."""
        kept = dict[str, Any]()
        for key, entry in value.items() if isinstance(value, dict) else ():
            component, _, word = key.rpartition(".")
            form = _TABLE[table].get(word, "digest" if table == "own" and has_form("name", key) else None)
            if component and not _COMPONENT.fullmatch(component):
                continue
            if form is None and isinstance(entry, dict) and _COMPONENT.fullmatch(key):
                kept[key] = self._fields(entry, table)
            elif form is not None and (published := self._value(entry, form, table)) != WITHHELD:
                kept[key] = published
            elif form is not None and table == "own":
                kept[key] = WITHHELD  # so that the rest of its history can be read
        return kept

    def _value(self, value: Any, form: str, table: str) -> Any:
        """The published part of a field's value; WITHHELD if it has none."""
        if isinstance(value, list):
            return [part for one in value if (part := self._value(one, form, table)) != WITHHELD]
        if isinstance(value, dict):
            if form != "modules":
                return self._fields(value, table)
            return {key: entry for key, entry in value.items() if self._is_module(key) and not isinstance(entry, str)}
        if not isinstance(value, str):
            return value
        if form == "base":
            return self._base(value)
        if form in ("command", "modules"):
            return value if (self._is_command if form == "command" else self._is_module)(value) else WITHHELD
        return value if has_form(form, value) else WITHHELD

    def _base(self, text: str) -> str | None:
        """A recorded base model, if it is a released one; else that of the card."""
        return text if renamed(text) in architectures().index.repos else self.base

    def _is_command(self, text: str) -> bool:
        """Whether a text is a command of loraforge, of options, numbers, names of files and of modules."""
        if not is_command(text):
            return False
        words = (word.removeprefix("--").partition("=") for word in shlex.split(text)[1:])
        parts = [part for name, _, value in words for part in (name, value) if part]
        return all(has_form("file", part) or self._base(part) == part or self._is_module(part) for part in parts)

    def _is_module(self, text: str) -> bool:
        """Whether a text is the name or pattern of modules, of words that stand in names of tensors."""
        if len(text) > 1000 or not re.fullmatch(r"(?:[\w.*+?|()\[\]{}^$\\,=!-]|(?<=\?):)*", text):
            return False
        plain = re.sub(r"\\[dwsbDWSB]", " ", text)
        odd = re.search(r"\d{4}|\d+(?:\\?\.\d+){2}", plain) or not all(map(_is_word, re.findall(r"[^\W_]+", plain)))
        return not odd and all(letters in self._words for letters in re.findall(r"[^\W\d_]+", plain))

    @cached_property
    def _words(self) -> str:
        """The names of the tensors, and those of all known models, in one text."""
        return "\n".join([*self.names, *architectures().index.patterns])


def _marks(key: str) -> list[str]:
    """The words by which trainers are known in an entry."""
    headers = (trainer.get("header", {}) for trainer in package_table("facts/trainers").values())
    return [header[key] for header in headers if key in header]


def _model(text: str) -> str | None:
    """What a header calls its model, or the title of that model if more is said; None if it is not known."""
    title = of_words(text)
    return text if title and has_form("model", text) else title


def rewritten(text: str, keep: Callable[[Any], Any]) -> str | None:
    """The published part of an entry that is JSON: as it was written, if that is all of it. None if there is none."""
    with suppress(ValueError, RecursionError):
        if not (kept := keep(json.loads(text))):
            return None
        with suppress(ValueError):  # of a key that is there twice, nobody reads the first
            if json.loads(text, object_pairs_hook=once) == kept:
                return text
        return json.dumps(kept, indent=2, sort_keys=True)
    return None


def _numbers(value: Any, key: str = "") -> Any:
    """The numbers of a training configuration that state a scale, at the same depth. Other names are not kept."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        parts = {
            name if name in _SCAFFOLD else f"{n}": _numbers(part, key if name == "value" else str(name))
            for n, (name, part) in enumerate(pairs)
        }
        return {name: part for name, part in parts.items() if part is not None} or None
    forms = ("algorithm",) if key == "algo" else ("number", "flag") if key in NAMES | {"split_qkv"} else ()
    known = any(has_form(form, value) for form in forms) if isinstance(value, str) else bool(forms)
    return value if known else None


def at_home(before: Mapping[str, Any], kept: Mapping[str, Any], where: str) -> list[str]:
    """Notes that say how many entries of a header or configuration are not published, and which."""
    gone = sorted(key if has_form("key", key) else "one with a strange name" for key in before.keys() - kept.keys())
    parts = sorted(key for key, value in kept.items() if before[key] != value)
    entries = "entry of {} stays" if len(gone) == 1 else "entries of {} stay"
    notes = [f"{len(gone)} {entries.format(where)} at home: {listed(gone, 6)}"] if gone else []
    return notes + ([f"of {where}, only what is known of {listed(parts, 6)} is sent"] if parts else [])
