"""What must not leave this machine: its paths and tokens, in a header or a configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_PATH = re.compile(
    r"""(?<![\w./\\])/[\w.@+-][\w.@+ -]*/[\w.@+-]"""  # /home/me/run; not anime/realistic/3d, nor a / b / c
    r"""|/(?:home|Users)/\w|(?<![A-Za-z0-9_.\\])/(?:root|mnt|data|workspace|tmp)/\w"""  # -I/home/me
    r"""|(?<![A-Za-z])[A-Za-z]:[\\/]+\w"""  # C:\Users
    r"""|\\\\[\w.-]+\\|(?<![\w/])//[\w.-]+/\w"""  # \\server\share
    r"""|(?<![\w/])(?:~[\w-]*|\$\{?HOME\}?)[\\/]"""
    r"""|file://"""
)
_PUBLIC = re.compile(r"\b(?!file:)[a-z][a-z0-9+.-]+://[\w.:/%#?&=~+@-]*|\bdata:[\w/+.-]+;base64,[A-Za-z0-9+/=]*")
"""Addresses, and pictures in base64: they have slashes, but are no paths."""
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
"""An escaped letter of JSON: many header entries are JSON."""
_TOKEN = re.compile(
    r"hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}|(?:sk|ghp|gho|github_pat|glpat)[-_][A-Za-z0-9_-]{20,}"
    r"|AKIA[0-9A-Z]{16}|AIza[\w-]{35}|xox[a-z]-[\w-]{10,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\."
    r"|://[^\s/:@]+:[^\s/@]+@"  # https://me:password@host
    r"|(?i:(?:api[_-]?key|password|secret|(?:access|auth)[_-]?token)[\\\"']*\s*[=:]\s*[\\\"']*[\w-]{16,})"
)


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
    """A JSON document with null in place of private texts and without private keys, and notes.

    The text is unchanged if nothing is private. Raises ValueError if it is not JSON.
    """
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
