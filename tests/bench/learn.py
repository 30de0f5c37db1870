"""Learns a layout from two checkpoints of real size: `learn.py FOLDER [--blocks 16] [--width 1920]`.

The first run writes FOLDER/a.safetensors (bf16, in SAT's names, random; 16 blocks of 1920 are 1.8 GB) and
FOLDER/b.safetensors (the same in Diffusers' names). A later run learns, and prints seconds, the rate over both files,
and the peak of memory: with the pages of mapped files, and without them at the end.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from loraforge.base.route import route
from loraforge.files.safetensors import read_safetensors, write_safetensors
from loraforge.learning.learn import learn
from loraforge.learning.probe import probe
from loraforge.names.catalog import architecture


def write(folder: Path, blocks: int, width: int) -> None:
    """The probe of a model of zeros, and what its rows are in Diffusers' names."""
    arch = architecture("cogvideox")
    variant = next(v for v in arch.variants if v.name == "CogVideoX-5B")
    sizes = {"d": width, "h": 64, "t": 512, "x": 4096, "c": 16, "p": 64}
    state = {}
    for template, stack in arch.layouts["sat"].modules.items():
        if variant.absent.issuperset(stack):
            continue
        for i in range(blocks if template.holes else 1):
            terms = [arch.dimensions.get(s, ((1, "d"), (1, ""))) for s in stack]
            rows = sum(times * sizes[symbol] for (times, symbol), _ in terms)
            shape = (rows,) if stack[0] in arch.unadapted else (rows, terms[0][1][0] * sizes[terms[0][1][1]])
            zeros = np.broadcast_to(np.zeros((), ml_dtypes.bfloat16), shape)
            path = template.fill((("i", i),))
            state |= {f"{path}.weight": zeros, f"{path}.bias": zeros.reshape(rows, -1)[:, 0]}
    header = {key: ("BF16", tensor.shape) for key, tensor in state.items()}
    write_safetensors(
        folder / "zeros.safetensors", header, ((k, np.ascontiguousarray(t)) for k, t in state.items()), {}
    )
    probe(folder / "zeros.safetensors", folder / "a.safetensors", force=True)
    (folder / "zeros.safetensors").unlink()
    file = read_safetensors(folder / "a.safetensors")
    pieces, _ = route({key: info.shape for key, info in file.tensors.items()}, arch, "sat", "diffusers", [variant])

    def moved() -> Iterator[tuple[str, np.ndarray]]:
        for key, parts in pieces.items():
            yield key, np.concatenate([file[part.key][part.start : part.stop] for part in parts])
            file.release()

    shapes = {
        key: ("BF16", (sum(part.stop - part.start for part in parts), *file.tensors[parts[0].key].shape[1:]))
        for key, parts in pieces.items()
    }
    write_safetensors(folder / "b.safetensors", shapes, moved(), {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--width", type=int, default=1920)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not (options.folder / "b.safetensors").exists():
        write(options.folder, options.blocks, options.width)
        print("written; run it again to measure")
        return
    files = [options.folder / f"{name}.safetensors" for name in "ab"]
    start, processor = time.perf_counter(), time.process_time()
    done = learn(*files, options.folder / "x.toml", force=True)
    seconds, used = time.perf_counter() - start, time.process_time() - processor
    size = sum(file.stat().st_size for file in files) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    status = Path("/proc/self/status")
    own = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")] if status.exists() else []
    print(
        f"{size:.2f} GB in {seconds:.1f} s ({used:.1f} s of CPU), {size / seconds:.2f} GB/s; peak {peak:.2f} GB {own}"
    )
    print("\n".join(done.lines()[:1]))


if __name__ == "__main__":
    main()
