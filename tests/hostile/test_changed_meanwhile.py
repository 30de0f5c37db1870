"""Sources that another program truncates or overwrites while they are read, as trainers do with their checkpoints."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import Case

import loraforge
from loraforge.errors import FileError
from loraforge.files.safetensors import write_safetensors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows does not truncate a mapped file")

CHANGES = {
    "to nothing": "os.truncate(source, 0)",
    "to a half": "os.truncate(source, source.stat().st_size // 2)",
    "overwritten": "data = source.read_bytes(); source.write_bytes(data[:5000] + bytes(len(data) - 5000))",
    "appended to": "source.open('ab').write(bytes(9999))",
}


def at_the(moment: str, change: str, source: Path, words: list[object]) -> subprocess.CompletedProcess[str]:
    """Run a command whose source changes, once, at the n-th use of a map or after a function was called."""
    program = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        from loraforge.cli import main
        from loraforge.files import mapped
        source, calls = Path({str(source)!r}), 0

        def change():
            global calls
            calls += 1
            if calls == 1:
                {change}

        def after(owner, name):
            known = getattr(owner, name)
            def changed(*words, **more):
                out = known(*words, **more)
                if not (words and isinstance(words[0], mapped.FileMap) and words[0].path.resolve() != source.resolve()):
                    change()
                return out
            setattr(owner, name, changed)

        {moment}
        main({[str(word) for word in words]!r})
    """)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


MAPPED = "after(mapped.FileMap, 'memory')"


def large(folder: Path) -> Path:
    """A Diffusers adapter of more than a page per tensor."""
    source = folder / "pytorch_lora_weights.safetensors"
    rng = np.random.default_rng(0)
    shapes = {"lora_A": (16, 1920), "lora_B": (1920, 16)}
    tensors = {
        f"transformer.transformer_blocks.{block}.attn1.{name}.{factor}.weight": rng.standard_normal(shape, np.float32)
        for block in range(4)
        for name in ("to_q", "to_k", "to_v", "to_out.0")
        for factor, shape in shapes.items()
    }
    write_safetensors(source, {key: ("F32", value.shape) for key, value in tensors.items()}, tensors.items(), {})
    return source


def refused(done: subprocess.CompletedProcess[str], source: Path, folder: Path, before: set[str]) -> None:
    assert done.returncode == 1, (done.returncode, done.stderr)
    said = done.stdout + done.stderr  # doctor's answer is a verdict
    assert "changed while it was read: is training still running?" in said, said
    assert source.name in said
    assert "report it" not in done.stderr
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize("change", CHANGES)
def test_convert(change: str, tmp_path: Path) -> None:
    source = large(tmp_path)
    words = ["convert", source, "--to", "peft", "--trained-scale", "1", "-o", tmp_path / "out"]
    refused(at_the(MAPPED, CHANGES[change], source, words), source, tmp_path, {source.name})


@pytest.mark.parametrize("moment", ["store.scan", "write.compare", "write._read_back"])
@pytest.mark.parametrize("change", ["to nothing", "overwritten"])
def test_convert_late(moment: str, change: str, tmp_path: Path) -> None:
    """After the digest of the source was taken, after the proof, and after the file was written."""
    source, (module, _, name) = large(tmp_path), moment.partition(".")
    late = f"from loraforge.conversion import {module}; after({module}, {name!r})"
    words = ["convert", source, "--to", "peft", "--trained-scale", "1", "-o", tmp_path / "out"]
    refused(at_the(late, CHANGES[change], source, words), source, tmp_path, {source.name})


@pytest.mark.parametrize("verb", ["verify", "doctor", "stamp"])
@pytest.mark.parametrize("change", ["to nothing", "overwritten"])
def test_other_verbs(verb: str, change: str, tmp_path: Path) -> None:
    source = large(tmp_path)
    shutil.copy(source, tmp_path / "other.safetensors")
    stated = ["--trained-scale", "1"]
    more = {"verify": [tmp_path / "other.safetensors"], "doctor": stated, "stamp": ["-o", tmp_path / "out", *stated]}
    done = at_the(MAPPED, CHANGES[change], source, [verb, source, *more[verb]])
    refused(done, source, tmp_path, {source.name, "other.safetensors"})


@pytest.mark.parametrize("verb", ["fuse", "convert-base"])
@pytest.mark.parametrize("change", ["to nothing", "to a half", "overwritten"])
def test_a_base(verb: str, change: str, tmp_path: Path) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    base = next(run.rglob("*.pt"))
    adapter = Case("sat_2b_r4").run(tmp_path / "adapter") if verb == "fuse" else None
    words = {"fuse": ["fuse", base, adapter], "convert-base": ["convert-base", base, "--to", "diffusers"]}[verb]
    before = {path.name for path in tmp_path.iterdir()}
    done = at_the(MAPPED, CHANGES[change], base, [*words, "-o", tmp_path / "out"])
    refused(done, base, tmp_path, before)


def test_a_reader_in_python_gets_no_zeros(tmp_path: Path) -> None:
    """Views of the file stay with the user: numbers that are gone are no numbers."""
    source = large(tmp_path)
    program = textwrap.dedent(f"""
        import os, loraforge
        adapter = loraforge.read({str(source)!r}, trained_scale=1)
        first = next(iter(adapter.modules.values()))[0]
        first.A.sum()
        os.truncate({str(source)!r}, 0)
        print(*(float(w.B.sum()) for delta in adapter.modules.values() for w in delta))
        try:
            adapter.source.file[adapter.keys[0]]
        except loraforge.errors.FileError as error:
            print("refused:", error.message)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    numbers, message = done.stdout.splitlines()
    assert set(numbers.split()) == {"nan"}
    assert message.startswith("refused: ")
    assert "changed while it was read" in message


def test_faults_of_others_still_end_the_process(tmp_path: Path) -> None:
    source = large(tmp_path)
    (other := tmp_path / "other").write_bytes(bytes(1 << 16))
    program = textwrap.dedent(f"""
        import mmap, os, loraforge
        adapter = loraforge.read({str(source)!r}, trained_scale=1)
        float(next(iter(adapter.modules.values()))[0].A.sum())
        stream = open({str(other)!r}, "rb")
        view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        os.truncate({str(other)!r}, 0)
        print(view[5000])
    """)
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == -7


def test_a_file_that_was_replaced_as_a_whole_is_read_on(tmp_path: Path) -> None:
    """Trainers that write beside and rename disturb nobody who has the old file open."""
    source = large(tmp_path)
    adapter = loraforge.read(source, trained_scale=1)
    first = next(iter(adapter.modules.values()))[0].A.copy()
    (tmp_path / "new").write_bytes(b"x")
    (tmp_path / "new").replace(source)
    assert (first == next(iter(adapter.modules.values()))[0].A).all()


def test_a_file_replaced_between_header_and_tensors_is_refused(tmp_path: Path) -> None:
    from loraforge.files.opening import open_tensors

    source = large(tmp_path)
    file, _ = open_tensors(source)
    (tmp_path / "new").write_bytes(source.read_bytes())
    (tmp_path / "new").replace(source)
    with pytest.raises(FileError, match="changed while it was read"):
        file[next(iter(file.tensors))]
