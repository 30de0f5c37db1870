"""`verify` and `stamp`: what they say, and that they say no."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import DATA, FILE_CASES, SAT_CASES, SILENT, Case
from jsonschema import Draft202012Validator
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import FormatError, ScaleError, VerificationError

SCHEMAS = Path(__file__).parents[2] / "schemas"
UNSCALED = DATA / "sat_2b_r4" / "hf_export_unscaled"


def validate(document: dict, name: str) -> None:
    Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text())).validate(document)


def test_a_run_and_its_unscaled_export_differ_by_the_scale(cli) -> None:
    """The complaint the project was born from, as one line."""
    result = cli("verify", DATA / "sat_2b_r4" / "sat_ckpt", UNSCALED)
    assert result.exit_code == 1
    assert "B is 4.000 x A, everywhere" in result.stdout
    assert "nothing is recorded: taken for 1" in result.stdout


def test_a_conversion_is_the_same_update(tmp_path: Path, cli) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    loraforge.convert(run, to="diffusers", out=tmp_path / "d")
    result = cli("verify", run, tmp_path / "d", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    validate(document, "verify")
    assert document["same"]
    assert len(document["segments"]) == 8


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_one_rounding_is_no_difference_and_is_told(dtype, tmp_path: Path) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    loraforge.convert(run, to="diffusers", out=tmp_path / "d", dtype=dtype)
    found = loraforge.verify(run, tmp_path / "d")
    assert found.same
    assert 0 < max(s.worst for s in found.segments) < 0.02
    assert loraforge.verify(tmp_path / "d", run).same


def test_modules_on_one_side_are_named(tmp_path: Path, cli) -> None:
    loraforge.convert(DATA / "peft_plain", to="peft", out=tmp_path / "p", drop=["*.0.attn1.to_v"])
    result = cli("verify", DATA / "peft_plain", tmp_path / "p")
    assert result.exit_code == 1
    assert "only A adapts 1 modules: transformer_blocks.0.attn1.to_v" in result.stdout
    assert "only B adapts" in cli("verify", tmp_path / "p", DATA / "peft_plain").stdout


def test_the_worst_modules_come_first_and_exchanged_ones_are_no_factor(tmp_path: Path, cli) -> None:
    tensors = load_file(DATA / "peft_plain" / "adapter_model.safetensors")
    swapped = {
        key.replace("to_k", "to_#").replace("to_v", "to_k").replace("to_#", "to_v"): t for key, t in tensors.items()
    }
    (tmp_path / "p").mkdir()
    save_file(swapped, tmp_path / "p" / "adapter_model.safetensors")
    (tmp_path / "p" / "adapter_config.json").write_bytes((DATA / "peft_plain" / "adapter_config.json").read_bytes())
    result = cli("verify", DATA / "peft_plain", tmp_path / "p", "--json")
    found = json.loads(result.stdout)
    validate(found, "verify")
    assert found["strength"] is None
    assert {s["module"].rpartition(".")[2] for s in found["segments"] if s["rows_off"]} == {"to_k", "to_v"}
    rows = re.findall(
        r"transformer_blocks\S+ +64 of 64 +(\S+)", cli("verify", DATA / "peft_plain", tmp_path / "p").stdout
    )
    assert len(rows) == 4
    assert sorted(map(float, rows), reverse=True) == list(map(float, rows))


def test_a_magnitude_that_is_off_is_a_difference(tmp_path: Path) -> None:
    tensors = load_file(DATA / "peft_dora" / "adapter_model.safetensors")
    key = "base_model.model.transformer_blocks.1.attn1.to_q.lora_magnitude_vector"
    bent = tensors[key].copy()
    bent[3] *= 1.001
    (tmp_path / "p").mkdir()
    save_file(tensors | {key: bent}, tmp_path / "p" / "adapter_model.safetensors")
    (tmp_path / "p" / "adapter_config.json").write_bytes((DATA / "peft_dora" / "adapter_config.json").read_bytes())
    found = loraforge.verify(DATA / "peft_dora", tmp_path / "p")
    assert [(s.module, s.rows_off) for s in found.segments if s.rows_off] == [("transformer_blocks.1.attn1.to_q", 1)]


@pytest.mark.parametrize("name", [*SAT_CASES, *FILE_CASES])
def test_the_real_loaders_hold_what_we_write(name: str, tmp_path: Path) -> None:
    case = Case(name)
    for to in ("diffusers", "peft"):
        loraforge.convert(case.source, to=to, out=tmp_path / to, **case.said)
        for base in (None, case.base):
            found = loraforge.verify(tmp_path / to, in_=to, base=base)
            assert found.same, found.lines()
            assert max(s.worst for s in found.segments) == 0


def test_what_the_real_loader_makes_of_files_as_trainers_leave_them(cli) -> None:
    """finetrainers' scale is ignored, and bare names are not loaded at all."""
    result = cli("verify", Case("finetrainers_dcp_ws1").source, "--in", "diffusers")
    assert result.exit_code == 1
    assert "B is 2.000 x A, everywhere" in result.stdout
    result = cli("verify", Case("videox_fun_peft").source, "--in", "diffusers")
    assert result.exit_code == 1
    assert "only A adapts 6 modules" in result.stdout


