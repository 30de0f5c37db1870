"""What `make demo` runs: a real SAT training run becomes a Diffusers adapter, on the light core alone.

`python docs/demo.py FOLDER` only writes the files of README's examples into a new folder, for you to type them there.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

DATA = Path(__file__).parents[1] / "tests" / "data"
LORAFORGE = Path(sysconfig.get_path("scripts")) / "loraforge"


def run(*words: str, cwd: Path) -> str:
    """Show a command as a user would type it, run it, and give back what it printed."""
    print(f"$ {shlex.join(['loraforge', *words])}", flush=True)
    done = subprocess.run([str(LORAFORGE), *words], cwd=cwd, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout)
    return done.stdout


def run_in(folder: Path) -> str:
    """Copy the training run into a folder; returns its name."""
    name, case = "lora-disney-11-20-10-00", DATA / "sat_2b_r4"
    shutil.copytree(case / "sat_ckpt", folder / name)
    shutil.copy(case / "sat_config.yaml", folder / name / "training_config.yaml")
    return name


def files(folder: Path) -> None:
    """The training run, a file that was exported from it without its scale, and a tiny base model."""
    folder.mkdir(parents=True)
    run_in(folder)
    shutil.copy(DATA / "sat_2b_r4" / "hf_export_unscaled" / "pytorch_lora_weights.safetensors", folder)
    shutil.copytree(DATA / "bases" / "2b", folder / "base", ignore=shutil.ignore_patterns("sat_base", "inputs*"))
    print(f"cd {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def main() -> None:
    """Copy the run, convert it, inspect the result, and say in three lines what happened."""
    if len(sys.argv) > 1:
        files(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        run_name = run_in(here)
        start = time.perf_counter()
        run("convert", run_name, "--to", "diffusers", cwd=here)
        seconds = time.perf_counter() - start
        result = next(here.glob("*-diffusers"))
        run("inspect", result.name, cwd=here)
        report = json.loads(
            subprocess.check_output(
                [str(LORAFORGE), "convert", run_name, "--to", "diffusers", "--dry-run", "--json", "-o", "again"],
                cwd=here,
                stderr=subprocess.DEVNULL,
            )
        )
        count, scaling = len(report["steps"]), report["scalings"][0]
        print(f"1. {count} modules of a real SAT run were converted and verified in {seconds:.1f} s, without torch.")
        print(f"2. SAT trained at scale {scaling:g} and stored no alpha; the run's YAML told us, no number was typed.")
        print("3. The scale is folded into the tensors: no loader has to read it from a header.")


if __name__ == "__main__":
    sys.exit(main())
