"""What goes wrong with adapter files, by kind: each is made of two adapters, in Diffusers' names and as PEFT folders.

An adapter knows what training applied. A change may change that too: then what the file ought to do is what it says.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from helpers.oracle import Case
from hostile import doctor_corpus as make
from hostile.doctor_corpus import BASES, ENTRY, Tensors
from safetensors.torch import load_file

import loraforge

WEIGHTS = "pytorch_lora_weights.safetensors"


@dataclass
class Adapter:
    """Tensors in Diffusers' names at one scale, recorded as Diffusers records it."""

    base: str
    tensors: Tensors
    alpha: float
    metadata: dict[str, str] = field(default_factory=dict)
    truth: Tensors = field(default_factory=dict)
    """Weight name -> the update of training."""
    name: str = WEIGHTS
    data: bytes | None = None
    """The bytes of the file, where it is no safetensors file of the tensors."""
    rank: int = 0
    scale: float = 0.0
    """Of training, where it is one number."""
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        self.rank = next(tensor.shape[0] for key, tensor in self.tensors.items() if ".lora_A." in key)
        said = {"r": self.rank, "lora_alpha": self.alpha, "rank_pattern": {}, "alpha_pattern": {}}
        said["target_modules"] = self.modules()
        self.metadata = {"format": "pt"}
        self.say(**said)
        self.trained()

    def modules(self) -> list[str]:
        ends = "transformer.", ".lora_A.weight"
        return sorted(key.removeprefix(ends[0]).removesuffix(ends[1]) for key in self.tensors if ".lora_A." in key)

    def say(self, prefix: str = "transformer.", **entries: object) -> None:
        said = json.loads(self.metadata.get(ENTRY, "{}"))
        self.metadata[ENTRY] = json.dumps(said | {prefix + name: value for name, value in entries.items()})

    def trained(self, ratio: float = 1.0) -> None:
        """The updates its tensors make, at its scale or a multiple of it."""
        for path in self.modules():
            A, B = (self.tensors[f"transformer.{path}.lora_{half}.weight"].float() for half in "AB")
            self.scale = ratio * self.alpha / self.rank
            self.truth[f"{path}.weight"] = self.scale * (B.flatten(1) @ A.flatten(1)).reshape(B.shape[0], *A.shape[1:])


Change = Callable[[Adapter], None]


def adapters() -> dict[str, Adapter]:
    """Diffusers' own example at its scale of 1/2, which a header must say; a SAT run's with its scale folded in."""
    case = Case("sat_5b_r8")
    kept = make.DATA / "diffusers_save_lora_weights_meta" / WEIGHTS
    with tempfile.TemporaryDirectory() as place:
        loraforge.convert(case.source, to="diffusers", out=place, **case.said)
        folded = load_file(Path(place) / WEIGHTS)
    return {"2b": Adapter("2b", load_file(kept), 4.0), "5b": Adapter("5b", folded, 8.0)}


def plain(*changes: Callable[[Tensors, dict[str, str]], None]) -> Change:
    """Changes of tests/hostile/doctor_corpus.py."""

    def change(adapter: Adapter) -> None:
        for one in changes:
            one(adapter.tensors, adapter.metadata)

    return change


def renamed(*pairs: tuple[str, str], only: str = "", header: bool = True) -> Change:
    """Other names; `header=False` takes the entry away too."""
    return plain(make.renamed(*pairs, only=only), *([] if header else [make.no_header]))


def said(**entries: object) -> Change:
    return lambda adapter: adapter.say(**entries)


def unsaid(*names: str) -> Change:
    def change(adapter: Adapter) -> None:
        entry = json.loads(adapter.metadata[ENTRY])
        adapter.metadata[ENTRY] = json.dumps({k: v for k, v in entry.items() if k.partition(".")[2] not in names})

    return change


def both(*changes: Change) -> Change:
    def change(adapter: Adapter) -> None:
        for one in changes:
            one(adapter)

    return change


