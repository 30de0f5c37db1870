"""What the scale is, who said so, and what is refused: decision by decision."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import DATA, Case, assert_acts_as_trained, updates
from helpers.sat import lora_tensors, write_run
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import ScaleError
from loraforge.tables import package_table

UNSCALED = DATA / "sat_2b_r4" / "hf_export_unscaled" / "pytorch_lora_weights.safetensors"


def diffusers_file(place: Path, rank: int = 4, metadata: dict[str, str] | None = None) -> Path:
    random = np.random.default_rng(0)
    stem = "transformer.transformer_blocks.0.attn1.to_q.lora_"
    tensors = {
        f"{stem}A.weight": random.standard_normal((rank, 16)),
        f"{stem}B.weight": random.standard_normal((16, rank)),
    }
    save_file({key: t.astype(np.float32) for key, t in tensors.items()}, place / "lora.safetensors", metadata=metadata)
    return place / "lora.safetensors"


def convert(source: Path, place: Path, **said) -> loraforge.Report:
    return loraforge.convert(source, to="diffusers", out=place / "out.safetensors", force=True, **said)


def test_nothing_recorded_and_trainers_differ_is_refused_with_a_runnable_line_each(cli, tmp_path: Path) -> None:
    """The complaint behind CogVideo#712: a Diffusers file without alpha, trained at 0.5, shown at 1.0."""
    result = cli("convert", UNSCALED, "--to", "diffusers", "-o", tmp_path / "out.safetensors")
    assert result.exit_code == 1
    assert "does not record the scale of its training" in result.stderr
    assert "as trained" not in result.output
    lines = re.findall(r"try: loraforge (.*?)   # (.*)", result.stderr)
    assert len(lines) == 7
    scales = set()
    for line, promise in lines:
        done = cli(*shlex.split(line), "--force", "--json")
        assert done.exit_code == 0, line
        report = json.loads(done.stdout)
        scale = report["scalings"][0]
        assert f"{scale:g}" in promise.replace("1.0", "1")
        factor = np.linalg.norm(updates(tmp_path / "out.safetensors")["transformer_blocks.0.attn1.to_q"])
        assert factor == pytest.approx(
            scale * np.linalg.norm(updates(UNSCALED)["transformer_blocks.0.attn1.to_q"]), rel=1e-6
        )
        assert report["scale"]["provenance"] == ("assumed" if "--as-in" in line else "given")
        scales.add(scale)
    assert scales == {0.25, 16.0, 0.5, 1.0, 1 / 128}


STATED = [
    name for name, trainer in package_table("facts/trainers").items() if trainer.get("alpha", "recorded") != "recorded"
]


@pytest.mark.parametrize("name", STATED)
def test_trained_by_takes_the_trainers_default(name: str, tmp_path: Path) -> None:
    trainer = package_table("facts/trainers")[name]
    for rank in trainer.get("ranks", (4, 5)):
        report = convert(diffusers_file(tmp_path, rank), tmp_path, trained_by=name)
        assert report.scalings == (1.0 if trainer["alpha"] == "rank" else trainer["alpha"] / rank,)
        assert report.scale.provenance == "given"
        assert trainer["title"] in report.scale.source


def test_a_trainer_that_always_records_its_scale_is_no_statement(tmp_path: Path, cli) -> None:
    with pytest.raises(ScaleError, match="no trainer 'musubi-tuner' whose files need the statement; there are sat,"):
        convert(diffusers_file(tmp_path), tmp_path, trained_by="musubi-tuner")
    assert "'musubi-tuner' is not one of" in cli("convert", "x", "--to", "peft", "--trained-by", "musubi-tuner").stderr


@pytest.mark.parametrize("name", ["sd-scripts", "sd-scripts-split-qkv"])
def test_how_alphas_are_meant_is_no_statement_where_there_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(ScaleError, match=f"--trained-by {name} says how its alphas are meant, and it has none"):
        convert(diffusers_file(tmp_path), tmp_path, trained_by=name)


def test_trained_by_is_refused_at_another_rank(tmp_path: Path) -> None:
    with pytest.raises(ScaleError, match="means rank 128 and lora_alpha 64; this adapter has rank 4"):
        convert(diffusers_file(tmp_path), tmp_path, trained_by="cogvideo")


def test_as_loaded_is_an_assumption(tmp_path: Path) -> None:
    report = convert(UNSCALED, tmp_path, as_loaded=True)
    assert report.scale.provenance == "assumed"
    assert "as trained" not in "\n".join(report.lines())


def test_two_statements_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScaleError, match="--alpha and --as-in say the same thing"):
        convert(UNSCALED, tmp_path, alpha=1, as_loaded=True)


