"""The client of the Hugging Face Hub: its refusals in our words, and patience while it is busy.

Written against huggingface_hub 1.32 to 2.x, whose exceptions have the same names and whose HTTP libraries differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from loraforge.errors import HubError, Try

LOGIN = Try("hf auth login", "with a token of https://huggingface.co/settings/tokens")
BUSY = (408, 429, 500, 502, 503, 504)
_TRIES = 6
_LONGEST = 30.0
"""Seconds that are waited for at most between two tries."""

T = TypeVar("T")


@contextmanager
def asking(repo: str, what: str = "") -> Iterator[None]:
    """Turn what the client raises into a HubError that says what of `repo` cannot be had, and what to type."""
    from huggingface_hub import errors

    transport = transport_error()
    try:
        yield
    except (RuntimeError, errors.LocalEntryNotFoundError) as error:  # the client wraps the real one, of some requests
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            raise HubError(f"{what or repo} is not in the cache, and HF_HUB_OFFLINE is set.", _online(what)) from error
        if isinstance(error, errors.LocalEntryNotFoundError) and not isinstance(error.__cause__, transport):
            raise _unreached(repo, error) from error
        if not isinstance(error.__cause__, transport):
            raise
        with asking(repo, what):
            raise error.__cause__ from None
    except errors.GatedRepoError as error:
        text = f"{repo} is gated: its owner lets in who agrees to the terms at https://huggingface.co/{repo}."
        raise HubError(text, LOGIN) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"there is no model {repo} on the Hub that you may see.", LOGIN) from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError(f"{what or repo} is not in the cache, and HF_HUB_OFFLINE is set.", _online(what)) from error
    except errors.HfHubHTTPError as error:
        raise _refused(repo, error) from error
    except transport as error:
        raise _unreached(repo, error) from error


def transport_error() -> type[Exception]:
    """What the HTTP library raises: httpx's HTTPError up to 1.x, httpx2's from 2.0 on."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))


def _online(what: str) -> Try:
    return Try(f"HF_HUB_OFFLINE=0 loraforge inspect {what}" if what else "hf auth whoami", "with the network")


def _unreached(repo: str, error: Exception) -> HubError:
    cause = error.__cause__ or error
    why = " ".join(str(cause).split())[:200] or type(cause).__name__
    text = f"the Hub cannot be reached, for {repo}: {why}. What is in the cache can be used with HF_HUB_OFFLINE=1."
    return HubError(text, Try("hf auth whoami", "does the network work?"))


def _refused(repo: str, error: Any) -> HubError:
    status = error.response.status_code
    said = " ".join((getattr(error, "server_message", None) or "").split())[:300]
    if status == 401:
        return HubError(f"the Hub does not accept your token, for {repo}.", LOGIN)
    if status == 403:
        why = f" ({said})" if said else ""
        return HubError(f"your token may not do that to {repo}{why}: it needs the right to write there.", LOGIN)
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
            wait(f"the Hub is busy ({why}): trying again in {pause:g} s")
            time.sleep(pause)
    raise AssertionError("unreachable")


def _pause(answer: Any, attempt: int) -> float:
    """Seconds: what the Hub asks for, else twice as many with every try."""
    asked = answer.headers.get("Retry-After", "") if answer is not None else ""
    return min(float(asked), _LONGEST) if asked.isdecimal() else min(0.5 * 2**attempt, _LONGEST)
