"""The files that every program is given: what loraforge makes of the recorded adapters, and the kinds of fault."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.oracle import FILE_CASES, SAT_CASES, Case
from hostile.doctor_corpus import BASES
from safetensors.torch import save_file

import loraforge
from loraforge.plugin.host import ENVIRONMENT
from loraforge.plugin.registry import Registry, current, use
from programs import faults, peft_faults

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "videox_fun_kohya_attn_fp32": ("checkpoint-100.safetensors", {}),
    "cogvideox_fun_2024_kohya_te_fp16": ("checkpoint-100.safetensors", {"drop": ["lora_te*"]}),
    "diffsynth_cogdit": ("lora.safetensors", {"alpha": 8}),
}
"""Recorded cases that a package beside loraforge reads: the file, and what its user has to say."""

ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "--to diffusers": ("diffusers", {}),
    "--to diffusers --scale-in metadata": ("diffusers", {"scale_in": "metadata"}),
    "--to diffusers --pad-ranks": ("diffusers", {"pad_ranks": True}),
    "--to peft": ("peft", {}),
}
"""What is written of each case: how the user says it -> the form of the loader, and the arguments."""

STAMPED = ("diffusers_save_lora_weights_nometa", "cogvideox_factory_alpha_half", "cogvideo_trainer_plain")
"""Cases in Diffusers' names whose scale is recorded nowhere, until `loraforge stamp` does."""


@dataclass(frozen=True)
class Job:
    """One file for one loader."""

    name: str
    """Route or kind, and the case or adapter it is made of."""
    form: str
    """diffusers or peft: whose loader takes it."""
    line: str
    place: str
    base: str
    expected: str
    file: str
    """What doctor is given."""
    scale: float | None = None
    """The scale of training where it is one number."""
    tolerance: float = 1e-5
    forward: str = ""
    eps: float = 1e-5

    @property
    def printed(self) -> bool:
        """Whether loraforge wrote the file, and printed the line."""
        return self.kind in (*ROUTES, "stamp")

    @property
    def kind(self) -> str:
        return self.name.partition(" | ")[0]


@contextmanager
def packages(names: str) -> Iterator[None]:
    """Only these of the packages beside loraforge: doctor's answers must not depend on what is installed."""
    before = os.environ.get(ENVIRONMENT, "")
    os.environ[ENVIRONMENT] = names
    use(Registry(current().files))
    try:
        yield
    finally:
        os.environ[ENVIRONMENT] = before
        use(Registry(current().files))


def recorded(place: Path) -> list[Job]:
    """Each recorded case on each route."""
    cases = {name: (Case(name).source, Case(name).said) for name in (*SAT_CASES, *FILE_CASES)}
    cases |= {name: (Case(name).folder / file, said) for name, (file, said) in OTHERS.items()}
    jobs = []
    for name, (source, said) in cases.items():
        for route, (form, options) in ROUTES.items():
            report = loraforge.convert(source, to=form, out=place / name / _folder(route), **said, **options)
            jobs.append(_job(Case(name), route, form, report.load, place / name / _folder(route)))
    for name in STAMPED:
        case = Case(name)
        given = next(case.folder.rglob(faults.WEIGHTS))
        out = place / name / "stamped"
        out.mkdir()
        loraforge.stamp(given, case.manifest["alpha"], out=out / given.name)
        line = f"pipe.load_lora_weights({str(out)!r}, weight_name={given.name!r})"
        jobs.append(_job(case, "stamp", "diffusers", line, out))
    return jobs


def _folder(route: str) -> str:
    return route.replace("--", "").replace(" ", "-")


def _job(case: Case, route: str, form: str, line: str, out: Path) -> Job:
    forward = case.folder / "forward.safetensors" if case.name != "diffsynth_cogdit" else ""  # its own model's
    return Job(
        f"{route} | {case.name}",
        form,
        line,
        str(out),
        str(case.base),
        str(case.folder / "expected_delta.safetensors"),
        str(out),
        forward=str(forward),
        eps=1e-6 if case.name.startswith("sat") else 1e-5,
    )


def faulty(place: Path, only: Collection[str] = ()) -> list[Job]:
    """Each kind of fault in two adapters; or some kinds."""
    jobs = []
    for name, adapter in faults.adapters().items():
        for number, kind in enumerate(k for k in faults.KINDS if not only or k in only):
            made, folder = copy.deepcopy(adapter), place / f"{name}-{number}"
            file = faults.written(kind, made, folder)
            save_file({key: tensor.contiguous() for key, tensor in made.truth.items()}, folder / "truth")
            line = f"pipe.load_lora_weights({str(folder)!r}, weight_name={file.name!r})"
            base = str(BASES / made.base)
            told = (f"{kind} | {name}", "diffusers", line, str(folder), base, str(folder / "truth"), str(file))
            jobs.append(Job(*told, scale=made.scale, tolerance=made.tolerance))
    for name, adapter in peft_faults.folders().items():
        for number, kind in enumerate(k for k in peft_faults.KINDS if not only or k in only):
            made, folder = copy.deepcopy(adapter), place / f"peft-{name}-{number}"
            peft_faults.KINDS[kind](made)
            made.written(folder)
            save_file({key: tensor.contiguous() for key, tensor in made.truth.items()}, place / f"{folder.name}.truth")
            line = f"PeftModel.from_pretrained(pipe.transformer, {str(folder)!r})"
            truth, base = str(place / f"{folder.name}.truth"), str(BASES / "2b")
            jobs.append(Job(f"{kind} | {name}", "peft", line, str(folder), base, truth, str(folder)))
    return jobs


def everything(place: Path) -> list[Job]:
    """All of it, in a new folder."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with packages(""):
        written = recorded(place)
    return [*written, *faulty(place)]
