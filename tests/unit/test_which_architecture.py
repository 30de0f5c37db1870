"""Of models that share names, widths and depths, the one that a file says; of none if it says nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.sparse import attention, sparse
from safetensors.numpy import save_file

import loraforge
from loraforge.errors import ConversionError, FormatError, LoraforgeError
from loraforge.names.catalog import architecture

FLUX = [f"lora_unet_double_blocks_{i}_img_attn_qkv" for i in range(19)]
"""All of the blocks of Flux.1, and of Chroma."""


def written(file: Path, **header: str) -> Path:
    factors = {"lora_down": np.ones((4, 3072), "f4"), "lora_up": np.ones((3 * 3072, 4), "f4")}
    state = {f"{path}.{name}.weight": array for path in FLUX for name, array in factors.items()}
    save_file(state | {f"{path}.alpha": np.float32([2.0]) for path in FLUX}, file, header or None)
    return file


@pytest.mark.parametrize(("header", "architecture"), [
    ({"ss_base_model_version": "flux1"}, "flux"),
    ({"modelspec.architecture": "Flux.1-dev/lora"}, "flux"),
    ({"ss_base_model_version": "chroma"}, "chroma"),
    ({"base_model": "black-forest-labs/FLUX.1-dev"}, "flux"),
    ({"base_model": "lodestones/Chroma1-HD"}, "chroma"),
])  # fmt: skip
def test_what_a_header_says_decides(header: dict[str, str], architecture: str, tmp_path: Path) -> None:
    adapter = loraforge.read(written(tmp_path / "style.safetensors", **header))
    assert adapter.architecture == architecture and not adapter.rivals
    assert next(iter(header.values())) in adapter.shown


def test_blocks_and_width_that_two_models_have_show_neither(tmp_path: Path) -> None:
    file = written(tmp_path / "style.safetensors")
    adapter = loraforge.read(file)
    assert {adapter.architecture, *adapter.rivals} >= {"flux", "chroma"} and not adapter.shown
    assert loraforge.inspect(file).evidence is None


@pytest.mark.parametrize("base", ["Wan-AI/Wan2.1-T2V-14B", "Wan-AI/Wan2.2-Animate-14B-Diffusers", "Wan-AI/some-other"])
@pytest.mark.parametrize("stated", [True, False])
def test_a_model_s_other_repositories_are_its_own(base: str, stated: bool, tmp_path: Path) -> None:
    """Only the repositories of Diffusers' checkpoints have a variant of their own; others are known by their owner."""
    header = {} if stated else {"base_model": base}
    modules = {f"blocks.{n}.attn1.to_q": (5120, 5120) for n in range(3)}
    file = sparse(tmp_path / "a.safetensors", modules, metadata=header)
    options = {"base_model": base} if stated else {}
    report = loraforge.convert(file, to="kohya", out=tmp_path / "out", trained_scale=1.0, dry_run=True, **options)
    assert any(f"it fits {base} is not checked" in note for note in report.notes)
    if not stated:
        assert base in loraforge.read(file, trained_scale=1.0).shown


def test_another_model_s_repository_is_refused(tmp_path: Path) -> None:
    file = sparse(
        tmp_path / "a.safetensors", {"blocks.0.attn1.to_q": (5120, 5120)}, metadata={"base_model": "Wan-AI/x"}
    )
    with pytest.raises(ConversionError, match=r"not for genmo/mochi-0, which is Mochi 1"):
        loraforge.convert(file, to="kohya", trained_scale=1.0, dry_run=True, base_model="genmo/mochi-0")


@pytest.mark.parametrize(("names", "to"), [
    ({"transformer_blocks.0.attn.to_q": 1, "transformer_blocks.0.attn.add_q_proj": 1}, "original"),  # of Qwen-Image
    ({"transformer_blocks.0.norm1.linear": 6, "transformer_blocks.0.attn1.to_q": 1}, "comfyui"),  # of CogView too
])  # fmt: skip
def test_names_that_another_model_has_are_not_changed_unasked(names: dict[str, int], to: str, tmp_path: Path) -> None:
    file = sparse(tmp_path / "a.safetensors", {path: (times * 48, 48) for path, times in names.items()}, 2)
    with pytest.raises(LoraforgeError, match=r"nothing (shows|says) which it is of") as refused:
        loraforge.convert(file, to=to, trained_scale=1.0, dry_run=True)
    assert all(remedy.options[0] == "--architecture" for remedy in refused.value.remedies)
    assert loraforge.convert(file, to="peft", out=tmp_path / "out", trained_scale=1.0, dry_run=True).output


@pytest.mark.parametrize("path", ["my.other.proj_out", "lora_unet_odd_proj_out", "context.t_embedder.mlp.0"])
def test_behind_an_unknown_word_only_blocks_are_read(path: str, tmp_path: Path) -> None:
    words = (".lora_down.weight", ".lora_up.weight")
    file = sparse(tmp_path / "a.safetensors", {path: (64, 32)}, 2, prefix="", spelled=words)
    with pytest.raises(LoraforgeError, match=r"not named as those of any model|in a spelling that is not read"):
        loraforge.read(file, trained_scale=1.0)


