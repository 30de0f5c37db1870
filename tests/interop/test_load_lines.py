"""The load line that fuse and convert-base print is run on what they wrote, for each kind of base."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from safetensors.torch import load_file, save_file

import loraforge
from loraforge.errors import LoraforgeError
from loraforge.format.sat_names import CHECKPOINT

STEM = "diffusion_pytorch_model"
SCALE, D, R = 0.5, 64, 4
PATHS = tuple(f"transformer_blocks.{i}.attn1.{m}" for i in range(2) for m in ("to_q", "to_out.0"))


def model(dtype: Any = torch.bfloat16, **options: Any) -> Any:
    torch.manual_seed(0)
    least: dict[str, Any] = {
        "num_attention_heads": 2, "attention_head_dim": 32, "in_channels": 16, "out_channels": 16,
        "time_embed_dim": 32, "text_embed_dim": 32, "num_layers": 2, "sample_width": 8, "sample_height": 8,
        "sample_frames": 9, "max_text_seq_length": 8,
    }  # fmt: skip
    return diffusers.CogVideoXTransformer3DModel(**(least | options)).to(dtype)


def adapter(place: Path) -> tuple[Path, dict[str, Any]]:
    rng = np.random.default_rng(1)
    pairs = {p: [(rng.standard_normal(s) * 0.2).astype("f4") for s in ((R, D), (D, R))] for p in PATHS}
    file = place / "a.safetensors"
    tensors = {f"transformer.{p}.lora_{k}.weight": t for p, ab in pairs.items() for k, t in zip("AB", ab, strict=True)}
    save_file({key: torch.from_numpy(t) for key, t in tensors.items()}, file)
    return file, {p: SCALE * b.astype("f8") @ a.astype("f8") for p, (a, b) in pairs.items()}


def _saved(folder: Path, **options: Any) -> Path:
    model().save_pretrained(folder / "base", **options)
    return folder / "base"


def _in_parts(folder: Path, **options: Any) -> Path:
    return _saved(folder, max_shard_size="200KB", **options)


def _renamed(base: Path, *pairs: tuple[str, str]) -> Path:
    """The folder with other names for its weights, in the index too."""
    for path in list(base.iterdir()):
        if path.suffix == ".json" and ".index." in path.name:
            text = path.read_text()
            for old, new in pairs:
                text = text.replace(old, new)
            path.write_text(text)
        for old, new in pairs:
            if old in path.name:
                path.rename(base / path.name.replace(old, new))
                break
    return base


def _pipeline(folder: Path, **options: Any) -> Path:
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=model(), scheduler=diffusers.CogVideoXDDIMScheduler()
    )  # type: ignore[arg-type]
    pipe.save_pretrained(folder / "base", **options)
    return folder / "base"


def _indexed(change: Callable[[dict[str, str]], dict[str, str]]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        base = _in_parts(folder)
        file = base / f"{STEM}.safetensors.index.json"
        table = json.loads(file.read_text())
        table["weight_map"] = change(table["weight_map"])
        file.write_text(json.dumps(table))
        return base

    return make


def _two_versions(folder: Path) -> Path:
    base = _in_parts(folder)
    model(torch.float16).save_pretrained(folder / "other", variant="fp16", max_shard_size="300KB")
    for path in (folder / "other").glob(f"{STEM}*"):
        shutil.copy(path, base)
    return base


BASES: dict[str, Callable[[Path], Path]] = {
    "a transformer": _saved,
    "in shards": _in_parts,
    "an apostrophe in its name": lambda folder: _saved(folder).rename(folder / "it's"),
    "a variant": lambda folder: _saved(folder, variant="fp16"),
    "a variant in shards": lambda folder: _in_parts(folder, variant="fp16"),
    "a variant in shards, older names": lambda folder: _renamed(
        _in_parts(folder, variant="bf16"), (".safetensors.index.bf16.json", ".bf16.safetensors.index.json")
    ),
    "two versions in shards": _two_versions,
    "zero_to_fp32": lambda folder: _renamed(_in_parts(folder), (STEM, "model")),
    "zero_to_fp32, one file": lambda folder: _renamed(_saved(folder), (STEM, "model")),
    "bin": lambda folder: _saved(folder, safe_serialization=False),
    "bin in shards": lambda folder: _in_parts(folder, safe_serialization=False),
    "a variant in bin shards": lambda folder: _in_parts(folder, safe_serialization=False, variant="fp16"),
    "pytorch_model.bin": lambda folder: _renamed(_saved(folder, safe_serialization=False), (STEM, "pytorch_model")),
    "pytorch_model.bin in shards": lambda folder: _renamed(
        _in_parts(folder, safe_serialization=False), (STEM, "pytorch_model")
    ),
    "an index with one more": _indexed(lambda m: m | {"mtp.fc.weight": next(iter(m.values()))}),
    "an index with one less": _indexed(lambda m: {k: v for k, v in m.items() if k != "proj_out.bias"}),
    "a partial pipeline": _pipeline,
    "a partial pipeline in shards": lambda folder: _pipeline(folder, max_shard_size="200KB"),
}


def run(line: str) -> Any:
    """The object that the printed line gives in Python."""
    return eval(line, {**vars(diffusers), "load_file": safetensors.torch.load_file})


@pytest.mark.parametrize("kind", BASES)
def test_the_line_of_fuse(kind: str, tmp_path: Path) -> None:
    base = BASES[kind](tmp_path)
    file, deltas = adapter(tmp_path)
    report = loraforge.fuse(base, [file], tmp_path / "out's", trained_scale=SCALE)
    loaded = run(report.load)
    weights = (loaded.transformer if hasattr(loaded, "transformer") else loaded).state_dict()
    folder = tmp_path / "out's" / ("transformer" if (base / "model_index.json").exists() else "")
    files = sorted(folder.glob("*.safetensors"))
    written = {key: tensor for path in files for key, tensor in load_file(path).items()}
    for key, before in model().state_dict().items():
        delta = deltas.get(key.removesuffix(".weight"))
        want = before.double() if delta is None else before.double() + torch.from_numpy(delta)
        # one rounding to bfloat16 where something was added, no bit changed elsewhere
        assert torch.allclose(weights[key].double(), want, rtol=0 if delta is None else 2**-8, atol=0), key
        assert written[key].dtype == torch.bfloat16
    assert all(re.fullmatch(rf"{STEM}(-\d+-of-\d+)?\.safetensors", path.name) for path in files)
    index = folder / f"{STEM}.safetensors.index.json"
    assert index.exists() == (len(files) > 1) and not list(folder.glob("*.bin"))
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {f"{STEM}.safetensors"}
    assert named == {path.name for path in files}
    assert [path for path in folder.iterdir() if ".index." in path.name] == [index] * index.exists()


def test_the_line_of_fuse_for_one_file(tmp_path: Path) -> None:
    file, _ = adapter(tmp_path)
    base = _saved(tmp_path) / f"{STEM}.safetensors"
    report = loraforge.fuse(base, [file], tmp_path / "it's.safetensors", trained_scale=SCALE)
    assert run(report.load).keys() == model().state_dict().keys()


POSITIONS: dict[str, dict[str, Any]] = {
    "2b": {},
    "5b": {"use_rotary_positional_embeddings": True},
    "i2v": {
        "in_channels": 32, "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True
    },
}  # fmt: skip


def _sat(place: Path, kind: str) -> Path:
    model(**POSITIONS[kind]).save_pretrained(place / "base")
    loraforge.convert_base(place / "base", "sat", place / "sat")
    return place / "sat"


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("sample", ["9x64x64", "5x96x32", "17x16x128"])
@pytest.mark.parametrize("said", [True, False])
def test_the_line_of_convert_base(kind: str, sample: str, said: bool, tmp_path: Path) -> None:
    """The sample is stated, or what our own SAT checkpoint has of it counts."""
    frames, height, width = map(int, sample.split("x"))
    sizes = {"sample_frames": frames, "sample_height": height // 8, "sample_width": width // 8}
    made = model(**POSITIONS[kind], **sizes)
    made.save_pretrained(tmp_path / "base")
    there = loraforge.convert_base(tmp_path / "base", "sat", tmp_path / "sat's")
    line = re.search(r"`(load: .*)`", there.load)
    assert line
    assert Path(yaml.safe_load(line[1])["load"]).joinpath("latest").is_file()
    back = loraforge.convert_base(tmp_path / "sat's", "diffusers", tmp_path / "back's", sample=sample if said else None)
    loaded = run(back.load)
    assert {key: loaded.config[key] for key in sizes} == sizes
    for key, tensor in made.state_dict().items():
        assert torch.equal(loaded.state_dict()[key].double(), tensor.double()), key


@pytest.mark.parametrize("more", [0, 1, 32, -17576])
def test_positions_of_another_size_are_refused(more: int, tmp_path: Path) -> None:
    """226 words and 13 x 30 x 45 patches are the released ones; each size proposed has as many as are there."""
    sat = _sat(tmp_path, "i2v")
    file = next(sat.rglob(CHECKPOINT))
    held = torch.load(file, weights_only=False)
    name = next(key for key in held["module"] if key.endswith("pos_embed.pos_embedding"))
    count = 17776 + more if more else 226 + 13 * 16 * 24
    held["module"][name] = torch.zeros(1, count, held["module"][name].shape[2], dtype=torch.bfloat16)
    assert held.pop("loraforge")  # a checkpoint of SAT's own has none
    torch.save(held, file)
    with pytest.raises(LoraforgeError, match=f"{count} learned positions, and CogVideoX-5B-I2V as released") as refused:
        loraforge.convert_base(sat, "diffusers", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    for n, remedy in enumerate(r.command for r in refused.value.remedies if r.command.startswith("--sample ")):
        out = tmp_path / f"back{n}"
        report = loraforge.convert_base(sat, "diffusers", out, sample=remedy.partition(" ")[2])
        assert run(report.load).config["max_text_seq_length"] == 226
    if not more:
        assert Path("--sample 49x256x384").name in [r.command for r in refused.value.remedies]


@pytest.mark.parametrize("sample", ["49x480", "0x480x720", "axbxc", "49x481x720", "49x480x720x1", ""])
def test_a_sample_that_is_none(sample: str, tmp_path: Path) -> None:
    with pytest.raises(LoraforgeError, match="--sample"):
        loraforge.convert_base(_sat(tmp_path, "5b"), "diffusers", tmp_path / "back", sample=sample)


def test_a_header_that_says_another_size_is_not_believed(tmp_path: Path) -> None:
    sat = _sat(tmp_path, "i2v")
    file = next(sat.rglob(CHECKPOINT))
    held = torch.load(file, weights_only=False)
    held["loraforge"] = held["loraforge"].replace('"sample_height": 8', '"sample_height": 16')
    torch.save(held, file)
    with pytest.raises(LoraforgeError, match="56 learned positions, and the file's own header"):
        loraforge.convert_base(sat, "diffusers", tmp_path / "back")


def test_a_tensor_in_two_shards_or_in_none(tmp_path: Path) -> None:
    base = _in_parts(tmp_path)
    file, _ = adapter(tmp_path)
    first, second = sorted(base.glob("*.safetensors"))[:2]
    tensors, others = load_file(first), load_file(second)
    key = next(iter(tensors))
    save_file(others | {key: tensors[key] + 1}, second, {"format": "pt"})
    with pytest.raises(LoraforgeError, match=f"{re.escape(key)} is in several shards"):
        loraforge.fuse(base, [file], tmp_path / "out", trained_scale=SCALE)
    save_file(others, second, {"format": "pt"})
    save_file({k: t for k, t in tensors.items() if k != key}, first, {"format": "pt"})
    with pytest.raises(LoraforgeError, match=f"{re.escape(key)} is in none of the shards"):
        loraforge.fuse(base, [file], tmp_path / "out", trained_scale=SCALE)


@pytest.mark.parametrize("name", ["text_encoder", "vae"])
def test_a_run_of_a_partial_pipeline_is_one_message(name: str, tmp_path: Path) -> None:
    file, _ = adapter(tmp_path)
    with pytest.raises(LoraforgeError, match=f"has no .*{name}.*: a run needs the whole pipeline"):
        loraforge.run([file], base=_pipeline(tmp_path), prompt="x", device="cpu", trained_scale=SCALE)
