"""Of which architecture an adapter is: believed where something shows it, asked for where only the names fit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.oracle import DATA, Case
from helpers.sparse import BASE_5B, attention, sparse

import loraforge
from loraforge.errors import FormatError

PLUGINS = Path(__file__).parents[2] / "plugins"
SETTLES = "nothing shows that it is one"


def blocks(width: int, count: int, *, ff: int = 4, norm: int = 0) -> dict[str, tuple[int, ...]]:
    found = attention(width, count)
    for n in range(count):
        found[f"transformer_blocks.{n}.ff.net.0.proj"] = (ff * width, width)
        found[f"transformer_blocks.{n}.ff.net.2"] = (width, ff * width)
        if norm:
            found[f"transformer_blocks.{n}.norm1.linear"] = (6 * width, norm)
    return found


OTHERS: Mapping[str, dict[str, tuple[int, ...]]] = {
    "LTX-Video": attention(2048, 2),
    "LTX-Video, feed-forward too": blocks(2048, 1),
    "Sana": attention(2240, 2),
    "Cosmos": blocks(4096, 1),
    "PixArt": blocks(1152, 2),
    "Allegro": blocks(2304, 1),
    "CogView4": blocks(4096, 1, norm=512),
    "Stable Audio": attention(1536, 2),
    "Mochi, the first blocks": attention(3072, 2),
    "EasyAnimate of 24 blocks": blocks(3072, 1, norm=512),
    "tiny": attention(64, 2),
    "of a width nobody has": blocks(1000, 3),
}
REFUSED = {
    "CogView3, with its embedders": blocks(2560, 1, norm=512)
    | {"patch_embed.text_proj": (2560, 4096), "norm_out.linear": (5120, 512), "proj_out": (64, 2560)},
    "EasyAnimate": attention(3072, 1, 43) | {"transformer_blocks.0.norm2.linear": (18432, 512)},
    "Mochi's gated feed-forward": blocks(3072, 1, ff=5),
}


@pytest.mark.parametrize("name", OTHERS)
def test_names_that_others_have_are_no_evidence(name: str, tmp_path: Path, cli) -> None:
    file = sparse(tmp_path / "x.safetensors", OTHERS[name])
    for words in (
        ["convert", file, "--to", "diffusers", "--alpha", "4", "-o", tmp_path / "d.safetensors"],
        ["convert", file, "--to", "peft", "--alpha", "4", "-o", tmp_path / "p"],
        ["inspect", file],
    ):
        done = cli(*words)
        assert done.exit_code == 0, done.output
        assert SETTLES in done.output
        assert "as trained" not in done.output
    for written in (file, tmp_path / "d.safetensors", tmp_path / "p"):
        said = cli("doctor", written, *(["--alpha", "4"] if written == file else []))
        assert said.exit_code == 1
        assert not said.stdout.startswith("acts as trained")
        pushed = cli("push", written, "me/x", "--dry-run")
        assert pushed.exit_code == 1


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_fit_and_shapes_that_do_not(name: str, tmp_path: Path, cli) -> None:
    file = sparse(tmp_path / "x.safetensors", REFUSED[name])
    assert cli("convert", file, "--to", "diffusers", "--alpha", "4", "-o", tmp_path / "d").exit_code == 1
    assert not (tmp_path / "d").exists()


def test_an_attention_of_another_width_to_sat(tmp_path: Path, cli) -> None:
    modules = attention(2048, 2)
    done = cli(
        "convert",
        sparse(tmp_path / "x.safetensors", modules),
        "--to",
        "sat",
        "--lora-only",
        "--alpha",
        "4",
        "-o",
        tmp_path / "s",
    )
    assert "as trained" not in done.output
    assert done.exit_code == 1 or SETTLES in done.output


def test_a_released_width_and_its_blocks(tmp_path: Path, cli) -> None:
    for width, count, name in ((1920, 30, "CogVideoX-2B"), (3072, 42, "CogVideoX-5B")):
        file = sparse(
            tmp_path / f"{width}.safetensors", attention(width, count, 0) if count < 40 else attention(width, 1, 41)
        )
        assert name in str(loraforge.inspect(file).evidence)
    report = loraforge.convert(tmp_path / "1920.safetensors", to="diffusers", alpha=4, out=tmp_path / "d.safetensors")
    assert report.evidence


@pytest.mark.parametrize(
    ("modules", "metadata", "said"),
    [
        (attention(64, 2), {"modelspec.architecture": "CogVideoX-5b/lora"}, "modelspec.architecture"),
        (attention(64, 2), {"ss_base_model_version": "cogvideox"}, "ss_base_model_version"),
        (attention(64, 2), {"base_model": "THUDM/CogVideoX-2b"}, "its base model is recorded"),
        (attention(64, 2), {"base_model_name_or_path": "/data/models/CogVideoX-5b/"}, "its base model is recorded"),
        (attention(64, 2) | {"ofs_embedding.linear_1": (64, 64)}, {}, "no other model is known to have"),
    ],
)
def test_what_shows_it(
    modules: dict[str, tuple[int, ...]], metadata: dict[str, str], said: str, tmp_path: Path, cli
) -> None:
    file = sparse(tmp_path / "x.safetensors", modules, metadata=metadata)
    assert said in str(loraforge.inspect(file).evidence)
    assert SETTLES not in cli("inspect", file).output


def test_the_class_that_peft_records_shows_it() -> None:
    assert "CogVideoXTransformer3DModel" in str(loraforge.inspect(Case("peft_plain").source).evidence)


def test_a_header_that_names_another_model_is_refused_and_can_be_settled(tmp_path: Path, cli) -> None:
    for n, text in enumerate(("PixArt-alpha", "flux-1-dev", "EasyAnimate")):
        file = sparse(tmp_path / f"{n}.safetensors", attention(64, 2), metadata={"modelspec.architecture": text})
        refused = cli("convert", file, "--to", "diffusers", "--alpha", "4", "-o", tmp_path / f"{n}-o.safetensors")
        assert refused.exit_code == 1
        line = re.search(r"try: loraforge (.*?)(   #|\n)", refused.stderr)
        assert line is not None
        assert cli(*shlex.split(line[1])).exit_code == 0


def test_the_architecture_settles_it_in_every_verb(tmp_path: Path, cli) -> None:
    file = sparse(tmp_path / "x.safetensors", attention(64, 2))
    named = ["--architecture", "cogvideox"]
    done = cli("convert", file, "--to", "diffusers", "--trained-scale", "0.5", "-o", tmp_path / "o.safetensors", *named)
    assert "1.0 acts as trained" in done.stdout
    assert SETTLES not in done.output
    assert "--architecture cogvideox" in str(loraforge.inspect(file, architecture="cogvideox").evidence)
    assert loraforge.inspect(tmp_path / "o.safetensors").evidence == "recorded by loraforge"
    assert cli("verify", file, file, *named).exit_code == 0
    stamped = cli("stamp", file, "--alpha", "2", "-o", tmp_path / "s.safetensors", *named)
    assert "acts as trained" in stamped.stdout
    plain = cli("stamp", file, "--alpha", "2", "-o", tmp_path / "t.safetensors")
    assert plain.exit_code == 0
    assert "as trained" not in plain.output
    assert SETTLES in plain.output
    for verb in ("run", "fuse", "push"):
        assert "--architecture" in cli(verb, "--help").stdout
    wrong = cli("inspect", file, "--architecture", "flux")
    assert wrong.exit_code == 1
    assert "cogvideox" in wrong.stderr


def test_the_architecture_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not called as those of hunyuanvideo"):
        loraforge.read(sparse(tmp_path / "x.safetensors", attention(64, 2)), alpha=4, architecture="hunyuanvideo")


@pytest.mark.parametrize("case", ["sat_2b_r4", "sat_5b_r8", "sat_1.5_t2v_r4"])
def test_what_was_shown_is_recorded(case: str, tmp_path: Path, cli) -> None:
    loraforge.convert(Case(case).run(tmp_path), to="diffusers", out=tmp_path / "d.safetensors")
    done = cli("doctor", tmp_path / "d.safetensors")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("acts as trained")


def test_doctor_asks_and_the_line_it_prints_settles_it(tmp_path: Path, cli) -> None:
    source = DATA / "diffusers_save_lora_weights_nometa" / "pytorch_lora_weights.safetensors"
    report = loraforge.convert(source, to="diffusers", alpha=4, out=tmp_path / "d.safetensors")
    assert report.evidence is None
    done = cli("doctor", tmp_path / "d.safetensors")
    assert done.stdout.startswith("cannot tell (which architecture): the names fit CogVideoX")
    line = re.search(r"fix +loraforge (.*)", done.stdout)
    assert line is not None
    assert cli(*shlex.split(line[1])).exit_code == 0


def flux(width: int, *, mods: bool = True) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for n in range(2):
        for side in ("img", "txt"):
            found[f"double_blocks.{n}.{side}_attn.qkv"] = (3 * width, width)
            found[f"double_blocks.{n}.{side}_attn.proj"] = (width, width)
            found[f"double_blocks.{n}.{side}_mlp.0"] = (4 * width, width)
            found[f"double_blocks.{n}.{side}_mlp.2"] = (width, 4 * width)
            if mods:
                found[f"double_blocks.{n}.{side}_mod.lin"] = (6 * width, width)
        found[f"single_blocks.{n}.linear1"] = (7 * width, width)
        found[f"single_blocks.{n}.linear2"] = (width, 5 * width)
    return found


@pytest.mark.parametrize("mods", [True, False], ids=["Flux", "Chroma"])
@pytest.mark.parametrize("width", [64, 3072])
def test_several_that_fit_are_listed_where_it_matters(mods: bool, width: int, tmp_path: Path, cli) -> None:
    file = sparse(tmp_path / "x.safetensors", flux(width, mods=mods), prefix="diffusion_model.")
    line = ["convert", file, "--trained-scale", "1"]
    same = cli(*line, "--to", "diffusers", "-o", tmp_path / "o.safetensors")  # all have the same names there
    assert same.exit_code == 0, same.output
    assert SETTLES in same.stdout
    refused = cli(*line, "--to", "original", "-o", tmp_path / "o")
    assert refused.exit_code == 1
    assert "Flux.1" in refused.stderr and "HunyuanVideo" in refused.stderr
    assert not (tmp_path / "o").exists()
    for command in re.findall(r"try: loraforge (.*?)(?:   #|\n)", refused.stderr):
        assert cli(*shlex.split(command), "--force").exit_code == 0


def test_flattened_names_fit_more(tmp_path: Path, cli) -> None:
    modules = {k.replace(".", "_"): v for k, v in flux(64).items() if "attn" in k or "linear" in k}
    file = sparse(
        tmp_path / "x.safetensors", modules, prefix="lora_unet_", spelled=(".lora_down.weight", ".lora_up.weight")
    )
    refused = cli("convert", file, "--to", "original", "--alpha", "4", "-o", tmp_path / "o")
    assert refused.exit_code == 1
    assert "--architecture flux" in refused.stderr and "--architecture hunyuanvideo" in refused.stderr


TWIN = """architecture = "twin"
title = "Twin"
segments = ["q", "k", "v", "o", "extra"]
[dimensions]
q = ["{q}", "d"]
k = ["d", "d"]
v = ["d", "d"]
o = ["d", "d"]
[layouts.diffusers]
own = ["twin_only"]
[layouts.diffusers.modules]
"transformer_blocks.{{i}}.attn1.to_q" = ["q"]
"transformer_blocks.{{i}}.attn1.to_k" = ["k"]
"transformer_blocks.{{i}}.attn1.to_v" = ["v"]
"transformer_blocks.{{i}}.attn1.to_out.0" = ["o"]
"twin_only" = ["extra"]
"""


def test_two_architectures_with_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "twin.toml").write_text(TWIN.format(q="d"))
    loraforge.use_plugin(tmp_path / "twin.toml")
    file = sparse(tmp_path / "x.safetensors", attention(64, 2))
    assert {*loraforge.read(file, alpha=4).rivals} > {"ltx", "ltx2", "mochi", "twin", "sana"}
    assert re.search("those of .*LTX-Video, LTX-2, Mochi 1, .*Twin", loraforge.inspect(file).lines()[2])
    out = tmp_path / "same.safetensors"  # where both have the same names, it does not matter which it is
    assert loraforge.convert(file, to="diffusers", alpha=4, out=out).evidence is None
    for name in ("cogvideox", "twin"):
        assert loraforge.read(file, alpha=4, architecture=name).architecture == name
    shown = sparse(tmp_path / "y.safetensors", attention(1920, 30))
    assert loraforge.read(shown, alpha=4).architecture == "cogvideox"
    recorded = sparse(tmp_path / "z.safetensors", attention(64, 2), metadata={"modelspec.architecture": "twin"})
    assert loraforge.read(recorded, alpha=4).architecture == "twin"


def test_sizes_narrow_what_names_leave(tmp_path: Path) -> None:
    (tmp_path / "twin.toml").write_text(TWIN.format(q="2 d"))
    loraforge.use_plugin(tmp_path / "twin.toml")
    wide = {p: (128, 64) if p.endswith("to_q") else s for p, s in attention(64, 2).items()}
    assert loraforge.read(sparse(tmp_path / "x.safetensors", wide), alpha=4).architecture == "twin"
    assert loraforge.read(sparse(tmp_path / "y.safetensors", attention(64, 2)), alpha=4).architecture == "cogvideox"


def test_a_stated_base_shows_it_where_its_sizes_are_its_own(tmp_path: Path) -> None:
    file = sparse(tmp_path / "x.safetensors", attention(3072, 2))
    report = loraforge.convert(file, to="diffusers", alpha=4, base_model=BASE_5B, out=tmp_path / "o.safetensors")
    assert report.evidence == f"--base-model {BASE_5B}"
    assert loraforge.inspect(tmp_path / "o.safetensors").evidence
    for width in (32, 64, 480):  # a test's width: any model with these names could be published by naming a base
        file = sparse(tmp_path / f"{width}.safetensors", attention(width, 2))
        out = tmp_path / f"{width}-o.safetensors"
        assert loraforge.convert(file, to="diffusers", alpha=4, base_model=BASE_5B, out=out).evidence is None
        assert loraforge.inspect(out).evidence is None  # which records that base


def test_a_header_that_is_no_text_of_ours_counts_as_nothing(tmp_path: Path) -> None:
    for n, said in enumerate(("[]", "3", '{"architecture": 3}', '{"architecture": "flux"}')):
        file = sparse(tmp_path / f"{n}.safetensors", attention(64, 2), metadata={"loraforge": said})
        assert loraforge.inspect(file).evidence is None
