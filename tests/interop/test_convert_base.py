"""Base weights through the command: upstream's own conversion bit for bit, loadable with strict keys, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from helpers.oracle import DATA, SAT_CASES, Case
from helpers.tolerance import TABLE, off_by
from safetensors.torch import load_file, save_file

import loraforge
from loraforge.base import positions
from loraforge.files.torch_read import read_torch
from loraforge.names.catalog import architecture
from loraforge.names.diffusers_config import fixed

PREFIX = "model.diffusion_model."
FILE = "diffusion_pytorch_model.safetensors"
NOT_OURS = ("_diffusers_version", "_name_or_path")


def sat_state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(next(folder.glob("*/*.pt")), weights_only=True, map_location="cpu")["module"]


@pytest.mark.parametrize("name", SAT_CASES)
def test_it_is_upstreams_conversion_and_its_configuration(name: str, tmp_path: Path) -> None:
    """Of a LoRA run, with its YAML beside it: every bit after the cast to bf16, every entry of config.json."""
    case = Case(name)
    report = loraforge.convert_base(case.run(tmp_path), "diffusers", tmp_path / "out", dtype="bf16")
    got, want = load_file(tmp_path / "out" / FILE), load_file(case.base / FILE)
    assert got.keys() == want.keys()
    for key, tensor in want.items():
        assert torch.equal(got[key].view(torch.int16), tensor.view(torch.int16)), key
    config, recorded = (json.loads((d / "config.json").read_text()) for d in (tmp_path / "out", case.base))
    for key in NOT_OURS:
        config.pop(key, None), recorded.pop(key, None)
    assert config == recorded
    assert report.config == "training_config.yaml"
    _, info = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(report.dropped.values())
    assert any("LoRA" in note and "left out" in note for note in report.notes)
    if name == "sat_2b_full_r4":
        assert report.left_out["text encoder (T5)"] > 10
        assert "VAE" in report.left_out


def test_a_plain_base_keeps_every_bit(tmp_path: Path) -> None:
    base = DATA / "bases" / "2b"
    report = loraforge.convert_base(base / "sat_base", "diffusers", tmp_path / "out")
    got, want = load_file(tmp_path / "out" / FILE), load_file(base / FILE)
    assert all(tensor.dtype == torch.float32 for tensor in got.values())
    assert all(torch.equal(got[key], want[key].float()) for key in want)
    assert (report.cast, report.config, list(report.dropped)) == (
        0,
        "CogVideoX-2B as released",
        ["mixins.pos_embed.pos_embedding"],
    )


@pytest.mark.parametrize("name", ["sat_2b_r4", "sat_5b_r8", "sat_5b_i2v_r8", "sat_1.5_t2v_r4"])
def test_back_to_sat_is_what_sat_wrote(name: str, tmp_path: Path) -> None:
    """The same keys, shapes and bits; the tables SAT insists on are computed as SAT computes them."""
    case = Case(name)
    want = {
        key.replace(".original.", "."): tensor
        for key, tensor in torch.load(next(case.source.glob("*/*.pt")), weights_only=False, map_location="cpu")[
            "module"
        ].items()
        if key.startswith(PREFIX) and ".matrix_" not in key
    }
    report = loraforge.convert_base(case.base, "sat", tmp_path / "sat", dtype="fp32")
    got = sat_state(tmp_path / "sat")
    assert {key: tensor.shape for key, tensor in got.items()} == {key: tensor.shape for key, tensor in want.items()}
    stray = f"{PREFIX}transformer.position_embeddings.weight"
    for key, tensor in want.items():
        if "freqs_" in key or key.endswith("pos_embedding"):  # computed: torch's sine and ours differ in the last bit
            assert off_by(got[key], tensor) <= TABLE, key
        elif key != stray:
            assert torch.equal(got[key], tensor), key
    assert not got.get(stray, torch.zeros(1)).any()
    assert {f"{PREFIX}{key}" for key in report.rebuilt} == {
        key
        for key in want
        if "freqs_" in key or key == stray or (name == "sat_2b_r4" and key.endswith("pos_embedding"))
    }
    assert (tmp_path / "sat" / "latest").read_text() == "1"


def released(variant: str) -> tuple[dict[str, torch.Tensor], CogVideoXTransformer3DModel]:
    """The parameters of a released model's shapes in SAT's names, without numbers; and its class in Diffusers."""
    arch = architecture("cogvideox")
    found = next(v for v in arch.variants if v.name == variant)
    config = {key: value for key, value in fixed(arch, found).items() if not key.startswith("_")}
    heads = found.shapes["q"][0] // 64
    channels = {"in_channels": 32 if "I2V" in variant else 16, "num_layers": found.blocks, "num_attention_heads": heads}
    ofs = {"ofs_embed_dim": 512 if "ofs1" not in found.absent else None}
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(**{**config, **channels, **ofs})
    return model.state_dict(), model


@pytest.mark.parametrize("variant", [v.name for v in architecture("cogvideox").variants])
def test_released_shapes_get_the_configuration_their_class_wants(variant: str, tmp_path: Path) -> None:
    """A sparse SAT checkpoint of the real size: names, shapes and configuration fit the class exactly, 1.5-I2V too."""
    state, _ = released(variant)
    sparse = tmp_path / "sparse"
    sparse.mkdir()
    header, end = {}, 0
    for key, tensor in state.items():
        header[key] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end + 2 * tensor.numel()]}
        end += 2 * tensor.numel()
    text = json.dumps(header).encode()
    with (sparse / FILE).open("wb") as stream:  # holes: reads as zeros, takes no disk
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    there = loraforge.convert_base(sparse / FILE, "sat", tmp_path / "sat", dry_run=True)
    assert there.variant == variant
    from loraforge.base.config import diffusers_config, variant_of
    from loraforge.base.opening import open_base

    base = open_base(sparse / FILE)
    config, where = diffusers_config(base, variant_of(base))
    assert where == f"{variant} as released"
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel.from_config(config)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert dict(model.config)["sample_height"] == (300 if "1.5" in variant else 60)


def test_the_tables_of_real_samples_are_those_diffusers_computes() -> None:
    """SAT's stored table of 2B, at the released size, is the one Diffusers makes of the configuration."""
    from diffusers.models.embeddings import get_3d_sincos_pos_embed

    config = {**architecture("cogvideox").config, "patch_size": 2}
    table = positions.sincos(config, 96)
    assert table.shape == (1, 226 + 17550, 96)
    want = get_3d_sincos_pos_embed(96, (45, 30), 13, 1.875, 1.0, output_type="pt").flatten(0, 1)
    assert not table[0, :226].any()
    assert np.abs(table[0, 226:] - want.numpy()).max() < 1e-5


