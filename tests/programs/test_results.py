"""What is said of programs is in the data of tests/programs, and the data is what the programs did."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loraforge.programs.table import runtimes
from programs import corpus, faults, peft_faults
from programs.doctors import judged, row_of
from programs.environments import environments
from programs.marks import TABLE, marked
from programs.outcome import disagreement, outcome, predicted, times
from programs.page import PAGE, kinds_of, named, page, read, summary

ROOT = Path(__file__).parents[2]
MEASURED = read()["programs"]
ASKED = {
    "Diffusers": "0.31 0.32 0.33 0.34 0.35 0.37 0.38 0.39 0.40 0.42",
    "PEFT": "0.14 0.15 0.16 0.17 0.18 0.19 0.20 0.21",
}


def minor(title: str) -> str:
    return ".".join(title.split(".")[:2])


def test_the_page_is_made_of_the_data() -> None:
    assert PAGE.read_text("utf-8") == page(read())


@pytest.mark.parametrize("program", ASKED)
def test_each_version_was_run_or_is_named_as_not_run(program: str) -> None:
    known = {minor(title) for title in (*MEASURED, *read()["not run"])}
    assert {f"{program} {version}" for version in ASKED[program].split()} <= known
    listed = {environment.title(form) for environment in environments() for form in environment.asked}
    assert listed == MEASURED.keys() | read()["not run"].keys()


def test_there_are_enough_kinds_and_two_adapters_of_each() -> None:
    assert len(faults.KINDS) >= 30
    for program, kinds in (("Diffusers", faults.KINDS), ("PEFT", peft_faults.KINDS)):
        for found in named(MEASURED, program).values():
            assert found["faults"].keys() == set(kinds)
        assert kinds_of(named(MEASURED, program)) == sorted(kinds)
    assert len(faults.adapters()) == len(peft_faults.folders()) == 2


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[corpus.Job]:
    return corpus.everything(tmp_path_factory.mktemp("programs") / "files")


SAID: dict[Any, Any] = {}


@pytest.mark.parametrize("title", MEASURED)
def test_doctor_says_what_each_did(title: str, jobs: list[corpus.Job]) -> None:
    """Asked anew: no false good news, and where it is wrong otherwise is known."""
    found = judged(title, MEASURED[title], jobs, SAID)
    assert found["wrong"].get("false good news", {}) == {}
    assert found == MEASURED[title]["doctor"]


@pytest.mark.parametrize("title", MEASURED)
def test_the_printed_line_does_the_same_online(title: str) -> None:
    assert MEASURED[title]["without HF_HUB_OFFLINE"] == {}


@pytest.mark.parametrize("title", MEASURED)
def test_what_is_written_acts_as_recorded(title: str) -> None:
    """But where a version cannot take it, which the page says case by case."""
    known = {"0.31.0": ("ranks", "dora"), "0.32.2": ("ranks",), "0.33.1": ("ranks",)}
    for route in ("--to diffusers", "--to peft"):
        if found := MEASURED[title]["recorded"].get(route):
            assert found["of"] >= 20
            assert found["as recorded"] + len(found["otherwise"]) == found["of"]
            assert not found["otherwise"] or title.rpartition(" ")[2] in known


def test_the_marks_of_the_table_are_the_data() -> None:
    """Each version that was run, in the row that speaks of it, and no other version of these programs."""
    text = TABLE.read_text("utf-8")
    assert marked(text, read()) == text
    said = {f"{row.program} {run.version}": name for name, row in runtimes().items() for run in row.run}
    mine = {title: name for title, name in said.items() if title.partition(" ")[0] in ASKED}
    assert mine == {title: row_of(title) for title in MEASURED}


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
@pytest.mark.parametrize(("program", "to"), [("Diffusers", "diffusers"), ("PEFT", "peft")])
def test_the_readmes_quote_the_data(name: str, program: str, to: str) -> None:
    text = " ".join((ROOT / name).read_text("utf-8").split())
    assert summary(read(), program, f"--to {to}") in text


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_versions_a_readme_names_were_run(name: str) -> None:
    known = {minor(title) for title in MEASURED}
    said = re.findall(r"(Diffusers|PEFT) ?(0\.\d+)", (ROOT / name).read_text("utf-8"))
    assert said
    assert {f"{program} {version}" for program, version in said} <= known


JOB = corpus.Job("kind | adapter", "diffusers", "", "", "", "", "", 0.5)
Q, K = "blocks.0.to_q", "blocks.0.to_k"


@pytest.mark.parametrize(
    ("modules", "others", "did"),
    [
        ({Q: (1, 1e-7, 1e-7, 1), K: (1, 9e-6, 9e-6, 1)}, 0, "as recorded"),
        ({Q: (1, 1e-7, 1e-7, 1), K: (1, 2e-5, 2e-5, 1)}, 0, "another update"),
        ({Q: (2, 1, 1e-7, 2), K: (2, 1, 1e-7, 2)}, 0, "x2"),
        ({Q: (2, 1, 1e-7, 2), K: (0.5, 0.5, 1e-7, 0.5)}, 0, "x0.5 to x2"),
        ({Q: (0, 1, 1e-9, 0), K: (0, 1, 1e-9, 0)}, 0, "nothing"),
        ({Q: (0, 1, 1e-9, 0), K: (1, 1e-7, 1e-7, 1)}, 0, "1 of 2"),
        ({Q: (0, 1, 1e-9, 0), K: (2, 1, 1e-7, 2)}, 0, "1 of 2 x2"),
        ({Q: (0.9, 0.3, 0.2, 1), K: (1, 1e-7, 1e-7, 1)}, 0, "another update"),
        ({Q: (float("nan"), 1, 1, 1), K: (1, 1e-7, 1e-7, 1)}, 0, "NaN"),
        ({Q: (1, 1e-7, 1e-7, 1)}, 3, "as recorded, and 3 other modules"),
    ],
)
def test_what_was_measured_in_words(modules: dict[str, Any], others: int, did: str) -> None:
    assert outcome(JOB, {"error": "", "modules": modules, "others": others}) == did


@pytest.mark.parametrize(
    ("said", "verdict", "did", "sort"),
    [
        ("as recorded", "acts as trained", "as recorded", ""),
        ("as recorded", "acts as trained", "as recorded, and 3 other modules", "false good news"),
        ("as recorded", "acts as trained", "nothing", "false good news"),
        ("as recorded", "acts as trained", "raises KeyError: 'r'", "false good news"),
        ("as recorded", "cannot tell (1)", "raises KeyError: 'r'", "does not apply what doctor calls applied"),
        ("nothing", "does nothing", "as recorded", "false bad news"),
        ("raises", "does nothing", "nothing", "raises or passes over"),
        ("nothing", "does nothing", "x2", "applies what doctor calls useless"),
        ("broken file", "broken file", "as recorded", "false bad news"),
        ("broken file", "broken file", "NaN", ""),
        ("x2", "2x too strong", "x2.01", ""),
        ("x2", "2x too strong", "x2.1", "another scale"),
        ("x2", "2x too strong", "raises X: y", "does not apply what doctor calls applied"),
        ("no effect", "does nothing", "raises X: y", ""),
        ("no effect", "does nothing", "nothing", ""),
        ("no effect", "does nothing", "as recorded", "false bad news"),
        ("", "cannot tell", "NaN", ""),
    ],
)
def test_where_doctor_and_a_program_differ(said: str, verdict: str, did: str, sort: str) -> None:
    assert disagreement(said, verdict, did) == sort


def test_doctors_answer_in_the_same_words() -> None:
    row = {"raises": "", "applied": 8, "modules": 8, "ratios": (), "scalings": (1.0,)}
    assert predicted(JOB, {"verdict": "cannot tell (1)", "outlooks": [row]}) == "x2"
    assert predicted(JOB, {"verdict": "4x too weak", "outlooks": [row | {"ratios": (0.25,)}]}) == "x0.25"
    assert predicted(JOB, {"verdict": "acts in part", "outlooks": [row | {"applied": 5}]}) == "5 of 8 x2"
    assert predicted(JOB, {"verdict": "does nothing", "outlooks": [row | {"raises": "r"}]}) == "raises"
    assert predicted(JOB, {"verdict": "broken file", "outlooks": []}) == "broken file"
    assert predicted(JOB, {"verdict": "does nothing", "outlooks": []}) == "no effect"
    assert predicted(JOB, {"verdict": "does nothing", "outlooks": [row]}) == "nothing"
    assert times([1.0, 1.0]) == ""


SAMPLE = ("nothing wrong", "entry: none", "entry: no prefix", "names: no prefix", "one module is zero", "NaN", "DoRA")


@pytest.mark.pipelines
def test_the_installed_version_does_what_the_data_says(tmp_path: Path) -> None:
    """A few kinds, in the worker itself; where another version is installed, of which there is no data, nothing."""
    import diffusers

    title = f"Diffusers {diffusers.__version__}"
    if title not in MEASURED:
        pytest.skip(f"{title} is not in results.json")
    jobs = [job for job in corpus.faulty(tmp_path / "files", SAMPLE) if job.form == "diffusers"]
    (tmp_path / "jobs.json").write_text(json.dumps([vars(job) for job in jobs]))
    words = [sys.executable, ROOT / "tests" / "programs" / "worker.py", "jobs.json", "answer.json"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    found = json.loads((tmp_path / "answer.json").read_text())["jobs"]
    for job in jobs:
        want, maker = MEASURED[title]["faults"][job.kind], job.name.partition(" | ")[2]
        assert outcome(job, found[job.name]) == (want if isinstance(want, str) else want[maker]), job.name
