"""Reads an adapter at the scale the user states: that of training, or the one a program applies today (`--as-in`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from loraforge.adapter.adapter import Adapter, alike
from loraforge.adapter.differences import has_lora_bias
from loraforge.errors import LoraforgeError, ScaleError, Try, adding, no_such
from loraforge.files.tensorfile import TensorFile
from loraforge.format.keys import few
from loraforge.format.protocol import Format
from loraforge.programs.outlook import Memo, outlook
from loraforge.programs.table import Runtime, running, runtimes
from loraforge.scale.rule import Choice, Scale, Statement
from loraforge.text import listed

_PLAIN = Statement(trained_scale=1.0, override=True)
"""Reads the modules of a file without the scale that it records."""


def read_at(form: Format, file: TensorFile, choice: Choice) -> Adapter:
    """The adapter in the file. If its scale is not known, its candidates include the programs that apply all of it.

    Raises ScaleError if the program of `--as-in` does not apply all of it.
    """
    if choice.stated.as_in is not None:
        return _kept(form, file, choice, choice.stated.as_in)
    adapter = form.read(file, choice)
    if adapter.scale.provenance != "ambiguous":
        return adapter
    return replace(adapter, candidates=(*adapter.candidates, *_offered(form, file, choice, adapter)))


def _kept(form: Format, file: TensorFile, choice: Choice, name: str) -> Adapter:
    if choice.training_config is not None:
        raise ScaleError("--as-in keeps what a program does, and --training-config says what training used: give one.")
    if name not in runtimes():
        refusal = no_such("program", name, runtimes(), kind=ScaleError)
        raise ScaleError(refusal.message, *(_offered(form, file, choice) or refusal.remedies))
    program, adapter = runtimes()[name], form.read(file, replace(choice, stated=_PLAIN))
    applied, why = _applied(program, form, file, adapter, {})
    if why:
        others = _offered(form, file, choice)
        text = f"{file.path}: {program.title} {why}, and --as-in needs a program that applies all of it."
        raise ScaleError(text if others else f"{text} No known program applies all of it.", *others)
    source = f"--as-in {name}: what {program.title} applies to it"
    return replace(scaled(adapter, applied), scale=Scale("assumed", source, program=program.title))


def _applied(
    program: Runtime, form: Format, file: TensorFile, adapter: Adapter, memo: Memo
) -> tuple[Mapping[str, float], str]:
    """Module -> the scale that the program applies, and "". If it does not apply all of the adapter, {} and why."""
    predicted = outlook(program, form, file, adapter, memo)
    if predicted.raises:
        return {}, f"stops at {predicted.raises}"
    if not predicted.applied:
        return {}, "applies none of its modules"
    lost = f", and passes over {listed(list(predicted.lost), 3)}" if predicted.lost else ""
    if predicted.applied < predicted.modules:
        return {}, f"applies {predicted.applied} of its {predicted.modules} modules{lost}"
    if predicted.bare:
        return {}, f"applies its modules without the magnitudes of DoRA{lost}"
    otherwise = outlook(program, form, file, scaled(adapter, predicted.scales), memo).otherwise
    return predicted.scales, f"applies it {otherwise}" if otherwise else ""


def scaled(adapter: Adapter, applied: Mapping[str, float]) -> Adapter:
    """The same modules at the scales in `applied`; modules that are not in it get 0."""
    deltas = adapter.modules.items()
    modules = {path: tuple(replace(w, scaling=applied.get(path, 0.0)) for w in delta) for path, delta in deltas}
    own = {f"{path}.bias": applied.get(path, 0.0) for path in modules} if has_lora_bias(adapter) else {}
    whole = {k: tuple(replace(w, scaling=own.get(k, w.scaling)) for w in d) for k, d in adapter.differences.items()}
    return replace(adapter, modules=modules, differences=whole)


def _offered(form: Format, file: TensorFile, choice: Choice, adapter: Adapter | None = None) -> list[Try]:
    """For each scale at which a program applies all of the file, the option that names the first such program.

    `adapter`: the one in the file, if it was read at scale 1 already.
    """
    try:
        adapter = adapter or form.read(file, replace(choice, stated=_PLAIN, training_config=None))
        if len({w.rank for delta, _ in alike(adapter.modules) for w in delta}) == 1:
            file = few(file)  # without a record, programs treat modules of one kind and rank alike
            adapter = form.read(file, replace(choice, stated=_PLAIN, training_config=None))
    except LoraforgeError:
        return []
    seen, tries = set[float](), []
    memo: Memo = {}
    for program in running(adapter.architecture):
        if program.architecture != adapter.architecture:  # what it does with names of another model is not known
            continue
        applied, why = _applied(program, form, file, adapter, memo)
        values = set(applied.values())
        if why or len(values) != 1 or values <= seen:
            continue
        (scale,) = values
        seen.add(scale)
        why = f"if you like what {program.title} does with it today: scale {scale:g}"
        tries.append(adding("--as-in", program.name, why=why, scale=scale))
    return tries
