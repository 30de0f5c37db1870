"""Runs a part of the fuzzing in this process: `python tests/fuzz/run.py PART --count N --seed S`, or `--minutes M`.

PART: `parsers`, the name of one of them, `calls`, `chains` or `hub`. `--minutes` are of CPU, for all parts together.
Prints what was done as JSON. Exit code 1 if something was found; the inputs are in `--keep`, and the same part, seed
and count find it again. `--record`: also appends to that file (runs.json).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from subprocess import run as process
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]
os.environ |= {"LORAFORGE_PLUGINS": "", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "120"}

Finding = dict[str, Any]
Part = Callable[[Path, Random, Callable[[], bool]], Iterator[list[Finding]]]
"""Called with an empty folder, the source of chance, and whether to go on. Yields the findings of each execution."""


def _parts(names: list[str]) -> dict[str, Part]:
    """The parts asked for; each imports what it needs."""
    parts: dict[str, Part] = {}
    for name in names:
        if name in ("calls", "chains", "hub"):
            from importlib import import_module

            parts[name] = import_module(f"fuzz.{name}").part
        else:
            from fuzz.guided import part
            from fuzz.parsers import PARSERS

            for parser in PARSERS if name == "parsers" else [name]:
                parts[parser] = part(PARSERS[parser])
    return parts


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("parts", nargs="+")
    options.add_argument("--count", type=int, default=0)
    options.add_argument("--minutes", type=float, default=0.0)
    options.add_argument("--seed", type=int, default=None)
    options.add_argument("--keep", type=lambda text: Path(text).resolve())  # as the folder is left soon
    options.add_argument("--record", type=lambda text: Path(text).resolve())
    given = options.parse_args()
    seed = int.from_bytes(os.urandom(4)) if given.seed is None else given.seed
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR", "HF_HOME"):
        (place / name).mkdir()
        os.environ[name] = str(place / name)
    tempfile.tempdir = str(place / "TMPDIR")
    (place / "current").mkdir()
    os.chdir(place / "current")
    try:
        parts = _parts(given.parts)
        seconds = given.minutes * 60 / len(parts)
        done = [_one(name, part, place, seed, given.count, seconds, given.keep) for name, part in parts.items()]
    finally:
        os.chdir("/")
        shutil.rmtree(place, ignore_errors=True)
    print(json.dumps(done, indent=1))
    if given.record:
        lines = json.loads(given.record.read_text()) if given.record.exists() else []
        given.record.write_text(json.dumps([*lines, *done], indent=1) + "\n")
    return 1 if any(line["findings"] for line in done) else 0


def _one(
    name: str, part: Part, place: Path, seed: int, count: int, seconds: float, keep: Path | None
) -> dict[str, Any]:
    """One part, for `count` executions or so many seconds of CPU."""
    from fuzz.watch import now

    began, executed, found, last = now(), 0, dict[str, Finding](), 0.0
    stopped = list[int]()  # SIGUSR1 ends a long run early, with its results
    signal.signal(signal.SIGUSR1, lambda number, _: stopped.append(number))

    def go_on() -> bool:
        return not stopped and (executed < count if count else now() - began < seconds)

    folder = place / name
    folder.mkdir()
    for findings in part(folder, Random(f"{name} {seed}"), go_on):
        executed += 1
        for finding in findings:
            if finding["what"] not in found:
                found[finding["what"]] = {**finding, "execution": executed}
                last = now() - began
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    target = keep / f"{name}-{seed}-{executed}"
                    if finding.get("folder"):
                        shutil.copytree(finding["folder"], target, symlinks=True, dirs_exist_ok=True)
                    if "input" in finding:
                        target.with_suffix(".input").write_bytes(finding["input"])
                    print(
                        f"FOUND {name} {seed} {executed}: {finding['what']} {finding.get('words', '')}",
                        file=sys.stderr,
                        flush=True,
                    )
    took = now() - began
    commit = process(
        ["git", "-C", str(HERE), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    kept = [
        {key: str(value)[:300] for key, value in one.items() if key not in ("input", "folder")}
        for one in found.values()
    ]
    return {
        "part": name, "seed": seed, "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "commit": commit,
        "executions": executed,
        "cpu_seconds": round(took), "cpu_seconds_since_last_finding": round(took - last), "findings": kept,
    } | getattr(part, "counts", {})  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
