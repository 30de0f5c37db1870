"""Streams base weights from files into a file: reads ahead on threads, computes in pieces, writes in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Literal, NamedTuple
from zlib import crc32

import numpy as np

from loraforge.algebra.dtypes import BYTES, FACTORS, numpy_type
from loraforge.algebra.half import finite
from loraforge.algebra.lora import Array
from loraforge.errors import ConversionError, VerificationError, adding
from loraforge.files.digest import changed
from loraforge.files.direct_write import PIECE, write_direct
from loraforge.files.opening import open_tensors
from loraforge.files.safetensors import chunks_of, file_order, safetensors_header
from loraforge.files.tensorfile import KEY, RELEASE_EVERY, Chunk, TensorFile, TensorInfo
from loraforge.files.torch_write import copy_chunks, write_torch
from loraforge.fusion.backend import FusionBackend, Sums, Term
from loraforge.text import listed
from loraforge.threads import in_order

ELEMENTS = 1 << 22
"""Elements per piece of computation: few enough that many threads fit in memory, enough to be worth a thread."""


class Part(NamedTuple):
    """Rows `start` to `stop` of a tensor of the source."""

    file: TensorFile
    key: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class NewTensor:
    """One tensor to be written: stacked rows of the source, and the updates that are added to them."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    terms: Mapping[tuple[int, int], tuple[Term, ...]] = field(default_factory=dict)
    """Rows (first, last + 1) -> the updates they get. Runs do not overlap; all other rows are copied."""
    made: Callable[[], Array] | None = None
    """Makes a tensor that the source lacks."""

    @property
    def runs(self) -> list[tuple[tuple[int, int], tuple[Term, ...]]]:
        """The runs of rows that are changed, and those between them, which have no terms."""
        edges = sorted({0, *(self.shape[:1] or (1,)), *(row for run in self.terms for row in run)})
        return [(run, self.terms.get(run, ())) for run in pairwise(edges)]

    @property
    def entry(self) -> tuple[str, tuple[int, ...]]:
        return self.dtype, self.shape

    @property
    def nbytes(self) -> int:
        return TensorInfo(*self.entry, 0).nbytes

    @property
    def is_cast(self) -> bool:
        """Whether it is stored in another type than in the source."""
        return any(part.file.tensors[part.key].dtype != self.dtype for part in self.parts)


class Shard(NamedTuple):
    """One tensor file to be written."""

    kind: Literal["safetensors", "torch"]
    tensors: tuple[NewTensor, ...]
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


class Engine(NamedTuple):
    """Where updates are added."""

    backend: FusionBackend
    device: str


AHEAD = 48
"""Pieces in work or waiting to be written: many, as computed weights come in groups between copied ones."""


class Job(NamedTuple):
    """Makes one piece of a tensor, from elements `start` to `stop` of a tensor of the source."""

    work: Callable[[], tuple[Chunk, Sums | None]]
    nbytes: int
    """Of the piece."""
    part: Part | None = None
    start: int = 0
    stop: int = 0

    def run(self) -> tuple[Chunk, Sums | None, Seen]:
        chunk, sums = self.work()
        written = crc32(chunk)
        same = isinstance(self.work, partial) and self.work.func is _copy
        return chunk, sums, Seen(written if same else self.read(), written)

    def read(self) -> int:
        """The CRC-32 of the bytes that it is made from."""
        if self.part is None:
            return 0
        info, file = self.part.file.tensors[self.part.key], self.part.file
        if info.strides is None:
            width = BYTES[info.dtype]
            return crc32(file.raw(self.part.key)[self.start * width : self.stop * width])
        return crc32(b"".join(copy_chunks(file, self.part.key)))


class Seen(NamedTuple):
    """CRC-32 of the CRC-32 of all pieces, of what was read for them and of what was written."""

    read: int = 0
    written: int = 0

    def then(self, piece: Seen) -> Seen:
        return Seen(*(crc32(new.to_bytes(4, "little"), old) for old, new in zip(self, piece, strict=True)))


