"""Runs trainers' own saving functions on tiny models, converts what they write, and compares it with the live network.

    cd tests && python -m programs.trainers.record TRAINER CHECKOUT [ARCHITECTURE ...] [--into FOLDER]

TRAINER is a module beside this one; CHECKOUT is a folder with its repository, whose packages need not be installed:
what no saving function uses is stood in for. The truth is what the live network adds to each weight (its own scale and
multiplier), moved to Diffusers' names by Diffusers' converter of base weights. With --into, the first settings of each
architecture are recorded as a folder of tests/data/trainers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers.oracle import updates as written
from helpers.tolerance import UPDATE, share
from safetensors.numpy import save_file

import loraforge
from loraforge.errors import LoraforgeError
from programs.trainers.models import Small, StandIn, Updates


def judged(file: Path, want: Updates, to: str, folder: Path) -> str:
    """right, or what is wrong, or the refusal."""
    try:
        report = loraforge.convert(file, to=to, out=folder / to / "out.safetensors", dtype="fp32")
        back = loraforge.convert(report.output["path"], to="diffusers", out=folder / f"{to}-back", dtype="fp32")
    except LoraforgeError as refusal:
        return f"refused: {refusal}".replace("\n", " | ")
    got = written(Path(back.output["path"]))
    if got.keys() != want.keys():
        return f"WRONG: {len(got.keys() ^ want.keys())} modules differ, as {sorted(got.keys() ^ want.keys())[:3]}"
    off = {path: share(got[path], want[path].reshape(len(want[path]), -1)) for path in want}
    worst = max(off, key=lambda path: off[path])
    return "right" if off[worst] <= UPDATE else f"WRONG: {worst} is off by {off[worst]:.2g}"


def main(given: Sequence[str]) -> None:
    """Print a line for each run."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("trainer")
    asked.add_argument("checkout", type=Path)
    asked.add_argument("names", nargs="*", metavar="ARCHITECTURE")
    asked.add_argument("--into", type=Path)
    options = asked.parse_args(given)
    driver: Any = importlib.import_module(f"programs.trainers.{options.trainer}")
    sys.meta_path.insert(0, StandIn(*driver.ABSENT))
    sys.path[:0] = [str(options.checkout / part) for part in getattr(driver, "ROOTS", [""])]
    for name, settings in driver.CASES.items():
        for number, each in enumerate(settings):
            if name.partition("-")[0] not in (options.names or [name.partition("-")[0]]):
                continue
            with tempfile.TemporaryDirectory() as at:
                folder = Path(at)
                line = f"{options.trainer} {name} {each}:"
                try:
                    with contextlib.redirect_stdout(io.StringIO()):
                        small, source, layout, updates = run(driver, name, folder, each)
                        want = small.moved(layout, updates)
                except Exception as error:  # what of a trainer does not run here
                    print(line, "NOT RUN", type(error).__name__, str(error)[:400], flush=True)
                    if options.names:
                        raise
                    continue
                for to in ("diffusers", "comfyui"):
                    if to == "diffusers" or small.name in loraforge.formats()[to].layouts or True:
                        print(line, to, judged(source, want, to, folder)[:900], flush=True)


def run(driver: Any, name: str, folder: Path, settings: dict[str, Any]) -> tuple[Small, Path, str, Updates]:
    """The model, what the trainer wrote, the layout of its names and what its network adds."""
    small = Small(name.partition("-")[0])
    file = folder / "run" / "style.safetensors"
    file.parent.mkdir()
    more = {"name": name} if "name" in inspect.signature(driver.write).parameters else {}
    layout, updates, *source = driver.write(small, file, **more, **settings)
    return small, source[0] if source else file, layout, updates


if __name__ == "__main__":
    main(sys.argv[1:])
