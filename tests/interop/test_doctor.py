"""What doctor predicts of Diffusers and PEFT is what the installed libraries do, file by file."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from helpers.oracle import DATA, Case
from hostile.doctor_faults import FAULTS, HEALTHY
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import loraforge
from loraforge.cli.app import main
from loraforge.programs.table import runtimes

SOURCE = DATA / "diffusers_save_lora_weights_meta" / "pytorch_lora_weights.safetensors"
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors, dict[str, str]], None]


def renamed(old: str, new: str, *, only: str = "") -> Change:
    def change(tensors: Tensors, _: dict[str, str]) -> None:
        for key in [key for key in tensors if old in key and only in key]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return change


def header(**entries: Any) -> Change:
    """Other entries in lora_adapter_metadata; None takes one away."""

    def change(_: Tensors, metadata: dict[str, str]) -> None:
        said = {**json.loads(metadata["lora_adapter_metadata"]), **entries}
        metadata["lora_adapter_metadata"] = json.dumps({k: v for k, v in said.items() if v is not None})

    return change


def no_header(_: Tensors, metadata: dict[str, str]) -> None:
    metadata.pop("lora_adapter_metadata")


def unprefixed_header(_: Tensors, metadata: dict[str, str]) -> None:
    said = json.loads(metadata["lora_adapter_metadata"])
    metadata["lora_adapter_metadata"] = json.dumps({k.removeprefix("transformer."): v for k, v in said.items()})


def zeroed(*parts: str) -> Change:
    def change(tensors: Tensors, _: dict[str, str]) -> None:
        for key in tensors:
            if all(part in key for part in parts):
                tensors[key] = torch.zeros_like(tensors[key])

    return change


def alphas(tensors: Tensors, _: dict[str, str]) -> None:
    for key in [key for key in tensors if ".lora_A." in key]:
        tensors[key.replace(".lora_A.weight", ".alpha")] = torch.tensor(4.0)


def broken(tensors: Tensors, _: dict[str, str]) -> None:
    next(iter(tensors.values()))[0, 0] = float("nan")


def halved(tensors: Tensors, _: dict[str, str]) -> None:
    for key in tensors:
        tensors[key] = tensors[key].to(torch.bfloat16)


FILES: dict[str, tuple[tuple[Change, ...], str]] = {
    "as it was saved": ((), "acts as trained"),
    "bf16": ((halved,), "acts as trained"),
    "older spelling": ((renamed(".lora_A.", ".lora.down."), renamed(".lora_B.", ".lora.up.")), "acts as trained"),
    "no header": ((no_header,), "cannot tell (0.125 or 8 or 0.5 or 1)"),
    "another alpha": ((header(**{"transformer.lora_alpha": 8}),), "acts as trained"),
    "no prefix": ((renamed("transformer.transformer_blocks", "transformer_blocks"),), "does nothing"),
    "no prefix, in the header neither": (
        (renamed("transformer.transformer_blocks", "transformer_blocks"), unprefixed_header),
        "does nothing",
    ),
    "another model's names": (
        (renamed("transformer.transformer_blocks", "transformer.single_transformer_blocks"),),
        "does nothing",
    ),
    "PEFT's prefix": (
        (renamed("transformer.transformer_blocks", "base_model.model.transformer_blocks"),),
        "does nothing",
    ),
    "ComfyUI's prefix": (
        (renamed("transformer.transformer_blocks", "diffusion_model.transformer_blocks"),),
        "does nothing",
    ),
    "half without a prefix": ((renamed("transformer.transformer_blocks.1", "transformer_blocks.1"),), "broken file"),
    "an adapter name inside": (
        (renamed(".lora_A.", ".lora_A.default."), renamed(".lora_B.", ".lora_B.default.")),
        "does nothing",
    ),
    "kohya's words": (
        (no_header, renamed(".lora_A.", ".lora_down."), renamed(".lora_B.", ".lora_up.")),
        "does nothing",
    ),
    "alpha tensors": ((alphas, no_header), "does nothing"),
    "header of nobody": ((unprefixed_header,), "does nothing"),
    "header with a field of the future": ((header(**{"transformer.magic": 1}),), "does nothing"),
    "dead B": ((zeroed(".lora_B."),), "does nothing"),
    "dead A": ((zeroed(".lora_A."),), "does nothing"),
    "one dead": ((zeroed("blocks.0.attn1.to_q", ".lora_B."),), "acts in part"),
    "no number": ((broken,), "broken file"),
}


def made(place: Path, *changes: Change) -> Path:
    tensors = load_file(SOURCE)
    with safe_open(SOURCE, framework="pt") as file:
        metadata = dict(file.metadata())
    for change in changes:
        change(tensors, metadata)
    save_file(tensors, place / SOURCE.name, metadata)
    return place / SOURCE.name


def transformer() -> Any:
    return CogVideoXTransformer3DModel.from_pretrained(DATA / "bases" / "2b", torch_dtype=torch.float32)


def filled(model: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Module -> scaling, for the layers whose A is one of the file's."""
    held = [t.float() for key, t in tensors.items() if "A" in key.rpartition("lora")[2] or "down" in key]
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            A = (
                layer.lora_A["default"].weight
                if "default" in layer.lora_A
                else next(iter(layer.lora_A.values())).weight
            )
            if not A.is_meta and any(
                A.shape == t.shape and torch.equal(A.detach().float().nan_to_num(), t.nan_to_num()) for t in held
            ):
                found[name.removeprefix("base_model.model.")] = next(iter(layer.scaling.values()))
    return found


