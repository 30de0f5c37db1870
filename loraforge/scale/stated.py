"""What a user states about an adapter if no file records it: the keywords that nine verbs share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import ParamSpec, TypedDict, TypeVar, get_type_hints

from loraforge.errors import ScaleError
from loraforge.scale.rule import AS_LOADED, Choice, Statement

P = ParamSpec("P")
R = TypeVar("R")


class _Alpha(TypedDict, total=False):
    alpha: float | None


class StatedBesideAlpha(TypedDict, total=False):
    """Stated without `alpha`, for a verb that takes it by position too."""

    trained_scale: float | None
    trained_by: str | None
    training_config: str | Path | None
    as_in: str | None
    as_loaded: bool
    override_scale: bool
    architecture: str | None


class Stated(_Alpha, StatedBesideAlpha, total=False):
    """What training used. It is a fact about the adapter and never multiplies; at most one of the four ways is given.

    alpha: the lora_alpha of the training; its scale is alpha / rank.
    trained_scale: that scale itself.
    trained_by: the trainer whose default scale was used; `loraforge convert --help` has their names.
    as_in: not what training used, but the program whose behaviour with the file today is to be kept.

    as_loaded: the same as as_in="diffusers".
    training_config: a file of the run that records the scale, where it does not lie in the run's folder.
    override_scale: believe what is stated over what is recorded; otherwise a contradiction is refused.
    architecture: the model it is an adapter of, where nothing in the file shows that.
    """


_TYPES = get_type_hints(Stated)


def takes_stated(verb: Callable[P, R]) -> Callable[P, R]:
    """Give a verb the keywords of Stated: help() lists them, the verb gets all of them, and others raise TypeError."""
    plain = inspect.signature(verb)
    own = [each for each in plain.parameters.values() if each.kind is not each.VAR_KEYWORD]
    defaults = {name: False if kind is bool else None for name, kind in _TYPES.items() if name not in plain.parameters}
    keyword = partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    more = [keyword(name, default=default, annotation=_TYPES[name]) for name, default in defaults.items()]
    whole = plain.replace(parameters=[*own, *more])

    @wraps(verb)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        for name in options:
            if name not in whole.parameters:
                raise TypeError(f"{verb.__name__}() got an unexpected keyword argument {name!r}")
        return verb(*args, **defaults | options)  # type: ignore[arg-type]  # P knows no more names

    checked.__signature__ = whole  # type: ignore[attr-defined]  # where inspect looks for it
    more_help = f"The keywords that state facts of the training: help('{__name__}.Stated')"
    checked.__doc__ = f"{verb.__doc__}\n    {more_help}\n    "
    return checked


def choice_of(stated: Stated, *, iteration: int | None = None, ema: bool = False, drop: Sequence[str] = ()) -> Choice:
    """How to read an adapter, tensors too. Raises ScaleError if the scale is stated in two ways."""
    config, arch = stated.get("training_config"), stated.get("architecture")
    return Choice(iteration, ema, Path(config) if config else None, _statement(stated), tuple(drop), arch, True)


def _statement(stated: Stated) -> Statement:
    as_loaded, as_in = stated.get("as_loaded", False), stated.get("as_in")
    if as_loaded and as_in not in (None, AS_LOADED):
        raise ScaleError(f"--as-loaded is --as-in {AS_LOADED}, and --as-in {as_in} is another: give one of them.")
    alpha, trained_scale, trained_by = stated.get("alpha"), stated.get("trained_scale"), stated.get("trained_by")
    ways = {"--alpha": alpha, "--trained-scale": trained_scale, "--trained-by": trained_by}
    ways["--as-in"] = as_in = AS_LOADED if as_loaded else as_in
    given = [option for option, value in ways.items() if value is not None]
    override = stated.get("override_scale", False)
    if len(given) > 1:
        raise ScaleError(f"{' and '.join(given)} say the same thing in different ways: give one of them.")
    if override and not given:
        text = "--override-scale goes with the scale to believe: --alpha, --trained-scale or --trained-by."
        raise ScaleError(text)
    return Statement(alpha, trained_scale, trained_by, as_in, override)