def test_overriding_without_a_scale_is_refused(tmp_path: Path) -> None:
    """It must not lose the recorded scale in silence."""
    with pytest.raises(ScaleError, match="goes with the scale to believe"):
        loraforge.convert(Case("sat_2b_r8_alpha4_layer1").run(tmp_path), to="diffusers", override_scale=True)


def test_given_against_recorded_prints_both(cli, tmp_path: Path) -> None:
    run = Case("sat_2b_r8_alpha4_layer1").run(tmp_path)
    result = cli("convert", run, "--to", "diffusers", "-o", tmp_path / "out", "--alpha", "8")
    assert result.exit_code == 1
    assert f"0.5 (r 8, lora_alpha 4 in {run}/training_config.yaml), but 1 (--alpha 8)" in result.stderr
    line = re.search(r"try: loraforge (.*?)   #", result.stderr)
    assert line is not None
    assert cli(*shlex.split(line[1])).exit_code == 0
    assert loraforge.convert(run, to="diffusers", out=tmp_path / "same", alpha=4).scale.provenance == "recorded"


@pytest.mark.parametrize(("scale", "words"), [(-0.5, "-0.5"), (0.0, "0")])
def test_a_negative_or_zero_scale_is_believed_only_when_stated(scale: float, words: str, tmp_path: Path) -> None:
    source = lora_tensors([0], hidden=16, rank=4)
    with pytest.raises(ScaleError, match="no training ends well"):
        convert(write_run(tmp_path / "a", source, lora={"r": 4, "lora_alpha": scale * 4}), tmp_path)
    report = convert(write_run(tmp_path / "b", source), tmp_path, trained_scale=scale)
    assert report.scalings == (scale,)
    assert words in report.strength()
    q = source["model.diffusion_model.transformer.layers.0.attention.query_key_value.matrix_B.0"].double().numpy() @ (
        source["model.diffusion_model.transformer.layers.0.attention.query_key_value.matrix_A.0"].double().numpy()
    )
    assert np.array_equal(updates(tmp_path / "out.safetensors")["transformer_blocks.0.attn1.to_q"], q * scale)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused(value: float, tmp_path: Path) -> None:
    run = write_run(tmp_path, lora_tensors([0], hidden=16, rank=4))
    for said in ({"alpha": value}, {"trained_scale": value}):
        with pytest.raises(ScaleError, match="is not a number"):
            convert(run, tmp_path, **said)
    run = write_run(tmp_path / "recorded", lora_tensors([0], hidden=16, rank=4), lora={"r": 4, "lora_alpha": value})
    with pytest.raises(ScaleError, match="no training ends well"):
        convert(run, tmp_path)


META = {"transformer.r": 4, "transformer.lora_alpha": 1, "transformer.target_modules": ["to_q"]}


def test_metadata_and_finetrainers_config_are_read(tmp_path: Path) -> None:
    for metadata in (
        {"lora_adapter_metadata": json.dumps(META)},
        {"lora_config": json.dumps({"r": 4, "lora_alpha": 1})},
    ):
        report = convert(diffusers_file(tmp_path, metadata=metadata), tmp_path)
        assert report.scalings == (0.25,)
        assert report.scale.provenance == "recorded"


def test_two_recorded_scales_that_disagree_are_refused(tmp_path: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps(META), "lora_config": json.dumps({"r": 4, "lora_alpha": 4})}
    with pytest.raises(
        ScaleError, match=r"0\.25 \(r 4, lora_alpha 1 in lora_adapter_metadata\), but 1 \(r 4, lora_alpha 4"
    ):
        convert(diffusers_file(tmp_path, metadata=metadata), tmp_path)


def test_an_assumption_stays_one_through_a_second_conversion(tmp_path: Path) -> None:
    """Our own header records scaling 1.0; that must not turn an assumed scale into a recorded one."""
    run = write_run(tmp_path, lora_tensors([0], hidden=16, rank=4))
    first = loraforge.convert(run, to="diffusers", out=tmp_path / "first")
    assert first.scale.provenance == "assumed"
    second = loraforge.convert(tmp_path / "first", to="diffusers", out=tmp_path / "second")
    assert second.scale.provenance == "assumed"
    assert "as trained" not in "\n".join(second.lines())
    assert loraforge.inspect(tmp_path / "second").scale == second.scale


