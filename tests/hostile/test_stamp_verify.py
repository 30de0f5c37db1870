"""`stamp` and `verify` on files that are no adapters, contradict what is stated, or cannot be compared."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hostile.builders import HIDDEN, RANK, checkpoint, factors, numbers, run_folder, safetensors, sat, sat_lora
from hostile.conftest import Check
from hostile.peft_builders import A4, B4, CONV, LENGTHS, MODULE, OTHER, cases, lora, peft
from hostile.refusal import listing, proper
from loraforge.cli.app import main

A, B = factors()
STEM = f"transformer.{MODULE}"
PLAIN = lora("transformer.")
Tensors = Mapping[str, np.ndarray]
Make = Callable[[Path], Path]


@pytest.fixture
def refuses(tmp_path: Path) -> Check:
    """As `refused`, for any command."""

    def check(words: list[object], *fragments: str) -> str:
        before = listing(tmp_path)
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert listing(tmp_path) == before, "something was left behind"
        return proper(result.stderr, fragments, tmp_path)

    return check


def recorded(alpha: Any = 2, **entries: Any) -> dict[str, str]:
    said = {"r": RANK, "lora_alpha": alpha} | entries
    return {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in said.items()})}


def file(tensors: Tensors = PLAIN, header: Any = None, name: str = "x.safetensors") -> Make:
    """What writes a safetensors file into a folder."""

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(safetensors(tensors, header))
        return folder / name

    return make


def raw(data: bytes, name: str = "x.safetensors") -> Make:
    def make(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return folder / name

    return make


def times(factor: float, of: str = "", tensors: Tensors = PLAIN, dtype: str = "float32") -> dict[str, np.ndarray]:
    """The tensors whose name has `of` in it, times a factor."""
    return {
        key: value.astype(dtype) * np.dtype(dtype).type(factor if of in key else 1) for key, value in tensors.items()
    }


def broken(factor: str, value: float) -> dict[str, np.ndarray]:
    tensors = {key: array.copy() for key, array in PLAIN.items()}
    tensors[f"{STEM}.{factor}.weight"][2, 3] = value
    return tensors


# stamp

NUMBERS = ["nan", "inf", "-inf", "1e400", "-nan"]


@pytest.mark.parametrize("alpha", NUMBERS)
@pytest.mark.parametrize(
    "words", [(), ("--override-scale",), ("--in-place",)], ids=["", "--override-scale", "--in-place"]
)
def test_an_alpha_that_is_no_number(tmp_path: Path, refuses, alpha: str, words: tuple[str, ...]):
    place = () if "--in-place" in words else ("-o", tmp_path / "o.safetensors")
    refuses(["stamp", file()(tmp_path), f"--alpha={alpha}", *place, *words], "--alpha")


@pytest.mark.parametrize("alpha", ["0", "-1", "-0.0", "1e-400", "5e-324"])
@pytest.mark.parametrize("words", [(), ("--in-place",)], ids=["", "--in-place"])
def test_an_alpha_no_training_has(tmp_path: Path, refuses, alpha: str, words: tuple[str, ...]):
    place = words or ("-o", tmp_path / "o.safetensors")
    refuses(["stamp", file()(tmp_path), f"--alpha={alpha}", *place], "lora_alpha")


@pytest.mark.parametrize("alpha", ["0", "-1"])
def test_an_alpha_no_training_has_is_blamed_on_who_stated_it(tmp_path: Path, refuses, alpha: str):
    refuses(["stamp", file()(tmp_path), f"--alpha={alpha}"], "--alpha")


@pytest.mark.parametrize("words", [("--alpha", "one"), ("--alpha", "2", "--alpha"), ("--as-in",)])
def test_an_alpha_that_is_missing_is_a_matter_of_usage(tmp_path: Path, cli, words: tuple[str, ...]):
    result = cli("stamp", file()(tmp_path), *words)
    assert result.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors"]


def peft_file(folder: Path) -> Path:
    return peft(folder / "peft") / "adapter_model.safetensors"


def beside_a_configuration(name: str, tensors: Tensors) -> Make:
    """A file in a folder with PEFT's configuration."""

    def make(folder: Path) -> Path:
        place = peft(folder / "peft")
        (place / "adapter_model.safetensors").unlink()
        return file(tensors, name=name)(place)

    return make