def test_large_models_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraforge.base.as_stored.SHARD", 200_000)
    report = loraforge.convert_base(DATA / "bases" / "2b" / "sat_base", "diffusers", tmp_path / "out")
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert files == report.output["files"]
    assert len(files) > 2
    index = json.loads((tmp_path / "out" / f"{FILE}.index.json").read_text())
    assert {key for name in files for key in load_file(tmp_path / "out" / name)} == set(index["weight_map"])
    _, info = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))
    back = loraforge.convert_base(tmp_path / "out", "sat", tmp_path / "sat")
    source = read_torch(next((DATA / "bases" / "2b" / "sat_base").glob("*/*.pt")))
    assert set(sat_state(tmp_path / "sat")) == set(source.tensors)
    assert back.cast == 0


def test_what_a_fused_base_holds_stays_known_through_a_conversion(tmp_path: Path) -> None:
    case = Case("diffusers_meta_patterns")
    loraforge.fuse(case.base, [case.source], tmp_path / "fused")
    loraforge.convert_base(tmp_path / "fused", "sat", tmp_path / "sat")
    with pytest.raises(loraforge.LoraforgeError, match="holds diffusers_meta_patterns already"):
        loraforge.fuse(tmp_path / "sat", [case.source], tmp_path / "again")


def test_mixed_types_are_stored_alike_only_when_told(tmp_path: Path) -> None:
    tensors = load_file(DATA / "bases" / "2b" / FILE)
    tensors["transformer_blocks.0.attn1.to_k.weight"] = tensors["transformer_blocks.0.attn1.to_k.weight"].float()
    mixed = Path(shutil.copytree(DATA / "bases" / "2b", tmp_path / "mixed", ignore=shutil.ignore_patterns("sat_base")))
    save_file(tensors, mixed / FILE, {"format": "pt"})
    with pytest.raises(loraforge.LoraforgeError, match="of types BF16, F32"):
        loraforge.convert_base(mixed, "sat", tmp_path / "out")
    loraforge.convert_base(mixed, "sat", tmp_path / "out", dtype="bf16")
    assert {tensor.dtype for tensor in sat_state(tmp_path / "out").values()} == {torch.bfloat16}