def in_diffusers(file: Path) -> dict[str, float] | None:
    """What the installed Diffusers has in its layers; None where it raises."""
    model = transformer()
    pipe = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    except Exception:
        return None
    return filled(model, load_file(file))


def predicted(file: Path, program: str, **said: Any) -> Any:
    return next(o for o in loraforge.doctor(file, **said).outlooks if o.runtime == program)


@pytest.mark.parametrize("name", FILES)
def test_diffusers_does_what_is_predicted(name: str, tmp_path: Path) -> None:
    changes, verdict = FILES[name]
    file = made(tmp_path, *changes)
    found = loraforge.doctor(file, runtime_="diffusers", architecture="cogvideox")
    assert found.verdict == verdict, found.why
    if not found.outlooks:
        return
    real, (row,) = in_diffusers(file), found.outlooks
    assert bool(row.raises) == (real is None), (row, real)
    assert row.applied == len(real or {})
    assert set(row.scalings) == set((real or {}).values())


PEFT = ("peft_plain", "peft_rslora", "peft_patterns", "peft_dora")


@pytest.mark.parametrize("name", PEFT)
def test_peft_does_what_is_predicted(name: str, tmp_path: Path) -> None:
    case = Case(name)
    row = predicted(case.source, "peft")
    model = PeftModel.from_pretrained(transformer(), str(case.source))
    real = filled(model, load_file(case.source / "adapter_model.safetensors"))
    assert (row.applied, set(row.scalings), row.ratios) == (len(real), set(real.values()), (1.0,))
    assert loraforge.doctor(case.source).healthy
    folder = Path(shutil.copytree(case.source, tmp_path / "without"))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(Exception, match=r"adapter_config|Can't find"):
        PeftModel.from_pretrained(transformer(), str(folder))
    assert predicted(folder / "adapter_model.safetensors", "peft").raises == "adapter_config.json"
    real = in_diffusers(folder / "adapter_model.safetensors")
    assert predicted(case.source, "diffusers").applied == len(real or {}) == 0


EVERY = {**{name: (fault.make, fault.words) for name, fault in FAULTS.items()}, **HEALTHY}
ALONE = {name: case for name, case in EVERY.items() if not {"--base", "--override-scale"} & set(case[1])}
"""Those of which nothing but the file decides: another base raises, and a refused header has no prediction."""


