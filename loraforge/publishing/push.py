"""Publish an adapter, or base weights with adapters in them, on the Hugging Face Hub: one commit, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack

from loraforge.adapter.fits import no_repository, repository
from loraforge.document import Document
from loraforge.errors import HubError, Try, absent, adding
from loraforge.files.neighbours import TENSORS
from loraforge.files.shards import group_of
from loraforge.files.workplace import temporary
from loraforge.hub.address import Address, address, is_branch, is_repo, meant, parsed, renamed
from loraforge.hub.repo import licence_of, settled
from loraforge.publishing.allowed import has_form
from loraforge.publishing.card import Facts, new_card, updated_card
from loraforge.publishing.commit import Remote, commit, remote
from loraforge.publishing.contents import published
from loraforge.publishing.front_matter import edit, fields, problems, split
from loraforge.publishing.outgoing import Outgoing, of_sample, outgoing
from loraforge.scale.stated import Stated, takes_stated
from loraforge.text import HUB, command, hf

State = Literal["unchanged", "planned", "committed"]


@dataclass(frozen=True, slots=True)
class PushReport(Document):
    """What was published, or would be. Its JSON follows schemas/push.schema.json."""

    schema = "push"

    repo: str
    url: str
    state: State
    commit: str | None
    """The commit of the repository now; None if it does not exist yet."""
    pull_request: str | None
    created: bool
    """Whether the repository is, or would be, new."""
    visibility: Literal["public", "private"]
    """As asked for if the repository is new, else as it is."""
    revision: str
    message: str
    files: tuple[dict[str, Any], ...]
    """name, size, sha256, and `new`, `changed` or `same`."""
    stale: tuple[str, ...]
    """Tensor files of the repository that a loader may take instead of ours."""
    card: str
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for a terminal: the files, then the state of the repository in the last line."""
        width = max(len(file["name"]) for file in self.files)
        out = [
            f"  {file['state']:<8} {file['name']:<{width}} {file['size']:>14,} bytes  sha256 {file['sha256'][:16]}"
            for file in self.files
        ]
        if self.stale:
            gone = hf("repos", "delete-files", self.repo, *self.stale, page=f"{self.repo}/tree/main")
            out.append(f"  stale    {', '.join(self.stale)}: a loader may take it instead. To remove it: {gone}")
        if self.state == "planned":
            card = [f"  | {line}" for line in self.card.rstrip().splitlines()]
            out += ["  README.md, as it would be:", *card, f"  commit   {self.message}"]
        return [self.url, *out, self.outcome()]

    def outcome(self) -> str:
        """The state of the repository, in one line."""
        if self.state == "unchanged":
            return f"nothing has changed: no commit; {self.repo} is as it was, at {(self.commit or '')[:8]}"
        if self.state == "planned":
            new = f"; {self.repo} would be a new {self.visibility} repository" if self.created else ""
            return f"not sent (--dry-run){new}"
        if self.pull_request:
            return f"{self.repo} is as it was; the change waits in {self.pull_request}"
        return f"{self.repo} is in its new state, at {(self.commit or '')[:8]} ({self.visibility})"


