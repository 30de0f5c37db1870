"""Take public adapters of the Hub through inspect, doctor, convert and verify, and say what became of each.

    make wild                         all of adapters.toml, into wild-report.json
    python tests/wild/wild.py --only a-r-r-o-w --pin

Needs a network and some gigabytes; says so and ends well where there is none. `--pin` writes the commit that was
looked at into adapters.toml, for entries that have none.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tomli

LIST = Path(__file__).parent / "adapters.toml"
STEPS = ("inspect", "doctor", "convert", "verify")
MINUTES = 30


def address(entry: dict[str, Any]) -> str:
    revision = f"@{entry['revision']}" if entry.get("revision") else ""
    file = f"/{entry['file']}" if entry.get("file") else ""
    return f"hf://{entry['repo']}{revision}{file}"


def loraforge(*words: object) -> subprocess.CompletedProcess[str]:
    program = "from loraforge.cli import main; main()"
    line = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60 * MINUTES, stdin=subprocess.DEVNULL)


def tried(entry: dict[str, Any], work: Path) -> dict[str, Any]:
    """What each step said. A scale that nobody recorded is read as loaders do, and said to be so."""
    where, out = address(entry), work / "out"
    row: dict[str, Any] = {
        "repo": entry["repo"],
        "file": entry.get("file"),
        "writer": entry["writer"],
        "address": where,
    }
    look = loraforge("inspect", where, "--json", "--fetch")
    row["inspect"] = "read" if look.returncode == 0 else _why(look)
    found = json.loads(look.stdout) if look.stdout.startswith("{") else {}
    row |= {key: found.get(key) for key in ("format", "ranks", "scalings", "fits", "trigger_words")}
    row["scale"] = (found.get("scale") or {}).get("provenance")
    if look.returncode:
        return row
    row["commit"] = _commit(entry)
    row["doctor"] = loraforge("doctor", where, "--fetch").stdout.partition("\n")[0]
    unknown = ["--trained-scale", "1"] if row["scale"] == "ambiguous" else []
    made = loraforge("convert", where, "--to", "diffusers", "-o", out, *unknown)
    row["convert"] = "written" if made.returncode == 0 else _why(made)
    if made.returncode == 0:
        same = loraforge("verify", where, out)
        row["verify"] = same.stdout.strip().splitlines()[-1] if same.stdout else _why(same)
    shutil.rmtree(out, ignore_errors=True)
    return row


def _why(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return lines[0] if lines else f"exit code {done.returncode}"


def _commit(entry: dict[str, Any]) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().model_info(entry["repo"], revision=entry.get("revision")).sha)


def online() -> bool:
    from huggingface_hub import constants

    place = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname, place.port or 443), timeout=10).close()
    except OSError:
        return False
    return not constants.HF_HUB_OFFLINE


def pin(text: str, rows: list[dict[str, Any]]) -> str:
    """The list with the commit of every entry that was read and had none."""
    for row in rows:
        file = f'file = "{re.escape(row["file"])}"\n' if row["file"] else "(?!file)"
        entry = rf'(repo = "{re.escape(row["repo"])}"\n{file})(?!revision)'
        if row.get("commit"):
            text = re.sub(entry, rf'\g<1>revision = "{row["commit"]}"' + "\n", text)
    return text


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    options.add_argument("--only", metavar="TEXT", default="", help="entries with TEXT in their address or writer")
    options.add_argument("--list", type=Path, default=LIST)
    options.add_argument("--report", type=Path, default=Path("wild-report.json"))
    options.add_argument("--pin", action="store_true", help="write the commits that were looked at into the list")
    typed = options.parse_args()
    entries = tomli.loads(typed.list.read_text("utf-8"))["adapter"]
    chosen = [entry for entry in entries if typed.only in address(entry) + " " + entry["writer"]]
    if not online():
        print(f"skipped: the Hub cannot be reached, and {len(chosen)} adapters lie there.")
        return 0
    rows = []
    with tempfile.TemporaryDirectory(prefix="loraforge-wild-") as work:
        for entry in chosen:
            rows.append(row := tried(entry, Path(work)))
            print(f"{row['address']}\n" + "".join(f"  {s:<8} {row[s]}\n" for s in STEPS if s in row), flush=True)
    typed.report.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", "utf-8")
    whole = sum(str(row.get("verify", "")).startswith("same update") for row in rows)
    print(f"{whole} of {len(rows)} converted and verified; {typed.report} has all")
    if typed.pin:
        typed.list.write_text(pin(typed.list.read_text("utf-8"), rows), "utf-8")
    return 0 if rows and all("read" in row["inspect"] or row["inspect"].startswith("Error: ") for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
