"""What is said of an exception that no code of ours expects: one message, with what a report needs."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from loraforge._version import __version__
from loraforge.errors import LoraforgeError, Try, names_in
from loraforge.foreign import reason
from loraforge.text import command

TRACE = "LORAFORGE_TRACE"
"""The variable of the environment that has the trace printed, if it is not empty."""


class UnforeseenError(LoraforgeError):
    """A fault of loraforge."""


def unforeseen(error: Exception, typed: Sequence[str]) -> LoraforgeError:
    """The refusal for an exception: the machine's fault, or an UnforeseenError. `typed`: the words of the command."""
    if os.environ.get(TRACE):
        traceback.print_exception(error)
    if isinstance(error, MemoryError):
        return LoraforgeError("this machine has not enough memory for it.")
    if isinstance(error, OSError) and error.filename:
        path = Path(os.fsdecode(error.filename))
        return LoraforgeError(f"{path} cannot be used: {reason(error)}.")
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"
    tries = [Try(command("env", f"{TRACE}=1", "loraforge", *typed), "shows where, for a report")]
    if file := next((word for word in typed if os.path.isfile(word)), None):  # noqa: PTH113 - a word may be any text
        tries.append(names_in(Path(file)))
    refusal = UnforeseenError(f"loraforge has a fault here, and stopped: {reason(error)} ({place}).", *tries)
    python = sys.version.split()[0]
    refusal.state = f"Please report it: loraforge {__version__}, Python {python} on {sys.platform}, {place}"
    return refusal
