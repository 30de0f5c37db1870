"""What must not leave this machine: its paths and tokens, in a header or a configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from loraforge.tables import package_table

_PATH, _TOKEN, _PUBLIC = (
    re.compile("|".join(package_table("publishing/private")[kind])) for kind in ("paths", "tokens", "public")
)
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
"""An escaped letter of JSON: many header entries are JSON."""


def private(text: str) -> str:
    """What is private in a text: `a path of a machine` or `a token`; empty if nothing is."""
    text = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)
    if _TOKEN.search(text):
        return "a token"
    text = _PUBLIC.sub(" ", re.sub(r"\\+/", "/", text))  # as some write a slash in JSON
    return "a path of a machine" if _PATH.search(text) else ""


def cleaned(metadata: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The entries of a header without the private ones, and a note for each that is left out."""
    kept = {key: text for key, text in metadata.items() if not private(f"{key} {text}")}
    return kept, tuple(f"left out of the header: {secret}" for secret in secrets_in(metadata))


def secrets_in(metadata: Mapping[str, str]) -> list[str]:
    """What is private in a header, one phrase for each entry: `training_args, in which there is a token`."""
    secrets = {key: private(f"{key} {text}") for key, text in metadata.items()}
    return [f"{_named(key)}, in which there is {secret}" for key, secret in secrets.items() if secret]


def _named(key: str) -> str:
    """The name of an entry for a message, which must not show a token."""
    return key if private(key) != "a token" else "an entry named after a token"


def cleaned_json(text: str, name: str) -> tuple[str, tuple[str, ...]]:
    """The JSON with null for private texts, without private keys, and notes. Raises ValueError if it is no JSON."""
    notes: list[str] = []

    def clean(value: Any, where: str) -> Any:
        if isinstance(value, dict):
            secrets = {key: secret for key in value if (secret := private(key))}
            notes.extend(f"left out of {name}: {_named(key)}, in which there is {s}" for key, s in secrets.items())
            return {key: clean(entry, f"{where}.{key}") for key, entry in value.items() if key not in secrets}
        if isinstance(value, list):
            return [clean(entry, where) for entry in value]
        if isinstance(value, str) and (secret := private(value)):
            notes.append(f"left out of {name}: {where.lstrip('.')}, in which there is {secret}")
            return None
        return value

    document = clean(json.loads(text), "")
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n" if notes else text), tuple(notes)
