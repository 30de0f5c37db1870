"""Reads written base weights back: compares some rows of every tensor, changed ones with a computation in float64."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from loraforge.algebra.dtypes import FACTORS, eps
from loraforge.algebra.half import widen
from loraforge.algebra.lora import Array
from loraforge.base.stream import NewTensor
from loraforge.errors import VerificationError
from loraforge.files.tensorfile import TensorFile
from loraforge.fusion.backend import Term
from loraforge.text import command
from loraforge.threads import in_order

ROWS = 2
"""Rows of every changed run that are drawn by the tensor's name, besides its first and last. Of a copied run only one
is compared, because each row is a seek on the disk."""


def prove(tensors: Sequence[NewTensor], back: TensorFile) -> None:
    """Compare rows of a written file with the source, and with the updates computed in float64.

    Raises VerificationError if a copied row differs in a bit, or a changed one differs from float64 by more than one
    rounding to its type and the errors of float32 sums explain.
    """
    checked = [t for t in tensors if t.made is None and t.dtype in FACTORS and t.shape and 0 not in t.shape]
    back.scatter()
    with in_order(lambda tensor: _wrong_row(tensor, back), checked) as wrong_rows:  # threads: the disk takes its time
        for tensor, row in zip(checked, wrong_rows, strict=True):
            if row is not None:
                raise VerificationError(
                    f"row {row} of {tensor.key} did not come out as it should. Nothing was kept. This is a fault of "
                    "loraforge or of the machine: please report it.",
                    command("loraforge", "plugins", "list"),
                )
            for part in tensor.parts:
                part.file.release(part.key)
            back.release(tensor.key)


def _wrong_row(tensor: NewTensor, back: TensorFile) -> int | None:
    written = back[tensor.key].reshape(tensor.shape[0], -1)
    for (first, last), terms in tensor.runs:
        draw = np.random.default_rng(crc32(f"{tensor.key} {first}".encode())).integers(first, last, ROWS)
        rows = np.unique([first, *draw, last - 1] if terms else draw[:1])
        source = np.stack([_row(tensor, row) for row in rows.tolist()])
        off = _off(source, written[rows], terms, rows - first).any(axis=1)
        if off.any():
            return int(rows[off][0])
    return None


def _row(tensor: NewTensor, row: int) -> Array:
    for part in tensor.parts:
        if row < part.stop - part.start:
            values: Array = part.file[part.key][part.start + row].reshape(-1)
            return values
        row -= part.stop - part.start
    raise IndexError(row)


def _off(source: Array, written: Array, terms: tuple[Term, ...], rows: Array) -> Array:
    """[rows, in]: which entries of the written rows are wrong. `rows`: their numbers within the terms."""
    dtype = written.dtype
    if not terms:
        wrong: Array = source.astype(dtype).view(np.uint8) != written.view(np.uint8)
        return wrong
    weight = widen(source)
    updates = [_update(weight, term, rows) for term in terms]
    expected = weight + sum(updates)
    size = np.abs(weight) + sum(np.abs(update) for update in updates)
    grain = eps(dtype) * np.abs(expected) + 2e-5 * size.max(axis=1, keepdims=True)
    off: Array = np.abs(widen(written) - expected) > grain + 1e-7  # half of float16's smallest number
    return off


def _update(weight: Array, term: Term, rows: Array) -> Array:
    """What a term adds to rows of base weights."""
    w = term.weight
    low: Array = term.scaling * (widen(w.B[rows]) @ widen(w.A))
    if w.magnitude is None:
        return low
    moved = weight + low
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    update: Array = widen(w.magnitude[rows])[:, None] / length * moved - weight
    return update
