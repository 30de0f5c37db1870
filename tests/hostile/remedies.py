"""Types what a refusal tells its reader to type, on the very input that was refused, and judges what comes of it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from itertools import pairwise
from pathlib import Path

from click.testing import CliRunner

from hostile.refusal import listing, same
from loraforge.cli.app import main

DEPTH = 4
"""A remedy of a remedy of a remedy of a remedy: nobody follows further."""
FURTHER = 2
"""The lines of a refusal that a remedy led to, of which the first are followed; of the first refusal, all are."""
_EXTRAS = Path(__file__).parents[2] / "pyproject.toml"
_PLACEHOLDER = re.compile(r"(?:[^=]*=)?(?:[A-Z][A-Z0-9_]{2,}|[A-Z]\d?|LAYOUT)(?:\.\w+)?")
"""BASE, SAT_BASE, OUT, A2, LAYOUT.toml: what only its reader could fill in."""
_NO_PLACEHOLDER = re.compile(r"[A-Z_]+=.+")
_SPOILT = ("give one of them", "exclude each other")
"""What is said of options that go ill together, which no remedy may bring together."""
_SCALE = ("x.alpha", "x.lora_A.alpha", "x.dora_scale", "x.network_alpha")
"""Names of tensors that record a scale, in any module: no remedy may leave them out."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it tells its reader to type next."""

    code: int
    message: str = ""
    lines: tuple[str, ...] = ()
    output: str = ""


Run = Callable[[list[str]], Ended]


def typed(words: list[str]) -> Ended:
    """Run `loraforge`, here. A verdict of `doctor` that finds a fault counts as a refusal, its fixes as remedies."""
    judging = words[:1] == ["doctor"]
    result = CliRunner().invoke(main, [*words, "--json"] if judging else words)
    return ended(result.exit_code, result.stdout, result.stderr, judging=judging)