@takes_stated
def push(
    source: str | Path,
    repo: str,
    *,
    base_model: str | None = None,
    license: str | None = None,  # noqa: A002 - the card's field
    license_name: str | None = None,
    license_link: str | None = None,
    prompt: Sequence[str] = (),
    sample: Sequence[str | Path] = (),
    trigger: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    drop: Sequence[str] = (),
    dry_run: bool = False,
    wait: Callable[[str], None] = lambda _: None,
    **stated: Unpack[Stated],
) -> PushReport:
    """Publish `source` in `repo`; the arguments are those of `loraforge push`. `wait` is called before each pause.

    Raises a LoraforgeError, with the repository unchanged, if the file by itself does not act as trained, if the card
    would be invalid, or if the Hub refuses. The message says in which state the repository is.
    """
    to = destination(repo)
    revision, repo = _branch(repo, to, revision, dry_run=dry_run), to.repo
    shown = [of_sample(Path(path)) for path in sample]
    _check(source, base_model, prompt, sample)
    with temporary("push") as work:
        before = remote(repo, revision, dry_run=dry_run, wait=wait)
        _reachable(before, private=private)
        old = fields(split(before.card)[0], _card_page(repo))
        chosen = repository(base_model) if base_model else _base_of(old)
        known, content, more = published(Path(source), repo, chosen, stated, drop, work)
        facts = replace(
            known, repo=repo, prompts=tuple(prompt), samples=tuple(file.name for file in shown),
            example=_example(prompt, old), trigger=trigger or known.trigger or _words(old.get("instance_prompt")),
        )  # fmt: skip
        given = {"license": license, "license_name": license_name, "license_link": license_link}
        licence, doubts = _licence(given, old, facts.base_model)
        typed = {"base_model": base_model, **given, "instance_prompt": trigger}
        card, changes = _card(before, facts, licence, frozenset(key for key, value in typed.items() if value))
        files = [*content, *shown, outgoing("README.md", card.encode())]
        weights = content[0].name
        planned = PushReport(
            repo=repo, url=before.url, state="planned", commit=before.commit, pull_request=None,
            created=before.commit is None and before.known,
            visibility="private" if (private if before.commit is None else before.private) else "public",
            revision=before.revision or "main",
            message=commit_message or f"{'Update' if weights in before.hashes else 'Add'} {weights}",
            files=tuple(_described(file, before) for file in files),
            stale=_stale(before, files) if facts.kind == "adapter" else (),
            card=card, notes=(*before.notes, *more, *doubts, *changes),
        )  # fmt: skip
        sent = [file for file, described in zip(files, planned.files, strict=True) if described["state"] != "same"]
        if dry_run or not sent:
            return planned if sent else replace(planned, state="unchanged")
        sha, request = commit(before, sent, planned.message, private=private, create_pr=create_pr, wait=wait)
        return replace(planned, state="committed", commit=sha, pull_request=request)


def destination(text: str) -> Address:
    """The repository that `user/name`, `user/name@branch` or an address names. Raises HubError for a wrong part."""
    repo = meant(text)[0]
    instead = [Try(repo, "the repository", instead=text)] if repo else ["loraforge push --help"]
    try:
        where = parsed(text)
    except HubError as error:
        raise HubError(error.message, *instead) from error
    if where is None:
        what = "is no name of a repository: it is user/name, of letters, digits, dots and dashes."
        raise HubError(f"{text} {what}", *instead)
    if where.path and not where.loose:
        raise _of_a_file(text, where)
    return where


def _of_a_file(text: str, where: Address) -> HubError:
    top = where.at().removeprefix("hf://")
    why = f"{text} is the address of a file or folder in a repository: what is pushed stands at the top of it."
    return HubError(why, Try(top, "there", instead=text))


def _branch(text: str, where: Address, given: str | None, *, dry_run: bool) -> str | None:
    """The branch that the address and `--revision` name. Raises HubError if they differ."""
    try:
        where = settled(where)
    except HubError:
        if not dry_run:
            raise
    if where.path and not where.loose:
        raise _of_a_file(text, where)
    named = f"{where.revision}/{where.path}" if where.loose else where.revision
    if named and given is not None and named != given:
        ours = adding("--revision", named, why="as the address says")
        theirs = Try(where.repo, f"{given}, as --revision says", instead=text)
        raise HubError(f"{text} names the revision {named}, and --revision {given}: which?", ours, theirs)
    name = named if given is None else given
    if name is not None and not is_branch(name):
        remedy = Try(where.repo, "main", instead=text) if given is None else adding("--revision", "main")
        raise HubError(f"{name!r} is no name that a branch can have.", remedy)
    return name


