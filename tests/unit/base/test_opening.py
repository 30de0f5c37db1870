"""Base models as they are saved: behind prefixes, in torch files, in numbered shards; how `inspect` describes them."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hostile.base_builders import ADAPTER, INDEX, SHARDS, SINGLE, model, sharded, weights
from hostile.builders import checkpoint, safetensors

from loraforge.files.opening import open_tensors

SCHEMAS = Path(__file__).parents[3] / "schemas"
SAT = Path(__file__).parents[2] / "data" / "bases" / "2b" / "sat_base"
PREFIXES = (
    "module.", "transformer.", "model.diffusion_model.", "diffusion_model.", "model.", "_orig_mod.",
    "_fsdp_wrapped_module.", "module.transformer.", "transformer.module.", "transformer._orig_mod.",
)  # fmt: skip


def bits(file: Path) -> dict[str, bytes]:
    opened = open_tensors(file)[0]
    return {key: bytes(opened.raw(key)) for key in opened.tensors}


@pytest.fixture
def right(tmp_path: Path, cli) -> dict[str, bytes]:
    """The tensors of the fused model."""
    (tmp_path / "plain").mkdir()
    assert cli("fuse", model()(tmp_path / "plain"), ADAPTER, "-o", tmp_path / "right").exit_code == 0
    return bits(tmp_path / "right" / SINGLE)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_names_behind_a_prefix_are_read_and_written_without_it(
    prefix: str, right: dict[str, bytes], tmp_path: Path, cli
) -> None:
    base = model({prefix + key: value for key, value in weights().items()})(tmp_path)
    done = cli("fuse", base, ADAPTER, "-o", tmp_path / "out")
    assert done.exit_code == 0 and f"{prefix}norm_final.bias is norm_final.bias" in done.stderr
    assert bits(tmp_path / "out" / SINGLE) == right
    assert cli("inspect", base).exit_code == 0


def test_a_word_inside_the_names_too(right: dict[str, bytes], tmp_path: Path, cli) -> None:
    inside = {
        key.replace("transformer_blocks.0.", "transformer_blocks.0._orig_mod."): v for key, v in weights().items()
    }
    assert cli("fuse", model(inside)(tmp_path), ADAPTER, "-o", tmp_path / "out").exit_code == 0
    assert bits(tmp_path / "out" / SINGLE) == right


def test_a_file_for_comfyui_keeps_its_prefix(tmp_path: Path, cli) -> None:
    (tmp_path / "x.safetensors").write_bytes(
        safetensors({"model.diffusion_model." + key: value for key, value in weights().items()})
    )
    assert cli("fuse", tmp_path / "x.safetensors", ADAPTER, "-o", tmp_path / "o.safetensors").exit_code == 0
    assert all(key.startswith("model.diffusion_model.") for key in bits(tmp_path / "o.safetensors"))


def test_two_weights_of_one_name_are_refused(tmp_path: Path, cli) -> None:
    twice = {f"module.{key}": value for key, value in weights().items()}
    twice["module.module.norm_final.bias"] = weights()["norm_final.bias"]
    done = cli("fuse", model(twice)(tmp_path), ADAPTER, "-o", tmp_path / "out")
    assert done.exit_code == 1 and "two weights of one name" in done.stderr and not (tmp_path / "out").exists()


WRAPS: dict[str, Callable[[dict[str, object]], object]] = {
    "bare": lambda tree: tree,
    "module": lambda tree: {"module": tree},
    "state_dict": lambda tree: {"state_dict": tree},
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_torch_file_of_any_names(wrap: str, tmp_path: Path, cli) -> None:
    """As `torch.save(transformer.state_dict())` writes it; the result is a safetensors file."""
    values = {key: np.asarray(value, np.float32) for key, value in weights().items()}
    (tmp_path / "plain").mkdir()
    assert cli("fuse", model(values)(tmp_path / "plain"), ADAPTER, "-o", tmp_path / "right").exit_code == 0
    (tmp_path / "mine.pt").write_bytes(checkpoint(WRAPS[wrap](dict(values))))
    done = cli("fuse", tmp_path / "mine.pt", ADAPTER, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert bits(tmp_path / "out" / "mine.safetensors") == bits(tmp_path / "right" / SINGLE)


def test_shards_without_an_index_are_read_by_their_numbers(right: dict[str, bytes], tmp_path: Path, cli) -> None:
    base = sharded()(tmp_path)
    (base / INDEX).unlink()
    assert cli("fuse", base, ADAPTER, "-o", tmp_path / "out").exit_code == 0
    assert bits(tmp_path / "out" / SHARDS[0]) | bits(tmp_path / "out" / SHARDS[1]) == right
    assert json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"].keys() == right.keys()
    (base / SHARDS[1]).unlink()
    done = cli("fuse", base, ADAPTER, "-o", tmp_path / "o2")
    assert done.exit_code == 1 and "no index of its parts" in done.stderr


def test_the_newest_of_deepspeeds_own_tags(tmp_path: Path, cli) -> None:
    for number in (9, 10):
        shutil.copytree(SAT / "1", tmp_path / "run" / f"global_step{number}")
    done = cli("fuse", tmp_path / "run", ADAPTER, "-o", tmp_path / "out")
    assert done.exit_code == 0 and "took iteration global_step10 of run, the newest" in done.stderr
    (tmp_path / "run" / "latest").write_text("global_step11")
    done = cli("inspect", tmp_path / "run")
    typed = [shlex.split(line.partition("try: loraforge ")[2]) for line in done.stderr.splitlines() if "try:" in line]
    assert [cli(*words).exit_code for words in typed] == [0, 0]


def test_a_pipeline_without_a_transformer_is_not_called_incomplete(tmp_path: Path, cli) -> None:
    (tmp_path / "cascade" / "decoder").mkdir(parents=True)
    (tmp_path / "cascade" / "model_index.json").write_text("{}")
    done = cli("fuse", tmp_path / "cascade", ADAPTER, "-o", tmp_path / "out")
    assert done.exit_code == 1 and "its folders: decoder" in done.stderr and "complete" not in done.stderr


def pipeline(folder: Path) -> Path:
    (folder / "pipe").mkdir()
    model()(folder).rename(folder / "pipe" / "transformer")
    (folder / "pipe" / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    return folder / "pipe"


def zero_to_fp32(folder: Path) -> Path:
    """As `zero_to_fp32.py --safe_serialization` names them."""
    base = sharded()(folder)
    for file in SHARDS:
        (base / file).rename(base / file.replace("diffusion_pytorch_model", "model"))
    table = (base / INDEX).read_text().replace("diffusion_pytorch_model", "model")
    (base / INDEX).unlink()
    (base / "model.safetensors.index.json").write_text(table)
    return base


def released_sat(folder: Path) -> Path:
    shutil.copytree(SAT, folder / "sat" / "transformer")
    (folder / "sat" / "vae").mkdir()
    return folder / "sat"


def cached(folder: Path) -> Path:
    repo = folder / "models--me--base"
    (repo / "snapshots").mkdir(parents=True)
    model()(folder).rename(repo / "snapshots" / ("a" * 40))
    return repo


def one_file(folder: Path) -> Path:
    return model()(folder) / SINGLE


def one_shard(folder: Path) -> Path:
    return sharded()(folder) / SHARDS[0]


DESCRIBED: dict[str, tuple[Callable[[Path], Path], str, int]] = {
    "transformer": (model(), "a Diffusers model alone", 1),
    "shards": (sharded(), "a Diffusers model alone", 2),
    "one shard": (one_shard, "a Diffusers model alone", 2),
    "an index that names a tensor more": (
        sharded(lambda table: table | {"weight_map": table["weight_map"] | {"mtp.fc.weight": SHARDS[0]}}),
        "a Diffusers model alone", 2,
    ),
    "pipeline": (pipeline, "a Diffusers pipeline", 1),
    "zero_to_fp32": (zero_to_fp32, "a Diffusers model alone", 2),
    "one file": (one_file, "one file of tensors", 1),
    "SAT run": (lambda _: SAT, "a SAT checkpoint", 1),
    "released SAT folder": (released_sat, "a SAT checkpoint", 1),
    "the Hub's cache": (cached, "a Diffusers model alone", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", DESCRIBED)
def test_inspect_describes_it(name: str, tmp_path: Path, cli) -> None:
    make, what, count = DESCRIBED[name]
    source = make(tmp_path)
    done = cli("inspect", source)
    assert done.exit_code == 0 and f"base model, {what}, layout" in done.stdout and "cogvideox" in done.stdout
    report = json.loads(cli("inspect", source, "--json").stdout)
    jsonschema.validate(report, json.loads((SCHEMAS / "inspect.schema.json").read_text()))
    assert len(report["base"]["files"]) == count and sum(report["dtypes"].values()) > 50


def test_the_history_of_a_fused_model(tmp_path: Path, cli) -> None:
    assert cli("fuse", model()(tmp_path), ADAPTER, "--strength", "0.5", "-o", tmp_path / "fused").exit_code == 0
    assert "1 adapters fused (--history)" in cli("inspect", tmp_path / "fused").stdout
    text = cli("inspect", tmp_path / "fused", "--history").stdout
    assert f"+ {ADAPTER.name} (diffusers) at strength 0.5, trained at 1/2 = 0.5 (recorded" in text
    assert "loraforge fuse base pytorch_lora_weights.safetensors --strength 0.5" in text
    assert "none is recorded" in cli("inspect", tmp_path / "base", "--history").stdout


def test_several_checkpoints_are_named_each_with_a_line(tmp_path: Path, cli) -> None:
    for name in ("transformer_t2v", "transformer_i2v"):
        shutil.copytree(SAT, tmp_path / "sat" / name)
    done = cli("inspect", tmp_path / "sat")
    assert done.exit_code == 1 and "several SAT checkpoints, in transformer_i2v, transformer_t2v" in done.stderr
    assert f"try: loraforge inspect {tmp_path / 'sat' / 'transformer_i2v'}" in done.stderr
    text = cli("convert", tmp_path / "sat", "--to", "peft").stderr
    assert "no adapter was found in" in text and "transformer_i2v" in text