def alphas(adapter: Adapter) -> None:
    """One alpha beside each pair, whatever words the pair is in."""
    for key in [key for key in adapter.tensors if ".lora_A." in key or ".lora_down." in key]:
        adapter.tensors[key.partition(".lora_")[0] + ".alpha"] = torch.tensor(adapter.alpha)


def flat(prefix: str, separator: str = "_") -> Change:
    """kohya's names: no dots, down and up, an alpha each."""

    def change(adapter: Adapter) -> None:
        renamed((".lora_A.", ".lora_down."), (".lora_B.", ".lora_up."), header=False)(adapter)
        alphas(adapter)
        for key in list(adapter.tensors):
            end = next(end for end in (".lora_down.weight", ".lora_up.weight", ".alpha") if key.endswith(end))
            stem = key.removeprefix("transformer.").removesuffix(end).replace(".", separator)
            adapter.tensors[prefix + stem + end] = adapter.tensors.pop(key)

    return change


def mixed(pattern: bool) -> Change:
    """Half the rank in the queries, at the same scale; said in the entry's patterns, or only seen in the tensors."""

    def change(adapter: Adapter) -> None:
        half = adapter.rank // 2
        for path in (path for path in adapter.modules() if path.endswith("to_q")):
            stem = f"transformer.{path}.lora_"
            A, B = adapter.tensors[f"{stem}A.weight"][:half] * 2, adapter.tensors[f"{stem}B.weight"][:, :half]
            adapter.tensors |= {f"{stem}A.weight": A, f"{stem}B.weight": B}
            adapter.truth[f"{path}.weight"] = adapter.alpha / adapter.rank * (B.float() @ A.float())
        queries = [path for path in adapter.modules() if path.endswith("to_q")]
        if pattern:
            alpha = adapter.alpha / 2
            adapter.say(rank_pattern=dict.fromkeys(queries, half), alpha_pattern=dict.fromkeys(queries, alpha))

    return change


def dora(words: str) -> Change:
    """Magnitudes a tenth above what they were; under PEFT's word or kohya's."""

    def change(adapter: Adapter) -> None:
        base = load_file(BASES / adapter.base / "diffusion_pytorch_model.safetensors")
        for name, delta in list(adapter.truth.items()):
            merged = base[name].float() + delta
            magnitude = 1.1 * merged.norm(dim=1)
            adapter.tensors[f"transformer.{name.removesuffix('.weight')}.{words}"] = (
                magnitude if "vector" in words else magnitude[:, None]
            )
            adapter.truth[name] = 1.1 * merged - base[name].float()
        if "vector" in words:
            adapter.say(use_dora=True)

    return change


def conv(adapter: Adapter) -> None:
    path = "patch_embed.proj"
    random = torch.Generator().manual_seed(7)
    base = load_file(BASES / adapter.base / "diffusion_pytorch_model.safetensors")[f"{path}.weight"]
    A = torch.randn(adapter.rank, *base.shape[1:], generator=random) * 0.1
    B = torch.randn(base.shape[0], adapter.rank, *[1] * (base.dim() - 2), generator=random) * 0.1
    adapter.tensors |= {f"transformer.{path}.lora_A.weight": A, f"transformer.{path}.lora_B.weight": B}
    adapter.say(target_modules=adapter.modules())
    adapter.trained()


def rounded(dtype: torch.dtype) -> Change:
    """Tensors of a shorter type; the layers may compute in it."""

    def change(adapter: Adapter) -> None:
        plain(make.typed(dtype))(adapter)
        adapter.trained()
        adapter.tolerance = 2 * torch.finfo(dtype).eps

    return change


def fewer(adapter: Adapter) -> None:
    """The modules of one block alone."""
    plain(make.dropped("blocks.1."))(adapter)
    adapter.truth = {name: delta for name, delta in adapter.truth.items() if "blocks.1." not in name}
    adapter.say(target_modules=adapter.modules())


