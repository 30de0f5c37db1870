"""Writes a model file by file: resumable, read back and proved before it gets its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from loraforge._version import __version__
from loraforge.base.folder import put
from loraforge.base.proof import prove
from loraforge.base.stream import Engine, NewTensor, Seen, Shard, seen_again, write_base
from loraforge.errors import FileError
from loraforge.files.mapped import FileMap, steady
from loraforge.files.opening import open_tensors
from loraforge.files.resume import is_file, resumable
from loraforge.files.tensorfile import TensorFile
from loraforge.fusion.backend import Sums


@dataclass(frozen=True, slots=True)
class Model:
    """Everything a written model consists of, by name in its folder."""

    shards: Mapping[str, Shard]
    copied: Mapping[str, Path]
    texts: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        return [*self.shards, *self.copied, *self.texts]

    @property
    def tensors(self) -> list[NewTensor]:
        return [tensor for shard in self.shards.values() for tensor in shard.tensors]


def write_model(
    out: Path, model: Model, engine: Engine, progress: Callable[[int, int], None], read: Iterable[FileMap], *, new: bool
) -> dict[str, Sums]:
    """Write the model, and return what became of every update. `progress` is called with (bytes written, all bytes).

    Raises VerificationError if a file reads back other bytes than were written, or a row has wrong values, and
    FileError if one of the files in `read` changed meanwhile.
    """
    sizes = {name: shard.nbytes for name, shard in model.shards.items()}
    measured, total, written = dict[str, Sums](), sum(sizes.values()), 0

    def more(nbytes: int) -> None:
        nonlocal written
        written += nbytes
        progress(written, total)

    work_on = resumable(out, _plan(model, engine), sizes, alone=is_file(out, model.names), new=new)
    with work_on as work, steady(*read):
        for name, path in model.copied.items():
            put(path, work.folder / name)
        for name, text in model.texts.items():
            (work.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (work.folder / name).write_text(text, "utf-8")
        for name, shard in model.shards.items():
            if name in work.done and _as_it_was(work.folder / name, shard, engine, work.done[name].get("seen", ())):
                more(sizes[name])
            else:
                results, seen = _write(work.folder / name, shard, engine, more)
                work.finish(name, {"measured": {key: astuple(sums) for key, sums in results.items()}, "seen": seen})
            measured |= {key: Sums(*numbers) for key, numbers in work.done[name]["measured"].items()}
    return measured


def _write(file: Path, shard: Shard, engine: Engine, progress: Callable[[int], None]) -> tuple[dict[str, Sums], Seen]:
    file.parent.mkdir(parents=True, exist_ok=True)
    made = write_base(file, shard, engine, progress)
    prove(shard.tensors, open_tensors(file)[0])
    return made


def _as_it_was(file: Path, shard: Shard, engine: Engine, seen: Sequence[int]) -> bool:
    """Whether a finished shard, and what it was made from, still have the checksums of the run that made it."""
    try:
        return seen_again(file, shard, engine) == tuple(seen)
    except FileError:
        return False


def _plan(model: Model, engine: Engine) -> str:
    """A hash of everything that decides what is written.

    Of the base it covers names, sizes, dates and headers; its bytes are compared shard by shard (`_as_it_was`). Of the
    adapters it covers the digests and strengths that are in the metadata of every file.
    """
    facts = [__version__, engine.backend.name, engine.device]
    files: dict[Path, TensorFile] = {}
    for name, shard in model.shards.items():
        facts.append(f"{name} {shard.kind} {sorted(shard.metadata.items())}")
        for tensor in shard.tensors:
            files |= {part.file.path: part.file for part in tensor.parts}
            rows = [(part.key, part.start, part.stop) for part in tensor.parts]
            terms = [(run, [term.scaling for term in terms]) for run, terms in tensor.terms.items()]
            facts.append(f"{tensor.key} {tensor.dtype} {tensor.shape} {rows} {terms}")
    for path, file in files.items():
        state = path.stat()
        facts.append(f"{path.name} {state.st_size} {state.st_mtime_ns} {sorted(file.tensors.items())}")
    facts += [f"{name} {path.stat().st_size} {path.stat().st_mtime_ns}" for name, path in model.copied.items()]
    facts += [f"{name} {text}" for name, text in model.texts.items()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