@pytest.mark.parametrize("name", ALONE)
def test_on_every_file_of_the_corpus(name: str, tmp_path: Path) -> None:
    """Modules, scaling and whether it raises: as predicted for Diffusers and for PEFT, wherever a file can be read."""
    make, words = ALONE[name]
    said = list(words)
    if "--runtime" in said:
        del said[said.index("--runtime") : said.index("--runtime") + 2]
    done = CliRunner().invoke(main, ["doctor", str(make(tmp_path)), *said, "--json"])
    document = json.loads(done.stdout)
    rows = {row["runtime"]: row for row in document["outlooks"]}
    if not rows:
        return
    path = Path(document["facts"]["file"].partition(" (")[0])
    if path.suffix == ".safetensors":
        row, real = rows["diffusers"], in_diffusers(path)
        assert bool(row["raises"]) == (real is None), (row, real)
        assert row["applied"] == len(real or {}), (row, real)
        assert row["scalings"] == pytest.approx(sorted(set((real or {}).values()))), row
    if path.name == "adapter_model.safetensors":
        row = rows["peft"]
        try:
            model = PeftModel.from_pretrained(transformer(), str(path.parent))
        except Exception:
            assert row["raises"], row
            return
        real = filled(model, load_file(path))
        assert (row["raises"], row["applied"]) == ("", len(real)), row
        assert row["scalings"] == pytest.approx(sorted(set(real.values()))), row


def test_the_project_was_born_from_this(tmp_path: Path) -> None:
    """CogVideo's trainer: 64/128, no alpha in the file; an old cli_demo.py fuses at 1/rank."""
    tensors = {}
    for key, tensor in load_file(SOURCE).items():  # rank 128, as the trainer's default has it
        axis = 0 if ".lora_A." in key else 1
        tensors[key] = torch.cat([tensor] * 16, dim=axis).contiguous()
    wide = "transformer.transformer_blocks.0.ff.net.0.proj.lora_"  # of a rank no attention of so narrow a model needs
    tensors |= {f"{wide}A.weight": torch.full((128, 64), 0.1), f"{wide}B.weight": torch.full((256, 128), 0.1)}
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, file, {"format": "pt"})
    unsaid = loraforge.doctor(file, runtime_="cli_demo-old")
    assert unsaid.verdict.startswith("cannot tell (")
    assert {"1", "0.5"} <= set(unsaid.verdict.removeprefix("cannot tell (").removesuffix(")").split(" or "))
    said = loraforge.doctor(file, runtime_="cli_demo-old", trained_by="cogvideo", architecture="cogvideox")
    assert said.verdict == "64x too weak"
    page = (Path(__file__).parents[2] / "docs" / "tutorial-doctor.md").read_text("utf-8")
    assert said.lines()[0] in page
    assert "loraforge convert pytorch_lora_weights.safetensors --to diffusers --trained-by cogvideo" in page
    assert "1/128" in said.why
    (line,) = said.fix
    assert line == f"loraforge convert {file} --architecture cogvideox --to diffusers --trained-by cogvideo"
    assert any("lora_scale=1.0" in note for note in said.notes)
    report = loraforge.convert(
        file, to="diffusers", out=tmp_path / "right", trained_by="cogvideo", architecture="cogvideox"
    )
    assert report.scalings == (0.5,)
    good = loraforge.doctor(tmp_path / "right")
    assert good.healthy
    assert loraforge.doctor(tmp_path / "right", runtime_="diffusers-0.33").healthy
    real = in_diffusers(tmp_path / "right" / file.name)
    assert real is not None
    assert set(real.values()) == {1.0}


def test_a_name_changes_what_the_comfyui_wrapper_does(tmp_path: Path) -> None:
    file = made(tmp_path)
    assert predicted(file, "comfyui-wrapper").ratios == (1.0,)
    orbit = shutil.copy(file, tmp_path / "my-Orbit-lora.safetensors")
    assert predicted(Path(orbit), "comfyui-wrapper").ratios == (1.0,)
    assert predicted(file, "comfyui-wrapper-fused").ratios == (1.0,)
    assert predicted(Path(orbit), "comfyui-wrapper-fused").ratios == (0.125,)


