"""The verdict on an adapter, from what its numbers, its scale and the program it runs in say; and what mends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraforge.adapter.adapter import Adapter
from loraforge.algebra.lora import CEILING
from loraforge.format.registry import formats
from loraforge.programs.measured import strength_of
from loraforge.programs.outlook import Outlook
from loraforge.programs.table import runtime
from loraforge.text import command, fraction, listed

if TYPE_CHECKING:
    from loraforge.diagnosis.factors import Numbers

AS_TRAINED = "acts as trained"


COARSE = "cannot tell (float16 is too coarse for it)"
NEEDS_TENSORS = "cannot tell (without the tensors)"
UNSHOWN = "cannot tell (which architecture)"


def judge(
    adapter: Adapter, found: Numbers | None, own: Outlook | None, misfit: str, unshown: str = ""
) -> tuple[str, str]:
    """The verdict, and why. `found`: None where the header alone is known. `unshown`: why nobody knows what it is."""
    total = len(adapter.modules)
    if found and found.broken:
        why = "the training diverged, or a conversion to float16 overflowed"
        return "broken file", f"NaN or infinity in {named(found.broken)}: {why}"
    if misfit:
        return "wrong base", misfit
    if found and len(found.dead) == total:
        return "does nothing", "A or B of every module is zero: it was never trained, or the wrong tensors were saved"
    if own and own.raises:
        return "does nothing", f"{own.title} stops at {own.raises}"
    if own and not own.applied:
        passed = f" ({listed(list(own.lost), 3)} are passed over)" if own.lost else ""
        return "does nothing", f"{own.title} finds none of the {total} modules{passed}"
    applies = f"; {own.title} applies {listed_scales(own.scalings)}" if own else ""
    if adapter.scale.provenance == "ambiguous":
        known = [remedy for remedy in adapter.candidates if not remedy.command.startswith("--as-in")]
        scales = dict.fromkeys(remedy.why.rpartition("scale ")[2] for remedy in known)
        return f"cannot tell ({' or '.join(scales)})", f"{adapter.scale.source}{applies}"
    if adapter.scale.program:
        kept = f"its scale is not that of training: {adapter.scale.source}"
        return f"cannot tell ({trained(adapter)})", f"{kept}{applies}"
    if adapter.scale.provenance == "assumed":
        return f"cannot tell ({trained(adapter)})", f"the scale is assumed: {adapter.scale.source}{applies}"
    if own and (strength := strength_of(own)):
        return strength, f"{own.title} applies {listed_scales(own.scalings)}, and training used {trained(adapter)}"
    if own and own.otherwise:
        return "acts in part", f"{own.title} applies {own.otherwise}"
    if own and own.applied < total:
        return "acts in part", f"{own.title} applies {own.applied} of the {total} modules"
    if found and found.dead:
        return "acts in part", f"A or B of {named(found.dead)} is zero"
    if found and found.coarse:
        why = f"{named(found.coarse)}: numbers so small that float16 rounds off more than {CEILING:.0%} of the update"
        return COARSE, f"{why}, unless they were trained in it; convert the original to --dtype fp32 or bf16"
    if unshown:
        return UNSHOWN, unshown
    if own is None:
        return "cannot tell", "no program is known that loads this format as it is"
    if found is None:
        why = f"by its header {own.title} applies all {total} modules at the scale of training"
        return NEEDS_TENSORS, f"{why}; whether their numbers are whole needs the tensors"
    return AS_TRAINED, f"{own.title} applies all {total} modules at the scale of training"


def remedies(path: str | Path, adapter: Adapter, verdict: str, own: Outlook | None, *, dead: bool) -> Iterator[str]:
    """The command, and what to change in the program where no file can be right in it."""
    if verdict == AS_TRAINED:
        return
    if verdict == NEEDS_TENSORS:
        yield f"{command('loraforge', 'doctor', path)} --fetch"
        return
    if verdict == UNSHOWN:
        yield f"{command('loraforge', 'doctor', path)} --architecture {adapter.architecture}"
        return
    if verdict in ("broken file", "wrong base", COARSE) or dead:  # no conversion mends what was never trained
        yield command("loraforge", "inspect", path)
        return
    if verdict.startswith("cannot tell") and adapter.scale.provenance == "ambiguous":
        for remedy in adapter.candidates:
            yield f"{command('loraforge', 'doctor', path)} {remedy.command}   # {remedy.why}"
        return
    if verdict.startswith("cannot tell") and adapter.scale.provenance == "assumed":
        scaling = adapter.modules[next(iter(adapter.modules))][0].scaling
        again = " --override-scale" if adapter.scale.source.startswith("--") else ""
        yield f"{command('loraforge', 'doctor', path)} --trained-scale {scaling:.12g}{again}   # if training used that"
        return
    to, stated = runtime(own.runtime).format if own else "diffusers", _typed(adapter)
    known = formats().get(to)
    if known is None or known.writer is None:
        yield f"# a package adds the format {to}: docs/plugins.md says which; then loraforge convert --to {to}"
    elif to == "sat" and any(w.magnitude is not None for delta in adapter.modules.values() for w in delta):
        yield f"# SAT has no DoRA: loraforge fuse SAT_BASE {command(path)} -o OUT puts it into the weights"
    elif to == "sat":
        yield f"# loraforge convert {command(path)} --to sat --base SAT_BASE, the base's SAT checkpoint{stated}"
    else:
        yield f"{command('loraforge', 'convert', path, '--to', to)}{stated}"
    if own and own.instead and (own.raises or own.ratios not in ((), (1.0,))):
        yield f"# then: {own.instead}"


def _typed(adapter: Adapter) -> str:
    """What the user stated of the scale, to be said again."""
    said = adapter.scale.source.partition(":")[0]
    return f" {said}" if adapter.scale.provenance == "given" and said.startswith("--") else ""


def ranks(adapter: Adapter) -> str:
    """The distinct ranks, for a reader."""
    return ", ".join(map(str, sorted({w.rank for delta in adapter.modules.values() for w in delta})))


def trained(adapter: Adapter) -> str:
    """The distinct scales of training, for a reader."""
    return listed_scales(tuple(sorted({w.scaling for delta in adapter.modules.values() for w in delta})))


def listed_scales(scalings: Sequence[float]) -> str:
    return ", ".join(map(fraction, scalings)) or "nothing"


def named(modules: Sequence[str]) -> str:
    """Modules, the first of many."""
    return f"{len(modules)} modules ({listed(list(modules), 3)})" if len(modules) > 1 else "".join(modules)
