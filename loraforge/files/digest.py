"""Reads all tensors of an adapter once, before any other use: for their digest, and for NaN and infinities."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np

from loraforge.algebra.dtypes import FACTORS
from loraforge.algebra.half import finite, widen
from loraforge.algebra.lora import Delta
from loraforge.errors import FormatError
from loraforge.files.mapped import steady
from loraforge.files.tensorfile import RELEASE_EVERY, TensorFile
from loraforge.text import listed
from loraforge.threads import in_order

_PIECE = 1 << 24
"""Bytes of a large tensor after which the pages read so far are released."""

_BATCH = 64
"""Tensors after whose checksums the pages are released."""


def changed(file: TensorFile, sums: Mapping[str, int]) -> list[str]:
    """The keys whose bytes have another CRC-32 than in `sums`, and those that are only in one of the two."""
    shared = _checksums(file, [key for key in sums if key in file.tensors])
    return [*(key for key, value in shared.items() if value != sums[key]), *sorted(sums.keys() ^ file.tensors.keys())]


def _checksums(file: TensorFile, keys: Sequence[str]) -> dict[str, int]:
    def checksum(key: str) -> int:
        info, value = file.tensors[key], 0
        content = file.raw(key) if info.strides is None else memoryview(file[key].tobytes())
        for start in range(0, len(content), _PIECE):
            value = crc32(content[start : start + _PIECE], value)
            if start:
                file.release()
        return value

    with in_order(checksum, keys) as values:
        return dict(zip(keys, values, strict=True))


UNSEALED = f"sha256:{'0' * 64}"
"""Stands where the seal of tensors will be, until they are written."""


def seal(entries: Mapping[str, tuple[str, tuple[int, ...]]], sums: Mapping[str, int]) -> str:
    """`sha256:...` over the tensors in key order: key, element type, shape, CRC-32 of the bytes.

    Writing knows the CRC-32s anyway, so that this costs nothing. It shows a change; it stops no forger, and need not:
    whoever can write the tensors can write the seal.
    """
    lines = (f"{key}\0{dtype}\0{list(shape)}\0{sums[key]:08x}\0" for key, (dtype, shape) in sorted(entries.items()))
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def seal_of(file: TensorFile, keys: Sequence[str]) -> str:
    """The seal of tensors on the disk. They are read once, however often it is asked for."""
    file, missing = replace(file, tensors=file.whole), [key for key in keys if key not in file.sums]
    with steady(*file.maps):
        for start in range(0, len(missing), _BATCH):
            file.sums |= _checksums(file, missing[start : start + _BATCH])
            file.release()
    return seal({key: (file.whole[key].dtype, file.whole[key].shape) for key in keys}, file.sums)


def scan(file: TensorFile, keys: Sequence[str]) -> str:
    """`sha256:...` over the tensors in key order: key, element type, shape, bytes.

    Raises FormatError that names the tensors with a NaN or an infinity.
    """
    digest, broken = hashlib.sha256(), []
    with steady(*file.maps):
        for n, key in enumerate(sorted(keys)):
            info = file.tensors[key]
            digest.update(f"{key}\0{info.dtype}\0{list(info.shape)}\0".encode())
            if info.dtype not in FACTORS:  # an alpha that is an integer
                digest.update(file.raw(key))
                continue
            tensor = np.ascontiguousarray(file[key])
            if not finite(tensor):
                broken.append(key)
            digest.update(tensor.reshape(-1).view(np.uint8).data)
            if n % RELEASE_EVERY == 0:
                file.release()
    if broken:
        text = f"{file.path}: {len(broken)} tensors contain NaN or infinity: {listed(broken, 5)}."
        raise FormatError(f"{text} Take an earlier checkpoint: where training diverges, its numbers become NaN.")
    return f"sha256:{digest.hexdigest()}"


def scan_modules(modules: Mapping[str, Delta]) -> str:
    """The digest of an adapter made in Python, over its factors in order. Raises FormatError like `scan`."""
    digest, broken = hashlib.sha256(), []
    for path, n, w in ((path, n, w) for path, delta in sorted(modules.items()) for n, w in enumerate(delta)):
        for name, factor in (("A", w.A), ("B", w.B), ("magnitude", w.magnitude)):
            if factor is not None:
                if not np.isfinite(widen(factor)).all():
                    broken.append(f"{path} ({name})")
                digest.update(f"{path}.{n}.{name}\0{factor.dtype.name}\0{list(factor.shape)}\0".encode())
                digest.update(np.ascontiguousarray(factor).reshape(-1).view(np.uint8).data)
    if broken:
        raise FormatError(f"{len(broken)} factors contain NaN or infinity: {listed(broken, 5)}.")
    return f"sha256:{digest.hexdigest()}"