def test_sizes_are_those_of_the_updates(tmp_path: Path) -> None:
    from loraforge.diagnosis.factors import numbers

    case = Case("diffusers_meta_patterns")
    sizes = numbers(loraforge.read(case.source)).sizes
    assert loraforge.doctor(case.source).sizes == sizes
    for path, delta in case.deltas.items():
        assert sizes[path] == pytest.approx(np.linalg.norm(delta), rel=1e-5)


@pytest.mark.parametrize(
    "name", ["sat_2b_r4", "sat_5b_i2v_r8", "diffusers_meta_patterns", "peft_dora", "diffusers_save_lora_weights_meta"]
)
def test_healthy_files_of_every_writer_are_healthy(name: str, tmp_path: Path) -> None:
    """And every format they are converted to; with the base, too, which another base is not."""
    case = Case(name)
    source = case.run(tmp_path) if name.startswith("sat") else case.source
    named = "cogvideox" if name.startswith("diffusers") else None  # nothing in these files shows what they are of
    assert loraforge.doctor(source, architecture=named).healthy
    base = case.base if "i2v" not in name else DATA / "bases" / "5b_i2v"
    found = loraforge.doctor(source, base=base)
    assert found.healthy
    assert dict(found.facts)["fused"]
    for to in ("diffusers", "peft"):
        loraforge.convert(source, to=to, out=tmp_path / to, architecture=named)
        assert loraforge.doctor(tmp_path / to).healthy


def test_a_conversion_for_a_program_is_right_in_it(tmp_path: Path, cli: Any) -> None:
    """The format it takes, its advice, and a warning where the name of the file would change what it does."""
    source = Case("peft_rslora").source
    for program, form in {"cli_demo": "diffusers", "peft": "peft"}.items():
        done = cli("convert", source, "--for", program, "-o", tmp_path / program)
        assert done.exit_code == 0, done.output
        assert predicted(tmp_path / program, program).ratios == (1.0,)
        assert loraforge.inspect(tmp_path / program).format == form
    done = cli("convert", source, "--for", "cli_demo-old", "-o", tmp_path / "dimensionx-left.safetensors")
    assert "lora_scale=1.0" in done.stderr
    assert "the path has 'dimensionx' in it. ComfyUI-CogVideoXWrapper" in done.stderr
    assert cli("convert", source).exit_code == cli("convert", source, "--to", "peft", "--for", "peft").exit_code == 2
    assert "there is no program 'magic'; there are diffusers, " in cli("convert", source, "--for", "magic").stderr


def test_an_unknown_runtime_lists_those_there_are(tmp_path: Path, cli: Any) -> None:
    done = cli("doctor", SOURCE, "--runtime", "magic")
    assert done.exit_code == 1
    assert f"there are {', '.join(runtimes())}." in done.stderr
    assert cli("doctor", tmp_path / "nothing").exit_code == 1


