"""What a training configuration says of the scale, in the shapes that trainers, trackers and people leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loraforge.errors import ScaleError
from loraforge.scale.training_config import read_training_config, stated_in

SAT = """\
args:
  mode: finetune
  local_rank: 0
model:
  scale_factor: 1.15258426
  network_config:
    target: dit_video_concat.DiffusionTransformer
    params:
      modules:
        pos_embed_config: {target: dit_video_concat.Rotary3DPositionEmbeddingMixin, params: {hidden_size_head: 64}}
        lora_config:
          target: sat.model.finetune.lora2.LoraMixin
          params:
            r: 128
"""
COGVIDEO = """\
#!/usr/bin/env bash
export TOKENIZERS_PARALLELISM=false

# Model Configuration
MODEL_ARGS=(
    --model_path "THUDM/CogVideoX1.5-5B-I2V"
    --training_type "lora"
)
LORA_ARGS=(
    --rank 128
    # --lora_alpha 1
    --lora_alpha 64  # half of the rank
)
echo "training with --lora_alpha 3"
accelerate launch train.py "${MODEL_ARGS[@]}" "${LORA_ARGS[@]}"
"""
FACTORY = """\
GPU_IDS="0,1"
LEARNING_RATES=("1e-4" "1e-3")
for learning_rate in "${LEARNING_RATES[@]}"; do
  cmd="accelerate launch --gpu_ids $GPU_IDS training/cogvideox_text_to_video_lora.py \\
    --validation_prompt \\"a panda # in a forest\\" \\
    --rank 64 \\
    --lora_alpha 32 \\
    --learning_rate $learning_rate"
  eval $cmd
done
"""
FUN = """\
export MODEL_NAME="models/CogVideoX-Fun-V1.1-2b-InP"
accelerate launch --mixed_precision="bf16" scripts/cogvideox_fun/train_lora.py \\
  --pretrained_model_name_or_path=$MODEL_NAME --rank=64 \\
  --network_alpha=32 \\
  --train_mode="inpaint"
"""
PEFT = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "use_rslora": True, "alpha_pattern": {}, "rank_pattern": {}}
WANDB = """\
wandb_version: 1
_wandb:
  desc: null
  value: {python_version: 3.11.7, m: [{1: train_loss}]}
lora_alpha:
  desc: null
  value: 64
rank:
  value: 128