def yaml_beside(folder: Path) -> Path:
    words = ("model", "network_config", "params", "modules", "lora_config", "params")
    lines = [f"{'  ' * depth}{word}:" for depth, word in enumerate(words)]
    folder.joinpath("training_config.yaml").write_text(
        "\n".join([*lines, f"{'  ' * 6}r: 4", f"{'  ' * 6}lora_alpha: 5"])
    )
    return file()(folder)


TORCH = checkpoint(dict(PLAIN))
UNSTAMPABLE = {
    "another scale recorded": (file(PLAIN, recorded(3)), "two scales"),
    "another scale of finetrainers": (file(PLAIN, {"lora_config": '{"r": 4, "lora_alpha": 3}'}), "two scales"),
    "another scale in a YAML beside it": (yaml_beside, "two scales"),
    "a record that is not JSON": (file(PLAIN, {"lora_adapter_metadata": "{"}), "JSON"),
    "a record nested 100,000 deep": (file(PLAIN, {"lora_adapter_metadata": "[" * 100_000}), "JSON"),
    "a record of another method": (file(PLAIN, recorded(peft_type="LOHA")), "peft_type"),
    "a torch file": (raw(TORCH, "pytorch_lora_weights.bin"), "torch"),
    "a torch file by another suffix": (raw(TORCH), "torch"),
    "a SAT file": (raw(sat(), "mp_rank_00_model_states.pt"), "torch"),
    "a SAT run": (lambda folder: run_folder(folder / "run", "1000", latest="1000"), "torch"),
    "SAT's names": (file(sat_lora()), ""),
    "a file of PEFT's folder": (peft_file, "adapter_config.json"),
    "PEFT's folder": (lambda folder: peft(folder / "peft"), "adapter_config.json"),
    "Diffusers' names in PEFT's folder": (beside_a_configuration("adapter_model.safetensors", PLAIN), ""),
    "NaN": (file(broken("lora_A", np.nan)), "NaN"),
    "infinity": (file(broken("lora_B", np.inf)), "infinity"),
    "a magnitude of NaN": (file(PLAIN | {f"{STEM}.lora_magnitude_vector": LENGTHS * np.nan}), "NaN"),
    "A without B": (file({f"{STEM}.lora_A.weight": A}), "has no B"),
    "another tensor": (file(PLAIN | {"position_ids": numbers(3, dtype="int64")}), "position_ids"),
    "no adapter": (file({"x": A}), "no adapter"),
    "nothing": (file({}), "0 tensors"),
    "noise": (raw(b"noise" * 20), "neither"),
    "0 bytes": (raw(b""), "empty"),
    "a file that is not there": (lambda folder: folder / "no.safetensors", "does not exist"),
    "an empty folder": (lambda folder: (folder / "x").mkdir() or folder / "x", "no adapter was found"),
    "SAT's names are told": (file(sat_lora()), "SAT"),
    "a rank unlike the tensors": (file(PLAIN, recorded(r=8)), "rank 4"),
}


@pytest.mark.parametrize(("make", "fragment"), **cases(UNSTAMPABLE))
@pytest.mark.parametrize("in_place", [False, True], ids=["", "--in-place"])
def test_a_file_that_cannot_be_stamped(tmp_path: Path, refuses, in_place: bool, make: Make, fragment: str):
    place = ["--in-place"] if in_place else ["-o", tmp_path / "o.safetensors"]
    refuses(["stamp", make(tmp_path), "--alpha", "2", *place], fragment)


def test_a_file_beside_a_configuration_that_fits_it(tmp_path: Path, cli):
    """It may be renamed: the configuration counts, and an alpha that contradicts it is refused."""
    source = beside_a_configuration("x.safetensors", lora(""))(tmp_path)
    assert "the scale is read from" in cli("convert", source, "--to", "peft", "-o", tmp_path / "p").stderr
    refused = cli("stamp", source, "--alpha", "20", "-o", tmp_path / "o.safetensors")
    assert refused.exit_code == 1 and "two scales" in refused.stderr
    words = ("--alpha", "20", "--override-scale")
    assert cli("stamp", source, *words, "-o", tmp_path / "o.safetensors").exit_code == 0