def transposed(adapter: Adapter) -> None:
    for key, tensor in adapter.tensors.items():
        adapter.tensors[key] = tensor.T


def fused(adapter: Adapter) -> None:
    """q, k and v in one matrix, as after fuse_qkv_projections."""
    for stem in {key.partition(".to_q.")[0] for key in adapter.tensors if ".to_q." in key}:
        A, B = ([adapter.tensors.pop(f"{stem}.to_{n}.lora_{half}.weight") for n in "qkv"] for half in "AB")
        adapter.tensors |= {f"{stem}.to_qkv.lora_A.weight": A[0], f"{stem}.to_qkv.lora_B.weight": torch.cat(B)}
    adapter.say(target_modules=adapter.modules())


def beside(**tensors: torch.Tensor) -> Change:
    return plain(make.added(**tensors))


def differences(adapter: Adapter) -> None:
    adapter.tensors["transformer.transformer_blocks.0.norm1.norm.diff"] = torch.ones(64)
    adapter.tensors["transformer.transformer_blocks.0.attn1.to_q.diff_b"] = torch.ones(64)


def newest(adapter: Adapter) -> None:
    """The entry with each field of the newest PEFT."""
    _, metadata = make.source()
    adapter.metadata[ENTRY] = json.dumps(
        json.loads(metadata[ENTRY])
        | {"transformer.lora_alpha": adapter.alpha, "transformer.target_modules": adapter.modules()}
    )


def double(adapter: Adapter) -> None:
    adapter.alpha *= 2
    adapter.say(lora_alpha=adapter.alpha)
    adapter.trained()


def rslora(adapter: Adapter) -> None:
    adapter.say(use_rslora=True)
    adapter.trained(ratio=adapter.rank**0.5)


def of_bytes(data: bytes) -> Change:
    def change(adapter: Adapter) -> None:
        adapter.data = data

    return change


def called(name: str) -> Change:
    def change(adapter: Adapter) -> None:
        adapter.name = name

    return change


BLOCKS = "transformer.transformer_blocks"
NAN, INF = float("nan"), float("inf")
DOWN = ((".lora_A.", ".lora_down."), (".lora_B.", ".lora_up."))

