"""Runs every program of versions.toml on the corpus, and writes results.json, docs/programs.md and the
marks of loraforge/programs/programs.toml.

    make programs                            all of them
    make programs ONLY="0.39.0 0.42.1"       with these Diffusers; what is known of the others stays
    make programs ONLY="kind=DoRA kind=NaN"  all, with these kinds of fault alone
    make programs ONLY=doctor                none: doctor alone is asked again, and the page written

Needs a network the first time, for about 1 GB of packages, and some minutes of one core.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loraforge.programs.table import runtimes
from programs.corpus import Job, everything, packages
from programs.doctors import Said, judged
from programs.environments import Environment, environments
from programs.marks import TABLE, marked
from programs.outcome import outcome
from programs.page import PAGE, RESULTS, page
from programs.readmes import renew

AT_ONCE = os.cpu_count() or 1
"""Programs that run side by side, with a core and 1 GB of memory each."""


def answers(environment: Environment, jobs: list[Job], place: Path) -> dict[str, Any] | str:
    """What one environment does with every file; the reason where it does not run.

    The lines that loraforge printed are run twice: with HF_HUB_OFFLINE and without.
    """
    place.mkdir()
    given = [job for job in jobs if job.form in environment.asked]
    found = []
    again = [job for job in given if job.printed]
    for asked, offline in ((given, True), *([(again, False)] if again else [])):
        (place / "jobs.json").write_text(json.dumps([asdict(job) for job in asked]), "utf-8")
        if told := environment.run(place / "jobs.json", place / "answer.json", offline=offline):
            return told
        answer = json.loads((place / "answer.json").read_text("utf-8"))
        found.append(answer | {"did": {job.name: outcome(job, answer["jobs"][job.name]) for job in asked}})
    first, last = found[0], found[-1]
    online = {name: word for name, word in last["did"].items() if first["did"][name] != word}
    return first | {"online": online}


def entry(form: str, jobs: list[Job], answer: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one program: the recorded cases counted, and what it did with each kind of fault."""
    recorded: dict[str, Any] = {}
    faults: dict[str, dict[str, str]] = {}
    forwards, absent = [], set()
    for job in (job for job in jobs if job.form == form):
        maker, did = job.name.partition(" | ")[2], answer["did"][job.name]
        if did == "no such model":
            absent.add(maker)
        elif not job.printed:
            faults.setdefault(job.kind, {})[maker] = did
        else:
            group = recorded.setdefault(job.kind, {"as recorded": 0, "of": 0, "otherwise": {}})
            group["of"] += 1
            group["as recorded"] += did == "as recorded"
            group["otherwise"] |= {} if did == "as recorded" else {maker: did}
            forwards += [answer["jobs"][job.name]["forward"]] if job.forward and did == "as recorded" else []
    return {
        "run": datetime.now(UTC).date().isoformat(),
        "with": answer["versions"],
        "recorded": recorded,
        "no such model": sorted(absent),
        "worst forward": float(f"{max(forwards):.0e}") if forwards else None,
        "faults": {kind: _one(found) for kind, found in faults.items()},
        "without HF_HUB_OFFLINE": {
            job.name: answer["online"][job.name] for job in jobs if job.name in answer["online"]
        },
    }


def _one(found: dict[str, str]) -> str | dict[str, str]:
    words = set(found.values())
    return words.pop() if len(words) == 1 else found


def kept(environment: Environment, jobs: list[Job], answer: dict[str, Any] | str, results: dict[str, Any]) -> None:
    """Put what one environment did among the results."""
    for form in environment.asked:
        title = environment.title(form)
        before = results["programs"].pop(title, None)
        results["not run"].pop(title, None)
        if isinstance(answer, str):
            results["not run"][title] = answer
        else:
            found = entry(form, jobs, answer)
            results["programs"][title] = found if before is None or found["recorded"] else _with(before, found)


def _with(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What was known, and some kinds anew."""
    return before | {"run": found["run"], "with": found["with"], "faults": before["faults"] | found["faults"]}


def write(results: dict[str, Any], jobs: list[Job], said: Said) -> None:
    """The data and the page, with what doctor says today."""
    for title, found in results["programs"].items():
        found["doctor"] = judged(title, found, jobs, said)
        counts = {route: f"{n['as recorded']}/{n['of']}" for route, n in found["recorded"].items()}
        wrong = {sort: len(files) for sort, files in found["doctor"]["wrong"].items()}
        print(f"{title}: {counts}; doctor wrong: {wrong}", flush=True)
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8")
    PAGE.write_text(page(results), "utf-8")
    TABLE.write_text(marked(TABLE.read_text("utf-8"), results), "utf-8")
    runtimes.cache_clear()
    renew()


def main(only: list[str]) -> None:
    results: dict[str, Any] = {"programs": {}, "not run": {}}
    if only and RESULTS.is_file():
        results = json.loads(RESULTS.read_text("utf-8"))
    said: Said = {}
    kinds = [word.removeprefix("kind=") for word in only if word.startswith("kind=")]
    versions = [word for word in only if not word.startswith("kind=")]
    asked = [environment for environment in environments() if not versions or environment.diffusers in versions]
    for environment in asked:
        environment.made()
    with packages(""), tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = everything(Path(folder) / "files")
        given = [job for job in jobs if not kinds or job.kind in kinds]
        places = [Path(folder) / f"{n}" for n, _ in enumerate(asked)]
        for environment, answer in zip(asked, pool.map(answers, asked, [given] * len(asked), places), strict=True):
            print(f"Diffusers {environment.diffusers} and PEFT {environment.peft}", flush=True)
            kept(environment, given, answer, results)
        write(results, jobs, said)


if __name__ == "__main__":
    main(sys.argv[1:])
