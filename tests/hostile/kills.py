"""Kills loraforge at random moments, and looks at what is left: the old result or the new one, and soon no rest.

By hand, `python tests/hostile/kills.py --kills 300 convert-force stamp`; `--keep` writes what was counted into
kills.json beside it. Every command runs in a fork of a process that has loaded everything, so that no
kill is wasted on imports. Half of the kills come at any moment of a run, half in its last part, where results appear.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.hub import Hub
from helpers.oracle import Case
from helpers.pushed import BASE, NAME
from helpers.sharded import sharded_model

from loraforge import __version__
from loraforge.cli.app import main

KEPT = Path(__file__).with_suffix(".json")
WHOLE = 10
"""After so many kills one run is left alone, and nothing but its result may be there."""


def begin(*words: object) -> int:
    """Run a command in a fork of this process. Returns its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        main([str(word) for word in words], standalone_mode=True)
        os._exit(0)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1 if end.code else 0)
    except BaseException:
        os._exit(99)


def wait(child: int) -> int:
    """Its exit status; of a killed one minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(*words: object) -> None:
    code = wait(begin(*words))
    assert code == 0, f"{code}: {words}"


def files(folder: Path) -> dict[str, str]:
    """Path -> hash of everything below a folder, or of a file."""
    found = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


class Series:
    """One command and its two variants, whose results replace each other at `out`, or appear there anew each time."""

    turn = 3
    """How many runs of one variant follow each other."""

    def __init__(self, place: Path, words: Callable[[int], list[object]], *, anew: bool = False) -> None:
        self.results, self.anew, self.words = place / "results", anew, words
        self.results.mkdir()
        self.out = self.results / "out"
        self.wanted: list[object] = []

    def whole(self, variant: int) -> None:
        run(*self.words(variant))

    def state(self) -> object:
        """What can be seen of the result."""
        return files(self.out) if self.out.exists() else None

    def rest(self) -> list[str]:
        """What lies beside the result, and belongs to nobody."""
        hidden = (path for path in self.out.rglob(".*")) if self.out.is_dir() else ()
        return [p.name for p in (*self.results.iterdir(), *hidden) if p != self.out]

    def prepare(self) -> None:
        if self.anew and self.out.is_dir():
            shutil.rmtree(self.out)

    def learn(self) -> float:
        """Both results, and the seconds that one run takes."""
        for variant in (0, 1):
            self.prepare()
            start = time.monotonic()
            self.whole(variant)
            took = time.monotonic() - start
            self.wanted.append(self.state())
        assert self.wanted[0] != self.wanted[1]
        assert not self.rest(), self.rest()
        return took

    def kill(self, kills: int, rng: random.Random) -> Counter[str]:
        """How often what was there after a kill; `mixed` and `rest` must not be."""
        took, count = self.learn(), Counter[str]()
        for n in range(kills):
            self.prepare()
            before, variant = self.state(), n // self.turn % 2
            child = begin(*self.words(variant))
            time.sleep(took * (rng.uniform(0, 1.1) if n % 2 else rng.uniform(0.7, 1.1)))
            os.kill(child, signal.SIGKILL)
            ended = wait(child) != -signal.SIGKILL
            after = self.state()
            kind = "new" if after == self.wanted[variant] else "old" if after == before else "mixed"
            count[kind] += 1
            count["ended before the kill"] += ended
            count["left something"] += bool(self.rest())
            if (n + 1) % WHOLE == 0 or n + 1 == kills:
                self.prepare()
                self.whole(variant)
                count["mixed"] += self.state() != self.wanted[variant]
                if rest := self.rest():
                    count["rest"] += 1
                    print(f"{rest} stayed", sorted(self.results.rglob("*")), file=sys.stderr)
        return count

    def pairs(self, number: int) -> Counter[str]:
        """Two processes at once on one destination."""
        self.learn()
        count = Counter[str]()
        for _ in range(number):
            codes = sorted(wait(child) for child in [begin(*self.words(variant)) for variant in (0, 1)])
            count[f"exit codes {codes[0]} and {codes[1]}"] += 1
            count["whole" if self.state() in self.wanted else "mixed"] += 1
            count["rest"] += bool(self.rest())
        return count


def adapters(place: Path) -> list[Path]:
    """Two Diffusers files of the same modules, ranks and scales apart."""
    out = []
    for name in ("sat_2b_r4", "sat_2b_r8_alpha4_layer1"):
        out.append(place / name / NAME)
        run("convert", Case(name).run(place / name), "--to", "diffusers", "-o", out[-1].parent)
    return out


def convert(place: Path, *, anew: bool, to: str = "sat") -> Series:
    sources = adapters(place)
    options = ["--to", to, *(["--lora-only"] if to == "sat" else []), *([] if anew else ["--force"])]
    made = Series(place, lambda n: ["convert", sources[n], *options, "-o", made.out], anew=anew)
    if not anew:
        made.out.mkdir()
        (made.out / "notes").mkdir()
        (made.out / "notes" / "mine.txt").write_text("of the user")
    return made


class Stamp(Series):
    """Begins each time with a file that is not stamped, as the result tells its history; the file is private."""

    def __init__(self, place: Path) -> None:
        super().__init__(place, lambda n: ["stamp", self.out, "--alpha", n + 1, "--in-place"])
        self.plain = next(Case("cogvideo_trainer_plain").folder.rglob("*lora_weights.safetensors"))

    def prepare(self) -> None:
        shutil.copyfile(self.plain, self.out)
        self.out.chmod(0o600)

    def state(self) -> object:
        return files(self.out), oct(self.out.stat().st_mode)


def fuse(place: Path) -> Series:
    base, adapter = sharded_model(place)

    def words(n: int) -> list[object]:
        return ["fuse", base, adapter, "--as-loaded", "--strength", n + 1, "--force", "-o", made.out]

    made = Series(place, words)
    return made


def convert_base(place: Path) -> Series:
    source = Case("sat_2b_full_r4").run(place)

    def words(n: int) -> list[object]:
        return ["convert-base", source, "--to", "diffusers", "--dtype", ("bf16", "fp32")[n], "--force", "-o", made.out]

    made = Series(place, words)
    return made


class Push(Series):
    """Pushes; the result is the state of the repository, the rest is in the folder for temporary files."""

    turn = 1  # what is there already is not pushed again, which takes no time in which to be killed

    def __init__(self, place: Path, hub: Hub) -> None:
        self.hub, self.made = hub, [path.parent for path in adapters(place)]
        super().__init__(
            place, lambda n: ["push", self.made[n], "me/style", "--base-model", BASE, "--trigger", f"w{n}"]
        )
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.results)

    def state(self) -> object:
        if "me/style" not in self.hub.repos:
            return None
        held = self.hub.files("me/style")
        return {
            name: hashlib.sha256(content).hexdigest() for name, content in held.items() if name in (NAME, "README.md")
        }


def series(name: str, place: Path, kills: int, seed: int) -> Counter[str]:
    rng = random.Random(seed)
    if name == "push":
        with Hub() as hub:
            os.environ.update(hub.environment(hub.home))
            hub.add(BASE, {"README.md": b"---\nlicense: other\nlicense_link: LICENSE\n---\n# 5B\n"})
            try:
                return Push(place, hub).kill(kills, rng)
            finally:
                tempfile.tempdir = None
                os.environ.pop("TMPDIR", None)
    if name == "pairs":
        total = Counter[str]()
        for to in ("sat", "peft"):
            (place / to).mkdir()
            total.update(convert(place / to, anew=False, to=to).pairs(kills))
        return total
    return SERIES[name](place).kill(kills, rng)


SERIES: dict[str, Callable[[Path], Series]] = {
    "convert-force": lambda place: convert(place, anew=False),
    "convert-force-peft": lambda place: convert(place, anew=False, to="peft"),
    "stamp": Stamp,
    "convert": lambda place: convert(place, anew=True, to="peft"),
    "fuse": fuse,
    "convert-base": convert_base,
}
EVERY = (*SERIES, "push", "pairs")


def commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=KEPT.parent, capture_output=True, text=True)
    return asked.stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=EVERY, help=", ".join(EVERY))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    known = json.loads(KEPT.read_text("utf-8")) if KEPT.is_file() else {}
    bad = 0
    for name in given.names:
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            result = series(name, Path(folder), given.kills, given.seed)
        print(name, json.dumps(result), flush=True)
        bad += result["mixed"] + result["rest"]
        known[name] = {
            "kills" if name != "pairs" else "pairs of each format": given.kills, **dict(sorted(result.items())),
            "seed": given.seed, "date": datetime.date.today().isoformat(), "commit": commit(),
            "loraforge": __version__, "system": f"{platform.system()} {platform.release()}",
        }  # fmt: skip
        if given.keep:
            KEPT.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
    sys.exit(bad > 0)
