"""A fixed share of the fuzzing, a minute of one core, and what shows that it would see a fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fuzz import chains, reader
from fuzz.parsers import PARSERS

HERE = Path(__file__).parent
SEED = 20261201
"""The same for everybody, so that a failure is one of the change. `make fuzz` takes fresh ones."""
SHARES = {
    "safetensors torch pickle opening json": 200, "yaml training-yaml training-json training-toml script": 100,
    "index peft settings setting-words address manifest": 80, "recorded card": 70,
    "base base-index pipeline plugin": 35,
    "log": 200, "calls": 350, "chains": 30, "hub": 60,
}  # fmt: skip
"""Parts that are run in one process -> executions of each. The first are its seeds, unchanged."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory, alarms and pipes as Linux has them")


def child(*words: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1])]),
    }
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=environment)


@linux
@pytest.mark.parametrize("parts", SHARES)
def test_nothing_is_found(parts: str, tmp_path: Path) -> None:
    done = child(HERE / "run.py", *parts.split(), "--count", SHARES[parts], "--seed", SEED, "--keep", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line["executions"] for line in json.loads(done.stdout)] == [SHARES[parts]] * len(parts.split())


def test_every_parser_has_a_share() -> None:
    assert {*" ".join(SHARES).split()} == {*PARSERS, "calls", "chains", "hub"}


FAULTS = {
    "KeyError at": "{}['x']",
    "os.system": "__import__('os').system('true')",
    "subprocess.Popen": "__import__('subprocess').run(['true'])",
    "import": "__import__('fuzzmark')",
    "exec": "exec(compile('1', 'fuzzmark', 'exec'))",
    "pickle.find_class": "__import__('pickle').loads(b'cbuiltins\\nint\\n.')",
    "open /": "open('/tmp/fuzz-not-there/x', 'w')",
    "os.mkdir /": "__import__('os').mkdir('/tmp/fuzz-not-there/x')",
    "os.remove /": "__import__('os').remove('/tmp/fuzz-not-there/x')",
    "socket.connect": "__import__('socket').create_connection(('127.0.0.1', 1))",
    "memory": "bytearray(200 << 20)",
    "HangError": "[None for _ in iter(int, 1)]",
}


@linux
@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_seen(what: str, tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from fuzz import watch
watch.SECONDS = 0.1
seen = watch.Watch(Path(sys.argv[1])).faults(lambda: {FAULTS[what]}, 1)
assert not any("dlopen" in line for line in seen)
print(*seen, sep="\\n")
"""
    done = child("-c", program, tmp_path)
    assert what in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("fault", ["none", "twice", "one row", "missing", "exchanged"])
def test_the_reader_of_chains_sees_what_differs(fault: str, tmp_path: Path) -> None:
    shapes = {f"transformer_blocks.0.attn1.{name}": (16, 8) for name in ("to_q", "to_k", "to_v")}
    one = reader.read(chains.saved(tmp_path / "a", shapes))
    other = dict(one)
    first, second, _ = one
    if fault == "twice":
        other[first] = reader.Update(2 * one[first].rows, one[first].lengths)
    elif fault == "one row":
        rows = one[first].rows.copy()
        rows[3] *= 1 + 1e-6
        other[first] = reader.Update(rows, one[first].lengths)
    elif fault == "missing":
        del other[first]
    elif fault == "exchanged":
        other[first], other[second] = one[second], one[first]
    assert (reader.by_names(one, other) > chains.PLAIN) == (fault != "none")
    assert (reader.by_rows(one, other) > chains.PLAIN) == (fault not in ("none", "exchanged"))  # which names tell


def test_a_module_that_is_stacked_or_padded_keeps_its_rows(tmp_path: Path) -> None:
    shapes = {f"transformer_blocks.0.attn1.{name}": (16, 8) for name in ("to_q", "to_k")}
    q, k = reader.read(chains.saved(tmp_path / "a", shapes)).values()
    stacked = {"qkv": reader.Update(np.concatenate([k.rows, q.rows, np.zeros((8, 16))]), q.lengths)}
    assert reader.by_rows({"q": q, "k": k}, stacked) <= chains.PLAIN