"""
NAMESPACE = "!!python/object:argparse.Namespace\nlora_alpha: 64\nrank: 128\nsize: !!python/tuple [480, 720]\n"

READ = {
    "sat, alpha left out": ("training_config.yaml", SAT, 1, 128, False),
    "sat, alpha given": ("training_config.yaml", f"{SAT}            lora_alpha: 4\n", 4, 128, False),
    "finetune arguments": ("args.json", json.dumps({"rank": 128, "lora_alpha": 64, "local_rank": -1}), 64, 128, False),
    "finetune script": ("train_ddp_i2v.sh", COGVIDEO, 64, 128, False),
    "cogvideox-factory": ("train.sh", FACTORY, 32, 64, False),
    "finetrainers": ("config.yaml", "training: {type: lora, rank: 32, lora_alpha: 32}\n", 32, 32, False),
    "videox-fun": ("train_lora.sh", FUN, 32, 64, False),
    "videox-fun arguments": ("args.yaml", "rank: 128\nnetwork_alpha: 64\n", 64, 128, False),
    "sd-scripts": ("lora.toml", "[network]\nnetwork_dim = 16\nnetwork_alpha = 8.0\n", 8, 16, False),
    "diffusion-pipe": ("train.toml", "[adapter]\ntype = 'lora'\nrank = 32\n[optimizer]\nlr = 2e-5\n", 32, 32, False),
    "diffusion-pipe of 2024": ("train.toml", "[adapter]\ntype = 'lora'\nrank = 32\nalpha = 16\n", 16, 32, False),
    "peft": ("adapter_config.json", json.dumps(PEFT), 16, 8, True),
    "hparams": ("hparams.yml", "adam_beta1: 0.9\nalpha: null\nlora_alpha: 128\nrank: 128\n", 128, 128, False),
    "wandb": ("config.yaml", WANDB, 64, 128, False),
    "a dumped namespace": ("args.yaml", NAMESPACE, 64, 128, False),
    "alpha beside a rank": ("config.json", json.dumps({"lora": {"alpha": 8, "rank": 16}, "alpha": 3}), 8, 16, False),
    "a plainer name": ("args.yaml", "lora_alpha: 8\nalpha: 0.5\nlora_rank: 16\nrank: 0\n", 8, 16, False),
    "said twice alike": ("args.yaml", "a: {lora_alpha: 8}\nb: [{lora_alpha: 8.0, r: 4}]\n", 8, 4, False),
    "no rank": ("args.yaml", "lora_alpha: 8\n", 8, None, False),
    "an anchor": ("args.yaml", "a: &x {lora_alpha: 8, r: 4}\nb: *x\nc: &y [*y]\n", 8, 4, False),
    "dashes": ("run.txt", "train --lora-alpha=64 --rank '128' --use_rslora --seed 1", 64, 128, True),
    "no rslora": ("run.txt", "train --use_rslora false --lora_alpha 64 --rank 128", 64, 128, False),
    "variables": (
        "run.sh",
        "export R=128 ALPHA=${BASE}\nBASE='64' # x\nt --rank $R --lora_alpha \"$ALPHA\"",
        64,
        128,
        False,
    ),
    "a batch file": (
        "run.bat",
        'rem --lora_alpha 1\r\nset "A=64"\r\ntrain ^\r\n --lora_alpha %A% ^\r\n --r 4',
        64,
        4,
        False,
    ),
    "powershell": (
        "run.ps1",
        "<# --rank 1\n#>\n$Env:A = 64\ntrain `\n --lora_alpha $env:A `\n --rank 128",
        64,
        128,
        False,
    ),
    "make": ("Makefile", "ALPHA := 64\ntrain:\n\t@echo --rank 1; t --rank 4 --lora_alpha $(ALPHA)\n", 64, 4, False),
    "a list of words": ("run.txt", 'run(["train.py", "--lora_alpha", "64", "--rank", "128"])', 64, 128, False),
    "two alike": ("run.sh", "a --lora_alpha 64 --rank 8\nb --rank 8 --lora_alpha 64.0; c\n", 64, 8, False),
    "commented blocks": (
        "run.sh",
        ": '\n--lora_alpha 1\n'\n: <<END\n--rank 2\nEND\nt --lora_alpha 64\n",
        64,
        None,
        False,
    ),
    "the last one commented out": ("run.sh", "t --lora_alpha 64 \\\n  # --rank 8\n\nnext --rank 4\n", 64, 4, False),
    "bare alpha of a script": ("run.sh", "t --alpha 64 --rank 4\n", 64, 4, False),
    "comments of another encoding": ("run.bat", b"rem \xd1\xb5\xc1\xb7\r\nt --lora_alpha 64\r\n", 64, None, False),
    "a byte order mark": ("args.yaml", b"\xef\xbb\xbflora_alpha: 64\r\nrank: 8\r\n", 64, 8, False),
}


def written(place: Path, name: str, content: str | bytes) -> Path:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(("name", "content", "alpha", "rank", "rslora"), READ.values(), ids=READ.keys())
def test_reads(tmp_path: Path, name: str, content: str, alpha: float, rank: float | None, rslora: bool) -> None:
    scale = read_training_config(written(tmp_path, name, content))
    assert (scale.alpha, scale.rank, scale.rslora) == (alpha, rank, rslora)
    assert type(scale.alpha) is float and scale.rslora is rslora


@pytest.mark.parametrize(
    ("case", "said"),
    {
        "videox-fun arguments": "network_alpha 64, rank 128",
        "sat, alpha left out": "SAT's default lora_alpha 1, r 128",
        "peft": "lora_alpha 16, r 8, rslora",
    }.items(),
)
def test_says_what_and_where(tmp_path: Path, case: str, said: str) -> None:
    assert read_training_config(written(tmp_path, *READ[case][:2])).said == said


BOMB = "a0: &a0 [lora_alpha]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
MANY = f"alpha: [{'{}, ' * 20_001}]"

REFUSED = {
    "nothing": ("args.yaml", "learning_rate: 1.0e-4\nrank: 128\n", "states no lora_alpha"),
    "empty": ("args.json", "", "states no lora_alpha"),
    "alpha without a rank": ("args.yaml", "loss: {alpha: 0.5}\nrank: 128\n", "states no lora_alpha"),
    "null": ("args.yaml", "lora_alpha: null\nrank: 128\n", "states no lora_alpha"),
    "sat, null": ("training_config.yaml", f"{SAT}            lora_alpha:\n", "states no lora_alpha"),
    "commented out": ("run.sh", "train --rank 4 # --lora_alpha 64\n", "states no lora_alpha"),
    "two mappings": (
        "a.yaml",
        "a: {lora_alpha: 1}\nb:\n- {lora_alpha: 2}\n",
        "1 (a.lora_alpha), but lora_alpha 2 (b.0.",
    ),
    "two names": ("args.json", '{"lora_alpha": 1, "network_alpha": 2}', "1 (lora_alpha), but network_alpha 2"),
    "two ranks": ("args.yaml", "a: {lora_alpha: 1, r: 2}\nb: {lora_alpha: 1, r: 4}\n", "r 2 (a.r), but r 4 (b.r)"),
    "two rslora": ("args.yaml", "a: {lora_alpha: 1, use_rslora: true}\nb: {rslora: false}\n", "(a.use_rslora), but"),
    "a key twice": (
        "args.yaml",
        "lora_alpha: 1\nlora_alpha: 2\n",
        "cannot be read as YAML: one mapping states 'lora_alpha' twice",
    ),
    "a key twice, json": ("args.json", '{"a": {"lora_alpha": 1}, "a": {}}', "states 'a' twice"),
    "a bool": ("args.yaml", "lora_alpha: true\n", "lora_alpha (lora_alpha) is True"),
    "a text": ("args.yaml", "lora_alpha: '64'\n", "is '64'"),
    "a list": ("args.json", '{"lora_alpha": [[1]]}', "is a list"),
    "not finite": ("args.yaml", "lora_alpha: .nan\n", "is nan"),
    "a huge number": ("args.json", '{"lora_alpha": 1' + "0" * 400 + "}", "too many digits"),
    "rslora is no bool": ("args.yaml", "lora_alpha: 1\nuse_rslora: 'yes'\n", "use_rslora (use_rslora) is 'yes'"),
    "a pattern": (
        "adapter_config.json",
        json.dumps(PEFT | {"alpha_pattern": {"to_q": 4}}),
        "alpha_pattern gives modules",
    ),
    "two commands": (
        "run.sh",
        "a --lora_alpha 1\n\nb --lora_alpha 2\n",
        "lora_alpha 1 (line 1), but lora_alpha 2 (line 3)",
    ),
    "continued": ("run.sh", "a \\\n --lora_alpha \\\n 1 \\\n --lora_alpha 2", "1 (line 2), but lora_alpha 2 (line 4)"),
    "no such variable": ("run.sh", "t --lora_alpha $1 --rank 4\n", "lora_alpha (line 1) is '$1'"),
    "a default": ("run.sh", "A=${A:-64}\nt --lora_alpha $A\n", "is '${A:-64}'"),
    "computed": ("run.sh", "R=4\nA=$((R / 2))\nt --lora_alpha $A\n", "is 'A=$((R'"),
    "halved": ("run.ps1", "$R = 64\n$A = $R / 2\nt --lora_alpha $A\n", "is '$A = $R'"),
    "increased": ("run.sh", "A=4\nA+=4\nt --lora_alpha $A\n", "'4' (line 1), 'A+=4' (line 2)"),
    "a loop": ("run.sh", "for A in 1 2; do\nt --lora_alpha $A\ndone\n", "is 'A in'"),
    "assigned twice": ("run.sh", "A=4\nt --lora_alpha $A\nA=8\n", "$A has two values: '4' (line 1), '8' (line 3)"),
    "in a circle": ("run.sh", "A=$B\nB=$A\nt --lora_alpha $A\n", "is '$A'"),
    "no value": ("run.sh", "t --lora_alpha --rank 4\n", "lora_alpha (line 1) is ''"),
    "after a comment": (
        "run.sh",
        "t \\\n --rank 4 \\\n # --x 1 \\\n --y 2 \\\n --lora_alpha 8\n",
        "line 5: a comment or gap above --lora_alpha",
    ),
    "not yaml": ("args.yaml", "lora_alpha: [1\n", "cannot be read as YAML"),
    "not json": ("args.json", "{lora_alpha: 1}", "cannot be read as JSON"),
    "two documents": ("args.yaml", "lora_alpha: 1\n---\nlora_alpha: 2\n", "cannot be read as YAML"),
    "a merge key": ("args.yaml", "a: &a {lora_alpha: 1}\nb:\n  <<: *a\n", "cannot be read as YAML"),
    "odd tags": ("args.yaml", "lora_alpha: !!int ''\n", "cannot be read as YAML"),
    "a bomb": ("args.yaml", BOMB, "states no lora_alpha"),
    "a deep document": ("args.yaml", "lora_alpha: " + "[" * 200_000, "cannot be read as YAML"),
    "a deep document, json": ("args.json", '{"lora_alpha":' + "[" * 200_000, "cannot be read as JSON"),
    "deeper than any": ("args.json", '{"lora_alpha":' * 80 + "1" + "}" * 80, "holds too much"),
    "wider than any": ("args.yaml", MANY, "holds too much"),
    "a number of a million digits": ("args.yaml", "lora_alpha: 1" + ":11" * 300_000, "too many digits"),
    "large": ("args.yaml", "lora_alpha: 1\n" + "#" * (1 << 20), "has more than 1 MB"),
    "not text": ("args.yaml", b"lora_alpha\0\1\2\xff", "it is not text"),
}


@pytest.mark.parametrize(("name", "content", "says"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.timeout(60)
def test_refuses(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(ScaleError) as refused:
        read_training_config(path)
    assert says in refused.value.message and str(path) in refused.value.message
    assert len(refused.value.message) < 700
    assert all(shlex.split(remedy.command)[0] in ("grep", "ls") for remedy in refused.value.remedies)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", tmp_path, tmp_path / "missing.yaml"):
        with pytest.raises(ScaleError, match=r"no file|No such file"):
            read_training_config(path)
    assert stated_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["args.yaml"], ["args.yaml"]),
        (["hparams.yml", "hparams.yaml"], ["hparams.yml", "hparams.yaml"]),
        (["logs/1700000000.1/hparams.yml"], ["logs/1700000000.1/hparams.yml"]),
        (["logs/cogvideox-lora/1700000000.1/hparams.yml"], ["logs/cogvideox-lora/1700000000.1/hparams.yml"]),
        (["logs/a/hparams.yml", "logs/b/hparams.yml"], []),
        (["wandb/latest-run/files/config.yaml"], ["wandb/latest-run/files/config.yaml"]),
        (["../args.yaml", "adapter_config.json", "train.sh"], []),
        ([], []),
    ],
)
def test_what_a_folder_states(tmp_path: Path, files: list[str], found: list[str]) -> None:
    top = tmp_path / "top"
    for name in files:
        written(top, name, json.dumps({"lora_alpha": 64, "rank": 128}))
    written(top, "config.yaml", "lora_alpha: [\n")
    written(top, "args.json/x", "")
    assert list(stated_in(top)) == [top / name for name in found]


def test_a_configuration_that_contradicts_itself_is_told_from_none(tmp_path: Path) -> None:
    written(tmp_path, "args.yaml", "lora_alpha: 64\n")
    written(tmp_path, "hparams.yml", "lora_alpha: many\n")
    found = stated_in(tmp_path)
    assert found[tmp_path / "args.yaml"] is not None and found[tmp_path / "hparams.yml"] is None


def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "args.yaml", "lora_alpha: 64\n")

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert stated_in(tmp_path) == {}


KEYS = st.sampled_from("model lora_config params modules optimizer network r2 value desc 学习".split()) | st.text(
    max_size=5
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
READ_NAMES = {"alpha", "rank", "r", "lora_alpha", "network_alpha"}
OTHERS = st.dictionaries(KEYS.filter(lambda key: key not in READ_NAMES), LEAVES, max_size=3)
NUMBERS = st.integers(1, 1024) | st.floats(0.125, 1024, width=32)


@st.composite
def configurations(draw: st.DrawFn) -> tuple[dict[str, object], float, float]:
    """A mapping that states one alpha and one rank, anywhere."""
    alpha, rank = draw(NUMBERS), draw(st.integers(1, 1024))
    name = draw(st.sampled_from(["lora_alpha", "network_alpha", "alpha"]))
    ranked = draw(st.sampled_from(["rank", "r", "lora_rank", "lora_r", "network_dim", "network_rank"]))
    node: dict[str, object] = {**draw(OTHERS), name: alpha, ranked: rank}
    for key in draw(st.lists(KEYS, max_size=6)):
        siblings = draw(OTHERS)
        node = {**siblings, f"{key}x": [*siblings.values(), node] if draw(st.booleans()) else node}
    return node, float(alpha), float(rank)


@given(configurations(), st.sampled_from(["json", "yaml", "hparams", "wandb"]))
def test_one_alpha_is_read_back_however_it_is_nested_and_written(
    tmp_path_factory: pytest.TempPathFactory, stated: tuple[dict[str, object], float, float], kind: str
) -> None:
    node, alpha, rank = stated
    wrapped = {key: {"desc": None, "value": value} for key, value in node.items()} if kind == "wandb" else node
    text = json.dumps(node) if kind == "json" else yaml.safe_dump(wrapped, allow_unicode=kind == "yaml")
    name = {"json": "args.json", "hparams": "hparams.yml"}.get(kind, "config.yaml")
    scale = read_training_config(written(tmp_path_factory.getbasetemp(), name, text))
    assert (scale.alpha, scale.rank, scale.rslora) == (alpha, rank, False)


PIECES = """--lora_alpha = : \\ $A A= ${A} 64 ' " # [ { } ] !!int !!omap &a *a - << rank ? |""".split()


@given(
    st.lists(st.sampled_from([*PIECES, " ", "\n", "\\\n", "lora_alpha: "]) | st.text(max_size=3), max_size=25),
    st.sampled_from([".yaml", ".json", ".toml", ".sh"]),
)
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, pieces: list[str], suffix: str) -> None:
    content = "".join(["lora_alpha", *pieces]).encode("utf-8", "replace")
    with contextlib.suppress(ScaleError):
        read_training_config(written(tmp_path_factory.getbasetemp(), f"any{suffix}", content))
