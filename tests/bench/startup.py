"""How long the commands take that touch no weight, as ratios to the bare interpreter: `startup.py [--runs 20]`.

Whole processes of the interpreter that runs this, one of each in turn, CPU seconds (user and system), medians after
one round that is not counted. To measure what users install, install the wheel, with or without plugins, into an
environment of its own and run this with its python. Exits with 1 when a budget is exceeded. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from statistics import median

LORAFORGE = str(Path(sysconfig.get_path("scripts")) / "loraforge")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import click": [sys.executable, "-c", "import click"],
    "import loraforge": [sys.executable, "-c", "import loraforge"],
    "--help": [LORAFORGE, "--help"],
    "convert --help": [LORAFORGE, "convert", "--help"],
    "formats": [LORAFORGE, "formats"],
}
BUDGETS: dict[str, tuple[str, Callable[[dict[str, float]], float]]] = {
    "import loraforge": ("2 x pass + 10 ms", lambda took: 2 * took["python -c pass"] + 0.01),
    "--help": ("2 x import click", lambda took: 2 * took["import click"]),
}


def seconds(command: list[str], *, refused: bool = False) -> float:
    """CPU seconds of one process; exits if it fails, unless it may end as `refused`, with 1."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode > refused or process.returncode < 0:
        sys.exit(f"{' '.join(command)} failed")
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(runs + 1)][1:]
    took = {name: median(one[name] for one in rounds) for name in COMMANDS}
    good = True
    print(f"{'':<18}{'median ms':>10}{'min':>8}{'x pass':>8}  budget")
    for name, value in took.items():
        words, budget = BUDGETS.get(name, ("", None))
        holds = budget is None or value <= budget(took)
        good &= holds
        least, ratio = min(one[name] for one in rounds) * 1000, value / took["python -c pass"]
        print(f"{name:<18}{value * 1000:>10.1f}{least:>8.1f}{ratio:>8.2f}  {words}{'' if holds else ' EXCEEDED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
