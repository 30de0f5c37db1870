"""What twenty installed data plugins add to `--help` and to `formats`: `plugins.py [--runs 20]`.

The packages are built and installed by pip into a temporary folder; the two environments are measured in turn.
Exits with 1 when `--help` takes 50 ms more. Linux only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from processes import LORAFORGE, measure

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import plugin

COUNT, BUDGET = 20, 0.050
BODY = "from importlib.resources import files\n    return [files(__name__) / 'format.toml']"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        module = plugin.HOOK.format(hook="loraforge_formats", body=BODY)
        projects = [
            plugin.package(
                Path(folder), f"loraforge-x{n}", module, {"format.toml": plugin.KOHYA.replace("toy-kohya", f"x{n}")}
            )
            for n in range(COUNT)
        ]
        path = plugin.install(Path(folder) / "site", *projects)["PYTHONPATH"]
        good = True
        for verb in ("--help", "formats"):
            walls: dict[str, list[float]] = {"": [], path: []}
            for run in range(options.runs + 1):
                for place, seconds in walls.items():
                    os.environ["PYTHONPATH"] = place
                    wall = measure([LORAFORGE, verb])[0]
                    if run:
                        seconds.append(wall)
            bare, full = (median(seconds) for seconds in walls.values())
            holds = verb != "--help" or full - bare < BUDGET
            good &= holds
            print(
                f"{verb:<10} {bare:.3f} s without, {full:.3f} s with {COUNT} plugins", "holds" if holds else "EXCEEDED"
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