def _reachable(before: Remote, *, private: bool) -> None:
    """Raise HubError if the repository cannot be what the options ask for, before anything is created."""
    if before.commit is None and before.known and before.revision not in (None, "main"):
        text = "does not exist, and a new repository begins with main: leave out --revision the first time."
        raise HubError(f"{before.repo} {text}", hf("repos", "create", before.repo, page="new"))
    if private and before.commit is not None and not before.private:
        settings = hf("repos", "settings", before.repo, "--private", page=f"{before.repo}/settings")
        raise HubError(f"{before.repo} exists and is public: --private is for a new one.", settings)


def _example(prompts: Sequence[str], card: Mapping[str, Any]) -> str | None:
    """The prompt of the snippet: the one given now, else the first in the card."""
    widget = card.get("widget")
    shown = [entry.get("text") for entry in widget if isinstance(entry, dict)] if isinstance(widget, list) else []
    return next((text for text in (*prompts, *shown) if isinstance(text, str) and text), None)


def _words(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _check(source: str | Path, base_model: str | None, prompts: Sequence[str], samples: Sequence[str | Path]) -> None:
    where = address(source)
    if where is not None and not where.bare:
        convert = Try(command("loraforge", "convert", source, "--to", "diffusers"), "then push what it writes")
        raise HubError(f"{source} is on the Hub: what is published comes from this machine.", convert)
    if not Path(source).exists() and group_of(Path(source)) is None:
        raise absent(source)
    if base_model is not None and repository(base_model) is None:
        refused = no_repository(base_model)
        raise HubError(f"{refused.message} The Hub refuses cards with paths.", *refused.remedies)
    if len(samples) > len(prompts):
        raise HubError("each --sample needs the --prompt it was made with: give --prompt TEXT once for each.")


def _base_of(card: Mapping[str, Any]) -> str | None:
    """The base model that an existing card names; None unless it is one repository."""
    base = card.get("base_model")
    (one,) = base if isinstance(base, list) and len(base) == 1 else (base,)
    return renamed(one) if isinstance(one, str) and is_repo(one) else None


def _licence(
    given: Mapping[str, str | None], old: Mapping[str, Any], base: str | None
) -> tuple[dict[str, str], list[str]]:
    """The licence: as given, else as in the card, else of the base model; never invented."""
    stated = {key: value for key, value in given.items() if value}
    if stated or old.get("license"):
        return stated, []
    theirs, why = licence_of(base) if base else ({}, "no base model is known.")
    licence = {key: text for key, text in theirs.items() if has_form(key, text)}
    if licence:
        return licence, [f"the licence is the base model's: {', '.join(licence.values())}"]
    return {}, [
        f"the card names no licence, as {why or f'that of {base} is no name of one.'} --license NAME states one"
    ]


def _card(before: Remote, facts: Facts, licence: Mapping[str, str], stated: frozenset[str]) -> tuple[str, list[str]]:
    """The new card and notes. Raises HubError that lists what is wrong with the card."""
    card, notes = updated_card(before.card, facts, licence, stated) if before.card else (new_card(facts, licence), [])
    page = _card_page(facts.repo)
    if wrong := list(problems(fields(split(card)[0], page))):
        text = f"the card of {facts.repo} would not be a right one: {'; '.join(wrong)}. Nothing was sent."
        name = licence.get("license", "")
        other = [adding("--license", "other", "--license-name", name)] if name not in ("", "other") else []
        raise HubError(text, *([edit(page)] if before.card else other))
    return card, notes


def _card_page(repo: str) -> str:
    return f"{HUB}/{repo}/blob/main/README.md"


def _described(file: Outgoing, before: Remote) -> dict[str, Any]:
    known = before.hashes.get(file.name)
    state = "new" if known is None else "same" if known in (file.sha256, file.git_hash) else "changed"
    return {"name": file.name, "size": file.size, "sha256": file.sha256, "state": state}


def _stale(before: Remote, files: Sequence[Outgoing]) -> tuple[str, ...]:
    others = before.hashes.keys() - {file.name for file in files}
    return tuple(sorted(name for name in others if name.endswith(TENSORS) and "/" not in name))
