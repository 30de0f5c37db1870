"""The client of the Hugging Face Hub: its errors as ours, and retries while it is busy.

Written against huggingface_hub 0.34 to 2.x, whose exceptions have the same names and whose HTTP libraries differ:
requests up to 0.36, httpx, and httpx2 from 2.0 on. None of them is imported here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Timer
from typing import Any, TypeVar

from loraforge.errors import HubError, LoraforgeError, Try
from loraforge.text import HUB, hub_client

BUSY = (408, 429, 500, 502, 503, 504)
_TRIES = 6
_SILENCE = 2.0
"""Seconds without an answer after which it is said that one is waited for."""
_LONGEST = 30.0
"""Seconds: the longest pause between two tries."""

T = TypeVar("T")
Wait = Callable[[str], None]
"""Called with the reason before each pause."""
waiting: Wait = lambda _: None  # noqa: E731 - the command line puts its own in this place
"""Called once if an answer takes long."""


@contextmanager
def asking(repo: str, what: str = "") -> Iterator[None]:
    """Turn the client's errors into a HubError: what of `repo` is not available, and the command to type."""
    timer = Timer(_SILENCE, lambda: waiting(f"waiting for the Hub, for {what or repo}"))
    timer.daemon = True
    timer.start()
    try:
        yield
    except (LoraforgeError, MemoryError):
        raise
    except Exception as error:  # also if the answer did not come from the Hub (a login proxy), or the cache is broken
        real = _behind(error)
        raise _in_our_words(real, repo, what) from real
    finally:
        timer.cancel()


def _behind(error: BaseException) -> BaseException:
    """The cause of an error that only wraps another one, else the error."""
    from huggingface_hub import errors

    wrapped = isinstance(error, errors.LocalEntryNotFoundError) or not isinstance(error, transport_error())
    return error.__cause__ if wrapped and error.__cause__ else error


def _in_our_words(error: BaseException, repo: str, what: str) -> HubError:
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            page = Try(f"python -m webbrowser {HUB}/{repo}", "agree there") if _token() else login()
            return HubError(f"{repo} is gated: its owner lets in who agrees to the terms at {HUB}/{repo}.", page)
        case errors.RepositoryNotFoundError():
            who = Try("hf auth whoami", "who you are there, if it is private") if _token() else login()
            return HubError(f"there is no model {repo} on the Hub that you may see.", who)
        case errors.OfflineModeIsEnabled():
            online = Try(f"HF_HUB_OFFLINE=0 loraforge inspect {what}" if what else "hf auth whoami", "with the network")
            return HubError(f"{what or repo} is not in the cache, and HF_HUB_OFFLINE is set.", online)
        case errors.HfHubHTTPError() if error.response is not None:
            return _refused(repo, error)
    if isinstance(error, transport_error() | errors.LocalEntryNotFoundError):
        why = " ".join(str(error).split())[:200] or type(error).__name__
        cache = " What is in the cache can be used with HF_HUB_OFFLINE=1." if what else ""
        return HubError(
            f"the Hub cannot be reached, for {repo}: {why}.{cache}", Try("hf auth whoami", "does the network work?")
        )
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if isinstance(error, OSError):
        text = f"the cache of the Hub's client cannot be used, for {repo}: {why}."
        return HubError(text, Try("hf env", "where it lies"))
    text = f"what answers for the Hub is not the Hub, or {repo} is not as its client knows it ({why})."
    return HubError(text, Try("hf auth whoami", "is it the Hub?"))


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def login() -> Try:
    """How to log in. A token in the environment has priority over the saved one."""
    where = f"with a token of {HUB}/settings/tokens"
    again = "hf auth login --force" if hub_client() >= (1, 32) else "hf auth login"
    if os.environ.get("HF_TOKEN"):
        return Try(f"env -u HF_TOKEN {again}", f"{where}; then unset HF_TOKEN, which counts before it")
    return Try(again if _token() else "hf auth login", where)


def transport_error() -> type[Exception]:
    """The base of all errors of the HTTP library that the client uses."""
    from huggingface_hub.errors import HfHubHTTPError

    library = HfHubHTTPError.__bases__[0]
    return [base for base in library.__mro__ if base.__module__ != "builtins"][-1]


@contextmanager
def streamed(url: str, headers: Mapping[str, str]) -> Iterator[tuple[int, Iterator[bytes]]]:
    """The status and the body, in blocks, of the answer to a GET; the client retries by itself."""
    from huggingface_hub import utils

    web: Any = utils  # its names are loaded lazily, which mypy does not see
    options: dict[str, Any] = {"follow_redirects": True}
    get = getattr(web, "http_stream_backoff", None)
    if get is None:  # a client that uses requests
        get, options = web.http_backoff, {"stream": True, "retry_on_status_codes": BUSY}
    with get("GET", url, headers={**web.build_hf_headers(), **headers}, **options) as answer:
        web.hf_raise_for_status(answer)
        yield answer.status_code, answer.iter_content(1 << 16) if "stream" in options else answer.iter_bytes()


def unreached(error: object) -> bool:
    """Whether the error only says that the Hub cannot be reached now."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return error.response.status_code in BUSY
    return isinstance(error, (transport_error(), errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError))


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


def patiently(call: Callable[[], T], wait: Wait = lambda _: None) -> T:
    """What `call` returns; called again after a pause while the Hub is busy or the connection breaks.

    The client itself does not retry the creation of a repository or a commit. `wait` is called with the reason.
    """
    from huggingface_hub import errors

    transport = transport_error()
    for attempt in range(_TRIES - 1):
        try:
            return call()
        except (transport, RuntimeError, errors.LocalEntryNotFoundError) as wrapped:
            error = _behind(wrapped)
            answer = error.response if isinstance(error, errors.HfHubHTTPError) else None
            given_up = not isinstance(error, transport) or (answer is not None and answer.status_code not in BUSY)
            if isinstance(wrapped, RuntimeError):  # of an upload, which the client retries itself, except for 429
                given_up = answer is None or answer.status_code != 429
            if given_up:
                raise
            asked = answer.headers.get("Retry-After", "") if answer is not None else ""
            pause = min(float(asked) if asked.isdecimal() else 0.5 * 2**attempt, _LONGEST)
            why = f"HTTP {answer.status_code}" if answer is not None else type(error).__name__
            state = "is busy" if answer is not None else "does not answer"
            wait(f"the Hub {state} ({why}): trying again in {pause:g} s")
            time.sleep(pause)
    return call()