def ended(code: int, stdout: str, stderr: str, *, judging: bool = False) -> Ended:
    """What a run printed, taken apart."""
    if judging and code == 1 and stdout:
        said = json.loads(stdout)
        return Ended(code, f"{said['verdict']}: {said['why']}", tuple(said["fix"]), stdout)
    lines = stderr.replace(" --json", "").splitlines() if judging else stderr.splitlines()
    message = next((line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")), "")
    tries = tuple(line.removeprefix("  try: ") for line in lines if line.startswith("  try: "))
    return Ended(code, message or (stderr[-400:] if code else ""), tries, stdout + stderr)


@dataclass
class Walk:
    """One refusal, and everything that it leads to."""

    folder: Path
    """The folder that the refused command was typed in, and that all of its files are in."""
    run: Run = typed
    faults: list[str] = field(default_factory=list)
    lines: int = 0
    """How many lines were typed."""
    seen: dict[tuple[str, ...], Ended] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept = self.folder.with_name(f"{self.folder.name}-kept")
        shutil.copytree(self.folder, self.kept, symlinks=True)
        self.before = listing(self.kept)

    def restore(self) -> None:
        """Make the folder what it was before a remedy changed it."""
        if _sizes(listing(self.folder), self.folder) == _sizes(self.before, self.kept):
            return
        for child in self.folder.iterdir():
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
        shutil.copytree(self.kept, self.folder, symlinks=True, dirs_exist_ok=True)

    def remedies(self, words: list[str], refused: Ended, *chain: str) -> bool:
        """Type every line of a refusal. Whether one of them, or what it leads to, ends well."""
        chain = (*chain, refused.message)
        well = False
        for line in refused.lines if len(chain) == 1 else refused.lines[:FURTHER]:
            self.lines += 1
            program = _words(line)
            if "HF_HUB_OFFLINE=0" in line:  # a network is more than a test has
                well = True
                continue
            if why := untypable(program, self.folder):
                self.fault(chain, line, why)
                continue
            if program[0] == "loraforge":
                then = self.typed(program[1:])
            elif why := PROGRAMS[program[0]](program, line, self.folder):
                self.fault(chain, line, why)
                continue
            else:
                then, program = self.changed(words), ["loraforge", *words]
            if then.code == 0:
                well = True
            elif then.code != 1:
                self.fault(chain, line, f"ends with code {then.code}: {then.message}")
            elif any(words in then.message for words in _SPOILT):
                self.fault(chain, line, f"contradicts what was typed: {then.message}")
            elif any(same(then.message, earlier) for earlier in chain):
                self.fault(chain, line, "is refused in the same words" if len(chain) == 1 else "leads in a circle")
            elif then.lines and len(chain) < DEPTH:
                well |= self.remedies(program[1:], then, *chain)
            else:
                well |= bool(then.message) and not then.lines  # it is told what is wrong, and that nothing mends it
        return well

    def typed(self, words: list[str]) -> Ended:
        """Run a command of ours in the folder as it was; each only once."""
        if tuple(words) not in self.seen:
            self.seen[tuple(words)] = self.run(words)
            self.restore()
        return self.seen[tuple(words)]

    def changed(self, words: list[str]) -> Ended:
        """Run the refused command again, if another program has changed something; then make it as it was."""
        if _sizes(listing(self.folder), self.folder) == _sizes(self.before, self.kept):
            return Ended(0)
        again = self.run(words)
        self.restore()
        return again

    def fault(self, chain: tuple[str, ...], line: str, why: str) -> None:
        texts = "\n  -> ".join(text[:300] for text in chain)
        self.faults.append(f"{texts}\n  try: {line}\n  {why}")


def faults(words: list[str], folder: Path, run: Run = typed) -> tuple[Ended, Walk]:
    """Run a command that is refused, then all that its refusal says."""
    refused = run(words)
    walk = Walk(folder, run)
    if refused.code != 1:
        walk.faults.append(f"{shlex.join(words)}: not refused, but {refused.code}: {refused.output[-400:]}")
    elif refused.lines and not walk.remedies(words, refused) and not walk.faults:
        walk.faults.append(f"{refused.message[:400]}\n  none of its remedies leads to an end: {refused.lines}")
    shutil.rmtree(walk.kept)
    return refused, walk


def _sizes(found: dict[str, tuple[int, int]], folder: Path) -> dict[str, tuple[int, int]]:
    return {path.removeprefix(str(folder)): size for path, size in found.items()}


def _words(line: str) -> list[str]:
    """The words of a line, without its comment and the variables in front."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return []
    while words and (_NO_PLACEHOLDER.fullmatch(words[0]) or words[0] == "env"):
        words = words[3:] if words[:2] == ["env", "-u"] else words[1:]
    return words


def untypable(words: list[str], folder: Path) -> str:
    """Why nobody should type these words; empty if they can be typed."""
    if not words:
        return "there is nothing to type"
    if words[0] not in PROGRAMS:
        return f"a user is not asked to type {words[0]}"
    for word in words[1:]:
        if _PLACEHOLDER.fullmatch(word) and not (folder / word).exists() and words[0] != "git":
            return f"{word} is a placeholder"
    for option, value in pairwise(words):
        if option == "--drop" and any(fnmatchcase(name, value) for name in _SCALE):
            return f"--drop {value} leaves out what records the scale"
    return ""


# lines that are not ours


def _typed(words: list[str], line: str, folder: Path) -> str:
    for word in words[1:]:
        where = (folder / word).resolve()
        if not word.startswith("-") and words[0] in ("rm", "mv", "mkdir") and folder.resolve() not in where.parents:
            return f"{word} is outside of the folder of the input"
    done = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else f"ends with code {done.returncode}: {done.stderr[-300:]}"


def _pip(words: list[str], line: str, folder: Path) -> str:
    """What is named can be installed as named: it is on PyPI, at the versions that pyproject.toml asks for."""
    wrong = [word for word in words[2:] if not word.startswith("-") and word not in extras()]
    return f"pyproject.toml asks for no {', '.join(wrong)}" if wrong or words[1] != "install" else ""


def _page(words: list[str], line: str, folder: Path) -> str:
    """Python: a page to open, or a line of code that compiles."""
    if words[1] == "-c":
        with suppress(SyntaxError):
            compile(words[2], line, "exec")
            return ""
    return (
        ""
        if words[1:3] == ["-m", "webbrowser"] and words[3].startswith(("https://", "http://127.0.0.1:"))
        else "it opens no page"
    )


def _hub_client(words: list[str], line: str, folder: Path) -> str:
    """Whether the installed client has such a command: what it answers needs an account."""
    client = Path(sys.executable).with_name("hf")
    done = subprocess.run([client, *words[1:3], "--help"], capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else done.stderr[-200:]


def _in_repository(words: list[str], line: str, folder: Path) -> str:
    return "" if any((above / ".git").exists() for above in (folder, *folder.parents)) else "this is no repository"


PROGRAMS: dict[str, Callable[[list[str], str, Path], str]] = {
    "loraforge": _typed,
    **dict.fromkeys(("cat", "grep", "head", "unzip", "df", "mkdir", "mv", "rm"), _typed),
    "git": _in_repository,
    "pip": _pip,
    "python": _page,
    "hf": _hub_client,
}
"""What a user may be asked to type -> how it is typed or judged here; the answer is what is wrong with it."""


@cache
def extras() -> frozenset[str]:
    """The requirements of the extras, as pip takes them."""
    project = tomllib.loads(_EXTRAS.read_text())["project"]
    every = (text for texts in project["optional-dependencies"].values() for text in texts)
    return frozenset(text for text in every if not text.startswith("loraforge"))


def each(lines: tuple[str, ...]) -> Iterator[list[str]]:
    """The words of each line of loraforge's own."""
    for line in lines:
        words = _words(line)
        if words and words[0] == "loraforge":
            yield words[1:]
