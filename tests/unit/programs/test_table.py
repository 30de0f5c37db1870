"""What is said of programs: by version, from the table, and no wider than what was run."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.made import ATTENTION, EMBED, peft, rows
from helpers.oracle import Case
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.names.catalog import architecture
from loraforge.plugin.registry import Registry, use
from loraforge.programs import table

PLUGINS = Path(__file__).parents[3] / "plugins"


@pytest.fixture
def formats() -> Iterator[None]:
    """The formats of this repository's packages."""
    loraforge.use_plugin(PLUGINS / "loraforge-comfyui" / "loraforge_comfyui" / "wrapper.toml")
    yield
    use(Registry())


# --- what programs apply, as they were seen to


def kohya(prefix: str, key: str) -> str:
    path, _, end = key.partition(".lora_")
    return prefix + path.replace(".", "_") + (".lora_down.weight" if end[0] == "A" else ".lora_up.weight")


def renamed(source: Path, place: Path, change, **metadata: str) -> Path:
    tensors = {change(key): tensor for key, tensor in load_file(source).items()}
    save_file(tensors, place, metadata)
    return place


def test_comfyui_knows_its_own_names_only(formats: None, tmp_path: Path) -> None:
    """163 of 318 files were said to act in it that did nothing."""
    ranks = dict.fromkeys([*ATTENTION, EMBED, "proj_out"], 4)
    source = peft(tmp_path / "s", ranks)
    want = {"diffusers": 0, "peft": 0, "kohya": 2, "comfyui-wrapper": 2, "videox-fun": 0, "diffsynth": 0}
    for to, applied in want.items():
        out = Path(loraforge.convert(source, to=to, out=tmp_path / to).output["path"])
        assert rows(out)["comfyui"].applied == applied, to
        assert loraforge.doctor(out, runtime_="comfyui").verdict != "acts as trained"
    out = Path(loraforge.convert(source, to="comfyui", out=tmp_path / "n").output["path"])
    row = rows(out)["comfyui"]
    assert (row.applied, row.modules, row.ratios) == (10, 10, (1.0,))


def test_a_convolution_stops_what_it_stops(formats: None, tmp_path: Path) -> None:
    source = peft(tmp_path / "s", dict.fromkeys([*ATTENTION, EMBED], 4))
    seen = {}
    for to in ("videox-fun", "kohya", "diffsynth", "comfyui", "diffusers"):
        report = loraforge.convert(source, to=to, out=tmp_path / to)
        seen[to] = rows(Path(report.output["path"]))
        text = "\n".join(report.lines())
        assert ("acts as trained" in text) == (to in ("comfyui", "diffusers")), text
    for to in ("videox-fun", "kohya"):
        assert "a convolution" in seen[to]["merge_lora"].raises
        wrapper = seen[to]["comfyui-wrapper"]
        assert (wrapper.raises, wrapper.applied, wrapper.modules) == ("", 8, 9)
    assert "a convolution" in seen["diffsynth"]["diffsynth"].raises
    assert seen["comfyui"]["comfyui"].applied == 9
    found = loraforge.doctor(tmp_path / "kohya", runtime_="comfyui-wrapper")
    assert (found.verdict, found.healthy) == ("acts in part", False)


@pytest.mark.parametrize(
    ("change", "applied"),
    [
        (lambda key: key[17:], {"merge_lora": 8, "diffusers-0.32": 8, "diffusers-0.31": 8}),
        (lambda key: key.replace("base_model.model.", "diffusion_model."), {"merge_lora": 8}),
        (lambda key: kohya("lora_unet__", key[17:]), {"merge_lora": 8, "comfyui-wrapper": 8}),
        (lambda key: kohya("lora_unet_", key[17:]), {"merge_lora": 8, "comfyui-wrapper": 8}),
        (lambda key: key.replace("base_model.model.", "transformer."), {"comfyui-wrapper": 8, "diffusers": 8}),
    ],
)
def test_names_are_taken_by_those_that_take_them(formats: None, change, applied: dict, tmp_path: Path) -> None:
    source = peft(tmp_path / "s", dict.fromkeys(ATTENTION, 4), scale=1.0)
    file = renamed(source / "adapter_model.safetensors", tmp_path / "x.safetensors", change)
    found = rows(file, trained_scale=1.0)
    for name in ("diffusers", "diffusers-0.33", "diffusers-0.32", "diffusers-0.31", "merge_lora", "comfyui-wrapper"):
        want = applied.get(name, 8 if name.startswith("diffusers") and "diffusers" in applied else 0)
        assert (name, found[name].applied) == (name, want)
    for name in ("comfyui-wrapper", "load_cogvideox_lora", "diffusers-0.32"):
        assert bool(found[name].raises) == (not found[name].applied)  # they stop where nothing is loaded