def test_stamp_onto_its_source(tmp_path: Path, refuses):
    source = file()(tmp_path)
    try:
        (tmp_path / "link.safetensors").symlink_to(source)
    except OSError:
        pytest.skip("links need a privilege here")
    for place in (source, tmp_path / "y" / ".." / source.name, tmp_path, tmp_path / "link.safetensors"):
        for force in ((), ("--force",)):
            refuses(["stamp", source, "--alpha", "2", "-o", place, *force], "source")


def test_stamp_onto_a_file_that_exists(tmp_path: Path, refuses):
    source, other = file()(tmp_path), tmp_path / "other.safetensors"
    other.write_bytes(b"precious")
    refuses(["stamp", source, "--alpha", "2", "-o", other], "exists")
    refuses(["stamp", file(name="other.safetensors")(tmp_path / "folder"), "--alpha", "2", "-o", tmp_path], "exists")


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "--force"])
def test_stamp_in_place_and_elsewhere(tmp_path: Path, refuses, force: tuple[str, ...]):
    source = file()(tmp_path)
    refuses(["stamp", source, "--alpha", "2", "--in-place", "-o", tmp_path / "o.safetensors", *force], "--in-place")


PLACES: dict[str, Make] = {
    "a torch file": lambda folder: folder / "o.pt",
    "below a file": lambda folder: folder / "x.safetensors" / "o.safetensors",
    "a folder below a file": lambda folder: folder / "x.safetensors" / "o",
    "a name of 300 letters": lambda folder: folder / ("o" * 300 + ".safetensors"),
    "a path of 5,000 letters": lambda folder: folder / ("o/" * 2_500) / "o.safetensors",
}


@pytest.mark.parametrize("place", **cases(PLACES))
def test_stamp_to_a_place_that_cannot_be(tmp_path: Path, refuses, place: Make):
    refuses(["stamp", file()(tmp_path), "--alpha", "2", "-o", place(tmp_path)])


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", int)() == 0, reason="root writes everywhere")
def test_stamp_in_a_folder_that_is_read_only(tmp_path: Path, refuses):
    source = file()(tmp_path / "x")
    source.parent.chmod(0o500)
    try:
        refuses(["stamp", source, "--alpha", "2", "--in-place"], "cannot be written")
        refuses(["stamp", source, "--alpha", "2", "-o", source.parent / "o.safetensors"], "cannot be written")
    finally:
        source.parent.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder nobody can write to, not even root")
def test_stamp_to_a_file_system_that_is_read_only(tmp_path: Path, refuses):
    refuses(["stamp", file()(tmp_path), "--alpha", "2", "-o", "/proc/o.safetensors"], "cannot be written")


def test_a_stamp_does_not_promise_a_loader_that_loads_nothing(tmp_path: Path, cli):
    result = cli("stamp", file(lora("base_model.model."))(tmp_path), "--alpha", "2", "-o", tmp_path / "o.safetensors")
    assert result.exit_code == 1 or "acts as trained in Diffusers" not in result.output


def test_a_stamp_as_it_should_be(tmp_path: Path, cli):
    source, out = file()(tmp_path), tmp_path / "o.safetensors"
    before = source.read_bytes()
    assert cli("stamp", source, "--alpha", "2", "-o", out).exit_code == 0
    assert source.read_bytes() == before
    assert cli("stamp", out, "--alpha", "2", "--in-place").exit_code == 0
    assert cli("stamp", out, "--alpha", "3", "--override-scale", "--in-place").exit_code == 0
    assert cli("verify", out, file(PLAIN, recorded(3), "y.safetensors")(tmp_path)).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.safetensors", "x.safetensors", "y.safetensors"]


# verify

