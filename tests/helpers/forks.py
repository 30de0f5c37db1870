"""A process that has loaded loraforge forks for every command: no test waits for imports.

Nothing of one command is left for the next, because each runs in a process of its own, in the environment and the
folder it is given. The Hub's client reads the environment when it is imported: every command imports it anew, and only
what the client itself imports is shared.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TextIO

POSSIBLE = sys.platform == "linux"
SECONDS = 120
"""After which a command is killed by SIGALRM."""

_one_at_a_time = threading.Lock()


def loraforge(
    words: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line with these words, as a new process would; its output is captured, and it has no input."""
    with _one_at_a_time, tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        job = [words, dict(environment), str(cwd or Path.cwd()), str(out), str(err)]
        requests, answers = _server()
        requests.write(json.dumps(job) + "\n")
        requests.flush()
        code = int(answers.readline())
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


@cache
def _server() -> tuple[TextIO, TextIO]:
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    program = [sys.executable, "-P", __file__]
    process = subprocess.Popen(program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    return process.stdin, process.stdout


def _serve() -> None:
    import signal

    from loraforge.cli import main

    _load()
    gc.freeze()  # or every fork would look through all of it, and copy it thereby, when it ends
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in iter(requests.readline, ""):
        words, environment, cwd, out, err = json.loads(line)
        if pid := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
            continue
        for number, path in enumerate((os.devnull, out, err)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["-c", *words]
        signal.alarm(SECONDS)
        main()


def _load() -> None:
    """Everything a command may need, but not the Hub's client itself."""
    import loraforge

    for name in loraforge.__all__:
        getattr(loraforge, name)
    for name in ("huggingface_hub.hf_api", "asyncio", "encodings.idna", "_strptime"):
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]


if __name__ == "__main__":
    _serve()
