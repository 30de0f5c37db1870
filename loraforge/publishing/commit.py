"""The repository to publish in: its state before the push, and the one commit that changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraforge.errors import HubError, Try, adding
from loraforge.hub.client import Wait, asking, patiently, unreached
from loraforge.publishing.front_matter import edit
from loraforge.publishing.outgoing import Outgoing
from loraforge.text import hf

_MOST_CARD = 10 << 20
"""Bytes: the Hub accepts no longer regular file."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository before the commit; `commit` is None if it does not exist."""

    repo: str
    url: str
    revision: str | None
    commit: str | None
    private: bool
    hashes: Mapping[str, str]
    """Name -> sha256 of a large file, git hash of a small one."""
    card: str
    notes: tuple[str, ...] = ()
    known: bool = True
    """Whether the Hub could be reached; a dry run continues without it."""


def remote(repo: str, revision: str | None, *, dry_run: bool, wait: Wait) -> Remote:
    """The repository, if known: a dry run goes on without the Hub. Raises HubError if it has no such revision."""
    from huggingface_hub import HfApi, constants, errors

    api = HfApi()
    absent = Remote(repo, f"{constants.ENDPOINT}/{repo}", revision, commit=None, private=False, hashes={}, card="")
    try:
        with asking(repo):
            info = patiently(lambda: api.model_info(repo, revision=revision, files_metadata=True), wait)
            held = info.siblings or ()
            hashes = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id or "" for file in held}
            if not all(isinstance(text, str) for text in (info.sha or "", *hashes, *hashes.values())):
                raise ValueError("a commit or a file is named by something else than text")
    except HubError as error:
        cause = error.__cause__
        if isinstance(cause, errors.RepositoryNotFoundError) and not isinstance(cause, errors.GatedRepoError):
            return absent
        if isinstance(cause, errors.RevisionNotFoundError):
            make = Try(hf("repos", "branch", "create", repo, str(revision), page=f"{repo}/branches"), "make it")
            raise HubError(f"{repo} has no revision {revision}.", make) from error
        if dry_run and unreached(cause):
            offline = isinstance(cause, errors.OfflineModeIsEnabled)
            why = "HF_HUB_OFFLINE is set: nothing can be published." if offline else error.message
            return replace(absent, notes=(f"what {repo} holds is not known: {why}",), known=False)
        raise
    card = _card(api, repo, info.sha) if "README.md" in hashes else ""
    return replace(absent, commit=info.sha, private=bool(info.private), hashes=hashes, card=card)


def _card(api: Any, repo: str, commit: str | None) -> str:
    """The card as its owner wrote it. Raises HubError if it could not be written back unchanged."""
    from huggingface_hub import constants

    with asking(repo, f"hf://{repo}/README.md"):
        path = patiently(lambda: api.hf_hub_download(repo, "README.md", revision=commit))
    with Path(path).open("rb") as stream:
        text = stream.read(_MOST_CARD + 1)
    where = f"{constants.ENDPOINT}/{repo}/blob/main/README.md"
    if len(text) > _MOST_CARD:
        raise HubError(f"the card of {repo} is too long to be changed without losing some of it.", edit(where))
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise HubError(f"the card of {repo} is no UTF-8: mend it there first.", edit(where)) from error


def commit(
    before: Remote, files: Sequence[Outgoing], message: str, *, private: bool, create_pr: bool, wait: Wait
) -> tuple[str, str | None]:
    """Create the repository if it does not exist, and change it in one commit on top of the one that was read.

    Returns the commit and the address of the pull request, None without one. Raises HubError that says whether the
    repository is in its old state, in its new one, or in an unknown one.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    try:
        if not (parent := before.commit):
            with asking(before.repo):
                patiently(lambda: api.create_repo(before.repo, private=private, exist_ok=True), wait)
                parent = str(patiently(lambda: api.model_info(before.repo), wait).sha)
    except HubError as error:
        raise _left(error, f"{before.repo} was not made") from error
    options: dict[str, Any] = {"revision": before.revision, "create_pr": create_pr, "parent_commit": parent}

    def send() -> tuple[str, str | None]:
        added = [CommitOperationAdd(file.name, file.content) for file in files]
        made = api.create_commit(before.repo, added, commit_message=message, **options)
        return str(made.oid), made.pr_url

    try:
        with asking(before.repo):
            return patiently(send, wait)
    except HubError as error:
        return _state(before, parent, files, error, create_pr=create_pr)


def _left(error: HubError, state: str, *more: Try) -> HubError:
    """The refusal with the state of the repository."""
    made = HubError(error.message, *more, *error.remedies)
    made.state = f"{state}."
    return made


def _state(
    before: Remote, parent: str, files: Sequence[Outgoing], error: HubError, *, create_pr: bool
) -> tuple[str, str | None]:
    """Look at the repository after a commit that failed: perhaps only the answer was lost."""
    if create_pr:
        raise _left(error, f"{before.repo} is as it was; whether the pull request was made, its page says") from error
    try:
        now = remote(before.repo, before.revision, dry_run=False, wait=lambda _: None)
    except HubError:
        text = f"whether the commit arrived in {before.repo} is not known: the Hub does not answer"
        raise _left(error, text, Try("hf auth whoami", "is the Hub there?")) from error
    if all(now.hashes.get(file.name) in (file.sha256, file.git_hash) for file in files) and now.commit:
        return now.commit, None
    new = "" if before.commit else "; it was made for this push, and is empty"
    if now.commit != parent:
        head = (now.commit or "")[:8]
        moved = HubError(f"somebody has committed to {before.repo} meanwhile: nothing was sent. Type it again.")
        raise _left(moved, f"{before.repo} is as they left it, at {head}") from error
    status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
    propose = [adding("--create-pr", why="propose it to the owner instead")] if status == 403 and _writes() else []
    raise _left(error, f"{before.repo} is as it was, at {parent[:8]}{new}", *propose) from error


def _writes() -> bool:
    """Whether the token may write anywhere: one that may only read makes no pull request either."""
    from huggingface_hub import HfApi

    with suppress(Exception):  # whatever the Hub answers, it is asked for an advice alone
        return bool(HfApi().whoami()["auth"]["accessToken"]["role"] != "read")
    return True
