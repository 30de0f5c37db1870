"""Fusing into a real-sized transformer against diffusers: `fuse.py [--size 2b|5b] [--runs 3] [--folder DIR]`.

Both ways, and a plain copy of the files, run as whole processes in turn, each into a folder that is removed before the
next begins. Memory is ru_maxrss of wait4, in GB of 10^9 bytes. Exits with 1 when the budget does not hold. Linux only.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from processes import HERE, LORAFORGE, kept, measure

WALL, PEAK = 1 / 3, 1.5
"""The budget: share of diffusers' median time, and GB."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("2b", "5b"), default="5b")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="Where DIR/model-SIZE lies, or is to be kept.")
    parser.add_argument("--backend", default="auto", help="Passed on to loraforge fuse.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() if options.folder is None else kept(options.folder) as parent:
        model = Path(parent) / f"model-{options.size}"
        if not (model / "ready").is_file():
            subprocess.run([sys.executable, HERE / "models.py", model, "--size", options.size], check=True)
        out, base, adapter = model / "out", model / "base", model / "adapter.safetensors"
        fuse = [LORAFORGE, "fuse", base, adapter, "--as-loaded", "-o", out, "--backend", options.backend]
        ways = {
            "loraforge": fuse,
            "diffusers": [sys.executable, HERE / "fuse_plain.py", base, adapter, out],
            "copy": ["cp", "-r", base, out],
        }
        results: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(options.runs):
            for way, command in ways.items():
                shutil.rmtree(out, ignore_errors=True)
                subprocess.run(["sync"], check=True)
                results[way].append(measure(command))
        shutil.rmtree(out)
        size = sum(file.stat().st_size for file in base.iterdir())
        print(f"{options.size}, {size / 1e9:.2f} GB, {options.runs} runs each")
    print(f"{'':<12}{'median s':>10}{'min':>8}{'max':>8}{'max GB':>10}")
    for way, measured in results.items():
        walls, peaks = zip(*measured, strict=True)
        print(f"{way:<12}{median(walls):>10.2f}{min(walls):>8.2f}{max(walls):>8.2f}{max(peaks):>10.3f}")
    wall = median(w for w, _ in results["loraforge"]) / median(w for w, _ in results["diffusers"])
    peak = max(p for _, p in results["loraforge"])
    fast, small = wall <= WALL, peak <= PEAK
    print(f"wall  {wall:.3f} of the diffusers way, budget {WALL:.3f}: {'holds' if fast else 'EXCEEDED'}")
    print(f"peak  {peak:.3f} GB, budget {PEAK:.3f} GB: {'holds' if small else 'EXCEEDED'}")
    return 0 if fast and small else 1


if __name__ == "__main__":
    sys.exit(main())