def test_settings_are_judged_beside_the_model(tmp_path: Path, cli: Any) -> None:
    """A healthy file run with the wrong settings is told, and is no success; the model must be known."""
    loraforge.convert(SOURCE, to="diffusers", out=tmp_path / "a", base_model="zai-org/CogVideoX-5b")
    shown = ("--architecture", "cogvideox")
    words = ("doctor", tmp_path / "a", *shown, "--settings", "torch_dtype=float16", "--settings", "num_frames=50")
    done = cli(*words)
    assert done.exit_code == 1
    assert "acts as trained" in done.stdout
    assert "wrong     torch_dtype float16" in done.stdout
    assert "wrong     num_frames 50" in done.stdout
    good = cli("doctor", tmp_path / "a", *shown, "--settings", "torch_dtype=bfloat16", "--settings", "num_frames=49")
    assert good.exit_code == 0, good.stdout
    assert "fine      num_frames, torch_dtype" in good.stdout or "fine      torch_dtype, num_frames" in good.stdout
    unknown = cli("doctor", SOURCE, "--settings", "num_frames=49")
    assert unknown.exit_code == 1
    assert "--variant CogVideoX-2B" in unknown.stderr
    named = ("--variant", "CogVideoX-2B", "--architecture", "cogvideox")
    assert cli("doctor", SOURCE, "--settings", "num_frames=49", *named).exit_code == 0
    assert "there is no preset" in cli("doctor", SOURCE, "--like", "magic", "--variant", "CogVideoX-2B").stderr
    like = json.loads(cli("doctor", tmp_path / "a", "--like", "load_cogvideox_lora", "--json").stdout)
    assert any(entry["key"] == "guidance_scale" for entry in like["settings"])


def test_the_help_names_every_preset(cli: Any) -> None:
    from loraforge.facts.variants import table

    text = " ".join(cli("doctor", "--help").stdout.split())
    assert all(name in text for name in table()["presets"])


def test_a_pasted_error_is_explained_beside_the_file(tmp_path: Path, cli: Any) -> None:
    """The text says what the loader did not find; the file says why."""
    file = made(tmp_path, renamed("transformer.transformer_blocks", "transformer_blocks"))
    log = "INFO start\nValueError: Adapter name(s) {'style'} not in the list of present adapters: set().\nINFO end"
    done = cli("doctor", file, "--error", log)
    assert done.exit_code == 1
    assert done.stdout.startswith("does nothing")
    assert "  D7 " in done.stdout
    assert json.loads(cli("doctor", file, "--error", log, "--json").stdout)["errors"][0]["id"] == "D7"
    assert "no failure text that is known" in cli("doctor", file, "--error", "ModuleNotFoundError: decord").stderr


def test_the_model_it_was_trained_on_is_compared_with_the_base(tmp_path: Path, cli: Any) -> None:
    """Shapes that fit are not the model: 5B, I2V and 1.5 share most of theirs."""
    loraforge.convert(SOURCE, to="diffusers", out=tmp_path / "a", base_model="zai-org/CogVideoX1.5-5B")
    done = cli("doctor", tmp_path / "a", "--base", DATA / "bases" / "2b")
    assert "the adapter is for zai-org/CogVideoX1.5-5B, and the base has the shapes of" in done.stderr


def test_what_is_right_in_one_program_only_says_so(tmp_path: Path, cli: Any) -> None:
    """A SAT run acts in SAT; a PEFT folder in PEFT; the line for another program is there."""
    done = cli("doctor", Case("peft_plain").source)
    assert done.exit_code == 0
    assert "elsewhere does nothing in diffusers, " in done.stdout
    assert "--for NAME" in done.stdout
    log = "No LoRA keys associated to CogVideoXTransformer3DModel found with the prefix='transformer'."
    told = cli("doctor", Case("peft_plain").source, "--error", log)
    assert "nothing in this file explains that text" in told.stderr
    settings = ("--variant", "CogVideoX-5B", "--settings", "torch_dtype=float16")
    wrong = cli("doctor", SOURCE, *settings, "--architecture", "cogvideox")
    assert wrong.stdout.startswith("acts as trained, but not with these settings: ")
    assert cli("doctor", SOURCE, "--variant", "foo").exit_code == 1


def test_no_command_is_printed_that_cannot_run(tmp_path: Path) -> None:
    """Formats of packages that are not there, SAT's base, DoRA in SAT: said in words."""
    (line,) = loraforge.doctor(Case("peft_plain").source, runtime_="sat").fix
    assert line.endswith("--to sat   # it asks for SAT's checkpoint of the base")
    dora = loraforge.doctor(Case("peft_dora").source, runtime_="sat")
    assert not dora.fix and any("SAT has no DoRA" in note for note in dora.notes)
