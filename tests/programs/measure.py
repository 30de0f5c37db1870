"""Runs every program of versions.toml on the corpus, and writes results.json and docs/programs.md.

    make programs                            all of them
    make programs ONLY="0.39.0 0.42.1"       these Diffusers; what is known of the others stays

Needs a network the first time, for about 1 GB of packages, and some minutes of one core.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from loraforge import doctor
from loraforge.runtimes import runtimes

from programs.corpus import Job, everything
from programs.environments import Environment, environments
from programs.outcome import disagreement, outcome, predicted
from programs.page import PAGE, RESULTS, page

def answers(environment: Environment, jobs: list[Job], place: Path) -> dict[str, Any] | str:
    """What one environment does with every file; the reason where it does not run.

    The lines that loraforge printed are run twice: with HF_HUB_OFFLINE and without.
    """
    given = [job for job in jobs if job.form in environment.asked]
    again = [job for job in given if job.printed]
    found = []
    for asked, offline in ((given, True), (again, False)):
        (place / "jobs.json").write_text(json.dumps([asdict(job) for job in asked]), "utf-8")
        if said := environment.run(place / "jobs.json", place / "answer.json", offline=offline):
            return said
        found.append(json.loads((place / "answer.json").read_text("utf-8")))
    first, second = ({job.name: outcome(job, one["jobs"][job.name]) for job in asked} for one, asked in zip(found, (given, again), strict=True))
    return found[0] | {"did": first, "online": {name: word for name, word in second.items() if first[name] != word}}


def row_of(title: str) -> str:
    """The row of runtimes.toml that speaks of this version: the one marked as run with it, or with the next older one."""
    program, _, version = title.rpartition(" ")
    marked = [(numbers(run.version), name) for name, row in runtimes().items() if row.program == program for run in row.run]
    return max((number, name) for number, name in marked if number <= numbers(version))[1]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def told(job: Job, row: str, known: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """What doctor says of a file in a program; asked once."""
    if (job.name, row) not in known:
        base = job.base if job.kind == "of a wider model" else None
        known[job.name, row] = doctor(job.file, runtime_=row, base=base).to_dict()
    return known[job.name, row]


def entry(form: str, row: str, jobs: list[Job], answer: dict[str, Any], known: dict[Any, Any]) -> dict[str, Any]:
    """What is kept of one program: counts of the recorded cases, the faults by kind, and where doctor was wrong."""
    mine = [job for job in jobs if job.form == form and answer["did"][job.name] != "no such model"]
    did = answer["did"]
    recorded: dict[str, Any] = {}
    faults: dict[str, dict[str, str]] = {}
    wrong: dict[str, dict[str, list[str]]] = {}
    asked = 0
    for job in mine:
        maker = job.name.partition(" | ")[2]
        if job.printed:
            group = recorded.setdefault(job.kind, {"as recorded": 0, "of": 0, "otherwise": {}})
            group["of"] += 1
            if did[job.name] == "as recorded":
                group["as recorded"] += 1
            else:
                group["otherwise"][maker] = did[job.name]
        else:
            faults.setdefault(job.kind, {})[maker] = did[job.name]
        said = told(job, row, known)
        word = predicted(job, said)
        asked += bool(word)
        if sort := disagreement(word, said["verdict"], did[job.name]):
            wrong.setdefault(sort, {})[job.name] = [word, did[job.name]]
    forwards = [
        answer["jobs"][job.name]["forward"] for job in mine if job.forward and did[job.name] == "as recorded"
    ]
    return {
        "run": datetime.now(timezone.utc).date().isoformat(),
        "with": answer["versions"],
        "row": row,
        "files": len(mine),
        "recorded": recorded,
        "worst forward": float(f"{max(forwards):.0e}") if forwards else None,
        "faults": {kind: _one(found) for kind, found in faults.items()},
        "doctor": {"predicted": asked, "wrong": wrong},
        "without HF_HUB_OFFLINE": {job.name: answer["online"][job.name] for job in mine if job.name in answer["online"]},
    }


def _one(found: dict[str, str]) -> str | dict[str, str]:
    words = set(found.values())
    return words.pop() if len(words) == 1 else found


def main() -> None:
    only = sys.argv[1:]
    old = json.loads(RESULTS.read_text("utf-8")) if only and RESULTS.is_file() else {"programs": {}, "not run": {}}
    known: dict[Any, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        jobs = everything(place / "files")
        for environment in environments():
            if only and environment.diffusers not in only:
                continue
            print(f"Diffusers {environment.diffusers} and PEFT {environment.peft} ...", flush=True)
            answer = answers(environment, jobs, place)
            for form in environment.asked:
                title = environment.title(form)
                old["programs"].pop(title, None)
                old["not run"].pop(title, None)
                if isinstance(answer, str):
                    old["not run"][title] = answer
                    continue
                found = entry(form, row_of(title), jobs, answer, known)
                old["programs"][title] = found
                counts = {route: f"{n['as recorded']}/{n['of']}" for route, n in found["recorded"].items()}
                wrong = {sort: len(files) for sort, files in found["doctor"]["wrong"].items()}
                print(f"  {title}: {counts}; doctor wrong: {wrong}", flush=True)
    RESULTS.write_text(json.dumps(old, indent=1, sort_keys=True) + "\n", "utf-8")
    PAGE.write_text(page(old), "utf-8")


if __name__ == "__main__":
    main()