@pytest.mark.parametrize("base", ["lodestones/Chroma1-HD", "black-forest-labs/FLUX.1-dev"])
def test_the_base_that_is_stated_decides(base: str, tmp_path: Path) -> None:
    """Also if it is of the architecture that the adapter was read as."""
    words = (".lora_down.weight", ".lora_up.weight")
    modules = {f"double_blocks_{n}_img_attn_qkv": (3 * 3072, 3072) for n in range(2)}
    file = sparse(tmp_path / "a.safetensors", modules, prefix="lora_unet_", spelled=words)
    with pytest.raises(LoraforgeError, match="nothing says which it is of"):
        loraforge.convert(file, to="diffusers", out=tmp_path / "out", trained_scale=1.0, dry_run=True)
    report = loraforge.convert(
        file, to="diffusers", out=tmp_path / "out", trained_scale=1.0, dry_run=True, base_model=base
    )
    assert report.evidence == f"--base-model {base}"


def test_a_header_of_another_model_offers_every_model_that_it_may_be(tmp_path: Path) -> None:
    modules = {f"transformer_blocks.{n}.attn.to_q": (48, 48) for n in range(2)}
    file = sparse(tmp_path / "a.safetensors", modules, metadata={"modelspec.architecture": "wan2.1/lora"})
    with pytest.raises(LoraforgeError, match="Which is it") as refused:
        loraforge.read(file, trained_scale=1.0)
    offered = {remedy.options[1] for remedy in refused.value.remedies if remedy.options}
    assert offered >= {"flux", "chroma", "qwen", "sd3"}


@pytest.mark.parametrize("name", ["cogvideox", "CogVideoX", "COGVIDEOX"])
def test_an_architecture_is_stated_by_its_name_or_title(name: str, tmp_path: Path) -> None:
    file = sparse(tmp_path / "x.safetensors", attention(64, 2))
    adapter = loraforge.read(file, alpha=4, architecture=name)
    assert (adapter.architecture, adapter.rivals) == ("cogvideox", {})
    with pytest.raises(FormatError, match=r"there is no architecture 'cogvideo'; there are .*chroma, cogvideox"):
        loraforge.read(file, alpha=4, architecture="cogvideo")


@pytest.mark.parametrize(("title", "name"), [("Flux.1", "flux"), ("wan 2.X", "wan"), ("lumina image 2", "lumina2")])
def test_a_title_names_its_architecture(title: str, name: str) -> None:
    assert architecture(title).name == name


def test_names_that_stay_as_they_are_need_no_model(tmp_path: Path) -> None:
    """LTX-Video has these names in ComfyUI; they are CogVideoX's in Diffusers, and stay as they are there."""
    file = sparse(tmp_path / "x.safetensors", attention(64, 2), prefix="diffusion_model.")
    report = loraforge.convert(file, to="diffusers", alpha=4, out=tmp_path / "out.safetensors")
    assert report.evidence is None and {step.module for step in report.steps} == {*attention(64, 2)}
    report = loraforge.convert(file, to="comfyui", alpha=4, out=tmp_path / "comfyui.safetensors")
    assert report.evidence is None and {step.module for step in report.steps} == {*attention(64, 2)}


@pytest.mark.parametrize(("prefix", "sep"), [("lora_unet_", "_"), ("diffusion_model.", "."), ("", ".")])
def test_a_wrong_architecture_is_said_to_be_wrong(prefix: str, sep: str, tmp_path: Path, cli) -> None:
    paths = [f"double_blocks.{n}.{side}_mod.lin" for n in (0, 1) for side in ("img", "txt")]
    words = (".lora_down.weight", ".lora_up.weight") if sep == "_" else (".lora_A.weight", ".lora_B.weight")
    modules = {path.replace(".", sep): (384, 64) for path in paths}
    file = sparse(tmp_path / "x.safetensors", modules, prefix=prefix, spelled=words)
    wrong = ["--architecture", "wan"]
    for verb in (["convert", file, "--to", "diffusers", "--alpha", "4"], ["inspect", file], ["doctor", file]):
        done = cli(*verb, *wrong)
        assert "is an adapter of Flux.1: its modules are not called as those of wan" in done.output
        assert "--architecture flux" in done.output
        assert done.exit_code == 1


def test_names_that_differ_by_a_number_alone_are_told_apart(tmp_path: Path) -> None:
    """`adaLN_modulation.1` is Lumina 2's; Z-Image has `.0`, which the index, without numbers, takes for the same."""
    sizes = {"feed_forward.w1": (64, 24), "feed_forward.w2": (24, 64), "adaLN_modulation.1": (96, 16)}
    modules = {f"layers.{n}.{name}": size for n in range(3) for name, size in sizes.items()}
    seen = loraforge.inspect(sparse(tmp_path / "x.safetensors", modules, prefix=""))
    assert (seen.format, seen.architecture, seen.problem) == ("original", "lumina2", None)


def test_a_report_names_each_model_that_it_may_be(tmp_path: Path) -> None:
    file = written(tmp_path / "style.safetensors")
    report = loraforge.convert(file, to="diffusers", out=tmp_path / "out.safetensors")
    assert {report.architecture, *report.rivals} == {"chroma", "flux"}
    text = "\n".join(report.lines())
    assert "1.0 is right if it is Chroma or Flux.1" in text and "Chroma or Flux.1: nothing shows which" in text
    assert "the only one with these shapes" not in text
