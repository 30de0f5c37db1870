"""A result beside other files: none is replaced, and none gets a configuration that is not its own."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import DATA, Case

import loraforge
from loraforge import write
from loraforge.errors import ConversionError, OutputError, ScaleError
from loraforge.scale import peft_config
from loraforge.testing import make_adapter


@pytest.mark.parametrize("whole", [False, True], ids=["one iteration", "a run with its YAML"])
def test_a_training_run_keeps_its_yaml(whole: bool, tmp_path: Path) -> None:
    """Its training_config.yaml is the only record of its lora_alpha; ours would speak for its iterations too."""
    run = Case("sat_2b_r8_alpha4_layer1").run(tmp_path, config=whole)
    if not whole:
        (run / "latest").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(
        OutputError, match=r"holds \d+/mp_rank_00_model_states\.pt, for which latest and training_config"
    ):
        loraforge.convert(DATA / "peft_plain", to="sat", lora_only=True, out=run, force=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_peft_folder_does_not_take_over_another_file(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "adapter_model.bin").write_bytes(b"somebody's")
    with pytest.raises(
        OutputError, match=r"holds adapter_model\.bin, for which adapter_config\.json would speak"
    ) as refusal:
        loraforge.convert(DATA / "peft_plain", to="peft", out=tmp_path / "p", force=True)
    assert refusal.value.remedies[0].command == f"-o {tmp_path / 'p-2'}"
    loraforge.convert(DATA / "peft_plain", to="peft", out=tmp_path / "q")
    loraforge.convert(DATA / "peft_rslora", to="peft", out=tmp_path / "q", force=True)  # its own files it may replace
    assert loraforge.verify(DATA / "peft_rslora", tmp_path / "q").same


def test_the_base_is_left_as_it_is(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(DATA / "bases" / "2b" / "sat_base", base)
    before = (base / "1" / "mp_rank_00_model_states.pt").read_bytes()
    for out in (base, base / "inner"):
        with pytest.raises(OutputError, match="lies inside the source"):
            loraforge.convert(DATA / "peft_plain", to="sat", base=base, out=out, force=True)
    assert (base / "1" / "mp_rank_00_model_states.pt").read_bytes() == before


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = write.__globals__["_prove"]

    def slow(*arguments):
        (tmp_path / "x.safetensors").write_bytes(b"another's")
        return right(*arguments)

    monkeypatch.setitem(write.__globals__, "_prove", slow)
    with pytest.raises(OutputError, match="exists"):
        loraforge.convert(DATA / "peft_plain", to="diffusers", out=tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == b"another's"
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM there")
def test_a_process_that_is_told_to_end_takes_its_temporary_files_along(tmp_path: Path) -> None:
    program = (
        "import sys, time; from loraforge import write; from loraforge.cli import main\n"
        "write.__globals__['_prove'] = lambda *_: (print('writing', flush=True), time.sleep(60))\n"
        f"main(['convert', {str(DATA / 'peft_plain')!r}, '--to', 'peft', '-o', {str(tmp_path / 'out')!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_changed_after_us_is_not_believed_with_our_words(tmp_path: Path) -> None:
    loraforge.convert(DATA / "peft_plain", to="peft", out=tmp_path / "p")
    path = tmp_path / "p" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 16}))
    with pytest.raises(ScaleError, match=r"to act at scale 0\.5, and r 8, lora_alpha 16 .* makes it 2\.") as refusal:
        loraforge.read(tmp_path / "p")
    for remedy, want in zip(refusal.value.remedies, (0.5, 2.0), strict=True):
        scale = float(remedy.command.split()[1])
        assert scale == want
        adapter = loraforge.read(tmp_path / "p", trained_scale=scale, override_scale=True)
        assert adapter.scale.provenance == "given"
    loraforge.convert(Case("sat_2b_r4").run(tmp_path), to="sat", lora_only=True, out=tmp_path / "s", target_alpha=64)
    yaml = tmp_path / "s" / "training_config.yaml"
    yaml.write_text(yaml.read_text().replace("lora_alpha: 64", "lora_alpha: 32"))
    with pytest.raises(ScaleError, match=r"to act at scale 16, and .* makes it 8\."):
        loraforge.read(tmp_path / "s")


def test_a_statement_makes_an_assumption_known(tmp_path: Path) -> None:
    loraforge.convert(Case("cogvideo_trainer_plain").source, to="diffusers", as_loaded=True, out=tmp_path / "a")
    assert loraforge.read(tmp_path / "a").scale.provenance == "assumed"
    assert loraforge.read(tmp_path / "a", trained_scale=1).scale.provenance == "given"


def test_no_factor_is_named_where_one_side_does_nothing(tmp_path: Path, cli) -> None:
    """SAT keeps zeros for a part of its stack that was left out."""
    loraforge.convert(DATA / "peft_plain", to="sat", lora_only=True, drop=["*to_k"], out=tmp_path / "s")
    shown = cli("verify", tmp_path / "s", DATA / "peft_plain").stdout
    assert "x A" not in shown
    assert re.search(r"transformer_blocks\.1\.attn1\.to_k +64 of 64 ", shown)


def test_our_patterns_hold_in_peft_before_0_15_too(tmp_path: Path) -> None:
    """It takes the first key that `.*\\.KEY$` matches, else the path itself as a key."""
    for case in ("peft_patterns", "diffusers_meta_patterns"):
        loraforge.convert(Case(case).source, to="peft", out=tmp_path / case)
        config = json.loads((tmp_path / case / "adapter_config.json").read_text())

        def old(name: str, default: float, path: str, config=config) -> float:
            table = config.get(name, {})
            key = next((key for key in table if re.match(rf".*\.{key}$", path)), path)
            return table.get(key, default)

        for path, scale in Case(case).manifest["scales"].items():
            r = old("rank_pattern", config["r"], path)
            assert old("alpha_pattern", config["lora_alpha"], path) / r == scale, path
            now = peft_config.rule(config, dict.fromkeys([path], r) | _ranks(case), "x")
            assert now.of(path, int(r)) == scale


def _ranks(case: str) -> dict[str, int]:
    return {path: delta[0].rank for path, delta in loraforge.read(Case(case).source).modules.items()}


def test_parts_of_a_stack_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    adapter = make_adapter("cogvideox", "diffusers", frozenset({"q", "k", "v", "o"}))
    path = "transformer_blocks.0.attn1.to_k"
    (weight,) = adapter.modules[path]
    for fault in ({"B": np.array(weight.B[:-2])}, {"A": np.array(weight.A[:, :-1])}):
        odd = dataclasses.replace(adapter, modules={**adapter.modules, path: (dataclasses.replace(weight, **fault),)})
        with pytest.raises(
            ConversionError, match=rf"{re.escape(path)} is for a weight of .* where its neighbours need 6 x 6"
        ):
            loraforge.write(odd, "sat", tmp_path / "s", lora_only=True)
    assert not (tmp_path / "s").exists()


def test_other_adapters_of_a_folder_are_told_of(tmp_path: Path) -> None:
    shutil.copytree(DATA / "peft_plain", tmp_path / "p")
    shutil.copytree(DATA / "peft_rslora", tmp_path / "p" / "style")
    assert any(
        "holds other adapters too, in folders of their own: style" in n for n in loraforge.inspect(tmp_path / "p").notes
    )


def test_a_whole_number_is_a_target_alpha(tmp_path: Path) -> None:
    loraforge.convert(DATA / "peft_plain", to="sat", lora_only=True, target_alpha=64, out=tmp_path / "s")
    assert "lora_alpha: 64\n" in (tmp_path / "s" / "training_config.yaml").read_text()
