"""What the Hub for tests holds: repos with a history, whose files may be on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".ckpt", ".mp4", ".gif", ".png", ".jpg", ".webp")
LFS_SIZE = 10 * 2**20  # the Hub takes no larger file as a regular one
PIECE = 2**16


def pieces(content: bytes | Path, span: range) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield from (content[at : min(at + PIECE, span.stop)] for at in range(span.start, span.stop, PIECE))
        return
    with content.open("rb") as file:
        file.seek(span.start)
        for at in range(span.start, span.stop, PIECE):
            yield file.read(min(PIECE, span.stop - at))


@dataclass(frozen=True)
class File:
    """One file of a commit. A path stays on disk, so that a gigabyte can be served without being held."""

    content: bytes | Path
    lfs: bool

    @classmethod
    def at(cls, path: str, content: bytes | Path) -> File:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        return cls(content, is_lfs(path, size))

    @cached_property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for piece in pieces(self.content, range(self.size)):
            digest.update(piece)
        return digest.hexdigest()

    @cached_property
    def oid(self) -> str:
        """Git's name of the blob; what git holds of an LFS file is a pointer to it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        blob = pointer.encode() if self.lfs else self.whole()
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    def whole(self) -> bytes:
        return b"".join(pieces(self.content, range(self.size)))

    @property
    def etag(self) -> str:
        return f'"{self.sha256 if self.lfs else self.oid}"'

    def entry(self, path: str) -> dict[str, Any]:
        lfs = {"lfs": {"oid": self.sha256, "size": self.size, "pointerSize": 134}} if self.lfs else {}
        return {"type": "file", "path": path, "size": self.size, "oid": self.oid, **lfs}


def is_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE)


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    message: str
    description: str
    files: Mapping[str, File]


class NoRevision(LookupError):
    pass


@dataclass
class Repo:
    name: str
    private: bool = False
    gated: str | bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    objects: dict[str, File] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": File(b"*.safetensors filter=lfs\n", lfs=False)}, "initial commit")

    def commit(
        self, ref: str, files: Mapping[str, File], message: str, description: str = "", parent: str | None = None
    ) -> Commit:
        tree = sorted((path, file.etag) for path, file in files.items())
        sha = hashlib.sha1(repr((self.name, len(self.commits), message, tree)).encode()).hexdigest()
        self.objects |= {file.sha256: file for file in files.values() if file.lfs}
        self.commits[sha] = Commit(sha, parent, message, description, dict(files))
        self.refs[ref] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit:
        shas = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        if revision not in self.refs and len(shas) != 1:
            raise NoRevision(revision)
        return self.commits[self.refs.get(revision) or shas[0]]

    def history(self, revision: str) -> list[Commit]:
        """The commits that lead to a revision, oldest first."""
        commits = [self.at(revision)]
        while commits[-1].parent:
            commits.append(self.commits[commits[-1].parent])
        return commits[::-1]
