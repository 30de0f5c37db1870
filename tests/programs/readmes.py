"""What doctor prints in the READMEs: its last column are the marks, which `make programs` writes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from click.testing import CliRunner
from helpers.oracle import DATA

from loraforge.cli.app import main

ROOT = Path(__file__).parents[2]
TYPED = "loraforge doctor pytorch_lora_weights.safetensors --alpha 1"


def renew() -> None:
    """Print it anew, with the table as it is now."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(DATA / "sat_2b_r4" / "hf_export_unscaled" / "pytorch_lora_weights.safetensors", place)
        os.chdir(place)
        try:
            printed = CliRunner().invoke(main, TYPED.split()[1:]).stdout.rstrip()
        finally:
            os.chdir(here)
    for name in ("README.md", "README_zh.md"):
        text = (ROOT / name).read_text("utf-8")
        before, _, rest = text.partition(f"{TYPED}\n```\n\n```\n")
        after = rest.partition("\n```")[2]
        (ROOT / name).write_text(f"{before}{TYPED}\n```\n\n```\n{printed}\n```{after}", "utf-8")
