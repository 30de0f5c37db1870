"""Every place that can record a scale is looked at, for every format; and what contradicts is refused with both."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.scalefiles import PATHS, adapter
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import LoraforgeError

HEADERS: dict[str, tuple[dict[str, Any], float]] = {
    "of the transformer": ({"lora_adapter_metadata": {"transformer.r": 4, "transformer.lora_alpha": 64}}, 16),
    "of another component": ({"lora_adapter_metadata": {"dit.r": 4, "dit.lora_alpha": 2}}, 0.5),
    "without a component": ({"lora_adapter_metadata": {"r": 4, "lora_alpha": 2}}, 0.5),
    "beside a text encoder's": (
        {"lora_adapter_metadata": {"text_encoder.r": 8, "text_encoder.lora_alpha": 8, "dit.r": 4, "dit.lora_alpha": 1}},
        0.25,
    ),
    "rslora": ({"lora_adapter_metadata": {"unet.r": 4, "unet.lora_alpha": 8, "unet.use_rslora": True}}, 4),
    "an alpha without r": ({"lora_adapter_metadata": {"transformer.lora_alpha": 2}}, 0.5),
    "finetrainers": ({"lora_config": {"r": 4, "lora_alpha": 1}}, 0.25),
    "lora_alpha": ({"lora_alpha": "8"}, 2),
    "network_alpha": ({"network_alpha": "1.0", "network_dim": "4"}, 0.25),
    "alpha": ({"alpha": "2", "rank": "4"}, 0.5),
    "behind a component": ({"transformer.lora_alpha": "64", "transformer.r": "4"}, 16),
    "rslora, plain": ({"transformer.lora_alpha": "8", "transformer.r": "4", "transformer.use_rslora": "True"}, 4),
    "sd-scripts": ({"ss_network_alpha": "1", "ss_network_dim": "4"}, 0.25),
    "a document": ({"training_config": {"lora": {"lora_rank": 4, "lora_alpha": 2.0}}}, 0.5),
}  # fmt: skip


def texts(header: dict[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()}


@pytest.mark.parametrize("words", ["diffusers", "bare", "peft"])
@pytest.mark.parametrize(("header", "scale"), HEADERS.values(), ids=HEADERS)
def test_the_header_records_it(header: dict[str, Any], scale: float, words: str, tmp_path: Path) -> None:
    file = adapter(tmp_path / "style.safetensors", texts(header), words=words)
    report = loraforge.convert(file, to="diffusers", out=tmp_path / "out.safetensors")
    assert (report.scalings, report.scale.provenance) == ((scale,), "recorded")
    stale = loraforge.inspect(tmp_path / "out.safetensors").metadata.keys() & header.keys()
    assert stale <= {"lora_adapter_metadata"}  # which is our own now
    again = loraforge.convert(tmp_path / "out.safetensors", to="peft", out=tmp_path / "again")
    assert (again.scalings, again.scale.provenance) == ((1.0,), "recorded")  # no entry of the source is left


@pytest.mark.parametrize("words", ["diffusers", "bare", "peft"])
def test_the_header_of_a_file_that_lost_its_alphas_is_not_counted_twice(words: str, tmp_path: Path) -> None:
    """musubi-tuner's and sd-scripts' converters multiply alpha into A and B, and keep the header of what they read."""
    header = {"ss_network_module": "networks.lora_wan", "ss_network_alpha": "1", "ss_network_dim": "4"}
    file = adapter(tmp_path / "style.safetensors", header, words=words)
    assert "no alpha is recorded" in refused(file, tmp_path / "out").message
    assert loraforge.convert(file, to="peft", out=tmp_path / "out", trained_scale=1).scalings == (1.0,)
    toy_file = toy(tmp_path / "kohya.safetensors", header, dict.fromkeys(PATHS, 1.0))  # as its trainer wrote it
    assert loraforge.convert(toy_file, to="diffusers", out=tmp_path / "k").scalings == (0.25,)


FORMAT = """
[format]
name = "toy"
summary = "toy"
layouts = { cogvideox = "diffusers" }
prefixes = ["toy::"]
spellings = [{ A = ".down", B = ".up", alpha = ".alpha" }]
"""


def toy(
    place: Path, entries: dict[str, str] | None = None, alphas: dict[str, Any] | None = None, **options: Any
) -> Path:
    """The adapter in the words of a format that is only data, and alpha tensors for some of its modules."""
    (place.parent / "toy.toml").write_text(FORMAT)
    loraforge.use_plugin(place.parent / "toy.toml")
    tensors = {
        key.replace("transformer.", "toy::", 1).replace(".lora_A.weight", ".down").replace(".lora_B.weight", ".up"): t
        for key, t in load_file(adapter(place, **options)).items()
    }
    save_file(tensors | {f"toy::{path}.alpha": np.asarray(a) for path, a in (alphas or {}).items()}, place, entries)
    return place


def refused(source: Path, out: Path, **options: Any) -> LoraforgeError:
    with pytest.raises(LoraforgeError) as refusal:
        loraforge.convert(source, to="diffusers", out=out, **options)
    assert not out.exists()
    return refusal.value


def tried(cli: Any, remedy: str, source: Path, out: Path) -> dict[str, Any]:
    """What the line does that the command prints: the addition behind what was typed."""
    done = cli("convert", source, "--to", "diffusers", "-o", out, "--json", "--force", *shlex.split(remedy))
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("header", HEADERS)
def test_a_format_that_is_data_looks_there_too(header: str, tmp_path: Path) -> None:
    entries, scale = HEADERS[header]
    report = loraforge.convert(toy(tmp_path / "x.safetensors", texts(entries)), to="diffusers", out=tmp_path / "out")
    assert (report.scalings, report.scale.provenance) == ((scale,), "recorded")


@pytest.mark.parametrize(
    "alpha",
    [np.uint8(2), np.int64(2), np.float32([[2.0]]), np.float16([2.0]), np.float64([[[2.0]]]), np.uint16([2])],
    ids=str,
)
def test_one_number_of_any_type_and_shape_is_an_alpha(alpha: Any, tmp_path: Path) -> None:
    source = toy(tmp_path / "x.safetensors", alphas=dict.fromkeys(PATHS, alpha))
    assert loraforge.convert(source, to="diffusers", out=tmp_path / "out").scalings == (0.5,)


def test_two_numbers_are_none(tmp_path: Path) -> None:
    source = toy(tmp_path / "x.safetensors", alphas=dict.fromkeys(PATHS, np.float32([2.0, 2.0])))
    assert "not one number" in refused(source, tmp_path / "out").message


CONTRADICTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "two plain entries": ({"lora_alpha": "2", "network_alpha": "4"}, ["0.5 (lora_alpha 2", "1 (network_alpha 4"]),
    "plain against JSON": (
        {"lora_adapter_metadata": {"transformer.r": 4, "transformer.lora_alpha": 1}, "ss_network_alpha": "2"},
        ["0.25 (r 4, lora_alpha 1 in lora_adapter_metadata)", "0.5 (ss_network_alpha 2"],
    ),
    "two components": (
        {"lora_adapter_metadata": {"a.r": 4, "a.lora_alpha": 1, "b.r": 4, "b.lora_alpha": 4}}, ["0.25 (r 4", "1 (r 4"],
    ),
    "a rank that is not the tensors'": (
        {"ss_network_alpha": "4", "ss_network_dim": "8"}, ["ss_network_alpha 4, ss_network_dim 8", "have rank 4"],
    ),
    "a rank of JSON": ({"lora_adapter_metadata": {"dit.r": 8, "dit.lora_alpha": 8}}, ["says r 8", "have rank 4"]),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "says"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_refused_with_both(
    entries: dict[str, Any], says: list[str], tmp_path: Path, cli: Any
) -> None:
    source = adapter(tmp_path / "x.safetensors", texts(entries))
    refusal = refused(source, tmp_path / "out")
    assert all(word in refusal.message for word in says)
    assert refusal.remedies
    for remedy in refusal.remedies:
        tried(cli, remedy.command, source, tmp_path / "out")


def test_alpha_tensors_against_a_header(tmp_path: Path, cli: Any) -> None:
    """Both are read; a rank that no module has is said of another file, and the tensors count."""
    source = toy(
        tmp_path / "x.safetensors", {"ss_network_alpha": "4", "ss_network_dim": "4"}, dict.fromkeys(PATHS, 2.0)
    )
    assert re.search(r"0\.5 \(alpha 2 .*but 1 \(ss_network_alpha 4", refused(source, tmp_path / "out").message)
    source = toy(
        tmp_path / "x.safetensors", {"ss_network_alpha": "4", "ss_network_dim": "8"}, dict.fromkeys(PATHS, 2.0)
    )
    report = loraforge.convert(source, to="diffusers", out=tmp_path / "out")
    assert report.scalings == (0.5,) and any("not used" in note for note in report.notes)


def test_one_module_without_alpha_is_offered_the_others_value_first(tmp_path: Path, cli: Any) -> None:
    source = toy(tmp_path / "x.safetensors", alphas=dict.fromkeys(PATHS[:-1], 2.0))
    refusal = refused(source, tmp_path / "out")
    assert PATHS[-1] in refusal.message and "7 modules" in refusal.message
    assert [tried(cli, r.command, source, tmp_path / "out")["scalings"] for r in refusal.remedies] == [[0.5], [1.0]]
    whole = toy(tmp_path / "y.safetensors", {"ss_network_alpha": "2"}, dict.fromkeys(PATHS[:-1], 2.0))
    report = loraforge.convert(whole, to="diffusers", out=tmp_path / "w")
    assert (report.scalings, report.scale.provenance) == ((0.5,), "recorded")
    assert "1 (--alpha 4)" in refused(source, tmp_path / "o", alpha=4).message
    assert loraforge.convert(source, to="diffusers", out=tmp_path / "o", alpha=2).scale.provenance == "given"


@pytest.mark.parametrize(("r", "alpha", "rslora", "scale"), [(4, 8, False, 2), (2, 1, False, 0.5), (4, 8, True, 4)])
def test_padded_factors_keep_the_scale_of_their_r(
    r: int, alpha: int, rslora: bool, scale: float, tmp_path: Path, cli: Any
) -> None:
    source = adapter(tmp_path / "adapter_model.safetensors", words="peft", rank=16, zeros=16 - r)
    config = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    refusal = refused(source, tmp_path / "out")
    assert f"{16 - r} components are exactly zero" in refusal.message
    assert [tried(cli, remedy.command, source, tmp_path / "out")["scalings"] for remedy in refusal.remedies] == [
        [scale]
    ]


def test_a_rank_that_is_wrong_is_not_called_padded(tmp_path: Path) -> None:
    source = adapter(tmp_path / "x.safetensors", texts({"lora_config": {"r": 2, "lora_alpha": 2}}), zeros=1)
    assert "zero" not in refused(source, tmp_path / "out").message


CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "use_rslora": True,
    "target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
}


@pytest.mark.parametrize("words", ["peft", "bare", "diffusers"])
def test_peft_s_configuration_beside_a_renamed_file(words: str, tmp_path: Path) -> None:
    source = adapter(tmp_path / "p/style.safetensors", words=words)
    (tmp_path / "p/adapter_config.json").write_text(json.dumps(CONFIG))
    for given in (source, source.parent) if words != "diffusers" else (source,):
        report = loraforge.convert(given, to="diffusers", out=tmp_path / "out", force=True)
        assert (report.scalings, report.scale.provenance) == ((4.0,), "recorded")
        assert f"{tmp_path}/p/adapter_config.json" in report.scale.source


def test_it_is_a_candidate_where_another_adapter_lies_there(tmp_path: Path, cli: Any) -> None:
    source = adapter(tmp_path / "style.safetensors", words="peft")
    adapter(tmp_path / "other.safetensors", words="peft", seed=1)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    refusal = refused(source, tmp_path / "out")
    first = refusal.remedies[0].command
    assert first == f"--training-config {tmp_path}/adapter_config.json"
    assert tried(cli, first, source, tmp_path / "out")["scalings"] == [4.0]


@pytest.mark.parametrize(
    "entries", [{"r": 8}, {"target_modules": ["to_q"]}, {"target_modules": None}, {"use_dora": True}]
)
def test_one_that_does_not_fit_is_not_believed(entries: dict[str, Any], tmp_path: Path) -> None:
    source = adapter(tmp_path / "style.safetensors", words="peft")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | entries))
    assert "does not record the scale" in refused(source, tmp_path / "out").message


@pytest.mark.parametrize(("config", "notes"), [({"lora_rank": 4, "iterations": 600}, 0), ({"r": 4}, 1)])
def test_another_program_s_configuration_of_that_name_states_nothing(
    config: dict[str, Any], notes: int, tmp_path: Path
) -> None:
    """MLX's trainers write the arguments of a run into an adapter_config.json."""
    source = adapter(tmp_path / "style.safetensors", words="peft")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    report = loraforge.inspect(source)
    assert report.scale is not None and report.scale.provenance == "ambiguous"
    assert len([note for note in report.notes if "adapter_config.json" in note]) == notes


