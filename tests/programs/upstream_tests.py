"""Runs Diffusers' own LoRA tests, with what they load converted by loraforge, and prints what passes.

    cd tests && python -m programs.upstream_tests CHECKOUT cogvideox wan tests/pipelines/flux/test_pipeline_flux.py

Needs `parameterized` beside the development environment. Three runs of each file: as it is, converted to Diffusers'
format, and to ComfyUI's (or the format of --via) and back. `--also NAME` chooses tests as pytest's -k does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]


def record(checkout: Path, name: str, through: str, chosen: str) -> dict[str, Any]:
    """Outcomes and loads of one test file. Raises RuntimeError if pytest did not run."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "record.json"
        paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        given = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)), "LORAFORGE_THROUGH": through,
            "LORAFORGE_RECORD": str(made), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        file = name if "/" in name else f"tests/lora/test_lora_layers_{name}.py"
        line = [sys.executable, "-m", "pytest", "-q", "-p", "programs.upstream", "-p", "no:cacheprovider", file]
        line += ["-k", chosen] if chosen else []
        done = subprocess.run(line, cwd=checkout, env=os.environ | given, capture_output=True, text=True)
        if not made.is_file():
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        return dict(json.loads(made.read_text("utf-8")))


def main() -> None:
    """Print a line for each file, and for each test that passes plain and not converted."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("checkout", type=Path)
    asked.add_argument(
        "names", nargs="+", metavar="NAME", help="tests/lora/test_lora_layers_NAME.py, or a path in the checkout"
    )
    asked.add_argument("--via", default="comfyui")
    asked.add_argument("--also", default="", metavar="EXPRESSION")
    asked.add_argument("--json", type=Path, help="where to write everything")
    given = asked.parse_args()
    everything = {}
    for name in given.names:
        runs = {
            through or "plain": record(given.checkout, name, through, given.also)
            for through in ("", "diffusers", f"{given.via} diffusers")
        }
        everything[name] = runs
        passed = {way: {test for test, did in run["outcomes"].items() if did == "passed"} for way, run in runs.items()}
        print(f"{name}: " + ", ".join(f"{len(tests)} pass {way}" for way, tests in passed.items()), flush=True)
        for way, run in list(runs.items())[1:]:
            print(f"  {way}: {run['loads']}")
            for test in sorted(passed["plain"] - passed[way]):
                print(f"    {test}: {run['outcomes'].get(test)}")
        for test, did in runs["plain"]["outcomes"].items():
            if did.startswith("failed"):
                print(f"  plain: {test}: {did}")
    if given.json:
        given.json.write_text(json.dumps(everything, indent=1), "utf-8")


if __name__ == "__main__":
    main()
