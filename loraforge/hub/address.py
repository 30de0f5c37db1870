"""What the user calls a place on the Hugging Face Hub: `hf://user/repo`, `user/repo@v1`, an address from a browser."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from loraforge.errors import HubError, Try
from loraforge.files.neighbours import TENSORS
from loraforge.text import command

_BARE = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", re.ASCII)
_FILES = (*TENSORS, ".toml", ".yaml", ".json")
"""Suffixes of what is a file beside us where it could be a repository too."""
_SCHEMES = ("hf://", "https://", "http://", "huggingface.co/", "hf.co/")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_ROUTES = ("tree", "blob", "resolve", "raw")
"""What stands in a browser's address before the revision."""
_KINDS = ("models", "datasets", "spaces", "kernels", "buckets")
"""What may stand before `user/name`: the Hub keeps them apart."""
_EXACT = re.compile(r"(refs/(pr|convert)/[^/]+|[0-9a-f]{40}|main)(?=/|$)")
"""Revisions that do not go on behind a `/`."""
_REPO = re.compile(
    r"(?!.*(--|\.\.))(?!.*\.git$)[A-Za-z0-9][\w.-]{0,95}(?<![.-])/[A-Za-z0-9][\w.-]{0,95}(?<![.-])", re.ASCII
)
_LONGEST = 244
"""Characters of a branch's name: Git keeps it as a file."""
RENAMED = {"THUDM": "zai-org"}
"""Owner of CogVideoX on the Hub until 2025 -> the one it has now."""


def is_repo(text: object) -> bool:
    """Whether it can be the id of a repository: `user/name`, no path of a machine."""
    return isinstance(text, str) and _REPO.fullmatch(text) is not None and len(text) <= 96


def is_branch(name: str) -> bool:
    """Whether a revision can be called so, by Git's rules of what a reference is called."""
    odd = r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|(^|/)\.|\.(lock)?(/|$)|^[-/]|/$|^@?$"
    return re.search(odd, name) is None and len(name) <= _LONGEST