def test_foreign_metadata_is_kept_unless_it_states_a_scale_or_a_hash(tmp_path: Path) -> None:
    metadata = {
        "lora_adapter_metadata": json.dumps(META),
        "modelspec.title": "my style", "modelspec.trigger_phrase": "disney", "modelspec.hash_sha256": "def",
        "ss_tag_frequency": "{}", "ss_network_alpha": "1", "ss_network_dim": "4", "sshs_model_hash": "abc",
    }  # fmt: skip
    report = convert(diffusers_file(tmp_path, metadata=metadata), tmp_path)
    kept = loraforge.inspect(tmp_path / "out.safetensors").metadata
    assert {"modelspec.title", "ss_tag_frequency", "modelspec.trigger_phrase"} <= kept.keys()
    assert report.dropped_metadata == (
        "lora_adapter_metadata", "modelspec.hash_sha256", "ss_network_alpha", "ss_network_dim", "sshs_model_hash",
    )  # fmt: skip
    assert json.loads(kept["lora_adapter_metadata"])["transformer.lora_alpha"] == 4


def test_unequal_ranks_get_patterns_that_the_real_loader_obeys(tmp_path: Path) -> None:
    """r and alpha per module in the header; peft's own matching gives 1.0 everywhere."""
    from peft import LoraConfig

    random = np.random.default_rng(0)
    ranks = {
        "transformer_blocks.1.attn1.to_q": 4,
        "transformer_blocks.11.attn1.to_q": 8,
        "transformer_blocks.1.attn1.to_out.0": 2,
    }
    tensors = {}
    for path, rank in ranks.items():
        tensors[f"transformer.{path}.lora_A.weight"] = random.standard_normal((rank, 16)).astype(np.float32)
        tensors[f"transformer.{path}.lora_B.weight"] = random.standard_normal((16, rank)).astype(np.float32)
    save_file(tensors, tmp_path / "lora.safetensors")
    convert(tmp_path / "lora.safetensors", tmp_path, trained_scale=0.5)
    header = json.loads(loraforge.inspect(tmp_path / "out.safetensors").metadata["lora_adapter_metadata"])
    config = LoraConfig(**{key.removeprefix("transformer."): value for key, value in header.items()})
    from peft.utils.other import get_pattern_key

    for path, rank in ranks.items():
        r = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), path), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), path), config.lora_alpha)
        assert (r, alpha) == (rank, rank)
    assert load_file(tmp_path / "out.safetensors").keys() == tensors.keys()


TRAINER = Case("cogvideo_trainer_plain")
"""CogVideo's own trainer at rank 8, alpha 4: a real file that records neither."""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("args.yaml", "rank: 8\nlora_alpha: 4\n"),
        ("train.sh", "accelerate launch train.py --rank 8 \\\n  --lora_alpha 4\n"),
        ("config.yaml", "rank: {desc: null, value: 8}\nlora_alpha: {desc: null, value: 4}\n"),
    ],
)
def test_a_training_configuration_tells_what_the_file_does_not(name: str, text: str, tmp_path: Path) -> None:
    """CogVideo#712: trained at 0.5, shown at 1.0. Named by the user, or found beside the file."""
    run = tmp_path / "run"
    shutil.copytree(TRAINER.folder / "checkpoint-3", run / "checkpoint-3")
    source = run / "checkpoint-3" / "pytorch_lora_weights.safetensors"
    with pytest.raises(ScaleError, match="does not record the scale"):
        convert(source, tmp_path)
    (run / name).write_text(text)
    beside = {} if name.endswith(".yaml") else {"training_config": run / name}
    report = convert(source, tmp_path, **beside)
    assert report.scale.provenance == "recorded"
    assert name in report.scale.source
    assert report.scalings == (0.5,)
    assert_acts_as_trained(tmp_path / "out.safetensors", TRAINER)


def test_a_configuration_of_another_rank_is_not_believed(tmp_path: Path) -> None:
    shutil.copytree(TRAINER.folder / "checkpoint-3", tmp_path / "run")
    (tmp_path / "run" / "args.yaml").write_text("rank: 128\nlora_alpha: 64\n")
    with pytest.raises(ScaleError, match="does not record the scale"):
        convert(tmp_path / "run", tmp_path)
    assert "not used" in " ".join(loraforge.inspect(tmp_path / "run").notes)
    with pytest.raises(ScaleError, match=r"rank 128, but the tensors of .* have rank 8"):
        convert(tmp_path / "run", tmp_path, training_config=tmp_path / "run" / "args.yaml")


def test_a_configuration_against_the_header_is_refused_with_both(tmp_path: Path) -> None:
    file = diffusers_file(tmp_path, metadata={"lora_adapter_metadata": json.dumps(META)})
    (tmp_path / "args.json").write_text('{"rank": 4, "lora_alpha": 4}')
    assert convert(file, tmp_path).scalings == (0.25,)  # the header speaks first
    with pytest.raises(ScaleError, match=r"0\.25 .* but 1 \(.*args\.json"):
        convert(file, tmp_path, training_config=tmp_path / "args.json")
