"""The client of the Hugging Face Hub: its refusals in our words, and patience while it is busy.

Written against huggingface_hub 1.32 to 2.x, whose exceptions have the same names and whose HTTP libraries differ.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from loraforge.errors import HubError, Try

HUB = "https://huggingface.co"
"""Where cards lead, whichever mirror a user reads from."""
BUSY = (408, 429, 500, 502, 503, 504)
_TRIES = 6
_LONGEST = 30.0
"""Seconds that are waited for at most between two tries."""

T = TypeVar("T")


@contextmanager
def asking(repo: str, what: str = "") -> Iterator[None]:
    """Turn what the client raises into a HubError that says what of `repo` cannot be had, and what to type."""
    from huggingface_hub import errors

    try:
        yield
    except (
        *_NO_ANSWER,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        transport_error(),
    ) as error:
        # some requests' errors come wrapped in one of another kind
        real = error if isinstance(error, transport_error()) else error.__cause__ or error
        raise _in_our_words(real, repo, what) from real


_NO_ANSWER = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OSError)
"""What the client raises over an answer that is none of the Hub's, as of a proxy that wants a login; over its cache."""


def _in_our_words(error: BaseException, repo: str, what: str) -> HubError:
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            text = f"{repo} is gated: its owner lets in who agrees to the terms at {HUB}/{repo}."
            page = Try(f"python -m webbrowser {HUB}/{repo}", "agree there") if _token() else login()
            return HubError(text, page)
        case errors.RepositoryNotFoundError():
            who = Try("hf auth whoami", "who you are there, if it is private") if _token() else login()
            return HubError(f"there is no model {repo} on the Hub that you may see.", who)
        case errors.OfflineModeIsEnabled():
            line = f"HF_HUB_OFFLINE=0 loraforge inspect {what}" if what else "hf auth whoami"
            return HubError(
                f"{what or repo} is not in the cache, and HF_HUB_OFFLINE is set.", Try(line, "with the network")
            )
        case errors.HfHubHTTPError():
            return _refused(repo, error)
    if isinstance(error, transport_error() | errors.LocalEntryNotFoundError):
        why = " ".join(str(error).split())[:200] or type(error).__name__
        cache = " What is in the cache can be used with HF_HUB_OFFLINE=1." if what else ""
        text = f"the Hub cannot be reached, for {repo}: {why}.{cache}"
        return HubError(text, Try("hf auth whoami", "does the network work?"))
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if isinstance(error, OSError):
        return HubError(f"the cache of the Hub's client cannot be used, for {repo}: {why}.", Try("hf cache ls"))
    text = f"what answers for the Hub is not the Hub, or {repo} is not as its client knows it ({why})."
    return HubError(text, Try("hf auth whoami", "is it the Hub?"))


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def login() -> Try:
    """How to log in. A token in the environment counts before the one that is saved."""
    where = f"with a token of {HUB}/settings/tokens"
    if os.environ.get("HF_TOKEN"):
        return Try("env -u HF_TOKEN hf auth login --force", f"{where}; then unset HF_TOKEN, which counts before it")
    return Try("hf auth login --force" if _token() else "hf auth login", where)


def transport_error() -> type[Exception]:
    """What the HTTP library raises: httpx's HTTPError up to 1.x, httpx2's from 2.0 on."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))


def _refused(repo: str, error: Any) -> HubError:
    status = error.response.status_code
    said = " ".join((getattr(error, "server_message", None) or "").split())[:300]
    if status == 401:
        who = "does not accept your token" if _token() else "wants you to log in"
        return HubError(f"the Hub {who}, for {repo}.", login())
    if status == 403:
        why = f" ({said})" if said else ""
        return HubError(f"your token may not do that to {repo}{why}: it needs the right to write there.", login())
    if status in BUSY:
        text = f"the Hub was too busy for {repo} (HTTP {status}), {_TRIES} times in a row. Try it later."
        return HubError(text, Try("hf auth whoami", "does it answer at all?"))
    return HubError(f"the Hub refused it, for {repo}: HTTP {status}{f', {said}' if said else ''}.", "hf auth whoami")


def patiently(call: Callable[[], T], wait: Callable[[str], None] = lambda _: None) -> T:
    """What `call` returns; called again, after a pause, while the Hub is busy or the connection breaks.

    The client itself has no patience for creating a repository and for the commit. `wait` is told why.
    """
    from huggingface_hub import errors

    transport = transport_error()
    for attempt in range(_TRIES):
        try:
            return call()
        except transport as error:
            answer = error.response if isinstance(error, errors.HfHubHTTPError) else None
            if attempt + 1 == _TRIES or (answer is not None and answer.status_code not in BUSY):
                raise
            pause = _pause(answer, attempt)
            why = f"HTTP {answer.status_code}" if answer is not None else type(error).__name__
            state = "is busy" if answer is not None else "does not answer"
            wait(f"the Hub {state} ({why}): trying again in {pause:g} s")
            time.sleep(pause)
    raise AssertionError("unreachable")


def _pause(answer: Any, attempt: int) -> float:
    """Seconds: what the Hub asks for, else twice as many with every try."""
    asked = answer.headers.get("Retry-After", "") if answer is not None else ""
    return min(float(asked), _LONGEST) if asked.isdecimal() else min(0.5 * 2**attempt, _LONGEST)