def test_dora_without_its_magnitudes_is_not_as_trained(tmp_path: Path) -> None:
    loraforge.convert(Case("peft_dora").source, to="diffusers", out=tmp_path / "o")
    found = rows(tmp_path / "o")
    assert "magnitudes" in found["diffusers-0.31"].otherwise
    assert found["diffusers-0.31"].ratios == found["cli_demo-old"].ratios == ()
    assert found["diffusers-0.32"].ratios == found["diffusers"].ratios == (1.0,)
    for program in ("diffusers-0.31", "cli_demo-old", "load_cogvideox_lora"):
        assert not loraforge.doctor(tmp_path / "o", runtime_=program).healthy
    assert loraforge.doctor(tmp_path / "o", runtime_="diffusers").healthy


def test_cogkit_takes_one_rank_and_one_scale(tmp_path: Path) -> None:
    for rank, scale, good in ((128, 0.5, True), (128, 1.0, False), (64, 0.5, False)):
        source = peft(tmp_path / f"{rank}-{scale}", dict.fromkeys(ATTENTION, rank), scale)
        found = loraforge.doctor(source, runtime_="cogkit")
        assert found.healthy == good, found.why
        assert bool(found.outlooks[0].raises) == (rank != 128)


def test_an_older_peft_stops_at_a_field_it_does_not_know(tmp_path: Path) -> None:
    source = peft(tmp_path / "s", dict.fromkeys(ATTENTION, 4))
    assert loraforge.doctor(source, runtime_="peft-0.13").healthy
    path = source / "adapter_config.json"
    for name in ("corda_config", "lora_bias", "alora_invocation_tokens"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: None}))
        assert loraforge.doctor(source, runtime_="peft-0.13").outlooks[0].raises
        assert loraforge.doctor(source, runtime_="peft").healthy


@pytest.mark.parametrize("name", ["my_style.safetensors", "style.v2.safetensors", "adapter_model_2.safetensors"])
@pytest.mark.parametrize("program", ["peft", "peft-0.20", "peft-0.13"])
def test_peft_stops_at_a_file_of_another_name(program: str, name: str, tmp_path: Path) -> None:
    """Its scale is read from adapter_config.json all the same, and the conversion that mends it runs."""
    source = peft(tmp_path / "s", dict.fromkeys(ATTENTION, 4))
    assert loraforge.doctor(source, runtime_=program).healthy
    (source / "adapter_model.safetensors").rename(source / name)
    for given in (source, source / name):
        found = loraforge.doctor(given, runtime_=program)
        assert (found.verdict, found.outlooks[0].raises) == ("does nothing", "adapter_model.safetensors")
    loraforge.convert(source, to="peft", out=tmp_path / "o")
    assert loraforge.doctor(tmp_path / "o", runtime_=program).healthy


def test_a_program_of_2024_stops_at_every_file(tmp_path: Path) -> None:
    for name in ("peft_plain", "peft_dora", "sat_2b_r4"):
        case = Case(name)
        loraforge.convert(case.source, to="diffusers", out=tmp_path / name, **case.said)
        assert "text_encoder" in loraforge.doctor(tmp_path / name, runtime_="cli_demo-2024").why


# --- files that no format here reads, and some program does


def native(key: str) -> str:
    for ours, theirs in (("attn1.to_out.0", "attn_out"), ("attn1.to_", ""), ("transformer_blocks", "blocks")):
        key = key.replace(ours, theirs)
    return key.replace("base_model.model.", "")


@pytest.mark.parametrize(
    ("change", "more", "program"),
    [
        (lambda key: kohya("lora_unet_", native(key)), ".alpha", "comfyui"),
        (lambda key: "diffusion_model." + native(key), ".dora_scale", "comfyui"),
        (
            lambda key: "diffusion_model." + key[17:].replace("transformer_", "").replace("out.0", "out"),
            "",
            "diffsynth",
        ),
        (lambda key: key[17:].replace("transformer_", "").replace("out.0", "out"), ".alpha", "diffsynth"),
    ],
)
def test_what_a_program_applies_is_not_called_nothing(change, more: str, program: str, tmp_path: Path, cli) -> None:
    source = peft(tmp_path / "s", dict.fromkeys(ATTENTION, 4))
    tensors = {change(key): tensor for key, tensor in load_file(source / "adapter_model.safetensors").items()}
    stems = {re.split(r"\.lora_", key)[0] for key in tensors}
    if more:
        tensors |= {f"{stem}{more}": np.ones((64, 1) if "dora" in more else (), np.float32) for stem in stems}
    save_file(tensors, tmp_path / "x.safetensors")
    found = loraforge.doctor(tmp_path / "x.safetensors")
    assert found.verdict != "does nothing"
    row = next(row for row in found.outlooks if row.runtime == program)
    assert (row.applied, row.modules, row.raises) == (8, 8, "")
    assert table.runtime(program).title in found.why
    printed = cli("doctor", tmp_path / "x.safetensors")
    assert printed.exit_code == (0 if found.healthy else 1)
    assert "8/8" in printed.stdout


