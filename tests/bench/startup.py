"""How long the commands take that touch no weight: `startup.py [--runs 10] [--folder DIR]`.

Whole processes, medians after one run that is not counted; exits with 1 when one is over its budget. Linux only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

from processes import LORAFORGE, measure, run_folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="Where DIR/2b lies, or is to be kept.")
    options = parser.parse_args()
    good = True
    print(f"{'':<12}{'median s':>10}{'min':>8}{'max':>8}{'budget':>8}")
    with run_folder(options.folder, "2b") as run:
        for arguments, budget in ((["--help"], 0.3), (["formats"], 0.3), (["inspect", run], 0.5)):
            measure([LORAFORGE, *arguments])
            walls = [measure([LORAFORGE, *arguments])[0] for _ in range(options.runs)]
            holds = median(walls) <= budget
            good &= holds
            print(f"{arguments[0]:<12}{median(walls):>10.3f}{min(walls):>8.3f}{max(walls):>8.3f}{budget:>8.1f}", end="")
            print(f"  {'holds' if holds else 'EXCEEDED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
