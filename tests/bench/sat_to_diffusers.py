"""SAT to Diffusers against the plain torch way: `sat_to_diffusers.py [--size 2b|5b] [--runs 5] [--folder DIR]`.

Both ways run as whole processes in turn, after one run each that is not counted. Memory is ru_maxrss of wait4, in
GB of 10^9 bytes: the peak resident set. It counts the pages of mapped files as long as they are resident, though
the system can take those back at any time. Exits with 1 when the budget does not hold. Linux only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

from processes import HERE, LORAFORGE, measure, run_folder

WALL, PEAK = 1 / 4, 0.5
"""The budget: share of the plain way's median time, and GB."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("2b", "5b"), default="2b")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="Where DIR/SIZE lies, or is to be kept.")
    options = parser.parse_args()
    with run_folder(options.folder, options.size) as run, tempfile.TemporaryDirectory(dir=run.parent) as out:
        checkpoint = next(run.glob("*/mp_rank_00_model_states.pt"))
        ways = {
            "loraforge": [LORAFORGE, "convert", run, "--to", "diffusers", "-o", Path(out, "loraforge"), "--force"],
            "plain": [sys.executable, HERE / "plain.py", checkpoint, Path(out, "plain")],
        }
        for command in ways.values():
            measure(command)
        results = [{way: measure(command) for way, command in ways.items()} for _ in range(options.runs)]
        print(f"{options.size}, {checkpoint.stat().st_size / 1e9:.2f} GB, {options.runs} runs each")
    print(f"{'':<12}{'median s':>10}{'min':>8}{'max':>8}{'median GB':>12}{'min':>8}{'max':>8}")
    for way in ways:
        walls, peaks = zip(*(result[way] for result in results), strict=True)
        print(f"{way:<12}{median(walls):>10.2f}{min(walls):>8.2f}{max(walls):>8.2f}", end="")
        print(f"{median(peaks):>12.3f}{min(peaks):>8.3f}{max(peaks):>8.3f}")
    wall = median(r["loraforge"][0] for r in results) / median(r["plain"][0] for r in results)
    peak = max(r["loraforge"][1] for r in results)
    fast, small = wall <= WALL, peak <= PEAK
    print(f"wall  {wall:.3f} of the plain way, budget {WALL:.3f}: {'holds' if fast else 'EXCEEDED'}")
    print(f"peak  {peak:.3f} GB, budget {PEAK:.3f} GB: {'holds' if small else 'EXCEEDED'}")
    return 0 if fast and small else 1


if __name__ == "__main__":
    sys.exit(main())
