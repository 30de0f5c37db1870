"""The lines in the card, taken out of it as a reader would, run as they are and apply what training applied."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.hub import Hub
from helpers.oracle import Case

REPOS = {
    "2b": "zai-org/CogVideoX-2b",
    "5b": "zai-org/CogVideoX-5b",
    "5b_i2v": "zai-org/CogVideoX-5b-I2V",
    "1.5_t2v": "zai-org/CogVideoX1.5-5B",
}
LOOK = """
import numpy
found = {}
for path, layer in pipe.transformer.named_modules():
    for name in getattr(layer, "lora_A", {}):
        scaling = layer.scaling[name]
        delta = layer.lora_B[name].weight.double() @ layer.lora_A[name].weight.double()
        found[path] = (scaling * delta).detach().numpy()
numpy.savez("applied.npz", **found)
numpy.savez("base.npz", **{key: tensor.double().numpy() for key, tensor in pipe.transformer.state_dict().items()})
"""
"""What the test adds at the end: what the layers of the pipeline hold."""


def folder(path: Path) -> dict[str, bytes | Path | None]:
    return {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}


def code_of(card: bytes) -> str:
    (found,) = re.findall(r"```python\n(.*?)\n```", card.decode(), re.DOTALL)
    return str(found)


def run(hub: Hub, code: str, place: Path) -> None:
    place.mkdir()
    (place / "snippet.py").write_text(code + LOOK)
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 120, 40)).save(place / "first_frame.png")
    environment = hub.environment(hub.home) | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "snippet.py"], cwd=place, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]


pytestmark = pytest.mark.pipelines

CASES = [
    ("5b", "sat_5b_r8", "peft"),
    pytest.param("5b", "sat_5b_r8", "diffusers", marks=pytest.mark.long),
    pytest.param("2b", "sat_2b_r8_alpha4_layer1", "diffusers", marks=pytest.mark.long),
    pytest.param("5b_i2v", "sat_5b_i2v_r8", "diffusers", marks=pytest.mark.long),
    pytest.param("1.5_t2v", "sat_1.5_t2v_r4", "diffusers", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("kind", "name", "form"), CASES)
def test_the_snippet_of_the_card_runs_at_the_trained_scale(
    hub: Hub, tmp_path: Path, pipelines, kind: str, name: str, form: str
) -> None:
    case, repo = Case(name), REPOS[kind]
    hub.add(repo, folder(pipelines(kind, text_length=226)))
    words = ["convert", case.run(tmp_path / "run"), "--to", form, "--base-model", repo, "-o", tmp_path / "out"]
    done = hub.run(*words, "--push", "me/style")
    assert done.returncode == 0, done.stderr
    code = code_of(hub.files("me/style")["README.md"])
    if kind.startswith("1.5"):  # its tiny stand-in cannot be asked for 768 x 1360 in a test
        code, sizes = re.subn(r"(height|width)=\d+", r"\1=128", code)
        code, counts = re.subn(r"num_inference_steps=50", "num_inference_steps=2", code)
        assert (sizes, counts) == (2, 1)
    run(hub, code, tmp_path / "reader")
    applied = np.load(tmp_path / "reader" / "applied.npz")
    want = case.deltas
    assert set(applied.files) == set(want)
    for path in want:
        error = np.linalg.norm(applied[path] - want[path]) / np.linalg.norm(want[path])
        assert error < (4e-3 if kind != "2b" else 1e-3), (path, error)  # A and B in bfloat16, of 2B in float16
    video = (tmp_path / "reader" / "video.mp4").read_bytes()
    assert video[4:8] == b"ftyp"


@pytest.mark.parametrize("alone", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_snippet_of_a_fused_model_runs(hub: Hub, tmp_path: Path, pipelines, alone: bool) -> None:
    """And that of a fused transformer alone, which holds the same."""
    case, out = Case("sat_5b_r8"), tmp_path / "fused"
    base = pipelines("5b", text_length=226)
    assert hub.run("fuse", base, case.run(tmp_path / "run"), "-o", out).returncode == 0
    assert hub.run("push", out, "me/fused", "--base-model", REPOS["5b"]).returncode == 0
    run(hub, code_of(hub.files("me/fused")["README.md"]), tmp_path / "reader")
    held = np.load(tmp_path / "reader" / "base.npz")
    assert not np.load(tmp_path / "reader" / "applied.npz").files
    assert (tmp_path / "reader" / "video.mp4").exists()
    if not alone:
        return
    hub.add(REPOS["5b"], folder(base))
    out = tmp_path / "alone"
    words = ["fuse", base, case.run(tmp_path / "again"), "-o", out, "--transformer-only"]
    assert hub.run(*words).returncode == 0
    assert hub.run("push", out, "me/alone", "--base-model", REPOS["5b"]).returncode == 0
    run(hub, code_of(hub.files("me/alone")["README.md"]), tmp_path / "other")
    same = np.load(tmp_path / "other" / "base.npz")
    assert all((held[key] == same[key]).all() for key in held.files)
