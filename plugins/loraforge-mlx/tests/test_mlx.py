"""What MLX's trainer wrote (`recorded`), what its layers compute, and what is refused."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import FluxPipeline, FluxTransformer2DModel
from helpers.oracle import updates
from helpers.tolerance import FORWARD, UPDATE, off_by, share
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

import loraforge
from loraforge.cli.app import main
from loraforge.errors import ConversionError, FormatError, LoraforgeError
from loraforge.testing import FormatConformance

RECORDED = Path(__file__).parent / "recorded"
RUN = RECORDED / "mlx_output"
FINAL = RUN / "final_adapters.safetensors"
LAST = RECORDED / "last_3_blocks.safetensors"
WIDTH = 16
DIFFUSERS = "pytorch_lora_weights.safetensors"


class TestMlx(FormatConformance):
    format = "mlx"
    lacks = frozenset({"fp64"})


STREAMS = {
    "img": ("to_{}", "to_out.0", "ff", "norm1"),
    "txt": ("add_{}_proj", "to_add_out", "ff_context", "norm1_context"),
}


EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    **{
        f"{ours}_in.{old}_layer": f"time_text_embed.{name}_embedder.linear_{n}"
        for ours, name in {"time": "timestep", "vector": "text", "guidance": "guidance"}.items()
        for n, old in ((1, "in"), (2, "out"))
    },
    "final_layer.linear": "proj_out",
}
NORMS = {
    f"double_blocks.{{}}.{stream}_attn.norm.{old}_norm": f"transformer_blocks.{{}}.attn.norm_{added}{new}"
    for stream, added in {"img": "", "txt": "added_"}.items()
    for old, new in {"query": "q", "key": "k"}.items()
} | {
    f"single_blocks.{{}}.norm.{old}_norm": f"single_transformer_blocks.{{}}.attn.norm_{old[0]}"
    for old in ("query", "key")
}


def base_in_diffusers() -> dict[str, torch.Tensor]:
    """The recorded base model under Diffusers' names, moved by hand."""
    base = {key: t.float().numpy() for key, t in load_torch(RECORDED / "flux1.safetensors").items()}
    moved = {}
    for kind in ("weight", "bias"):
        of_blocks = {key.replace("_mlp.", "_mlp.layers."): t for key, t in base.items() if key.endswith(kind)}
        moved |= {f"{path}.{kind}": t for path, t in in_diffusers(of_blocks, kind).items()}
        moved |= {f"{theirs}.{kind}": base[f"{ours}.{kind}"] for ours, theirs in EMBEDDERS.items()}
        shift, scale = np.split(base[f"final_layer.adaLN_modulation.1.{kind}"], 2)
        moved[f"norm_out.linear.{kind}"] = np.concatenate([scale, shift])
    for ours, theirs in NORMS.items():
        moved |= {f"{theirs.format(i)}.weight": base[f"{ours.format(i)}.scale"] for i in (0, 1)}
    return {key: torch.from_numpy(tensor.copy()) for key, tensor in moved.items()}


def in_diffusers(tensors: Mapping[str, np.ndarray], kind: str = "weight") -> dict[str, np.ndarray]:
    """What belongs to modules of blocks under Diffusers' names, moved by hand; `kind`: weight or bias."""
    moved, deltas = {}, {key.removesuffix(f".{kind}"): tensor for key, tensor in tensors.items()}
    for i in (0, 1):
        block, single = f"transformer_blocks.{i}", f"single_transformer_blocks.{i}"
        for stream, (qkv, out, ff, norm) in STREAMS.items():
            its = f"double_blocks.{i}.{stream}"
            for name, rows in zip("qkv", np.split(deltas[f"{its}_attn.qkv"], 3), strict=True):
                moved[f"{block}.attn.{qkv.format(name)}"] = rows
            moved[f"{block}.attn.{out}"] = deltas[f"{its}_attn.proj"]
            moved[f"{block}.{ff}.net.0.proj"] = deltas[f"{its}_mlp.layers.0"]
            moved[f"{block}.{ff}.net.2"] = deltas[f"{its}_mlp.layers.2"]
            moved[f"{block}.{norm}.linear"] = deltas[f"{its}_mod.lin"]
        rows = np.split(deltas[f"single_blocks.{i}.linear1"], [WIDTH, 2 * WIDTH, 3 * WIDTH])
        moved |= {f"{single}.attn.to_{name}": rows[n] for n, name in enumerate("qkv")}
        moved[f"{single}.proj_mlp"] = rows[3]
        moved[f"{single}.proj_out"] = deltas[f"single_blocks.{i}.linear2"]
        moved[f"{single}.norm.linear"] = deltas[f"single_blocks.{i}.modulation.lin"]
    return moved