def test_the_refusal_lists_where_it_looked(tmp_path: Path) -> None:
    said = refused(adapter(tmp_path / "x.safetensors"), tmp_path / "out").message
    for place in ("lora_adapter_metadata", "alpha tensors", "adapter_config.json", "ss_network_alpha", str(tmp_path)):
        assert place in said


def test_our_own_entry_tells_what_stood_beside_the_tensors(tmp_path: Path) -> None:
    source = adapter(tmp_path / "x.safetensors", {"lora_alpha": "2"})
    loraforge.convert(source, to="peft", out=tmp_path / "peft")
    (tmp_path / "peft/adapter_config.json").unlink()
    report = loraforge.convert(tmp_path / "peft", to="diffusers", out=tmp_path / "out")
    assert (report.scalings, report.scale.provenance) == ((0.5,), "recorded")


def test_a_header_of_numbers_names_the_entry(tmp_path: Path) -> None:
    file = adapter(tmp_path / "x.safetensors", {"ss_epoch": "10"})
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b'"10"', b"1000"))
    with pytest.raises(LoraforgeError, match="header entry ss_epoch is 1000"):
        loraforge.inspect(file)


def test_one_scale_of_several_ranks_that_is_no_sum_of_powers_of_two(tmp_path: Path) -> None:
    """lora_alpha is written in twelve digits: one scale comes back as several floats, all the same."""
    tensors = load_file(adapter(tmp_path / "a.safetensors", rank=4)) | {
        key: tensor for key, tensor in load_file(adapter(tmp_path / "b.safetensors", rank=7)).items() if "to_q" in key
    }
    save_file(tensors, tmp_path / "x.safetensors")
    for scale in (0.7, 0.1, 1 / 3):
        out = loraforge.convert(
            tmp_path / "x.safetensors", to="peft", out=tmp_path / "p", trained_scale=scale, force=True
        )
        assert out.worst_error is not None
        again = loraforge.convert(tmp_path / "p", to="diffusers", out=tmp_path / "d", force=True)
        assert again.scalings[0] == pytest.approx(scale)
