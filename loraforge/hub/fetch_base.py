"""A base model on the Hub, fetched into the client's cache: of a pipeline what Diffusers would load, and no more."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from loraforge.hub.address import address
from loraforge.hub.client import asking, patiently
from loraforge.hub.repo import Repo, open_repo
from loraforge.text import stands_for

_BESIDE = (".json", ".txt", ".model")
"""What configurations and tokenizers are stored in."""
_SAT = (".pt", "latest", ".yaml")


def base_folder(source: str | Path, *, only: str = "") -> Path:
    """Where a base model is on this machine: `source` itself where it is a path, else what was fetched of it.

    `only`: of a pipeline, the component that is wanted. Raises HubError where the Hub has no such model.
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
    patterns, branch = [_literal(name) for name in names], where.revision or "main"
    with asking(where.repo, str(where)):
        for revision in (branch, repo.commit):
            fetch = partial(snapshot_download, where.repo, revision=revision, allow_patterns=patterns)
            folder = Path(patiently(fetch))
            if folder.name == repo.commit:
                break  # else somebody has committed since
    stands_for(folder, where.at(), f"hf://{where.repo}@{repo.commit}")
    return folder / where.path


def _needed(repo: Repo, only: str) -> list[str]:
    inside = repo.address.path
    if inside in repo.files:
        return [inside]
    start = f"{inside}/" if inside else ""
    below = {name.removeprefix(start) for name in repo.files if name.startswith(start)}
    if "model_index.json" in below or "config.json" in below:
        weights = {name for name in below if name.endswith(".safetensors")}
        chosen = {name for name in below if name.endswith(_BESIDE)} | weights
        if "model_index.json" in below:
            chosen = {name for name in chosen if "/" in name or name == "model_index.json"}
            if only:
                chosen = {name for name in chosen if name.startswith(f"{only}/") or "/" not in name}
        else:
            chosen = {name for name in chosen if "/" not in name}
    else:
        chosen = {name for name in below if name.endswith(_SAT)}
    return sorted(start + name for name in chosen)


def _literal(name: str) -> str:
    """A pattern that only this name matches."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
