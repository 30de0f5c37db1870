"""Files that record no scale: never guessed, each candidate one line that runs. And contradictions: both values."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.oracle import DATA, SAT_CASES, SILENT, Case
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import FormatError, LoraforgeError, ScaleError

FILES = {name: Case(name).source for name in SILENT} | {
    f"{name}, exported": DATA / name / "hf_export_unscaled"
    for name in SAT_CASES
    if (DATA / name / "hf_export_unscaled").exists()
}


def bare_updates(source: Path) -> dict[str, np.ndarray]:
    file = source if source.is_file() else next(source.rglob("pytorch_lora_weights.safetensors"))
    tensors = {key.removeprefix("transformer."): t.astype(np.float64) for key, t in load_file(file).items()}
    return {
        key.removesuffix(".lora_A.weight"): tensors[key.replace("lora_A", "lora_B")] @ A
        for key, A in tensors.items()
        if ".lora_A." in key
    }


@pytest.mark.parametrize("to", ["diffusers", "peft", "sat"])
@pytest.mark.parametrize("name", FILES)
def test_each_candidate_is_a_line_that_does_what_it_promises(name: str, to: str, tmp_path: Path, cli) -> None:
    words = ["convert", FILES[name], "--to", to, "-o", tmp_path / "out", *(["--lora-only"] if to == "sat" else [])]
    words += ["--architecture", "cogvideox"]
    refused = cli(*words)
    assert refused.exit_code == 1
    assert not list(tmp_path.iterdir())
    assert "as trained" not in refused.output
    lines = re.findall(r"try: loraforge (.*?)   # (.*)", refused.stderr)
    assert len(lines) >= 3
    before = bare_updates(FILES[name])
    scales = set()
    for line, promise in lines:
        done = cli(*shlex.split(line), "--force", "--json")
        assert done.exit_code == 0, f"{line}: {done.output}"
        report = json.loads(done.stdout)
        (scale,) = report["scalings"]
        assert re.search(rf"(scale |: ){scale:g}(\.0)?$", promise), promise
        assumed = "--as-in" in line
        assert report["scale"]["provenance"] == ("assumed" if assumed else "given")
        shown = cli(*shlex.split(line), "--force").stdout
        assert ("as trained" in shown) == (not assumed)
        if to == "diffusers":
            after = bare_updates(tmp_path / "out")
            assert after.keys() == before.keys()
            for path, update in after.items():
                np.testing.assert_allclose(update, scale * before[path], rtol=0, atol=1e-6 * np.abs(update).max())
        else:
            again = loraforge.verify(FILES[name], tmp_path / "out")
            assert again.same if scale == 1 else again.strength == pytest.approx(scale, rel=1e-6)
        scales.add(scale)
    assert 1.0 in scales
    assert 0.5 in scales  # what the trainers of these files used; the exports' own 1/r is below
    if "exported" in name:
        assert Case(name.partition(",")[0]).manifest["rank"] ** -1.0 in scales


def copied(case: str, place: Path) -> Path:
    shutil.copytree(Case(case).folder, place)
    return place


def changed_config(place: Path, **entries: Any) -> Path:
    path = place / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return place


CONFLICTS = {
    "given against recorded": ({}, {"alpha": 8}, ScaleError, ["0.5", "--alpha 8", "lora_alpha 4"]),
    "r against tensors": ({"r": 16}, {}, ScaleError, ["r 16", "rank 8"]),
    "rank_pattern against tensors": ({"rank_pattern": {"to_q": 4}}, {}, ScaleError, ["r 4", "rank 8", "to_q"]),
    "alpha_pattern that matches nothing": (
        {"alpha_pattern": {"to_x": 16}}, {}, ScaleError, ["to_x", "16", "lora_alpha 4", "none of the 8 modules"],
    ),
    "rank_pattern that matches nothing": ({"rank_pattern": {"^to_q": 2}}, {}, ScaleError, ["^to_q", "r 8"]),
    "target_modules without a module of the file": (
        {"target_modules": ["to_q", "to_k", "to_v"]}, {}, FormatError, ["target_modules", "to_out.0"],
    ),
    "use_dora without magnitudes": ({"use_dora": True}, {}, FormatError, ["use_dora True", "no magnitudes"]),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "options", "kind", "words"), CONFLICTS.values(), ids=CONFLICTS)
def test_contradictions_are_refused_with_both_values(
    entries: dict[str, Any], options: dict[str, Any], kind: type, words: list[str], tmp_path: Path
) -> None:
    source = changed_config(copied("peft_plain", tmp_path / "p"), **entries)
    with pytest.raises(kind) as refusal:
        loraforge.convert(source, to="diffusers", out=tmp_path / "out", **options)
    for word in words:
        assert word in refusal.value.message
    assert not (tmp_path / "out").exists()


def test_two_header_entries_that_disagree_are_refused_with_both(tmp_path: Path) -> None:
    tensors = load_file(DATA / "diffusers_save_lora_weights_nometa" / "pytorch_lora_weights.safetensors")
    entries = {
        "lora_adapter_metadata": json.dumps({"transformer.r": 8, "transformer.lora_alpha": 4}),
        "lora_config": json.dumps({"r": 8, "lora_alpha": 8}),
    }
    save_file(tensors, tmp_path / "x.safetensors", entries)
    with pytest.raises(ScaleError, match=r"0\.5 \(.*lora_adapter_metadata\), but 1 \(.*lora_config\)") as refusal:
        loraforge.convert(tmp_path / "x.safetensors", to="diffusers", out=tmp_path / "out")
    assert len(refusal.value.remedies) == 2


def test_a_training_config_against_a_recorded_scale(tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text("rank: 8\nlora_alpha: 8\n")
    with pytest.raises(ScaleError, match=r"0\.5 .*but 1 .*args\.yaml"):
        loraforge.convert(
            DATA / "peft_plain", to="diffusers", out=tmp_path / "o", training_config=tmp_path / "args.yaml"
        )


def test_checkpoints_of_an_output_folder(tmp_path: Path) -> None:
    """The newest, said so; another with --iteration; the final file before them; the other layouts trainers use."""
    file = Case("cogvideo_trainer_plain").source / "checkpoint-3" / "pytorch_lora_weights.safetensors"
    out = tmp_path / "train"
    for n in (500, 1000, 90):
        (out / f"checkpoint-{n}").mkdir(parents=True)
        shutil.copy(file, out / f"checkpoint-{n}")
    (out / "checkpoint-2000").mkdir()  # interrupted while it was saved
    taken = loraforge.inspect(out)
    assert Path(taken.path).parent.name == "checkpoint-1000"
    assert any("took checkpoint 1000 of train, the newest of 90, 500, 1000" in note for note in taken.notes)
    assert Path(loraforge.inspect(out, iteration=90).path).parent.name == "checkpoint-90"
    with pytest.raises(LoraforgeError, match="has no checkpoint 7 "):
        loraforge.inspect(out, iteration=7)
    shutil.copy(file, out)
    taken = loraforge.inspect(out)
    assert Path(taken.path).parent.name == "train"
    assert any("its final result" in note for note in taken.notes)
    finetrainers = loraforge.inspect(Case("finetrainers_dcp_ws1").source)
    assert Path(finetrainers.path).parent.name == "000010"
    fun = tmp_path / "fun"
    fun.mkdir()
    for n in (100, 20):
        shutil.copy(Case("videox_fun_peft").source, fun / f"checkpoint-{n}.safetensors")
    assert Path(loraforge.inspect(fun).path).name == "checkpoint-100.safetensors"
    report = loraforge.convert(fun, to="diffusers", iteration=20, alpha=4, out=tmp_path / "o", dry_run=True)
    assert Path(report.source["path"]).name == "checkpoint-20.safetensors"
    with pytest.raises(LoraforgeError, match="one file"):
        loraforge.inspect(fun / "checkpoint-20.safetensors", iteration=20)


SPELLINGS = {
    ".lora_A.default.weight": (".lora_A.default.weight", ".lora_B.default.weight"),
    ".lora.down.weight": (".lora.down.weight", ".lora.up.weight"),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_other_spellings_are_the_same_adapter(spelling: tuple[str, str], tmp_path: Path) -> None:
    source = DATA / "diffusers_save_lora_weights_nometa"
    tensors = {
        key.replace(".lora_A.weight", spelling[0]).replace(".lora_B.weight", spelling[1]): t
        for key, t in load_file(source / "pytorch_lora_weights.safetensors").items()
    }
    save_file(tensors, tmp_path / "x.safetensors")
    assert loraforge.inspect(tmp_path / "x.safetensors").format == "diffusers"
    assert loraforge.verify(source, tmp_path / "x.safetensors").same


def test_two_adapters_in_one_file_are_refused_by_name(tmp_path: Path) -> None:
    tensors = load_file(DATA / "peft_plain" / "adapter_model.safetensors")
    for names in (("default", "style"), ("default", "")):
        both = {
            re.sub(r"(lora_[AB])\.weight", rf"\1.{name}.weight" if name else r"\1.weight", key): t
            for key, t in tensors.items()
            for name in names
        }
        save_file(both, tmp_path / "x.safetensors")
        with pytest.raises(FormatError, match=r"several adapters, or one in several spellings: .*lora_[AB]\.default"):
            loraforge.convert(tmp_path / "x.safetensors", to="diffusers", out=tmp_path / "o", as_loaded=True)


def test_options_of_another_target_are_refused(tmp_path: Path) -> None:
    for options, to in (
        ({"base": "x"}, "diffusers"),
        ({"target_alpha": 2.0}, "peft"),
        ({"scale_in": "metadata"}, "sat"),
    ):
        with pytest.raises(LoraforgeError, match="goes with --to"):
            loraforge.convert(DATA / "peft_plain", to=to, out=tmp_path / "o", **options)


@pytest.mark.parametrize("by", ["sat", "peft", "diffusers"])
def test_an_assumption_stays_one_whatever_it_passes_through(by: str, tmp_path: Path) -> None:
    run = Case("sat_2b_r4").run(tmp_path, config=False)
    loraforge.convert(run, to=by, out=tmp_path / by, **({"lora_only": True} if by == "sat" else {}))
    report = loraforge.convert(tmp_path / by, to="diffusers", out=tmp_path / "end")
    assert report.scale.provenance == "assumed"
    assert "as trained" not in "\n".join(report.lines())


def test_the_kernel_of_a_convolution_tells_the_base(tmp_path: Path) -> None:
    stem = "transformer.patch_embed.proj"
    for inputs, base in ((16, "CogVideoX-5B"), (32, "CogVideoX-5B-I2V")):
        factors = {"A": np.ones((4, inputs, 2, 2), np.float32), "B": np.ones((3072, 4, 1, 1), np.float32)}
        save_file({f"{stem}.lora_{name}.weight": t for name, t in factors.items()}, tmp_path / "x.safetensors")
        assert loraforge.inspect(tmp_path / "x.safetensors").fits == (base,)