def tensor_hashes(file: Path) -> dict[str, str]:
    return {key: hashlib.sha256(tensor.tobytes()).hexdigest() for key, tensor in load_file(file).items()}


@pytest.mark.parametrize("name", sorted(SILENT))
def test_a_stamped_file_is_read_as_trained(name: str, tmp_path: Path, cli) -> None:
    case = Case(name)
    file = case.source if case.source.is_file() else next(case.source.rglob("pytorch_lora_weights.safetensors"))
    result = cli("stamp", file, "--alpha", case.manifest["alpha"], "-o", tmp_path / "x.safetensors", "--json")
    assert result.exit_code == 0, result.output
    validate(json.loads(result.stdout), "stamp")
    assert tensor_hashes(tmp_path / "x.safetensors") == tensor_hashes(file)
    seen = loraforge.inspect(tmp_path / "x.safetensors")
    assert seen.scale is not None
    assert (seen.scalings, seen.scale.provenance) == ((case.scale,), "given")
    converted = loraforge.convert(tmp_path / "x.safetensors", to="diffusers", out=tmp_path / "d")
    assert converted.scale.source.startswith(f"--alpha {case.manifest['alpha']}")
    if name != "videox_fun_peft":  # its bare names need a conversion before diffusers knows them
        assert loraforge.verify(tmp_path / "x.safetensors", in_="diffusers").same


def test_stamp_in_place_keeps_the_rest_of_the_header(tmp_path: Path, cli) -> None:
    file = tmp_path / "x.safetensors"
    tensors = load_file(UNSCALED / "pytorch_lora_weights.safetensors")
    save_file(tensors, file, {"format": "pt", "ss_tag_frequency": "{}"})
    result = cli("stamp", file, "--alpha", 1, "--in-place", "--architecture", "cogvideox")
    assert result.exit_code == 0, result.output
    assert "1.0 acts as trained in Diffusers 0.34.0, " in result.stdout
    with safe_open(file, "np") as opened:
        assert opened.metadata()["ss_tag_frequency"] == "{}"
        assert json.loads(opened.metadata()["lora_adapter_metadata"])["transformer.lora_alpha"] == 1
    line = re.search(r"anywhere +loraforge (.*?)   #", result.stdout)
    assert line is not None
    assert cli(*shlex.split(line[1]), "-o", tmp_path / "d").exit_code == 0
    assert [child.name for child in tmp_path.iterdir() if child.name.startswith(".")] == []


def test_a_recorded_scale_is_not_stamped_over(tmp_path: Path, cli) -> None:
    source = DATA / "diffusers_save_lora_weights_meta" / "pytorch_lora_weights.safetensors"
    with pytest.raises(ScaleError, match=r"0.5 \(r 8, lora_alpha 4.*1 \(--alpha 8\)"):
        loraforge.stamp(source, 8, out=tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
    refused = cli("stamp", source, "--alpha", 8, "-o", tmp_path / "x.safetensors")
    line = re.search(r"try: loraforge (stamp .*?)(   #|\n|$)", refused.stderr)
    assert line is not None
    assert cli(*shlex.split(line[1])).exit_code == 0
    assert loraforge.inspect(tmp_path / "x.safetensors").scalings == (1.0,)
    with pytest.raises(FormatError, match=r"adapter_config\.json"):
        loraforge.stamp(DATA / "peft_plain", 4, out=tmp_path / "y.safetensors")
    with pytest.raises(FormatError, match="has no header"):
        loraforge.stamp(DATA / "sat_2b_r4" / "sat_ckpt", 1, out=tmp_path / "y.safetensors")


def test_the_three_lines_of_the_readme_record_the_scale(tmp_path: Path) -> None:
    """What a trainer needs so that nobody needs `stamp`."""
    text = (Path(__file__).parents[2] / "docs" / "record-the-scale.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    from diffusers import CogVideoXTransformer3DModel
    from peft import LoraConfig

    transformer = CogVideoXTransformer3DModel.from_pretrained(DATA / "bases" / "2b")
    transformer.add_adapter(LoraConfig(r=8, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    exec(compile(block[1], "docs", "exec"), {"transformer": transformer, "folder": str(tmp_path)})
    seen = loraforge.inspect(tmp_path)
    assert seen.scale is not None
    assert (seen.scalings, seen.scale.provenance) == ((0.5,), "recorded")
    assert np.all([rank == 8 for rank in seen.ranks])


@pytest.mark.parametrize("in_place", [False, True])
def test_a_stamp_whose_tensors_came_back_otherwise_is_not_kept(in_place: bool, tmp_path: Path, monkeypatch) -> None:
    """The file is the user's only copy of a training."""
    file = tmp_path / "x.safetensors"
    file.write_bytes((UNSCALED / "pytorch_lora_weights.safetensors").read_bytes())
    before = file.read_bytes()
    home = sys.modules[loraforge.stamp.__module__]
    right = home.write_safetensors

    def damaged(path: Path, *rest) -> dict[str, int]:
        sums = right(path, *rest)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return sums

    monkeypatch.setattr(home, "write_safetensors", damaged)
    with pytest.raises(VerificationError, match="gave back other bytes"):
        loraforge.stamp(file, 1, in_place=in_place, out=None if in_place else tmp_path / "y.safetensors")
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
