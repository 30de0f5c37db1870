"""What `loraforge doctor` says of each file in each program, beside what the program did."""

from __future__ import annotations

from typing import Any

from loraforge import doctor
from loraforge.programs.table import Runtime, runtimes
from programs.corpus import Job
from programs.outcome import disagreement, predicted

Said = dict[tuple[str, str], dict[str, Any]]
"""Name of the file, row of programs.toml -> what doctor says. Shared by versions that are in one row."""


def row_of(title: str) -> str:
    """The row of programs.toml that speaks of a version: the one marked as run with it, or with the next older one."""
    program, _, version = title.rpartition(" ")
    marked = [(_order(run.version), name) for name, row in _rows(program) for run in row.run]
    return max((number, name) for number, name in marked if number <= _order(version))[1]


def _rows(program: str) -> list[tuple[str, Runtime]]:
    return [(name, row) for name, row in runtimes().items() if row.program == program and "." in row.run[0].version]


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def mark(title: str, found: dict[str, Any]) -> dict[str, Any]:
    """What programs.toml may say of a version that was run."""
    said = {"version": title.rpartition(" ")[2], "date": found["run"]}
    beside = {"beside": f"PEFT {found['with']['peft']}"} if title.startswith("Diffusers") else {"beside": ""}
    wrong = sum(map(len, found["doctor"]["wrong"].values()))
    return said | beside | {"files": found["doctor"]["predicted"], "agreed": found["doctor"]["predicted"] - wrong}


def did(found: dict[str, Any], job: Job) -> str:
    """What a program did with a file, as results.json keeps it; empty where it has no such model."""
    maker = job.name.partition(" | ")[2]
    if job.printed:
        route = found["recorded"].get(job.kind, {"otherwise": {}})
        return "" if maker in found["no such model"] else route["otherwise"].get(maker, "as recorded")
    kept = found["faults"][job.kind]
    return kept if isinstance(kept, str) else kept[maker]


def asked(job: Job, row: str) -> dict[str, Any]:
    """What doctor says of a file; told the scale of training, where it finds none.

    What was made wrong is too small to show of which model it is, so that is said too; what loraforge wrote says it.
    """
    told: dict[str, Any] = {} if job.printed else {"architecture": "cogvideox"}
    told |= {"base": job.base} if job.kind == "of a wider model" else {}  # nothing but the base shows that
    found = doctor(job.file, runtime_=row, **told)
    if found.verdict.startswith("cannot tell (") and job.scale:
        found = doctor(job.file, runtime_=row, trained_scale=job.scale, **told)
    return found.to_dict()


def judged(title: str, found: dict[str, Any], jobs: list[Job], said: Said) -> dict[str, Any]:
    """How many files doctor had an answer for, and where it was wrong: sort -> file -> what it said, what was so."""
    row, form = row_of(title), "diffusers" if title.startswith("Diffusers") else "peft"
    count, wrong = 0, {}
    for job in jobs:
        if job.form != form or not (real := did(found, job)):
            continue
        if (job.name, row) not in said:
            said[job.name, row] = asked(job, row)
        word, verdict = predicted(job, said[job.name, row]), said[job.name, row]["verdict"]
        count += bool(word)
        if sort := disagreement(word, verdict, real):
            wrong.setdefault(sort, {})[job.name] = [word, real]
    return {"row": row, "predicted": count, "wrong": wrong}
