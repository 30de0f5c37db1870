"""What the benchmarks share: the run folder to work on, and how a process is measured.

Linux counts the memory of the process that starts another towards the peak of the one started, so nothing
large is imported here: the checkpoint is written by a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
LORAFORGE = str(Path(sysconfig.get_path("scripts")) / "loraforge")


@contextmanager
def run_folder(folder: Path | None, size: str) -> Iterator[Path]:
    """The run `folder`/`size`, written first if it is not there; without `folder`, a temporary one."""
    with tempfile.TemporaryDirectory() if folder is None else kept(folder) as parent:
        run = Path(parent) / size
        if not (run / "latest").is_file():
            subprocess.run([sys.executable, HERE / "checkpoints.py", run, "--size", size], check=True)
        yield run


@contextmanager
def kept(folder: Path) -> Iterator[Path]:
    """A folder that stays."""
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def measure(command: Sequence[str | Path]) -> tuple[float, float]:
    """Wall seconds and peak resident GB of one process; exits with its output when it fails."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(map(str, command))} failed:\n{output.read().decode()}")
    return seconds, usage.ru_maxrss * 1024 / 1e9