KINDS: dict[str, Change] = {
    "nothing wrong": plain(),
    "another file name": called("my-style.safetensors"),
    "bf16": rounded(torch.bfloat16),
    "fp16": rounded(torch.float16),
    "fewer modules": fewer,
    "older spelling, lora.down and lora.up": renamed((".lora_A.", ".lora.down."), (".lora_B.", ".lora.up.")),
    # the entry in the header
    "entry: none": plain(make.no_header),
    "entry: alpha doubled": double,
    "entry: rsLoRA": rslora,
    "entry: no patterns": unsaid("rank_pattern", "alpha_pattern"),
    "entry: no rank_pattern": unsaid("rank_pattern"),
    "entry: no alpha_pattern": unsaid("alpha_pattern"),
    "entry: no target_modules": unsaid("target_modules"),
    "entry: rank alone": unsaid("lora_alpha", "target_modules", "rank_pattern", "alpha_pattern"),
    "entry: each field of PEFT 0.21": newest,
    "entry: a field nobody knows": said(magic=1),
    "entry: no prefix": plain(make.unprefixed_header),
    "entry: of another program": plain(make.header_text('{"lora_config": {"r": 8}}')),
    "entry: no JSON": plain(make.header_text("{'r': 8}")),
    "entry: a list": plain(make.header_text("[8, 4]")),
    "entry: twice the rank": said(r=16),
    "entry: alpha 0": said(lora_alpha=0),
    "entry: rank of the text encoder beside": lambda adapter: adapter.say(prefix="text_encoder.", r=4),
    "entry: not all modules": said(target_modules=["to_q"]),
    # names
    "names: no prefix": renamed((BLOCKS, "transformer_blocks")),
    "names: no prefix, no entry": renamed((BLOCKS, "transformer_blocks"), header=False),
    "names: PEFT's prefix": renamed((BLOCKS, "base_model.model.transformer_blocks"), header=False),
    "names: both prefixes": renamed((BLOCKS, "transformer.base_model.model.transformer_blocks"), header=False),
    "names: diffusion_model": renamed((BLOCKS, "diffusion_model.transformer_blocks"), header=False),
    "names: unet": renamed((BLOCKS, "unet.transformer_blocks"), header=False),
    "names: module": renamed((BLOCKS, "transformer.module.transformer_blocks"), header=False),
    "names: _orig_mod": renamed((BLOCKS, "transformer._orig_mod.transformer_blocks"), header=False),
    "names: default inside": renamed((".weight", ".default.weight")),
    "names: default inside, no entry": renamed((".weight", ".default.weight"), header=False),
    "names: style inside": renamed((".weight", ".style.weight")),
    "names: lora_down and lora_up": renamed(*DOWN, header=False),
    "names: lora_down, lora_up and alpha": both(renamed(*DOWN, header=False), alphas),
    "names: alpha beside A and B": alphas,
    "names: alpha beside A and B, no entry": both(plain(make.no_header), alphas),
    "names: kohya's": flat("lora_unet__"),
    "names: kohya's, one underscore": flat("lora_unet_"),
    "names: lora_transformer": flat("lora_transformer_"),
    "names: lycoris": flat("lycoris_"),
    "names: lower case": renamed((".lora_A.", ".lora_a."), (".lora_B.", ".lora_b."), header=False),
    "names: half without prefix": renamed((BLOCKS, "transformer_blocks"), only="blocks.1."),
    "names: two adapters": both(plain(make.no_header), plain(make.two_adapters)),
    "names: another model's": renamed(("transformer_blocks", "single_transformer_blocks"), header=False),
    "names: a module it has not": renamed((".to_q.", ".to_query."), header=False),
    "names: a block it has not": renamed(("blocks.1.", "blocks.40.")),
    "names: q, k and v fused": fused,
    # what else lies in the file
    "beside: text encoder": plain(lambda tensors, _: tensors.update(make.TEXT)),
    "beside: differences of weights": differences,
    "beside: a bias of the LoRA": lambda adapter: adapter.tensors.update(
        {key.replace(".weight", ".bias"): torch.ones(64) for key in list(adapter.tensors) if ".lora_B." in key}
    ),
    "beside: LoHa instead": plain(make.loha),
    # numbers
    "ranks mixed, patterns in the entry": mixed(True),
    "ranks mixed, no patterns": mixed(False),
    "ranks mixed, no entry": both(mixed(False), plain(make.no_header)),
    "DoRA": dora("lora_magnitude_vector"),
    "DoRA, kohya's word": both(plain(make.no_header), dora("dora_scale")),
    "convolution": conv,
    "B is zero": plain(make.filled(".lora_B.", 0.0)),
    "A is zero": plain(make.filled(".lora_A.", 0.0)),
    "one module is zero": plain(make.filled("0.attn1.to_q.lora_B", 0.0)),
    "NaN": plain(make.filled("0.attn1.to_q.lora_A", NAN, one=True)),
    "infinity": plain(make.filled("1.attn1.to_v.lora_B", INF, one=True)),
    "A without B": plain(make.dropped("0.attn1.to_q.lora_B")),
    "B without A": plain(make.dropped("0.attn1.to_q.lora_A")),
    "ranks of A and B differ": plain(make.rank_cut),
    "A and B transposed": transposed,
    "of a wider model": plain(make.wider),
    # no file of tensors
    "empty": of_bytes(b""),
    "a Git LFS pointer": of_bytes(make.POINTER),
    "a web page": of_bytes(make.PAGE),
}


def written(kind: str, adapter: Adapter, place: Path) -> Path:
    """The file of an adapter after the change."""
    KINDS[kind](adapter)
    file = place / adapter.name
    if adapter.data is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(adapter.data)
        return file
    return make.saved(file, adapter.tensors, adapter.metadata)