def header(file: Path) -> dict[str, str]:
    with safe_open(file, "np") as opened:
        return {key: value for key, value in opened.metadata().items() if key != "loraforge"}


def assert_same_tensors(one: Path, other: Path) -> None:
    have, want = load_file(one), load_file(other)
    assert have.keys() == want.keys()
    for key, tensor in want.items():
        assert have[key].dtype == tensor.dtype, key
        np.testing.assert_array_equal(have[key], tensor, err_msg=key)


def test_the_update_is_the_one_that_its_layers_fuse(tmp_path: Path) -> None:
    loraforge.convert(FINAL, to="diffusers", out=tmp_path / "x.safetensors")
    got, want = updates(tmp_path / "x.safetensors"), in_diffusers(load_file(RECORDED / "expected_delta.safetensors"))
    assert got.keys() == want.keys()
    assert {path: off for path in want if (off := share(got[path], want[path])) > UPDATE} == {}


def test_the_real_diffusers_computes_what_mlx_computed(tmp_path: Path) -> None:
    model = FluxTransformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=10, pooled_projection_dim=6, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    model.load_state_dict(base_in_diffusers())
    for module in model.modules():
        if type(module).__name__ == "RMSNorm":
            module.eps = 1e-5  # MLX's default, where Diffusers has 1e-6
    recorded = load_torch(RECORDED / "forward.safetensors")
    named = {"hidden_states": "img", "encoder_hidden_states": "txt", "pooled_projections": "y", "timestep": "timesteps"}
    inputs = {theirs: recorded[ours] for theirs, ours in named.items()} | {"guidance": recorded["guidance"]}
    inputs |= {key: recorded[key][0] for key in ("img_ids", "txt_ids")}

    def output() -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs, return_dict=False)[0]

    assert off_by(output(), recorded["lora_off"]) <= FORWARD
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae", "scheduler"))
    loraforge.convert(FINAL, to="diffusers", out=tmp_path / "lora")
    FluxPipeline(transformer=model, **nothing).load_lora_weights(str(tmp_path / "lora"), weight_name=DIFFUSERS)
    assert off_by(output(), recorded["lora_on"]) <= FORWARD


@pytest.mark.parametrize("through", ["diffusers", "peft"])
@pytest.mark.parametrize("source", [FINAL, LAST], ids=lambda path: path.stem)
def test_what_is_written_is_what_the_trainer_writes(source: Path, through: str, tmp_path: Path) -> None:
    loraforge.convert(source, to=through, out=tmp_path / "between")
    loraforge.convert(tmp_path / "between", to="mlx", out=tmp_path / "back")
    back = tmp_path / "back" / FINAL.name
    assert_same_tensors(back, source)
    assert header(back) == {"lora_rank": "2", "lora_blocks": "-1"}  # of all blocks: a layer that is not in it adds 0


def test_another_scale_is_folded_in_since_its_loader_applies_one(tmp_path: Path) -> None:
    loraforge.convert(FINAL, to="peft", out=tmp_path / "peft", alpha=1)
    loraforge.convert(tmp_path / "peft", to="mlx", out=tmp_path / "back")
    have, want = (load_file(file) for file in (tmp_path / "back" / FINAL.name, FINAL))
    for key in (key for key in want if key.endswith("lora_a")):
        got, whole = (t[key].astype(np.float64) @ t[key[:-1] + "b"] for t in (have, want))
        assert share(got, whole / 2) <= UPDATE, key


def test_the_scale_is_that_of_its_layers_and_its_own_configuration_is_no_loraconfig() -> None:
    report = loraforge.inspect(RUN)
    assert report.scale is not None
    assert (report.scale.provenance, report.scalings) == ("assumed", (1.0,))
    assert [note for note in report.notes if "adapter_config" in note] == []


def test_which_checkpoint_of_its_folder_is_taken(tmp_path: Path) -> None:
    run = shutil.copytree(RUN, tmp_path / "mlx_output")
    shutil.copy(run / "0000002_adapters.safetensors", run / "0000010_adapters.safetensors")
    for number in (2, 10):
        assert Path(loraforge.inspect(run, iteration=number).path).name == f"{number:07d}_adapters.safetensors"
    assert Path(loraforge.inspect(run).path).name == FINAL.name
    (run / FINAL.name).unlink()
    assert Path(loraforge.inspect(run).path).name == "0000010_adapters.safetensors"


