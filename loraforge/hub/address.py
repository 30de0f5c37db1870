"""Addresses on the Hugging Face Hub as users write them: `hf://user/repo`, `user/repo@v1`, a browser's address."""

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
"""Suffixes of a text that is meant as a file, though it could be the id of a repository."""
_SCHEMES = ("hf://", "https://", "http://", "huggingface.co/", "hf.co/")
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_ROUTES = ("tree", "blob", "resolve", "raw")
"""Words before the revision in a browser's address."""
_KINDS = ("models", "datasets", "spaces", "kernels", "buckets")
"""Words that may precede `user/name`: the kinds of repository."""
_EXACT = re.compile(r"(refs/(pr|convert)/[^/]+|[0-9a-f]{40}|main)(?=/|$)")
"""Revisions that cannot continue after a `/`."""
_REPO = re.compile(
    r"(?!.*(--|\.\.))(?!.*\.git$)[A-Za-z0-9][\w.-]{0,95}(?<![.-])/[A-Za-z0-9][\w.-]{0,95}(?<![.-])", re.ASCII
)
_LONGEST = 244
"""Characters of the name of a branch, which Git stores as a file."""
RENAMED = {"THUDM": "zai-org"}
"""Owner of CogVideoX on the Hub until 2025 -> owner now."""


def is_repo(text: object) -> bool:
    """Whether it can be the id of a repository, `user/name`, and is no path."""
    return isinstance(text, str) and _REPO.fullmatch(text) is not None and len(text) <= 96


def is_branch(name: str) -> bool:
    """Whether a branch can have this name, by Git's rules for references."""
    odd = r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|(^|/)\.|\.(lock)?(/|$)|^[-/]|/$|^@?$"
    return re.search(odd, name) is None and len(name) <= _LONGEST


def renamed(repo: str) -> str:
    """The same repository under the present name of its owner."""
    owner, _, name = repo.partition("/")
    return f"{next((new for old, new in RENAMED.items() if old.lower() == owner.lower()), owner)}/{name}"


@dataclass(frozen=True, slots=True)
class Address:
    """A repository of models, or a folder or file in one."""

    repo: str
    """`user/name`."""
    revision: str | None = None
    """As the user wrote it: a branch, a tag, `refs/pr/1` or a commit. None: the main branch."""
    path: str = ""
    bare: bool = False
    """Whether it was written as `user/repo`, which may have been meant as a path."""
    loose: bool = False
    """Whether the revision may continue in the path, as in a branch feature/x: only the Hub knows."""

    def __str__(self) -> str:
        return self.at(self.path)

    def at(self, path: str = "") -> str:
        """The address of `path` in the same revision, or of the repository if it is empty."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{revision}{f'/{path}' if path else ''}"

    def settled(self, names: Iterable[str]) -> Address:
        """The same with the longest of these revisions that fits, if the revision was uncertain."""
        words = f"{self.revision}/{self.path}".split("/")
        known = set(names)
        for n in range(len(words) if self.loose else 0, 0, -1):
            if (name := "/".join(words[:n])) in known:
                return replace(self, revision=name, path="/".join(words[n:]), loose=False)
        return self


def address(source: str | Path) -> Address | None:
    """The address on the Hub that `source` names; None if it is a path, or begins with a folder that is here.

    Raises HubError for an address that is not one of a repository of models.
    """
    text = str(source)
    if isinstance(source, Path) or not (text.startswith(_SCHEMES) or _bare(text)):
        return None
    return parsed(text)


def parsed(text: str) -> Address | None:
    """The address that a text names, whatever exists here; None if it is none. Raises HubError for a wrong part."""
    scheme = text.startswith(_SCHEMES)
    try:
        return _split(text) if scheme else replace(_parts(text), bare=True)
    except ValueError as error:
        if not scheme:
            return None
        raise HubError(f"{text} is no address of a model on the Hub: {error}", _example(text)) from error


def _parts(body: str) -> Address:
    """The address in the text after `hf://`. Raises ValueError for a part that cannot be obeyed."""
    kind, _, rest = body.partition("/")
    if kind not in _KINDS and f"{kind}s" not in _KINDS:
        kind, rest = "models", body
    owner, _, rest = rest.removesuffix("/").partition("/")
    name, _, path = rest.partition("/")
    name, at, revision = name.partition("@")
    repo, loose = f"{owner}/{name}", False
    if at and not revision:
        raise ValueError("no revision follows the @.")
    whole = f"{revision}/{path}" if path else revision
    if exact := _EXACT.match(whole) if at else None:
        revision, path = exact[0], whole[exact.end() + 1 :]
    elif at:
        revision, loose = unquote(revision), bool(path) and "%2f" not in revision.lower()
    if kind != "models":
        raise ValueError(f"it is a {kind.removesuffix('s')}; adapters and base models are looked for in models.")
    if not is_repo(repo):
        raise ValueError(f"{repo!r} is no user/name.")
    if revision and (set(revision) & set("@?#") or any(part in ("", ".", "..") for part in revision.split("/"))):
        raise ValueError(f"{revision!r} is no revision.")
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{path!r} is no path in a repository.")
    return Address(repo, revision or None, path, loose=loose)


def _split(text: str) -> Address:
    """The same for a whole address."""
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
    # a part with an escaped / stays one part
    behind = "/".join(unquote(word).replace("/", "%2F") for word in rest)
    return _parts(f"{kept}@{behind}" if behind else kept)


def _bare(text: str) -> bool:
    """Whether a text without a scheme can only be `user/repo` or `user/repo@revision`: no folder `user` is here.

    What is in a folder of this machine, or was in it, is not asked for: its name is nobody's business.
    """
    repo = text.partition("@")[0]
    can_be = _BARE.fullmatch(text) is not None and is_repo(repo) and not repo.endswith(_FILES)
    return can_be and not os.path.lexists(repo.partition("/")[0])


def meant(text: str) -> tuple[str, str]:
    """The repository that a wrong address may mean, empty if unknown, and its host."""
    scheme, _, rest = text.rpartition("://")
    has_host = scheme.startswith("http") or text.startswith(_SCHEMES[3:])
    host, *parts = rest.split("/") if has_host else ["", *rest.split("/")]
    parts = [part for part in parts if part not in ("", "models")]
    if set(parts[:1]) & set(_KINDS):  # a data set, space, ...
        return "", host
    repo = re.split("[@?#]", "/".join(parts[:2]))[0].removesuffix(".git")
    return (repo if is_repo(repo) else ""), host


def _example(text: str) -> str:
    """The command for the repository that a wrong address may mean; for a mirror, with its endpoint."""
    repo, host = meant(text)
    if not repo:
        return "loraforge inspect --help"
    mirror = f"HF_ENDPOINT=https://{host} " if "mirror" in host else ""
    return mirror + command("loraforge", "inspect", f"hf://{repo}")


def perhaps(source: str | Path) -> list[Try]:
    """The remedy for a missing path that may be meant as a repository; none if it cannot be one."""
    text = str(source)
    repo = "/".join(text.strip("/").split("/")[:2])
    if text.startswith(("/", "~", ".")) or not is_repo(repo) or repo.endswith(_FILES):
        return []
    return [Try(f"hf://{text.strip('/')}", "if it is on the Hub", instead=text)]