def write_base(
    path: Path, shard: Shard, engine: Engine, progress: Callable[[int], None]
) -> tuple[dict[str, Sums], Seen]:
    """Write one tensor file, and read it back.

    Returns the sums of each tensor that has an update, and what `seen_again` compares later. `progress` is called
    with the bytes of each piece. Raises ConversionError if a value does not fit its new type, VerificationError if the
    disk returns other bytes.
    """
    by_key = {tensor.key: tensor for tensor in shard.tensors}
    header = {tensor.key: tensor.entry for tensor in shard.tensors}
    measured, seen = dict[str, Sums](), Seen()
    plans = [(key, list(_jobs(by_key[key], engine))) for key in _order(shard)]
    with in_order(Job.run, (job for _, jobs in plans for job in jobs), AHEAD) as results:

        def chunks(key: str, count: int) -> Iterator[Chunk]:
            nonlocal seen
            for _ in range(count):
                chunk, sums, piece = next(results)
                yield chunk
                seen = seen.then(piece)
                if sums is not None:
                    measured[key] = measured.get(key, Sums()) + sums
                progress(memoryview(chunk).nbytes)
            for part in by_key[key].parts:
                part.file.release(part.key)

        contents = ((key, chunks(key, len(jobs))) for key, jobs in plans)
        if shard.kind == "torch":
            sums = write_torch(path, header, contents, extra={KEY: shard.metadata[KEY]})
            if damaged := changed(open_tensors(path)[0], sums):
                text = f"the disk gave back other bytes than were written: {listed(damaged, 3)}. Nothing was kept."
                raise VerificationError(text)
            return measured, seen
        each = (piece for key, pieces in contents for piece in chunks_of(key, header[key], pieces))
        write_direct(path, chain([safetensors_header(header, shard.metadata)[0]], each))
    return measured, seen


def _order(shard: Shard) -> list[str]:
    header = {tensor.key: tensor.entry for tensor in shard.tensors}
    return file_order(header) if shard.kind == "safetensors" else list(header)


def seen_again(path: Path, shard: Shard, engine: Engine) -> Seen | None:
    """What `write_base` saw, read once more from the source and from the written file; None if that has another header.

    Raises FileError if the file is none of tensors.
    """
    back, by_key, seen = open_tensors(path)[0], {tensor.key: tensor for tensor in shard.tensors}, Seen()
    entries = {key: (info.dtype, info.shape) for key, info in back.tensors.items()}
    kept = shard.metadata if shard.kind == "safetensors" else {KEY: shard.metadata[KEY]}
    if (entries, back.metadata) != ({key: tensor.entry for key, tensor in by_key.items()}, kept):
        return None

    def pieces() -> Iterator[tuple[Job, memoryview]]:
        for key in _order(shard):
            content = back.raw(key)
            for job in _jobs(by_key[key], engine):
                yield job, content[: job.nbytes]
                content = content[job.nbytes :]
            for part in by_key[key].parts:
                part.file.release(part.key)

    with in_order(lambda piece: Seen(piece[0].read(), crc32(piece[1])), pieces()) as each:
        for n, piece in enumerate(each):
            seen = seen.then(piece)
            if n % RELEASE_EVERY == 0:
                back.release()
    return seen


def measure(tensors: Iterable[NewTensor], engine: Engine) -> dict[str, Sums]:
    """The sums that `write_base` returns, without writing. Raises ConversionError as it does."""
    measured: dict[str, Sums] = {}
    changing = [tensor for tensor in tensors if tensor.terms or tensor.is_cast]
    jobs = [(tensor, job) for tensor in changing for job in _jobs(tensor, engine)]
    with in_order(lambda entry: entry[1].work()[1], jobs) as results:
        for (tensor, _), sums in zip(jobs, results, strict=True):
            if sums is not None:
                measured[tensor.key] = measured.get(tensor.key, Sums()) + sums
            for part in tensor.parts:
                part.file.release(part.key)
    return measured


