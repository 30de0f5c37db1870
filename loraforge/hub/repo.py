"""One revision of a repository on the Hub: its files, whole from the client's cache or in pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loraforge.errors import HubError, Try, adding
from loraforge.files.neighbours import TENSORS
from loraforge.hub.address import Address
from loraforge.hub.client import asking, patiently, streamed
from loraforge.text import HUB, command, hf, listed, plain, stands_for


@dataclass(frozen=True, slots=True)
class Repo:
    """The files of one revision."""

    address: Address
    commit: str
    """Hash of the commit, whichever name the revision has."""
    files: Mapping[str, int]
    """Path in the repository -> bytes."""

    def fetch(self, path: str) -> Path:
        """Path of the file in the cache (`HF_HOME`); downloaded if it is missing."""
        from huggingface_hub import hf_hub_download

        return self.download(hf_hub_download, self.address.at(path), filename=path)

    def download(self, function: Callable[..., Any], what: str, **options: Any) -> Path:
        """The path that a download function of the client returns; `what` names the download in errors."""
        with asking(self.address.repo, what):
            # by the name of the branch, so that the cache knows its commit when there is no network
            for revision in (self.address.revision or "main", self.commit):
                path = Path(patiently(partial(function, self.address.repo, revision=revision, **options)))
                if self.commit in path.parts:
                    break  # else there is a newer commit
        return path

    def known_as(self, folder: Path) -> None:
        """Make messages show the address in place of `folder`, and written files the commit."""
        stands_for(folder, self.address.at(), f"hf://{self.address.repo}@{self.commit}")

    def cached(self, path: str) -> Path | None:
        """Path of the file in the cache; None if it is not in it."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.address.repo, path, revision=self.commit)
        return Path(cached) if isinstance(cached, str) else None

    def piece(self, path: str, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`, by one range request. Raises HubError if the Hub sends fewer."""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.address.repo, path, revision=self.commit)
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        data = bytearray()
        where, fetch = self.address.at(path), adding("--fetch", why="get it, into the cache of the Hub")
        with asking(self.address.repo, where), streamed(url, headers) as (status, blocks):
            if status != 206 and start:
                raise HubError(f"the Hub sends no pieces of {where}, only the whole file.", fetch)
            for block in blocks:
                data += block
                if len(data) >= end - start:
                    break  # a server that ignores ranges sends the whole file
        if len(data) < end - start:
            raise HubError(f"the Hub sent {len(data):,} of {end - start:,} bytes of {where}.", fetch)
        return bytes(data[: end - start])

    def missing(self, what: str) -> HubError:
        """The error for an address without a usable file; it lists the files that may be meant."""
        tensors = {self.address.at(path): size for path, size in sorted(self.files.items()) if path.endswith(TENSORS)}
        inspect = [Try(command("loraforge", "inspect", path), f"{size:,} bytes") for path, size in tensors.items()]
        names = listed([plain(path, 100) for path in sorted(self.files) if not path.startswith(".")], 10) or "nothing"
        return HubError(f"{self.address.at()} {what}. It holds: {names}.", *(inspect[:8] or [page(self.address)]))


def page(address: Address) -> Try:
    """The command that lists the files of the repository."""
    return Try(hf("models", "ls", address.repo, page=f"{address.repo}/tree/main"))


def open_repo(address: Address) -> Repo:
    """The revision that an address names; in offline mode, the files of it that are in the cache.

    Raises HubError if it does not exist, if this user has no access, or if the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE:
        with asking(address.repo, str(address)):
            return _from_cache(address)
    try:
        address = settled(address)
        with asking(address.repo, str(address)):
            info = patiently(lambda: HfApi().model_info(address.repo, revision=address.revision, files_metadata=True))
            every = {file.rfilename: file.size for file in info.siblings or ()}
    except HubError as error:
        if isinstance(error.__cause__, errors.RevisionNotFoundError):
            with asking(address.repo):
                names = _revisions(address)
            lines = [command("loraforge", "inspect", f"hf://{address.repo}@{branch}") for branch in names[:5]]
            name = f"{address.revision}/{address.path}" if address.loose else address.revision
            text = f"{address.repo} has no revision {name}; it has {listed(names, 8)}."
            raise HubError(text, *lines) from error
        if address.bare and isinstance(error.__cause__, errors.RepositoryNotFoundError):
            raise HubError(f"{_not_here(address)}{error.message}", *error.remedies) from error
        raise
    sizes: dict[str, Any] = {name: size for name, size in every.items() if _harmless(name)}
    for name, size in sizes.items():
        if not isinstance(size, int) or not 0 <= size < 1 << 50:
            raise HubError(f"the Hub says that {address.at(name)} has {size!r:.40} bytes.", page(address))
    return Repo(address, info.sha if isinstance(info.sha, str) else "main", sizes)


def _not_here(address: Address) -> str:
    """The start of the message for an address that may have been meant as a path, else empty."""
    return f"there is no file or folder {address.repo} here, and " if address.bare else ""


def settled(address: Address) -> Address:
    """The address with its revision certain. Raises HubError if the Hub cannot be reached."""
    if not address.loose:
        return address
    with asking(address.repo, str(address)):
        return address.settled(_revisions(address))


def _harmless(path: object) -> bool:
    """Whether a path sent by the server is a valid file name on any system, and stays below its folder."""
    if not isinstance(path, str) or len(path) > 1000 or set(path) & set('\\:"<>|?*\0'):
        return False
    parts = path.encode("utf-8", "replace").split(b"/")
    half = any("\ud800" <= c <= "\udfff" for c in path)  # of a surrogate pair
    return not half and all(part not in (b"", b".", b"..") and len(part) <= 255 for part in parts)


def _revisions(address: Address) -> list[str]:
    """All branches and tags of the repository."""
    from huggingface_hub import HfApi

    refs = patiently(lambda: HfApi().list_repo_refs(address.repo))
    return [ref.name for ref in (*refs.branches, *refs.tags) if isinstance(ref.name, str)]


def _from_cache(address: Address) -> Repo:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    repos = list[Any]()
    with suppress(CacheNotFound):
        repos += (repo for repo in scan_cache_dir().repos if repo.repo_id == address.repo and repo.repo_type == "model")
    cached = [revision for repo in repos for revision in repo.revisions]
    address = address.settled(ref for revision in cached for ref in revision.refs)
    name = address.revision or "main"
    for revision in cached:
        if name in revision.refs or revision.commit_hash == name:
            paths = {file.file_path.relative_to(revision.snapshot_path): file.size_on_disk for file in revision.files}
            return Repo(address, revision.commit_hash, {path.as_posix(): size for path, size in paths.items()})
    online = Try(f"HF_HUB_OFFLINE=0 {command('loraforge', 'inspect', str(address))}", "with the network")
    text = f"{_not_here(address)}{address.at()} is not in the cache, and HF_HUB_OFFLINE is set."
    raise HubError(text, online)


def licence_of(repo: str) -> tuple[dict[str, str], str]:
    """The licence fields of a model card, or the reason why there are none. A link to a file becomes an address."""
    from huggingface_hub import HfApi

    try:
        with asking(repo):
            info = patiently(lambda: HfApi().model_info(repo))
    except HubError as error:
        return {}, error.message
    card: Any = info.card_data or {}
    names = ("license", "license_name", "license_link")
    licence = {key: str(card[key]) for key in names if isinstance(card.get(key), str)}
    if "license" not in licence:
        return {}, f"the card of {repo} names none."
    link = licence.get("license_link")
    if licence["license"] == "other" and not link and not licence.get("license_name"):
        has_file = any(file.rfilename == "LICENSE" for file in info.siblings or ())
        licence["license_link"] = f"{HUB}/{repo}" + ("/blob/main/LICENSE" if has_file else "")
    elif link and "://" not in link:
        licence["license_link"] = f"{HUB}/{repo}/blob/main/{link.lstrip('/')}"
    return licence, ""
