"""What the user calls a place on the Hugging Face Hub: `hf://user/repo`, `user/repo@v1`, an address from a browser."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from loraforge.errors import HubError, Try, command

_BARE = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", re.ASCII)
_TENSORS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".toml", ".yaml", ".json")
_SCHEMES = ("hf://", "https://", "http://", "huggingface.co/", "hf.co/")
_REPO = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(?<![.-])", re.ASCII)
RENAMED = {"THUDM": "zai-org"}
"""Owner of CogVideoX on the Hub until 2025 -> the one it has now."""


def is_repo(text: object) -> bool:
    """Whether it can be the id of a repository: `user/name`, no path of a machine."""
    return isinstance(text, str) and _REPO.fullmatch(text) is not None and len(text) <= 96


def renamed(repo: str) -> str:
    """The same repository under its owner's name of today."""
    owner, _, name = repo.partition("/")
    return f"{RENAMED.get(owner, owner)}/{name}"


@dataclass(frozen=True, slots=True)
class Address:
    """A repository of models, or a folder or file in one."""

    repo: str
    """`user/name`."""
    revision: str | None = None
    """As it was given: a branch, a tag, `refs/pr/1` or a commit. None: the main branch."""
    path: str = ""
    bare: bool = False
    """Given as `user/repo`, which may have been meant as a path."""

    def __str__(self) -> str:
        return self.at(self.path)

    def at(self, path: str = "") -> str:
        """The address of a file or folder in the same revision, of the repository itself without one."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{revision}{f'/{path}' if path else ''}"


def address(source: str | Path) -> Address | None:
    """The place on the Hub that `source` names; None where it is a path. What exists on this machine is a path.

    Raises HubError for an address that leads to no repository of models.
    """
    text = str(source)
    scheme = text.startswith(_SCHEMES)
    if isinstance(source, Path) or not (scheme or _bare(text)):
        return None
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    try:
        found = parse_hf_uri(text if scheme else f"hf://{text}")
    except HfUriError as error:
        if not scheme:
            return None
        why = " ".join(str(error).split()).removeprefix(f"Invalid HF URI '{text}'. ")
        raise HubError(f"{text} is no address of a model on the Hub: {why}", _example(text)) from error
    if found.type != "model":
        raise HubError(f"{text} is a {found.type}; adapters and base models are looked for in models.", _example(text))
    if any(part in ("", ".", "..") for part in found.path_in_repo.split("/")) and found.path_in_repo:
        raise HubError(f"{text}: {found.path_in_repo!r} is no path in a repository.", _example(text))
    return Address(found.id, found.revision, found.path_in_repo, bare=not scheme)


def _bare(text: str) -> bool:
    """Whether a text without a scheme can only be `user/repo` or `user/repo@revision`."""
    repo = text.partition("@")[0]
    if _BARE.fullmatch(text) is None or repo.endswith(_TENSORS) or not is_repo(repo):
        return False
    return not Path(text).exists()


def _example(text: str) -> str:
    """The line for the repository that a wrong address may mean; of a mirror, how to read from it."""
    scheme, _, rest = text.partition("://")
    host, *parts = rest.split("/") if scheme.startswith("http") else ["", *rest.split("/")]
    parts = [part for part in parts if part not in ("models", "datasets", "spaces")]
    repo = "/".join(parts[:2]).partition("@")[0].partition("?")[0]
    if not is_repo(repo):
        return "loraforge inspect --help"
    mirror = f"HF_ENDPOINT=https://{host} " if "mirror" in host else ""
    return mirror + command("loraforge", "inspect", f"hf://{repo}")


def perhaps(text: str) -> Try | None:
    """The line for a path that is not there and may have been meant for the Hub; None where it cannot be one."""
    repo = "/".join(text.strip("/").split("/")[:2])
    if text.startswith(("/", "~", ".")) or not is_repo(repo):
        return None
    return Try(command("loraforge", "inspect", f"hf://{text.strip('/')}"), "if it is on the Hub")