@pytest.mark.parametrize(
    ("start", "more", "program"),
    [("diffusion_model.", ".lora_magnitude_vector", "comfyui"), ("", ".alpha", "diffsynth")],
)
def test_a_file_its_format_refuses_may_still_be_applied(
    formats: None, start: str, more: str, program: str, tmp_path: Path
) -> None:
    """With the packages installed these are refused for one key a module, which the program ignores or applies."""
    spelled = (
        native if program == "comfyui" else lambda key: key[17:].replace("transformer_", "").replace("out.0", "out")
    )
    source = peft(tmp_path / "s", dict.fromkeys(ATTENTION, 4))
    tensors = {start + spelled(key): tensor for key, tensor in load_file(source / "adapter_model.safetensors").items()}
    stems = {re.split(r"\.lora_", key)[0] for key in tensors}
    save_file(tensors | {f"{stem}{more}": np.ones((64, 1), np.float32) for stem in stems}, tmp_path / "x.safetensors")
    found = loraforge.doctor(tmp_path / "x.safetensors")
    assert f"{table.runtime(program).title} knows 8 of its 8 modules" in found.why
    assert not found.healthy


@pytest.mark.parametrize("kind", ["wan", "empty", "ranks"])
def test_what_no_program_here_applies_has_no_table(kind: str, tmp_path: Path) -> None:
    A, B = np.ones((4, 64), np.float32), np.ones((64, 4), np.float32)
    stem = "diffusion_model.blocks.0.self_att.q" if kind == "wan" else "lora_unet_blocks_0_q"
    A = {"empty": A[:0], "ranks": A[:2]}.get(kind, A)
    save_file({f"{stem}.lora_down.weight": A, f"{stem}.lora_up.weight": B}, tmp_path / "x.safetensors")
    assert loraforge.doctor(tmp_path / "x.safetensors").outlooks == ()


# --- the table itself, and where its words come from


def test_each_row_was_run_or_says_that_it_was_read(cli, tmp_path: Path) -> None:
    loraforge.convert(Case("peft_plain").source, to="diffusers", out=tmp_path / "o")
    printed = cli("doctor", tmp_path / "o").stdout
    for name, row in rows(tmp_path / "o").items():
        known = table.runtime(name)
        assert row.run == known.run
        line = next(line for line in printed.splitlines() if re.match(rf" {re.escape(name)} ", line))
        assert ("read only" in line) == (not known.run)
        assert all(run.agreed <= run.files and re.fullmatch(r"20\d\d-\d\d-\d\d", run.date) for run in known.run)
    assert {name for name, row in table.runtimes().items() if not row.run} == {"cogvideox-fun"}


def test_modules_of_a_program_are_those_of_the_layout_that_is_written_for_it() -> None:
    for program in ("comfyui", "diffsynth"):
        layout = architecture("cogvideox").layouts[program]
        assert set(table.runtime(program).modules) == {template.text for template in layout.modules}
    ours = {template.text for template in architecture("cogvideox").layouts["diffusers"].modules}
    assert set(table.runtime("cogkit").modules) <= ours


def test_the_report_names_what_the_table_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two claims: ours, which is proven here; and what was seen in programs, which no constant of a format says."""
    case = Case("sat_2b_r4")
    first = loraforge.convert(case.source, to="diffusers", out=tmp_path / "a", **case.said)
    lines = {line.split()[0]: line for line in first.lines()}
    assert "same update as the source (compared)" in lines["strength"] and "Diffusers" not in lines["strength"]
    text = "\n".join(first.lines())
    for run in table.runtime("diffusers").run:
        assert run.version in text
    real = dict(table.runtimes())
    for name in ("cogvideox-fun", "peft", "sat"):
        real.pop(name)
    run = (table.Run("9.9.9", "2026-01-01", 1, 1),)
    told = {name: dataclasses.replace(row, run=run * (name == "diffusers")) for name, row in real.items()}
    monkeypatch.setattr("loraforge.programs.outlook.running", lambda _: list(told.values()))
    monkeypatch.setattr("loraforge.programs.outlook.runtimes", lambda: told)
    other = loraforge.convert(case.source, to="diffusers", out=tmp_path / "b", **case.said)
    (seen,) = [text for label, text in other.seen() if label == "run in"]
    assert seen == "1.0 acts as trained in Diffusers 9.9.9"
    (unseen,) = [text for label, text in other.seen() if label == "not run"]
    assert "Diffusers 0.33" in unseen
    told = {name: dataclasses.replace(row, run=()) for name, row in told.items()}
    none = loraforge.convert(case.source, to="diffusers", out=tmp_path / "c", **case.said)
    assert dict(none.seen())["run in"] == "no program yet: none was seen to apply such a file as it is"


def test_a_scale_that_is_assumed_is_not_said_to_be_of_training(tmp_path: Path) -> None:
    report = loraforge.convert(Case("sat_2b_r4").source, to="diffusers", out=tmp_path / "a")
    assert report.scale.provenance == "assumed"
    assert "as trained" not in "\n".join(report.lines())
    assert "acts so in Diffusers" in "\n".join(report.lines())