def turned(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: np.ascontiguousarray(tensor.T) for key, tensor in tensors.items()}


def of_another_rank(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: t if key.endswith("lora_a") else np.concatenate([t, t]) for key, t in tensors.items()}


BROKEN = {
    "only lora_a": (lambda t: {k: v for k, v in t.items() if k.endswith("lora_a")}, "has no B"),
    "only lora_b": (lambda t: {k: v for k, v in t.items() if k.endswith("lora_b")}, "has no A"),
    "two ranks": (of_another_rank, "disagree on the rank"),
    "as PEFT has them": (turned, "look transposed"),
    "as PEFT has them, square ones": (
        lambda t: turned({k: v for k, v in t.items() if "_attn.proj" in k}),
        "transposed",
    ),
    "three dimensions": (lambda t: {k: v[None] for k, v in t.items()}, "not two dimensions"),
    "integers": (lambda t: {k: v.astype(np.int32) for k, v in t.items()}, "not a floating type"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_files_are_refused(fault: str, tmp_path: Path) -> None:
    change, words = BROKEN[fault]
    file = tmp_path / FINAL.name
    save_file(change(load_file(FINAL)), file)
    with pytest.raises(FormatError, match=words):
        loraforge.convert(file, to="diffusers", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _remedy(refusal: LoraforgeError, *words: object) -> Path:
    """Where the result is, after the first remedy of a refusal was run on what was refused."""
    line = ["convert", *map(str, words), *shlex.split(refusal.remedies[0].command)]
    done = CliRunner().invoke(main, line)
    assert done.exit_code == 0, done.output
    return Path(words[-1])


def test_float64_which_mlx_does_not_load(tmp_path: Path) -> None:
    loraforge.convert(FINAL, to="diffusers", out=tmp_path / "x")
    wide = {key: tensor.astype(np.float64) for key, tensor in load_file(tmp_path / "x" / DIFFUSERS).items()}
    save_file(wide, tmp_path / "x" / DIFFUSERS, header(tmp_path / "x" / DIFFUSERS))
    with pytest.raises(ConversionError, match="float64") as refusal:
        loraforge.convert(tmp_path / "x", to="mlx", out=tmp_path / "y")
    _remedy(refusal.value, tmp_path / "x", "--to", "mlx", "-o", tmp_path / "y")
    assert_same_tensors(tmp_path / "y" / FINAL.name, FINAL)


def test_layers_outside_of_the_blocks_are_refused_not_lost(tmp_path: Path) -> None:
    """MLX's load_adapter makes LoRA layers in blocks only, and drops other tensors without a word."""
    loraforge.convert(FINAL, to="diffusers", out=tmp_path / "x.safetensors")
    random = np.random.default_rng(0)
    shapes = {"A": (2, 4), "B": (WIDTH, 2)}
    more = {f"transformer.x_embedder.lora_{f}.weight": random.standard_normal(s, np.float32) for f, s in shapes.items()}
    save_file({**load_file(tmp_path / "x.safetensors"), **more}, tmp_path / "x.safetensors")
    with pytest.raises(ConversionError, match="has no module for") as refusal:
        loraforge.convert(tmp_path / "x.safetensors", to="mlx", out=tmp_path / "y", trained_scale=1)
    _remedy(refusal.value, tmp_path / "x.safetensors", "--to", "mlx", "--trained-scale", 1, "-o", tmp_path / "y")
    assert_same_tensors(tmp_path / "y" / FINAL.name, FINAL)


def test_what_is_said_of_its_own_program(tmp_path: Path) -> None:
    """As it was seen: load_adapter applies its own files in full, and stops at all others, which lack lora_rank."""
    loraforge.convert(FINAL, to="diffusers", out=tmp_path / "x.safetensors")
    own, other = (
        {row.runtime: row for row in loraforge.doctor(file).outlooks} for file in (FINAL, tmp_path / "x.safetensors")
    )
    assert (own["mlx"].applied, own["mlx"].scalings, own["mlx"].raises) == (26, (1.0,), "")
    assert other["mlx"].raises and not own["diffusers-flux"].applied
    report = loraforge.convert(tmp_path / "x.safetensors", to="mlx", out=tmp_path / "y")
    assert dict(report.seen())["run in"] == "1.0 acts so in mlx-examples c52cc74"
