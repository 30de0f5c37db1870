"""What must not leave this machine: paths of it and tokens, wherever a header or a configuration has them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_PATH = re.compile(
    r"""(?:^|[\s"'=:,;(\[{])(?:/[\w.@+ -]+){2,}"""  # /home/me/run, not the slashes of https://
    r"""|(?<![A-Za-z])[A-Za-z]:[\\/]+\w"""  # C:\Users
    r"""|\\\\[\w.-]+\\"""  # \\server\share
    r"""|(?:^|[\s"'=])~[\w-]*[\\/]"""
    r"""|file://"""
)
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}|(?:sk|ghp|gho|github_pat|glpat)[-_][A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}")


def private(text: str) -> str:
    """What in a text is not for others: `a path of this machine`, `a token`; empty where there is nothing."""
    if _TOKEN.search(text):
        return "a token"
    return "a path of a machine" if _PATH.search(text) else ""


def cleaned(metadata: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """A header's entries without those that hold something private, and a note for each of these."""
    found = {key: what for key, text in metadata.items() if (what := private(f"{key} {text}"))}
    kept = {key: text for key, text in metadata.items() if key not in found}
    return kept, tuple(f"left out of the header: {key}, in which there is {what}" for key, what in found.items())


def cleaned_json(text: str, name: str) -> tuple[str, tuple[str, ...]]:
    """A JSON document with null for every text that is private; the same text where there is none.

    Raises ValueError where it is no JSON.
    """
    notes: list[str] = []

    def clean(value: Any, where: str) -> Any:
        if isinstance(value, dict):
            return {key: clean(entry, f"{where}.{key}") for key, entry in value.items()}
        if isinstance(value, list):
            return [clean(entry, where) for entry in value]
        if isinstance(value, str) and (what := private(value)):
            notes.append(f"left out of {name}: {where.lstrip('.')}, in which there is {what}")
            return None
        return value

    made = clean(json.loads(text), "")
    return (json.dumps(made, indent=2, ensure_ascii=False) + "\n" if notes else text), tuple(notes)