def _jobs(tensor: NewTensor, engine: Engine) -> Iterator[Job]:
    """The pieces of a tensor, in the order of its bytes."""
    if tensor.made is not None:
        yield Job(partial(_make, tensor.made, tensor.dtype), tensor.nbytes)
    width, row = math.prod(tensor.shape[1:]), 0
    for part in tensor.parts:
        begin, row = row, row + part.stop - part.start
        shift = part.start - begin
        for (start, stop), terms in tensor.runs:
            first, last = max(start, begin), min(stop, row)
            if not terms:
                yield from _copies(part, (first + shift) * width, (last + shift) * width, tensor)
                continue
            step = max(1, ELEMENTS // width)
            for top in range(first, last, step):
                end = min(top + step, last)
                cut = tuple(Term(t.weight.take(top - start, end - start), t.strength) for t in terms)
                work = partial(_fuse, part, top + shift, end + shift, cut, tensor, engine)
                size = (end - top) * width * BYTES[tensor.dtype]
                yield Job(work, size, part, (top + shift) * width, (end + shift) * width)


def _copies(part: Part, start: int, stop: int, tensor: NewTensor) -> Iterator[Job]:
    """Elements of a source tensor as they are, or cast."""
    info = part.file.tensors[part.key]
    work = partial(_copy, part) if info.dtype == tensor.dtype else partial(_cast, part, tensor)
    in_one = info.dtype == tensor.dtype and info.strides is not None  # each piece would gather the whole tensor
    step = stop - start if in_one else PIECE // BYTES[tensor.dtype]
    for first in range(start, stop, max(1, step)):
        last = min(first + step, stop)
        yield Job(partial(work, first, last), (last - first) * BYTES[tensor.dtype], part, first, last)


def _copy(part: Part, start: int, stop: int) -> tuple[Chunk, None]:
    info = part.file.tensors[part.key]
    whole = part.file.raw(part.key) if info.strides is None else b"".join(copy_chunks(part.file, part.key))
    content = whole[start * BYTES[info.dtype] : stop * BYTES[info.dtype]]
    # the check also reads the piece into memory, so that the writer need not wait
    if info.dtype in FACTORS and not finite(np.frombuffer(content, numpy_type(info.dtype))):
        raise _not_a_number(part)
    return content, None


def _cast(part: Part, tensor: NewTensor, start: int, stop: int) -> tuple[Chunk, None]:
    if part.file.tensors[part.key].dtype not in FACTORS:
        raise ConversionError(f"{part.key} is {part.file.tensors[part.key].dtype}, which is not cast.")
    source = np.ascontiguousarray(part.file[part.key]).reshape(-1)[start:stop]
    with np.errstate(over="ignore"):
        out = source.astype(numpy_type(tensor.dtype))
    _fits(out, source, part, tensor)
    return out.view(np.uint8).data, None


def _make(made: Callable[[], Array], dtype: str) -> tuple[Chunk, None]:
    return np.ascontiguousarray(made().astype(numpy_type(dtype))).reshape(-1).view(np.uint8).data, None


def _fuse(
    part: Part, start: int, stop: int, terms: tuple[Term, ...], tensor: NewTensor, engine: Engine
) -> tuple[Chunk, Sums]:
    weight = part.file[part.key][start:stop].reshape(stop - start, -1)
    fused, sums = engine.backend.fuse(weight, terms, numpy_type(tensor.dtype), engine.device)
    if not math.isfinite(sums.applied + sums.ideal + sums.base):
        _fits(fused, weight, part, tensor)
        raise ConversionError(f"the update of {tensor.key} is too large to be measured. Give a smaller --strength.")
    if not sums.ideal and fused.dtype == weight.dtype:  # opposite updates: keep the base's bits, also of negative zeros
        fused = weight
    return np.ascontiguousarray(fused).reshape(-1).view(np.uint8).data, sums


def _not_a_number(part: Part) -> ConversionError:
    text = f"{part.key} of the base model contains NaN or infinity: get it again."
    return ConversionError(text)


def _fits(new: Array, source: Array, part: Part, tensor: NewTensor) -> None:
    """Raise ConversionError if the result has NaN or infinity, or the base model has."""
    if not finite(np.ascontiguousarray(source)):
        raise _not_a_number(part)
    if not finite(new):
        text = f"{tensor.key} comes out with NaN or infinity: its numbers are too large for {tensor.dtype}."
        if tensor.dtype in ("F16", "BF16"):
            raise ConversionError(text, adding("--dtype", "fp32"))
        raise ConversionError(f"{text} Give a smaller --strength.")
