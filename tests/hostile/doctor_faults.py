"""The corpus: what is wrong with each file, and what is to be said of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from helpers.oracle import DATA

import loraforge
from hostile import doctor_corpus as make
from hostile.doctor_corpus import BASES, BLOCKS, WEIGHTS, Fault, changed, copied, header, in_peft, renamed

DIFFUSERS = ("--runtime", "diffusers")
BASE = ("--base", str(BASES / "2b"))
KOHYA = DATA / "videox_fun_kohya_attn_fp32" / "checkpoint-100.safetensors"
TO_KOHYA = renamed((".lora_A.", ".lora_down."), (".lora_B.", ".lora_up."))
PEFT_FILE = "adapter_model.safetensors"
UNPREFIXED = renamed(("transformer.transformer_blocks", "transformer_blocks"))

FILES = {
    "LFS pointer": Fault(make.raw(make.POINTER), "broken file", "Git LFS"),
    "HTML page": Fault(make.raw(make.PAGE), "broken file", "web page"),
    "empty": Fault(make.raw(b""), "broken file", "empty"),
    "truncated": Fault(make.truncated, "broken file", "not fully covered"),
    "gzip": Fault(make.zipped, "broken file", "gzip"),
    "GGUF": Fault(make.raw(b"GGUF\x03\0\0\0" + bytes(64)), "broken file", "GGUF"),
    "bare pickle": Fault(make.raw(make.BARE, "pytorch_lora_weights.bin"), "broken file", "pickle"),
    "hostile pickle": Fault(make.raw(make.HOSTILE, "pytorch_lora_weights.bin"), "broken file", "pickle"),
    "hostile pickle called safetensors": Fault(make.raw(make.HOSTILE), "broken file", "pickle"),
    "no tensors": Fault(make.only({}), "does nothing", "0 tensors"),
    "ZeRO-3 folder": Fault(make.zero3, "broken file", "ZeRO"),
    "ZeRO-3's empty tensors": Fault(changed(make.emptied), "broken file", "has shape [0]"),
}
"""What is no file of tensors, or not a whole one."""

KINDS = {
    "full transformer": Fault(make.only(make.bundle("2b")), "does nothing", "full CogVideoX transformer"),
    "full transformer of SAT": Fault(lambda _: BASES / "2b" / "sat_base", "does nothing", "full CogVideoX transformer"),
    "SAT run merged": Fault(lambda _: DATA / "sat_2b_r4" / "sat_merged", "does nothing", "full CogVideoX transformer"),
    "T5": Fault(make.only(make.T5), "does nothing", "T5"),
    "VAE": Fault(make.only(make.VAE), "does nothing", "VAE"),
    "optimizer state": Fault(
        make.torch_saved({"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": []}, "optimizer.bin"),
        "does nothing", "optimizer state",
    ),
    "trainer's checkpoint": Fault(
        make.only(make.base_layers()), "cannot tell (it lies in a model)", "among the weights of a whole model"
    ),
    "kohya's names": Fault(lambda _: KOHYA, "1.82x too weak", "merge_lora at 0.55"),
    "ComfyUI's prefix": Fault(
        changed(renamed((BLOCKS, "diffusion_model.transformer_blocks"))), "does nothing", "diffusion_model"
    ),
    "DiffSynth's names": Fault(
        lambda _: DATA / "diffsynth_cogdit" / "lora.safetensors", "cannot tell (", "no alpha is recorded"
    ),
    "another model's names": Fault(make.only(make.OTHER), "broken file", "Flux"),
    "text encoder's keys alone": Fault(make.only(make.TEXT), "does nothing", "not named as those"),
    "LoHa": Fault(changed(make.loha), "does nothing", "hada_w1_a"),
}  # fmt: skip
"""Whole files of another kind."""

NAMES = {
    "no prefix": Fault(changed(UNPREFIXED), "does nothing", "transformer_blocks x16", DIFFUSERS),
    "save_lora_adapter": Fault(copied("diffusers_save_lora_adapter"), "does nothing", "transformer_blocks x16"),
    "PEFT's prefix in a Diffusers file": Fault(
        changed(renamed((BLOCKS, "base_model.model.transformer_blocks"))), "does nothing", "base_model x16", DIFFUSERS
    ),
    "an adapter's name inside": Fault(
        changed(renamed((".weight", ".default.weight"))), "does nothing", ".default."
    ),
    "kohya's words": Fault(changed(make.no_header, TO_KOHYA), "does nothing", ".lora_down.", ("--alpha", "4")),
    "alpha tensors": Fault(changed(make.alphas), "does nothing", "to_k.alpha"),
    "alpha tensors, no header": Fault(changed(make.no_header, make.alphas), "does nothing", "to_k.alpha"),
    "header without prefix": Fault(changed(make.unprefixed_header), "does nothing", make.ENTRY),
    "header with an unknown field": Fault(changed(header(magic=1)), "does nothing", "magic"),
    "header is no JSON": Fault(changed(make.header_text("{'r': 8}")), "broken file", "JSON"),
    "mixed prefixes": Fault(
        changed(renamed((BLOCKS, "transformer_blocks"), only="blocks.1.")), "broken file", "several spellings"
    ),
    "duplicate modules": Fault(changed(make.duplicates), "broken file", "several spellings"),
    "two adapters": Fault(changed(make.two_adapters), "broken file", "style"),
    "text encoder's keys too": Fault(
        changed(lambda tensors, _: tensors.update(make.TEXT)), "broken file", "text_encoder"
    ),
    "A without B": Fault(changed(make.dropped("0.attn1.to_q.lora_B")), "broken file", "to_q"),
    "B alone": Fault(changed(make.dropped(".lora_A.")), "broken file", "has no A"),
}  # fmt: skip
"""Names that a loader passes over, or stops at."""

CONTENT = {
    "rank of A and B": Fault(changed(make.rank_cut), "broken file", "rank"),
    "r against the tensors": Fault(copied("peft_plain", config={"r": 16}), "broken file", "rank 8"),
    "a pattern that matches nothing": Fault(
        copied("peft_plain", config={"rank_pattern": {"to_query": 4}}), "broken file", "to_query"
    ),
    "modules_to_save": Fault(copied("peft_modules_to_save"), "cannot tell (", "modules_to_save"),
    "modules' weights without saying so": Fault(
        copied("peft_modules_to_save", config={"modules_to_save": None}), "broken file", "proj_out"
    ),
    "bias in the LoRA without saying so": Fault(in_peft("peft_plain", make.lora_bias), "broken file", "lora_B.bias"),
    "modules it leaves out": Fault(copied("peft_plain", config={"target_modules": ["to_q"]}), "broken file", "to_k"),
    "LoHa's configuration": Fault(copied("peft_plain", config={"peft_type": "LOHA"}), "cannot tell (", "LOHA"),
    "configuration is no JSON": Fault(
        make.beside(copied("peft_plain"), "adapter_config.json", "{"), "broken file", "JSON"
    ),
    "configuration alone": Fault(copied("peft_plain", without=PEFT_FILE), "broken file", "adapter_config.json"),
    "alpha 0": Fault(changed(header(lora_alpha=0)), "broken file", "scaling of 0"),
    "alpha 0, which was not meant": Fault(
        changed(header(lora_alpha=0)), "does nothing", "none of the 8 modules",
        ("--alpha", "4", "--override-scale", *DIFFUSERS),
    ),
    "alpha below 0": Fault(changed(make.no_header), "cannot tell (", "-0.5", ("--alpha", "-4")),
    "dead A": Fault(changed(make.filled(".lora_A.", 0.0)), "does nothing", "zero"),
    "dead B": Fault(changed(make.filled(".lora_B.", 0.0)), "does nothing", "zero"),
    "one dead module": Fault(changed(make.filled("0.attn1.to_q.lora_B", 0.0)), "acts in part", "0.attn1.to_q"),
    "NaN": Fault(changed(make.filled("0.attn1.to_q.lora_A", float("nan"), one=True)), "broken file", "NaN"),
    "infinity": Fault(changed(make.filled("1.attn1.to_v.lora_B", float("inf"), one=True)), "broken file", "infinity"),
    "infinity in fp16": Fault(
        changed(make.filled("1.attn1.to_v.lora_B", 1e6), make.typed(torch.float16)), "broken file", "1.attn1.to_v"
    ),
}  # fmt: skip
"""Tensors and configurations that contradict each other, and numbers that are none."""


def orbit(place: Path) -> Path:
    return changed(name="my-Orbit-Left.safetensors")(place)


def in_header_alone(place: Path) -> Path:
    """Alpha 4 at rank 8, and nowhere but in the header."""
    loraforge.convert(changed()(place), to="diffusers", out=place / "out", scale_in="metadata")
    return place / "out" / WEIGHTS


SCALES = {
    "no alpha": Fault(changed(make.no_header), "cannot tell (0.125 or 8 or 0.5 or 1)", "no alpha is recorded"),
    "a rank twice the width, which nothing records": Fault(changed(make.rank_128), "broken file", "look transposed"),
    "SAT without its YAML": Fault(make.sat_run("sat_2b_r4", config=False), "cannot tell (", "lora_alpha"),
    "configuration missing": Fault(copied("peft_plain", without="adapter_config.json"), "does nothing",
                                   "adapter_config.json"),
    "finetrainers": Fault(copied("finetrainers_dcp_ws1"), "2x too strong", "training used 1/2", DIFFUSERS),
    "header in an older Diffusers": Fault(
        in_header_alone, "2x too strong", "training used 1/2", ("--runtime", "diffusers-0.33")
    ),
    "an older cli_demo": Fault(changed(), "8x too weak", "applies 1/16", ("--runtime", "cli_demo-old")),
    "an older cli_demo, CogVideo's ranks": Fault(
        changed(make.rank_128), "64x too weak", "1/128", ("--runtime", "cli_demo-old", "--trained-by", "cogvideo")
    ),
    "SAT's export, 1.0 applied": Fault(
        changed(make.rank_128), "128x too strong", "1/128", ("--trained-by", "sat", *DIFFUSERS)
    ),
    "orbit in the name": Fault(orbit, "8x too weak", "applies 1/16", ("--runtime", "comfyui-wrapper-fused")),
    "PEFT's folder in Diffusers": Fault(copied("peft_plain"), "does nothing", "base_model x16", DIFFUSERS),
    "PEFT's folder in SAT": Fault(copied("peft_plain"), "does nothing", "base_model x16", ("--runtime", "sat")),
    "DoRA without its configuration": Fault(
        make.file_of(copied("peft_dora", without="adapter_config.json"), PEFT_FILE), "does nothing", "adapter_config"
    ),
}  # fmt: skip
"""Files that are whole, and act otherwise than in training."""


def held(place: Path) -> Path:
    """The adapter, and beside it a base that holds it already."""
    file = changed()(place)
    loraforge.fuse(BASES / "2b", [file], place / "base")
    return file


def with_quantised(place: Path) -> Path:
    make.quantised(place)
    return changed()(place)


FIT = {
    "of a wider model": Fault(changed(make.wider), "wrong base", "3072", BASE),
    "of a deeper model": Fault(
        changed(renamed(("blocks.1.", "blocks.40."))), "wrong base", "transformer_blocks.40", BASE
    ),
    "image to video on text to video": Fault(make.patch_embed, "wrong base", "patch_embed", BASE),
    "held already": Fault(held, "wrong base", "already", ("--base", "{place}/base")),
    "quantised base": Fault(with_quantised, "cannot tell", "quant", ("--base", "{place}/base")),
    "base is an adapter": Fault(changed(), "cannot tell", "is an adapter", ("--base", str(DATA / "peft_plain"))),
    "base of the real size": Fault(changed(make.wider), "wrong base", "3072", ("--base", str(BASES / "5b_i2v"))),
}
"""Adapters that are whole, on a base that is not theirs."""

FAULTS = FILES | KINDS | NAMES | CONTENT | SCALES | FIT


def converted(name: str, to: str, **said: object) -> make.Make:
    """A case of tests/data as loraforge writes it."""

    def made(place: Path) -> Path:
        case = make.Case(name)
        origin = case.run(place) if name.startswith("sat") else case.source
        stated = {} if name.startswith("sat") else case.said
        loraforge.convert(origin, to=to, out=place / to, **stated, **said)
        return place / to

    return made


def numbered(text: str, name: str = "args.yaml") -> make.Make:
    """checkpoint-N folders, and the configuration of the run beside them."""

    def made(place: Path) -> Path:
        for n in (500, 1000):
            shutil.copytree(DATA / "cogvideo_trainer_plain" / "checkpoint-3", place / "run" / f"checkpoint-{n}")
        (place / "run" / name).write_text(text)
        return place / "run"

    return made


OLDER = renamed((".lora_A.", ".lora.down."), (".lora_B.", ".lora.up."))
IN_HEADER = {"scale_in": "metadata"}
HEALTHY: dict[str, tuple[make.Make, tuple[str, ...]]] = {
    **{f"SAT run {name}": (make.sat_run(name), ()) for name in (
        "sat_2b_r4", "sat_2b_r8_alpha4_layer1", "sat_2b_full_r4", "sat_5b_r8", "sat_5b_i2v_r8", "sat_1.5_t2v_r4")},
    **{f"PEFT {name}": (copied(f"peft_{name}"), ()) for name in ("plain", "rslora", "patterns", "dora")},
    **{
        f"{name} to {to}": (converted(name, to), ())
        for name in ("sat_2b_r4", "sat_5b_i2v_r8", "peft_plain", "peft_rslora", "peft_patterns", "finetrainers_dcp_ws1",
                     "cogvideo_trainer_plain", "diffusers_save_lora_adapter", "videox_fun_peft")
        for to in ("diffusers", "peft")
    },
    "DoRA to PEFT": (converted("peft_dora", "peft"), ()),
    "DoRA to Diffusers": (converted("peft_dora", "diffusers"), ()),
    "SAT to SAT": (converted("sat_2b_r4", "sat", lora_only=True), ()),
    "Diffusers to SAT": (converted("diffusers_save_lora_weights_meta", "sat", base=BASES / "2b" / "sat_base"), ()),
    "in the header": (converted("sat_2b_r4", "diffusers", **IN_HEADER), ()),
    "patterns in the header": (converted("peft_patterns", "diffusers", **IN_HEADER), ()),
    "rsLoRA in the header": (converted("peft_rslora", "diffusers", **IN_HEADER), ()),
    "Diffusers": (changed(), ()),
    "Diffusers with patterns": (copied("diffusers_meta_patterns"), ()),
    "bf16": (changed(make.typed(torch.bfloat16)), ()),
    "fp16": (changed(make.typed(torch.float16)), ()),
    "fp16 to PEFT": (converted("peft_plain", "peft", dtype="fp16"), ()),
    "older spelling": (changed(OLDER), ()),
    "another alpha": (changed(header(lora_alpha=8)), ()),
    "another name": (changed(name="my-style.safetensors"), ()),
    "alpha of r, stated": (changed(make.no_header), ("--alpha", "8")),
    "1.0, stated": (changed(make.no_header), ("--trained-scale", "1")),
    "args.yaml beside checkpoints": (numbered("rank: 8\nlora_alpha: 8\n"), ()),
    "the same args.yaml as the header": (make.beside(changed(), "args.yaml", "rank: 8\nlora_alpha: 4\n"), ()),
    "on its base": (changed(), BASE),
    "on another base of its size": (changed(), ("--base", str(BASES / "5b"))),
    "in an older Diffusers": (converted("sat_2b_r4", "diffusers"), ("--runtime", "diffusers-0.33")),
    "in the wrapper": (converted("sat_2b_r4", "diffusers"), ("--runtime", "comfyui-wrapper")),
    "in cli_demo": (changed(), ("--runtime", "cli_demo")),
}  # fmt: skip
