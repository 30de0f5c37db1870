"""One environment per program version: folders of packages that are put before the development environment's own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tomli

HERE = Path(__file__).parent
PLACE = Path(os.environ.get("LORAFORGE_PROGRAMS", HERE.parents[1] / ".venv-programs"))
"""Where the packages lie: about 1 GB. Git ignores it, and `make clean` takes it away."""


@dataclass(frozen=True)
class Environment:
    """A Diffusers and a PEFT, and what they need beside them."""

    diffusers: str
    peft: str
    shelves: tuple[str, ...]
    asked: tuple[str, ...]
    """The forms of file whose loader is asked here: diffusers, peft."""

    def title(self, form: str) -> str:
        """Name and version of the program that takes files of this form."""
        return f"Diffusers {self.diffusers}" if form == "diffusers" else f"PEFT {self.peft}"

    def shelf_names(self) -> dict[str, list[str]]:
        """Folder name -> what pip is to put there."""
        known = tomli.loads((HERE / "versions.toml").read_text("utf-8"))["shelves"]
        own = {f"{name}-{v}": [f"{name}=={v}"] for name, v in (("diffusers", self.diffusers), ("peft", self.peft))}
        return own | {f"shelf-{name}": known[name] for name in self.shelves if known[name]}

    def made(self) -> str:
        """The path of its packages, which are installed where they are missing."""
        for name, wanted in self.shelf_names().items():
            ready = PLACE / name / "ready"
            if ready.is_file() and ready.read_text("utf-8") == " ".join(wanted):
                continue
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--upgrade"]
            subprocess.run([*pip, "--no-deps", "--target", str(PLACE / name), *wanted], check=True)
            ready.write_text(" ".join(wanted), "utf-8")
        return os.pathsep.join(str(PLACE / name) for name in self.shelf_names())

    def run(self, jobs: Path, results: Path, *, offline: bool) -> str:
        """Load the jobs in it. The last line of its complaint where it does not run; empty where it does."""
        kept = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
        paths = {"PYTHONPATH": self.made(), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        said = kept | paths | ({"HF_HUB_OFFLINE": "1"} if offline else {})
        command = [sys.executable, str(HERE / "worker.py"), str(jobs), str(results)]
        done = subprocess.run(command, env=said, capture_output=True, text=True, cwd=jobs.parent)
        return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]


def environments() -> list[Environment]:
    """Every one of versions.toml, the oldest first."""
    listed = tomli.loads((HERE / "versions.toml").read_text("utf-8"))["environments"]
    return [
        Environment(entry["diffusers"], entry["peft"], tuple(entry["shelves"]), tuple(entry["asked"]))
        for entry in listed
    ]
