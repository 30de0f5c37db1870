"""docs/programs.md, made of results.json: a fault per line, and the programs that do the same with it together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PAGE = HERE.parents[1] / "docs" / "programs.md"

Programs = dict[str, dict[str, Any]]

INTRO = """\
# What programs do with adapter files

Measured, not read: `make programs` puts each version below beside the same torch, loads every file into a tiny
CogVideoX with the line that loraforge printed, gives each layer of the live transformer unit vectors, and compares
what comes out with the update that training applied. The numbers behind this page are
[results.json](../tests/programs/results.json); of a version that is not on this page nothing is claimed.

*As recorded*: every module that training moved moves as then, to a relative error of 1e-5 (twice the element type's
step where a file holds bf16 or fp16), and no other module moves at all.
"""

WRITTEN = """
## What loraforge writes

Files as recorded, of the files that could be tried: the adapters of `tests/data`, converted. `--scale-in metadata` and
`stamp` are for the Diffusers versions that read a header, 0.34 and newer: the older ones apply 1.0. "forward" is the
largest difference between an output of the whole transformer and the recorded one, where the update is as recorded.
"""

BROKEN = """
## What they do with files that have a fault

{count} kinds, each made of two adapters. `xN`: every module moves N times as far as in training. "NaN": the
file holds it, or layers are made and nobody fills their memory. Where two outcomes are joined by "or", the two
adapters differ. A number in brackets says how many versions do it.
"""

DOCTOR = """
## What doctor said of them before

`loraforge doctor --runtime ROW`, of the same files, before they were loaded. "false good news": doctor says that the
file acts as trained, and it does not.
"""


def page(results: dict[str, Any]) -> str:
    """The page, whole."""
    programs: Programs = dict(sorted(results["programs"].items(), key=lambda item: _order(item[0])))
    kinds = sum(len(kinds_of(named(programs, word))) for word in ("Diffusers", "PEFT"))
    lines = [INTRO, *_not_run(results["not run"]), WRITTEN, *_written(programs), BROKEN.format(count=kinds)]
    for word in ("Diffusers", "PEFT"):
        lines += ["", f"### {word}", "", *_faults(named(programs, word), word)]
    lines += [DOCTOR, *_doctor(programs)]
    return "\n".join(lines) + "\n"


def _order(title: str) -> tuple[str, tuple[int, ...]]:
    program, _, version = title.rpartition(" ")
    return program, tuple(map(int, version.split(".")))


def named(programs: Programs, word: str) -> Programs:
    """Those of one program."""
    return {title: found for title, found in programs.items() if title.startswith(f"{word} ")}


def kinds_of(programs: Programs) -> list[str]:
    """Every kind of fault that was tried, in the order of its name."""
    return sorted({kind for found in programs.values() for kind in found["faults"]})


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def _not_run(reasons: dict[str, str]) -> list[str]:
    return ["", *(f"Not run: {title} ({reason})." for title, reason in sorted(reasons.items()))] if reasons else []


def _written(programs: Programs) -> Iterator[str]:
    routes = sorted({route for found in programs.values() for route in found["recorded"]})
    rows = []
    for title, found in programs.items():
        counts = [_count(found["recorded"].get(route)) for route in routes]
        versions = found["with"]
        beside = ", ".join(f"{name} {versions[name]}" for name in ("peft", "transformers") if name != title.lower())
        forward = f"{found['worst forward']:.0e}" if found["worst forward"] else ""
        rows.append([title, beside if title.startswith("Diff") else f"diffusers {versions['diffusers']}", found["run"],
                     *counts, forward])  # fmt: skip
    yield from _table(["program", "with", "run", *(f"`{route}`" for route in routes), "forward"], rows)
    rest: dict[str, dict[str, list[str]]] = {}
    for title, found in programs.items():
        for route in ("--to diffusers", "--to peft"):
            for case, did in found["recorded"].get(route, {"otherwise": {}})["otherwise"].items():
                rest.setdefault(f"`{case}` {route}", {}).setdefault(did, []).append(title)
    if rest:
        yield ""
    for name, outcomes in sorted(rest.items()):
        yield f"- {name}: {'; '.join(f'{did} in {joined(titles)}' for did, titles in outcomes.items())}"


def _count(found: dict[str, Any] | None) -> str:
    return f"{found['as recorded']}/{found['of']}" if found else ""


def joined(titles: list[str]) -> str:
    """`Diffusers 0.31.0, 0.32.2`."""
    versions = ", ".join(title.rpartition(" ")[2] for title in titles)
    return f"{titles[0].rpartition(' ')[0]} {versions}"


def _faults(programs: Programs, word: str) -> Iterator[str]:
    rows = []
    for kind in kinds_of(programs):
        groups: dict[str, list[str]] = {}
        for title, found in programs.items():
            if (did := found["faults"].get(kind)) is not None:
                told = did if isinstance(did, str) else " or ".join(sorted(set(did.values())))
                groups.setdefault(told, []).append(title.rpartition(" ")[2])
        rows.append([kind, *(["<br>".join(_who(groups))])])
    yield from _table(["kind", f"what {word} does"], rows)


def _who(groups: dict[str, list[str]]) -> Iterator[str]:
    for did, versions in groups.items():
        yield (
            did
            if len(groups) == 1
            else f"{versions[0]}{f' to {versions[-1]}' if versions[1:] else ''} ({len(versions)}): {did}"
        )


def _doctor(programs: Programs) -> Iterator[str]:
    sorts = sorted({sort for found in programs.values() for sort in found["doctor"]["wrong"]} | {"false good news"})
    rows = []
    for title, found in programs.items():
        wrong = found["doctor"]["wrong"]
        right = found["doctor"]["predicted"] - sum(map(len, wrong.values()))
        rows.append([title, f"`{found['doctor']['row']}`", f"{right}/{found['doctor']['predicted']}",
                     *(str(len(wrong.get(sort, {}))) for sort in sorts)])  # fmt: skip
    yield from _table(["program", "row", "agree", *sorts], rows)


def summary(results: dict[str, Any], word: str, route: str) -> str:
    """`21/21: 0.40.0, 0.42.1; 17/20: 0.31.0`: what the READMEs say of one program."""
    counts: dict[str, list[str]] = {}
    for title in sorted(named(results["programs"], word), key=_order, reverse=True):
        counts.setdefault(_count(results["programs"][title]["recorded"].get(route)), []).append(
            title.rpartition(" ")[2]
        )
    return "; ".join(f"{count}: {', '.join(reversed(versions))}" for count, versions in counts.items())


def read() -> dict[str, Any]:
    """What was measured."""
    return dict(json.loads(RESULTS.read_text("utf-8")))
