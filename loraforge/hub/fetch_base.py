"""A base model on the Hub, downloaded into the client's cache: of a pipeline, only what Diffusers would load."""

from __future__ import annotations

from glob import escape
from pathlib import Path

from loraforge.hub.address import address
from loraforge.hub.repo import Repo, open_repo

_READ = (".safetensors", ".json", ".txt", ".model")
"""Suffixes of weights, configurations and tokenizers."""
_SAT = (".pt", "latest", ".yaml")


def base_folder(source: str | Path, *, only: str = "") -> Path:
    """The folder of a base model on this machine: `source` if it is a path, else the downloaded one.

    `only`: the one component of a pipeline to download. Raises HubError if the Hub has no such model.
    """
    where = address(source)
    if where is None:
        return Path(source)
    from huggingface_hub import snapshot_download

    repo = open_repo(where)
    where = repo.address
    names = _needed(repo, only)
    if not names:
        raise repo.missing(f"has no {where.path}" if where.path else "has no base model in it")
    folder = repo.download(snapshot_download, str(where), allow_patterns=[escape(name) for name in names])
    repo.known_as(folder)
    return folder / where.path


def _needed(repo: Repo, only: str) -> list[str]:
    inside = repo.address.path
    if inside in repo.files:
        return [inside]
    start = f"{inside}/" if inside else ""
    below = {name.removeprefix(start) for name in repo.files if name.startswith(start)}
    read = {name for name in below if name.endswith(_READ)}
    if "model_index.json" in below:
        folder = f"{only}/" if only else ""
        chosen = {name for name in read if ("/" in name and name.startswith(folder)) or name == "model_index.json"}
    elif "config.json" in below:
        chosen = {name for name in read if "/" not in name}
    else:
        chosen = {name for name in below if name.endswith(_SAT)}
    return sorted(start + name for name in chosen)