UNREADABLE = {
    "none there": (lambda folder: folder / "no.safetensors", "does not exist"),
    "an empty folder": (lambda folder: folder.mkdir() or folder, "no adapter was found"),
    "Wan": (file(lora("diffusion_model.", "blocks.0.self_attn.q")), "CogVideoX"),
    "Wan, by Diffusers": (file(lora("transformer.", "blocks.0.attn1.to_q")), "CogVideoX"),
    "Flux": (file(lora("transformer.", "single_transformer_blocks.0.attn.to_q")), "CogVideoX"),
    "a module more, of Flux": (file(PLAIN | lora("transformer.", "x_embedder")), "x_embedder"),
    "kohya": (file({"lora_unet_x.lora_down.weight": A, "lora_unet_x.lora_up.weight": B}), "not named as those of"),
    "NaN in A": (file(broken("lora_A", np.nan)), "NaN"),
    "NaN in B": (file(broken("lora_B", np.nan)), "NaN"),
    "infinity": (file(broken("lora_B", -np.inf)), "infinity"),
    "NaN in a magnitude": (file(PLAIN | {f"{STEM}.lora_magnitude_vector": LENGTHS * np.nan}), "NaN"),
    "DoRA": (file(PLAIN | {f"{STEM}.lora_magnitude_vector": LENGTHS}), "DoRA"),
    "other rows": (file({f"{STEM}.lora_A.weight": A, f"{STEM}.lora_B.weight": numbers(HIDDEN + 4, RANK)}), "rows"),
    "zeros of other rows": (
        file({f"{STEM}.lora_A.weight": A * 0, f"{STEM}.lora_B.weight": numbers(HIDDEN + 4, RANK) * 0}),
        "rows",
    ),
    "a scale of NaN": (file(PLAIN, recorded(float("nan"))), "nan"),
    "a scale of 0": (file(PLAIN, recorded(0)), "scaling of 0"),
    "a rank unlike the tensors": (file(PLAIN, recorded(r=8)), "rank 4"),
    "two scales": (file(PLAIN, recorded() | {"lora_config": '{"r": 4, "lora_alpha": 1}'}), "two scales"),
    "a record that is not JSON": (file(PLAIN, {"lora_adapter_metadata": "{"}), "JSON"),
    "two spellings": (file(PLAIN | {k.replace(".weight", ".x.weight"): v for k, v in PLAIN.items()}), "several"),
    "noise": (raw(b"noise" * 20), "neither"),
    "a text": (raw(b"{}", "x.json"), "JSON"),
    "other columns": (file({f"{STEM}.lora_A.weight": numbers(RANK, HIDDEN + 4), f"{STEM}.lora_B.weight": B}), ""),
    "a scale out of this world": (file(PLAIN, recorded(1e300)), "cannot be compared"),
    "numbers whose product overflows": (file(times(1e160, dtype="float64")), "cannot be compared"),
    "numbers whose square vanishes": (file(times(1e-120, dtype="float64")), "cannot be compared"),
    "other columns, of zeros": (
        file({f"{STEM}.lora_A.weight": np.concatenate([A, A * 0], axis=1), f"{STEM}.lora_B.weight": B}),
        "",
    ),
}


@pytest.mark.parametrize(("make", "fragment"), **cases(UNREADABLE))
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_one_of_the_two_cannot_be_compared(tmp_path: Path, refuses, first: bool, make: Make, fragment: str):
    pair = [make(tmp_path / "hostile"), file()(tmp_path / "healthy")]
    refuses(["verify", *(pair if first else pair[::-1])], fragment)


RECORDS = {"NaN": recorded(float("nan")), "0": recorded(0), "a rank unlike the tensors": recorded(r=8)}


@pytest.mark.parametrize("header", **cases(RECORDS))
def test_inspect_of_a_scale_that_cannot_be(tmp_path: Path, cli, header: dict[str, str]):
    """It describes the file as far as possible; what it proposes must run."""
    result = cli("inspect", file(PLAIN, header)(tmp_path))
    assert result.exit_code == 1
    proper(result.stderr, (), tmp_path)


def test_both_of_another_model(tmp_path: Path, refuses):
    wan = file(lora("diffusion_model.", "blocks.0.self_att.q"))
    refuses(["verify", wan(tmp_path / "a"), wan(tmp_path / "b")], "not named as those of")