def renamed(repo: str) -> str:
    """The same repository under its owner's name of today."""
    owner, _, name = repo.partition("/")
    return f"{next((new for old, new in RENAMED.items() if old.lower() == owner.lower()), owner)}/{name}"


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
    loose: bool = False
    """Whether the revision may go on in the path: a branch may be called feature/x. Only the Hub can tell."""

    def __str__(self) -> str:
        return self.at(self.path)

    def at(self, path: str = "") -> str:
        """The address of a file or folder in the same revision, of the repository itself without one."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{revision}{f'/{path}' if path else ''}"

    def settled(self, names: Iterable[str]) -> Address:
        """With the longest of these revisions that fits, where it was not certain which was meant."""
        words = f"{self.revision}/{self.path}".split("/")
        known = set(names)
        for n in range(len(words) if self.loose else 0, 0, -1):
            if (name := "/".join(words[:n])) in known:
                return replace(self, revision=name, path="/".join(words[n:]), loose=False)
        return self


def address(source: str | Path) -> Address | None:
    """The place on the Hub that `source` names; None where it is a path. What exists on this machine is a path.

    Raises HubError for an address that leads to no repository of models.
    """
    text = str(source)
    if isinstance(source, Path) or not (text.startswith(_SCHEMES) or _bare(text)):
        return None
    return parsed(text)


def parsed(text: str) -> Address | None:
    """The place on the Hub that a text names, whatever exists on this machine; None where it cannot be one.

    Raises HubError for an address of which a part could not be obeyed.
    """
    scheme = text.startswith(_SCHEMES)
    try:
        kind, repo, revision, exact, path = _split(text) if scheme else _parts(text)
        if kind != "models":
            raise ValueError(f"it is a {kind.removesuffix('s')}; adapters and base models are looked for in models.")
        if not is_repo(repo):
            raise ValueError(f"{repo!r} is no user/name.")
        if revision and (set(revision) & set("@?#") or any(part in ("", ".", "..") for part in revision.split("/"))):
            raise ValueError(f"{revision!r} is no revision.")
        if path and any(part in ("", ".", "..") for part in path.split("/")):
            raise ValueError(f"{path!r} is no path in a repository.")
    except ValueError as error:
        if not scheme:
            return None
        raise HubError(f"{text} is no address of a model on the Hub: {error}", _example(text)) from error
    return Address(repo, revision or None, path, bare=not scheme, loose=bool(revision and path) and not exact)


def _parts(body: str) -> tuple[str, str, str, bool, str]:
    """Kind, repository, revision, whether that is certainly all of it, and path, of what follows `hf://`."""
    kind, _, rest = body.partition("/")
    if kind not in _KINDS and f"{kind}s" not in _KINDS:
        kind, rest = "models", body
    owner, _, rest = rest.removesuffix("/").partition("/")
    name, _, path = rest.partition("/")
    name, at, revision = name.partition("@")
    if not at:
        return kind, f"{owner}/{name}", "", True, path
    if not revision:
        raise ValueError("no revision follows the @.")
    whole = f"{revision}/{path}" if path else revision
    if exact := _EXACT.match(whole):
        return kind, f"{owner}/{name}", exact[0], True, whole[exact.end() + 1 :]
    return kind, f"{owner}/{name}", unquote(revision), "%2f" in revision.lower(), path


def _split(text: str) -> tuple[str, str, str, bool, str]:
    """The same of a whole address."""
    if text.startswith("hf://"):
        return _parts(text.removeprefix("hf://"))
    url = urlsplit(text if "://" in text else f"https://{text}")
    here = urlsplit(os.environ.get("HF_ENDPOINT", ""))
    if url.hostname is None or url.hostname not in (*_HOSTS, here.hostname):
        raise ValueError(f"{url.hostname or 'it'} is not the Hub ({_HOSTS[0]}).")
    if url.username is not None:
        raise ValueError("the name and password in it are not used; the token is the one of `hf auth login`.")
    more = f"?{url.query}" if url.query else f"#{url.fragment}" if url.fragment else ""
    if more and more != "?download=true":
        raise ValueError(f"what {more} asks for cannot be had.")
    prefix = here.path if url.hostname == here.hostname else ""
    words = [word for word in url.path.removeprefix(prefix).split("/") if word]
    start = 3 if words[:1] and words[0] in _KINDS else 2
    kept, route, rest = "/".join(words[:start]), words[start : start + 1], words[start + 1 :]
    if route and (route[0] not in _ROUTES or "@" in kept or (not rest and route[0] != "tree")):
        raise ValueError(f"/{'/'.join(words[start:])} is no page of its files.")
    # a part that has a / in it stays one part
    behind = "/".join(unquote(word).replace("/", "%2F") for word in rest)
    return _parts(f"{kept}@{behind}" if behind else kept)


def _bare(text: str) -> bool:
    """Whether a text without a scheme can only be `user/repo` or `user/repo@revision`."""
    repo = text.partition("@")[0]
    if _BARE.fullmatch(text) is None or repo.endswith(_FILES) or not is_repo(repo):
        return False
    return not Path(text).exists()


def meant(text: str) -> tuple[str, str]:
    """The repository that a wrong address may mean, empty where none can be told; and the host in it."""
    scheme, _, rest = text.rpartition("://")
    has_host = scheme.startswith("http") or text.startswith(_SCHEMES[3:])
    host, *parts = rest.split("/") if has_host else ["", *rest.split("/")]
    parts = [part for part in parts if part not in ("", "models")]
    if set(parts[:1]) & set(_KINDS):  # what is no model, under whatever name
        return "", host
    repo = re.split("[@?#]", "/".join(parts[:2]))[0].removesuffix(".git")
    return (repo if is_repo(repo) else ""), host


def _example(text: str) -> str:
    """The line for the repository that a wrong address may mean; of a mirror, how to read from it."""
    repo, host = meant(text)
    if not repo:
        return "loraforge inspect --help"
    mirror = f"HF_ENDPOINT=https://{host} " if "mirror" in host else ""
    return mirror + command("loraforge", "inspect", f"hf://{repo}")


def perhaps(text: str) -> Try | None:
    """The line for a path that is not there and may have been meant for the Hub; None where it cannot be one."""
    repo = "/".join(text.strip("/").split("/")[:2])
    if text.startswith(("/", "~", ".")) or not is_repo(repo):
        return None
    return Try(command("loraforge", "inspect", f"hf://{text.strip('/')}"), "if it is on the Hub")
