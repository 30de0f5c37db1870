"""Runs trainers' own saving functions on tiny models, converts what they write, and compares it with the live network.

    cd tests && python -m programs.trainers.record TRAINER CHECKOUT [ARCHITECTURE ...] [--into FOLDER]

TRAINER is a module beside this one; CHECKOUT is a folder with its repository, whose packages need not be installed:
what no saving function uses is stood in for. The truth is what the live network adds to each weight (its own scale and
multiplier), moved to Diffusers' names by Diffusers' converter of base weights. With --into, the runs that have a name
(`save_as`) are recorded below that folder as tests/data/trainers has them; --commit is the revision of the checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from helpers.oracle import updates as written
from helpers.stand_in import StandIn
from helpers.tolerance import UPDATE, share
from safetensors.numpy import save_file

import loraforge
from loraforge.errors import LoraforgeError
from programs.trainers.models import Small, Updates


def judged(file: Path, want: Updates, to: str, folder: Path, **stated: Any) -> str:
    """right, or what is wrong, or the refusal. `stated`: what a user says after one."""
    try:
        report = loraforge.convert(file, to=to, out=folder / to / "out.safetensors", dtype="fp32", **stated)
        back = loraforge.convert(report.output["path"], to="diffusers", out=folder / f"{to}-back", dtype="fp32")
    except LoraforgeError as refusal:
        return f"refused: {refusal}".replace("\n", " | ")
    got = {path: update for path, update in written(Path(back.output["path"])).items() if update.any()}
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
    asked.add_argument("--commit", default="")
    options = asked.parse_args(given)
    driver: Any = importlib.import_module(f"programs.trainers.{options.trainer}")
    sys.meta_path.insert(0, StandIn(*driver.ABSENT))
    sys.path[:0] = [str(options.checkout / part) for part in getattr(driver, "ROOTS", [""])]
    for name, settings in ((name, one) for name, every in driver.CASES.items() for one in every):
        if name.partition("-")[0] not in (options.names or [name.partition("-")[0]]):
            continue
        if options.into and "save_as" not in settings:
            continue
        with tempfile.TemporaryDirectory() as folder:
            line = f"{options.trainer} {name} {settings}:"
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    small, source, layout, updates = run(driver, name, Path(folder), settings)
                    want = small.moved(layout, updates)
            except Exception as error:  # what of a trainer does not run here
                print(line, "NOT RUN", type(error).__name__, str(error)[:400], flush=True)
                if options.names:
                    raise
                continue
            verdicts = {to: judged(source, want, to, Path(folder)) for to in ("diffusers", "comfyui")}
            stated = settings.get("stated", {})
            for to, verdict in verdicts.items():
                print(line, to, verdict[:900], flush=True)
                if stated:
                    print(line, to, "as stated:", judged(source, want, to, Path(folder), **stated)[:900], flush=True)
            if options.into:
                about = {"trainer": driver.TITLE, "commit": options.commit, "architecture": small.name}
                about |= {"recorded": date.today().isoformat(), "expected": verdicts["diffusers"].partition(":")[0]}
                about |= {"stated": stated} if stated else {}
                keep(source, want, options.into / settings["save_as"], about)


def keep(source: Path, want: Updates, folder: Path, about: dict[str, Any]) -> None:
    """A folder of tests/data/trainers: what the trainer wrote, the updates and where they come from."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / source.name)
    save_file({path: update.astype("f4") for path, update in want.items()}, folder / "expected.safetensors")
    about |= {"source": source.name}
    (folder / "manifest.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def run(driver: Any, name: str, folder: Path, settings: dict[str, Any]) -> tuple[Small, Path, str, Updates]:
    """The model, what the trainer wrote, the layout of its names and what its network adds."""
    small = Small(name.partition("-")[0])
    file = folder / "run" / "style.safetensors"
    file.parent.mkdir()
    more = {"name": name} if "name" in inspect.signature(driver.write).parameters else {}
    layout, updates, *source = driver.write(
        small, file, **more, **{k: v for k, v in settings.items() if k not in ("save_as", "stated")}
    )
    return small, source[0] if source else file, layout, updates


if __name__ == "__main__":
    main(sys.argv[1:])