DIFFERENT: dict[str, Any] = {
    "DoRA's magnitudes": (
        PLAIN | {f"{STEM}.lora_magnitude_vector": LENGTHS},
        PLAIN | {f"{STEM}.lora_magnitude_vector": LENGTHS * 1.001},
    ),
    "one number": (PLAIN, broken("lora_B", 17.0)),
    "the sign": (PLAIN, times(-1, "lora_A")),
    "nothing but zeros": (PLAIN, times(0)),
    "another module": (PLAIN, lora("transformer.", OTHER)),
    "a module more": (PLAIN, lora("transformer.", MODULE, OTHER)),
    "very large numbers": (times(1e18), times(3, "lora_B", times(1e18))),
    "very small numbers": (times(1e-18), times(3, "lora_B", times(1e-18))),
}


@pytest.mark.parametrize(("one", "other"), **cases(DIFFERENT))
@pytest.mark.parametrize("swap", [False, True], ids=["", "the other way round"])
def test_two_that_differ(tmp_path: Path, cli, swap: bool, one: Tensors, other: Tensors):
    pair = [file(one)(tmp_path / "a"), file(other)(tmp_path / "b")]
    result = cli("verify", *(pair[::-1] if swap else pair))
    assert result.exit_code == 1, result.output
    assert "different" in result.stdout
    assert "Warning" not in result.stderr


CONVS = {
    "a linear layer": (numbers(RANK, HIDDEN), numbers(HIDDEN, RANK)),
    "a convolution of another kernel": (A4.reshape(RANK, HIDDEN, 1, 1), B4),
}


@pytest.mark.parametrize(("a", "b"), **cases(CONVS))
def test_a_convolution_and(tmp_path: Path, cli, a: np.ndarray, b: np.ndarray):
    stem = f"transformer.{CONV}.lora_"
    one = file({f"{stem}A.weight": A4, f"{stem}B.weight": B4})(tmp_path / "a")
    other = file({f"{stem}A.weight": a, f"{stem}B.weight": b})(tmp_path / "b")
    assert cli("verify", one, other).exit_code == 1


def test_json_of_a_difference_without_bounds_is_json(tmp_path: Path, cli):
    pair = [file(PLAIN, recorded(alpha))(tmp_path / str(n)) for n, alpha in enumerate((1e29, 2e29))]
    result = cli("verify", *pair, "--json")
    assert result.exit_code == 1
    json.loads(result.stdout, parse_constant=lambda word: pytest.fail(word))


def test_a_conversion_that_cannot_be_proved(tmp_path: Path, refused):
    source = file(times(1e160, dtype="float64"))(tmp_path)
    refused([source, "--alpha", "3"])


def test_neither_two_adapters_nor_a_loader(tmp_path: Path, refuses):
    one, other = file()(tmp_path / "a"), file()(tmp_path / "b")
    refuses(["verify", one], "two adapters")
    refuses(["verify", one, other, "--in", "diffusers"], "two adapters")


def test_a_base_without_a_loader(tmp_path: Path, refuses):
    refuses(["verify", file()(tmp_path / "a"), file()(tmp_path / "b"), "--base", tmp_path / "no"], "--base")


BASES = {
    "a folder that is not there": (None, "--base"),
    "not JSON": ("{", ""),
    "a list": ("[]", ""),
    "a number": ("4", ""),
    "nested 100,000 deep": ("[" * 100_000, ""),
    "no layers": ('{"num_layers": 0}', ""),
    "text for a number": ('{"num_layers": "x"}', ""),
    "not JSON, told": ("{", "config.json"),
    "a number, told": ("4", "config.json"),
}


@pytest.mark.parametrize(("text", "fragment"), **cases(BASES))
def test_a_base(tmp_path: Path, refuses, text: str | None, fragment: str):
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    if text is not None:
        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "config.json").write_text(text)
    refuses(["verify", file()(tmp_path), "--in", "diffusers", "--base", tmp_path / "base"], fragment)


def test_two_that_are_the_same(tmp_path: Path, cli):
    """What the cases above spoil is healthy, in every spelling."""
    named = {key.replace(".weight", ".default.weight"): value for key, value in PLAIN.items()}
    older = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in PLAIN.items()}
    for n, tensors in enumerate((named, older, lora(""), lora("base_model.model."), times(1, dtype="float16"))):
        result = cli("verify", file()(tmp_path / "a"), file(tensors)(tmp_path / str(n)))
        assert result.exit_code == 0, result.output
