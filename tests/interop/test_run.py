"""Runs in tiny real pipelines: the same video from the same plan, verdicts, manifests, and what is told beforehand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from helpers.oracle import Case
from helpers.pipelines import pictures
from helpers.tolerance import FORWARD
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import LoraforgeError
from loraforge.live.probe import judged
from loraforge.media.video import read_video

Folders = Callable[..., Path]
SCHEMAS = Path(__file__).parents[2] / "schemas"
QUICK: dict[str, Any] = {"steps": 2, "frames": 9}
CASES = {"2b": "sat_2b_r4", "5b": "sat_5b_r8", "5b_i2v": "sat_5b_i2v_r8", "1.5_t2v": "sat_1.5_t2v_r4"}


def valid(document: Any, name: str) -> None:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    jsonschema.validate(json.loads(json.dumps(document)), schema, jsonschema.Draft202012Validator)


def adapter(kind: str, place: Path) -> Path:
    place.mkdir(exist_ok=True)
    return Case(CASES[kind]).run(place)


def scaled(source: Path, factor: float, out: Path) -> Path:
    """The adapter with its update times `factor`."""
    loraforge.convert(source, to="diffusers", out=out)
    file = out / "pytorch_lora_weights.safetensors"
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as held:
        metadata = {key: text for key, text in held.metadata().items() if key != "loraforge"}
    tensors = {key: tensor * (factor if "lora_B" in key else 1) for key, tensor in load_file(file).items()}
    save_file({key: tensor.astype(np.float32) for key, tensor in tensors.items()}, file, metadata)
    return out


def run(*adapters: Path, **options: Any) -> loraforge.RunReport:
    return loraforge.run(list(adapters), **{"prompt": "a cat", **QUICK, **options})


@pytest.mark.parametrize("kind", CASES)
def test_every_kind_runs_and_its_manifest_repeats_it(
    kind: str, pipelines: Folders, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = adapter(kind, tmp_path / "run")
    extra: dict[str, Any] = {"frames": 17} if kind.startswith("1.5") else {}
    if kind == "5b_i2v":
        pictures(64, 64, 1)[0].save("first.png")
        extra = {"image": "first.png"}
    first = run(source, base=pipelines(kind), out="a.mp4", settings=["torch_dtype=float32"], **extra)
    valid(first.to_dict(), "run")
    manifest = json.loads(Path("a.json").read_text())
    valid(manifest, "manifest")
    assert manifest["latents"] == first.latents and manifest["settings"]["num_frames"] == (extra.get("frames") or 9)
    frames, fps = read_video(Path("a.mp4"))
    assert fps == first.settings["fps"] and frames.shape[1:] == (first.settings["height"], first.settings["width"], 3)
    again = loraforge.run([], manifest="a.json", out="b.mp4")
    assert again.latents == first.latents and "bit for bit" in again.notes[-1]
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
    other = loraforge.run([], manifest="a.json", out="c.mp4", seed=7)
    assert other.latents != first.latents and "are not those of the manifest" in other.notes[-1]


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_every_format_gives_the_same_latents(form: str, pipelines: Folders, tmp_path: Path) -> None:
    source, base = adapter("5b", tmp_path / "run"), pipelines("5b")
    loraforge.convert(source, to=form, out=tmp_path / form)
    options = {"base": base, "settings": ["torch_dtype=float32"]}
    one = run(source, out=tmp_path / "one.mp4", **options)
    two = run(tmp_path / form, out=tmp_path / "two.mp4", **options)
    assert one.latents == two.latents


def test_strength_0_is_the_base_and_opposites_cancel(pipelines: Folders, tmp_path: Path) -> None:
    source, base = adapter("5b", tmp_path / "run"), pipelines("5b")
    options = {"base": base, "settings": ["torch_dtype=float32"]}
    dead = run(scaled(source, 0.0, tmp_path / "dead"), out=tmp_path / "dead.mp4", **options)
    off = run(source, strength=[0.0], out=tmp_path / "off.mp4", **options)
    assert off.latents == dead.latents
    found = run(source, source, strength=[0.5, -0.5], compare=[1.0], out=tmp_path / "both.mp4", **options)
    assert found.compared[1].latents <= FORWARD
    assert found.effect and found.effect.verdict == "no measurable effect"


FACTORS = {0.0: "no measurable effect", 1.0: "effect of about the size the weights predict", 128.0: "saturated"}


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kind", CASES)
def test_check_tells_a_dead_a_good_and_a_wild_one(kind: str, factor: float, pipelines: Folders, tmp_path: Path) -> None:
    made = scaled(adapter(kind, tmp_path / "run"), factor, tmp_path / "made")
    found = loraforge.run([made], base=pipelines(kind), check=True)
    valid(found.to_dict(), "run")
    assert found.effect and found.effect.verdict == FACTORS[factor], found.probe
    assert found.probe and found.probe.dtype == ("float16" if kind == "2b" else "bfloat16")
    assert (found.probe.changes[1] == 0.0) == (factor == 0.0)
    assert not list(Path.cwd().glob("*.mp4"))


def test_check_needs_the_transformer_alone_and_measures_what_is_there(pipelines: Folders, tmp_path: Path) -> None:
    source, alone = adapter("5b", tmp_path / "run"), tmp_path / "transformer"
    shutil.copytree(pipelines("5b") / "transformer", alone)
    found = loraforge.run([source], base=alone, check=True, settings=["torch_dtype=float32"])
    half, full = found.probe.changes if found.probe else (0.0, 0.0)
    assert 1.9 < full / half < 2.1
    twice = loraforge.run([source], strength=[2.0], base=alone, check=True, settings=["torch_dtype=float32"])
    assert twice.probe and twice.probe.changes[0] == pytest.approx(full, rel=1e-6)
    assert twice.probe.weights == pytest.approx(2 * found.probe.weights if found.probe else 0, rel=1e-6)
    deltas = Case(CASES["5b"]).deltas
    weights = load_file(alone / "diffusion_pytorch_model.safetensors")
    want = np.sqrt(
        sum(np.linalg.norm(delta) ** 2 for delta in deltas.values())
        / sum(np.linalg.norm(weights[f"{path}.weight"].astype(np.float64)) ** 2 for path in deltas)
    )
    assert found.probe and found.probe.weights == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("factor", FACTORS)
def test_compare(factor: float, pipelines: Folders, tmp_path: Path) -> None:
    made = scaled(adapter("5b", tmp_path / "run"), factor, tmp_path / "made")
    out = tmp_path / "out.mp4"
    found = run(made, base=pipelines("5b"), compare=[0.5, 1.0], out=out, settings=["torch_dtype=float32"], steps=4)
    valid(found.to_dict(), "run")
    assert [one.strength for one in found.compared] == [0.0, 0.5, 1.0]
    assert found.effect and found.effect.verdict == FACTORS[factor], found.compared
    side, sheet = map(Path, found.others)
    frames, _ = read_video(side)
    alone, _ = read_video(out)
    assert frames.shape[2] >= 3 * alone.shape[2] and sheet.read_bytes()[:4] == b"\x89PNG"
    base = found.compared[0]
    assert base.latents == 0.0 and set(base.psnr) == {None} and set(base.ssim) == {1.0}
    if factor == 1.0:
        assert 0 < found.compared[1].latents < found.compared[2].latents
        assert all(value and 10 < value < 80 for value in found.compared[2].psnr)


def test_the_verdicts_by_their_formulas() -> None:
    assert judged(0, 0, 1, "float32").verdict == "no measurable effect"
    assert judged(0.003, 0.005, 1, "bfloat16").verdict == "no measurable effect"
    assert "torch_dtype=float32" in judged(0.003, 0.005, 1, "bfloat16").why
    assert judged(0.003, 0.005, 0.1, "float32").verdict == "effect of about the size the weights predict"
    assert judged(0.02, 0.04, 0.1, "bfloat16", calls=50).verdict == "no measurable effect"
    assert judged(0.6, 0.7, 1, "float32").verdict == "saturated"
    assert judged(0.6, 0.7, 1, "float32", linear=False).verdict != "saturated"
    assert judged(0.3, 0.6, 30, "float32").verdict == "weaker than the weights predict"
    assert judged(0.3, 0.6, 0.01, "float32").verdict == "stronger than the weights predict"


def test_from_a_video(pipelines: Folders, tmp_path: Path) -> None:
    from loraforge.media.video import write_video

    clip = tmp_path / "clip.mp4"
    write_video(clip, np.stack([np.asarray(picture) for picture in pictures(64, 64, 9)]), 8)
    found = run(adapter("5b", tmp_path / "run"), base=pipelines("5b"), video=clip, out=tmp_path / "out.mp4")
    assert found.pipeline == "CogVideoXVideoToVideoPipeline" and read_video(tmp_path / "out.mp4")[0].shape[0] == 9


def test_offload_and_devices(pipelines: Folders, tmp_path: Path) -> None:
    source, base = adapter("5b", tmp_path / "run"), pipelines("5b")
    plain = run(source, base=base, out=tmp_path / "plain.mp4", settings=["torch_dtype=float32"])
    grouped = run(source, base=base, out=tmp_path / "group.mp4", settings=["torch_dtype=float32"], offload="group")
    assert plain.latents == grouped.latents
    for offload in ("model", "sequential"):
        with pytest.raises(LoraforgeError, match="the run is on the CPU"):
            run(source, base=base, offload=offload, device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(LoraforgeError, match="there is no device cuda here"):
            run(source, base=base, device="cuda")


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "frames": ("5b", {"frames": 50}, "num_frames 50 is wrong for CogVideoX-5B"),
    "half": ("5b", {"settings": ["torch_dtype=float16"]}, "NaN, which shows as a black video"),
    "size": ("5b", {"settings": ["height=65"]}, "height 65 is no multiple of 16"),
    "image": ("5b", {"image": "first.png"}, "makes videos of text alone"),
    "no image": ("5b_i2v", {}, "makes a video of a first frame"),
    "other base": ("1.5_t2v", {}, "does not fit"),
    "no prompt": ("5b", {"prompt": ""}, "a run needs a prompt"),
    "no file": ("5b", {"out": "nowhere/x.mp4"}, "is no folder"),
    "no mp4": ("5b", {"out": "x.gif"}, "the name of the video must end in .mp4"),
    "setting": ("5b", {"settings": ["lora_scale=2"]}, "is no setting of a run"),
    "strengths": ("5b", {"strength": [1.0, 2.0]}, "2 strengths for 1 adapters"),
    "manifest": ("5b", {"manifest": "first.png"}, "as a manifest"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_told_before_a_weight_is_loaded(name: str, pipelines: Folders, tmp_path: Path, monkeypatch) -> None:
    kind, options, text = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    pictures(64, 64, 1)[0].save("first.png")
    source = adapter("5b", tmp_path / "run") if kind != "5b_i2v" else adapter(kind, tmp_path / "run")
    monkeypatch.setattr("loraforge.live.runner.Running.__init__", None)  # would fail otherwise, with another error
    with pytest.raises(LoraforgeError, match=text):
        run(source, base=pipelines(kind), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.png", "run"]


def test_memory_is_asked_for_first(pipelines: Folders, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000.0))
    with pytest.raises(LoraforgeError, match="the weights need") as refused:
        run(adapter("5b", tmp_path / "run"), base=pipelines("5b"), out=tmp_path / "x.mp4")
    assert refused.value.remedies and not (tmp_path / "x.mp4").exists()


def test_wrong_settings_are_run_if_asked(pipelines: Folders, tmp_path: Path) -> None:
    options = {"base": pipelines("5b"), "settings": ["torch_dtype=float16"], "anyway": True}
    found = run(adapter("5b", tmp_path / "run"), out=tmp_path / "x.mp4", **options)
    assert found.settings["torch_dtype"] == "float16"


def test_an_adapter_that_changed_since_its_manifest(pipelines: Folders, tmp_path: Path) -> None:
    made = scaled(adapter("5b", tmp_path / "run"), 1.0, tmp_path / "made")
    run(made, base=pipelines("5b"), out=tmp_path / "a.mp4")
    shutil.rmtree(made)
    scaled(tmp_path / "run" / "lora-disney-11-20-10-00", 2.0, made)
    with pytest.raises(LoraforgeError, match="has changed since the manifest was written"):
        loraforge.run([], manifest=tmp_path / "a.json", out=tmp_path / "b.mp4")


def test_ctrl_c_leaves_no_file(pipelines: Folders, tmp_path: Path) -> None:
    def stop(done: int, _steps: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    source = adapter("5b", tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(source, base=pipelines("5b"), out=tmp_path / "x.mp4", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_there_is_not_replaced(pipelines: Folders, tmp_path: Path) -> None:
    source = adapter("5b", tmp_path / "run")
    (tmp_path / "x.json").write_text("mine")
    with pytest.raises(LoraforgeError, match=r"x\.json exists"):
        run(source, base=pipelines("5b"), out=tmp_path / "x.mp4")
    run(source, base=pipelines("5b"), out=tmp_path / "x.mp4", force=True)
    assert json.loads((tmp_path / "x.json").read_text())["prompt"] == "a cat"


def test_what_is_typed_beside_a_manifest_counts(pipelines: Folders, tmp_path: Path) -> None:
    source = adapter("5b", tmp_path / "run")
    first = run(source, base=pipelines("5b"), out=tmp_path / "a.mp4", strength=[0.5])
    again = loraforge.run([], manifest=tmp_path / "a.json", out=tmp_path / "b.mp4", strength=[0.25], prompt="a dog")
    assert again.adapters[0]["strength"] == 0.25 and again.latents != first.latents
    assert json.loads((tmp_path / "b.json").read_text())["prompt"] == "a dog"
    with pytest.raises(LoraforgeError, match="names its adapters"):
        loraforge.run([source], manifest=tmp_path / "a.json", out=tmp_path / "c.mp4")


def test_a_video_that_is_too_short(pipelines: Folders, tmp_path: Path) -> None:
    from loraforge.media.video import write_video

    clip = tmp_path / "clip.mp4"
    write_video(clip, np.stack([np.asarray(picture) for picture in pictures(64, 64, 12)]), 8)
    with pytest.raises(LoraforgeError, match="has 12 frames, and the run is to have 49") as refused:
        run(adapter("5b", tmp_path / "run"), base=pipelines("5b"), video=clip, frames=None)
    assert refused.value.remedies[0].command == "--frames 9"


def test_a_comparison_without_1_says_what_its_video_is(pipelines: Folders, tmp_path: Path) -> None:
    source, options = adapter("5b", tmp_path / "run"), {"base": pipelines("5b"), "settings": ["torch_dtype=float32"]}
    found = run(source, strength=[0.5], compare=[0.5], out=tmp_path / "a.mp4", **options)
    assert found.shown == 0.5 and "(at 0.5 times these strengths)" in "\n".join(found.lines())
    assert json.loads((tmp_path / "a.json").read_text())["adapters"][0]["strength"] == 0.25
    assert "bit for bit" in loraforge.run([], manifest=tmp_path / "a.json", out=tmp_path / "b.mp4").notes[-1]
    assert run(source, strength=[0.25], out=tmp_path / "c.mp4", **options).latents == found.latents


def test_a_check_of_numbers_that_are_none(pipelines: Folders, tmp_path: Path) -> None:
    source = adapter("2b", tmp_path / "run")
    with pytest.raises(LoraforgeError, match="NaN or infinity in float16"):
        loraforge.run([source], base=pipelines("2b"), check=True, strength=[3e5])
    with pytest.raises(LoraforgeError, match="every strength is 0"):
        loraforge.run([source], base=pipelines("2b"), check=True, strength=[0.0])


def test_what_the_run_reads_is_not_written_over(pipelines: Folders, tmp_path: Path) -> None:
    source = adapter("5b", tmp_path / "run")
    (tmp_path / "s.json").write_text('{"seed": 1}')
    with pytest.raises(LoraforgeError, match=r"s\.json is read by this run"):
        run(source, base=pipelines("5b"), settings=[str(tmp_path / "s.json")], out=tmp_path / "s.mp4", force=True)
    assert (tmp_path / "s.json").read_text() == '{"seed": 1}'


EDITS: dict[str, Any] = {
    "strength": lambda m: m["adapters"][0].update(strength="lots"),
    "stated": lambda m: m.update(stated=None),
    "base": lambda m: m.update(base=["a"]),
    "prompt": lambda m: m.update(prompt=3),
    "settings": lambda m: m.pop("settings"),
    "versions": lambda m: m.update(versions=7),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_edited_by_hand(name: str, pipelines: Folders, tmp_path: Path) -> None:
    run(adapter("5b", tmp_path / "run"), base=pipelines("5b"), out=tmp_path / "a.mp4")
    made = json.loads((tmp_path / "a.json").read_text())
    EDITS[name](made)
    (tmp_path / "a.json").write_text(json.dumps(made))
    with pytest.raises(LoraforgeError, match=r"a\.json cannot be read as a manifest of"):
        loraforge.run([], manifest=tmp_path / "a.json", out=tmp_path / "b.mp4")


def test_a_manifest_is_read_from_another_folder(pipelines: Folders, tmp_path: Path, monkeypatch) -> None:
    adapter("5b", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    first = run(Path("run/lora-disney-11-20-10-00"), base=pipelines("5b"), out="a.mp4")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert loraforge.run([], manifest="../a.json", out="b.mp4").latents == first.latents
