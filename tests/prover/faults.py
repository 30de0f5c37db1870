"""The faults: what each does to what is written, and to which targets it can be done."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import yaml

from loraforge.files.tensorfile import KEY
from prover.seams import Fault, Pairs


def at(shape: tuple[int, ...], index: tuple[int, ...], value: float) -> np.ndarray:
    """Ones, and `value` in one place."""
    out = np.ones(shape, np.float32)
    out[index] = value
    return out


def of(factor: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    return Fault(numbers=lambda w: replace(w, **{factor: change(getattr(w, factor))}))


def times(factor: str, *index: int, by: float) -> Fault:
    return of(factor, lambda x: (x * at(x.shape, index, by)).astype(x.dtype))


def bit(x: np.ndarray) -> np.ndarray:
    """The lowest bit of one number's exponent."""
    out = x.copy()
    out.view(np.uint32)[1, 1] ^= 1 << 23
    return out


NUMBERS = {
    "B negated": of("B", np.negative),
    "A negated": of("A", np.negative),
    "every B negated": Fault(every=lambda w: replace(w, B=-w.B)),
    "a row shifted": of("B", lambda B: np.roll(B, 1, axis=0)),
    "a column shifted": of("A", lambda A: np.roll(A, 1, axis=1)),
    "rows in reverse": of("B", lambda B: B[::-1]),
    "components permuted in A alone": of("A", lambda A: A[::-1]),
    "components permuted in B alone": of("B", lambda B: B[:, ::-1]),
    "the update transposed": Fault(numbers=lambda w: replace(w, A=w.B.T.copy(), B=w.A.T.copy())),
    "the last row zero": times("B", -1, by=0),
    "the first row doubled": times("B", 0, by=2),
    "one row off by a thousandth": times("B", 5, by=1.001),
    "one number of A zero": times("A", 0, 3, by=0),
    "one number of B off by a hundredth": times("B", 7, 1, by=1.01),
    "the last component dropped": of("B", lambda B: B * at((1, B.shape[1]), (0, -1), 0)),
    "a sign of one component": of("B", lambda B: B * at((1, B.shape[1]), (0, 0), -1)),
    "a bit of one number": of("B", bit),
    "NaN in B": of("B", lambda B: B * at(B.shape, (1, 1), np.nan)),
    "infinity in A": of("A", lambda A: A * at(A.shape, (1, 1), np.inf)),
    "A of zeros": of("A", np.zeros_like),
    "B of zeros": of("B", np.zeros_like),
    "scaled by 1.0001": of("B", lambda B: B * np.float32(1.0001)),
    "every module scaled by 128": Fault(every=lambda w: replace(w, B=w.B * np.float32(128))),
    "rounded to bfloat16, called exact": of("A", lambda A: A.astype(ml_dtypes.bfloat16).astype(np.float32)),
    "rounded to float16, called exact": of("B", lambda B: B.astype(np.float16).astype(np.float32)),
    "noise of a hundred-thousandth": of("A", lambda A: A * np.float32(1) + np.float32(1e-5) * np.abs(A).max()),
}  # fmt: skip


def renamed(*words: tuple[str, str]) -> Fault:
    """Keys with these words exchanged, each for its partner."""
    both = {old: new for pair in words for old, new in (pair, pair[::-1])}
    pattern = re.compile("|".join(map(re.escape, both)))
    return Fault(names=lambda _, pairs: [(pattern.sub(lambda m: both[m[0]], key), x) for key, x in pairs])


def changed(old: str, new: str, only: str = "") -> Fault:
    return Fault(names=lambda _, pairs: [(re.sub(old, new, k) if only in k else k, x) for k, x in pairs])


def without(pattern: str) -> Fault:
    return Fault(names=lambda _, pairs: [(key, x) for key, x in pairs if not re.search(pattern, key)])


def shaped(pattern: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    """Tensors that match, changed in shape or type: the header announces them so."""
    return Fault(names=lambda _, pairs: [(k, change(x) if re.search(pattern, k) else x) for k, x in pairs])


def added(make: Callable[[str, np.ndarray], tuple[str, np.ndarray] | None]) -> Fault:
    """More keys than there should be."""

    def more(_: str, pairs: Pairs) -> Pairs:
        return [*pairs, *(made for key, x in pairs if (made := make(key, x)))]

    return Fault(names=more)


def another(key: str, x: np.ndarray) -> tuple[str, np.ndarray] | None:
    found = re.sub(r"attn1([._])to_q", r"ff\g<1>net\g<1>2", key)
    return (found, np.ones(x.shape, x.dtype)) if re.search(FIRST, key) and "net" in found else None


def as_sat(key: str, x: np.ndarray) -> tuple[str, np.ndarray] | None:
    factor = "B" if re.search("lora_(B|up)", key) else "A"
    stem = "model.diffusion_model.transformer.layers.0.attention.dense"
    return (f"{stem}.matrix_{factor}.0", x) if re.search(FIRST + r"\.lora_", key) else None


FIRST = r"blocks[._]0[._]attn1[._]to_q"
NAMES = {
    "q and k exchanged": renamed(("to_q", "to_k")),
    "v and out exchanged": renamed(("to_v", "to_out.0"), ("to_v", "to_out_0")),
    "blocks exchanged": renamed(("blocks.0", "blocks.1"), ("blocks_0", "blocks_1")),
    "A of q and A of k exchanged": Fault(names=lambda _, pairs: [
        (re.sub("to_(q|k)", lambda m: f"to_{'kq'[m[1] == 'k']}", k) if re.search("lora_(A|down)", k) else k, x)
        for k, x in pairs]),
    "A and B exchanged": renamed(("lora_A", "lora_B"), ("lora_down", "lora_up")),
    "a module left out": without(FIRST),
    "a block left out": without(r"blocks[._]1[._]"),
    "an A left out": without(FIRST + r"\.lora_(A|down)"),
    "a module the model has not": changed(r"0([._])attn1", r"0\g<1>attn2"),
    "a block the model has not": changed(r"blocks([._])1", r"blocks\g<1>7"),
    "another component's prefix": changed(r"^(transformer|base_model\.model|lora_unet)", "text_encoder"),
    "the first component of q gone": Fault(names=lambda path, pairs: [
        (k, (x[1:] if re.search("lora_(A|down)", k) else x[:, 1:] if x.ndim > 1 else x)) if "to_q" in path else (k, x)
        for k, x in pairs]),
    "a rank unlike its partner's": shaped(FIRST + r"\.lora_(A|down)", lambda x: x[1:]),
    "a row too few": shaped(FIRST + r"\.lora_(B|up)", lambda x: x[1:]),
    "A stored transposed": shaped(r"lora_(A|down)", lambda x: np.ascontiguousarray(x.T)),
    "float16 in the file": shaped("lora", lambda x: x.astype(np.float16)),
    "bfloat16 in the file": shaped("lora_(B|up)", lambda x: x.astype(ml_dtypes.bfloat16)),
    "whole numbers in the file": shaped(FIRST, lambda x: x.astype(np.int32)),
    "a module twice, spelt otherwise": added(lambda k, x: (k.replace("lora_", "lora."), x) if "lora_" in k else None),
    "the names of another layout beside it": added(as_sat),
    "a module more": added(another),
}  # fmt: skip


def as_json(entry: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, str]], dict[str, str]]:
    def edit(texts: dict[str, str]) -> dict[str, str]:
        if entry not in texts:
            return texts
        said = json.loads(texts[entry])
        result = change(said)
        return texts | {entry: json.dumps(said if result is None else result)}

    return edit


def entries(entry: str, prefix: str = "") -> dict[str, Callable[[dict[str, str]], dict[str, str]]]:
    """What can be wrong with a LoraConfig, wherever it stands."""

    def to(**values: Any) -> Callable[[dict[str, str]], dict[str, str]]:
        return as_json(entry, lambda said: said.update({prefix + key: value for key, value in values.items()}))

    def scaled(said: dict[str, Any], by: float) -> None:
        said[f"{prefix}lora_alpha"] *= by
        said[f"{prefix}alpha_pattern"] = {k: v * by for k, v in (said.get(f"{prefix}alpha_pattern") or {}).items()}

    def one_doubled(said: dict[str, Any]) -> None:
        pattern = said[f"{prefix}alpha_pattern"]
        pattern[next(iter(pattern))] *= 2

    return {
        "alpha twice": as_json(entry, lambda said: scaled(said, 2)),
        "alpha dropped": as_json(entry, lambda said: said.pop(f"{prefix}lora_alpha", 0) and None),
        "alpha of another run": to(lora_alpha=64, alpha_pattern={}),
        "the rank wrong": to(r=3),
        "alpha_pattern dropped": to(alpha_pattern={}),
        "alpha_pattern: one module's doubled": as_json(entry, one_doubled),
        "rank_pattern dropped": to(rank_pattern={}),
        "rank_pattern wrong": to(rank_pattern={"to_q": 2, "to_k": 2}),
        "rsLoRA by mistake": to(use_rslora=True),
        "no JSON": lambda texts: texts | {entry: texts[entry][:-3]} if entry in texts else texts,
        "it is missing": lambda texts: {key: text for key, text in texts.items() if key != entry},
    }


HEADER = {
    f"header: {name}": Fault(header=edit) for name, edit in entries("lora_adapter_metadata", "transformer.").items()
}
CONFIG = {f"configuration: {name}": Fault(beside=edit) for name, edit in entries("adapter_config.json").items()} | {
    "configuration: target_modules lacks one": Fault(beside=as_json(
        "adapter_config.json", lambda said: said.update(target_modules=sorted(said["target_modules"])[1:]))),
    "configuration: of another kind": Fault(
        beside=as_json("adapter_config.json", lambda said: said.update(peft_type="LOHA"))),
    "configuration: the wrong way round": Fault(
        beside=as_json("adapter_config.json", lambda said: said.update(fan_in_fan_out=True))),
}  # fmt: skip
OWN_ENTRY = {
    "our entry says another scale": Fault(header=as_json(KEY, lambda said: said.update(applied=[0.25]))),
    "our entry says that it is folded": Fault(header=as_json(KEY, lambda said: said.update(stored="tensors"))),
}
DORA = {
    "magnitudes left out": without("magnitude"),
    "magnitudes off by a hundredth": shaped("0.attn1.to_q.*magnitude", lambda x: x * np.float32(1.01)),
    "magnitudes shifted": shaped("magnitude", lambda x: np.roll(x, 1)),
    "magnitudes of another length": shaped("0.attn1.to_q.*magnitude", lambda x: x[1:]),
}


def bytes_changed(change: Callable[[bytearray], bytes | bytearray]) -> Fault:
    return Fault(disk=lambda path: path.write_bytes(change(bytearray(path.read_bytes()))) and None)


def flipped(content: bytearray, place: int) -> bytearray:
    content[place] ^= 1
    return content


DISK = {
    "cut off": bytes_changed(lambda content: content[:-4]),
    "cut in half": bytes_changed(lambda content: content[: len(content) // 2]),
    "empty": Fault(disk=lambda path: path.write_bytes(b"") and None),
    "gone": Fault(disk=lambda path: path.unlink()),
    "a bit at the end": bytes_changed(lambda content: flipped(content, -1 - 700)),
    "a bit in the middle": bytes_changed(lambda content: flipped(content, len(content) * 2 // 3)),
    "a page of zeros": bytes_changed(lambda content: content[:-4096] + bytes(2048) + content[-2048:]),
}


def header_edit(change: Callable[[dict[str, Any]], None]) -> Fault:
    """The header of a safetensors file, its length kept right."""

    def edit(content: bytearray) -> bytes:
        end = 8 + int.from_bytes(content[:8], "little")
        said = json.loads(content[8:end])
        change(said)
        text = json.dumps(said).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + bytes(content[end:])

    return bytes_changed(edit)


def two(said: dict[str, Any]) -> tuple[str, str]:
    keys = [key for key in said if key != "__metadata__" and len(said[key]["shape"]) == 2]
    first = keys[0]
    return first, next(key for key in keys[1:] if said[key]["shape"] == said[first]["shape"])


def exchange(said: dict[str, Any], field: str) -> None:
    a, b = two(said)
    said[a][field], said[b][field] = said[b][field], said[a][field]


SAFETENSORS = {
    "four bytes too many": bytes_changed(lambda content: content + b"junk"),
    "offsets shifted": header_edit(lambda said: [e.update(data_offsets=[n + 4 for n in e["data_offsets"]])
                                                 for k, e in said.items() if k != "__metadata__"] and None),
    "offsets of two tensors exchanged": header_edit(lambda said: exchange(said, "data_offsets")),
    "another type in the header": header_edit(lambda said: said[two(said)[0]].update(dtype="I32")),
    "a shape turned in the header": header_edit(lambda said: said[two(said)[0]]["shape"].reverse()),
    "a key gone from the header": header_edit(lambda said: said.pop(two(said)[0]) and None),
}  # fmt: skip


def section(change: Callable[[dict[str, Any]], Any]) -> Fault:
    """SAT's lora_config."""

    def edit(texts: dict[str, str]) -> dict[str, str]:
        said = yaml.safe_load(texts["training_config.yaml"])
        change(said["model"]["network_config"]["params"]["modules"])
        return texts | {"training_config.yaml": yaml.safe_dump(said)}

    return Fault(beside=edit)


def original(path: str, pairs: Pairs) -> Pairs:
    return [(key.replace("matrix_", "matrix"), x) for key, x in pairs]


def in_base(change: Callable[[np.ndarray], np.ndarray], which: str = "layers.0.attention.dense") -> Fault:
    return Fault(base=lambda key, every: change(every[key]) if which in key and every[key].ndim == 2 else every[key])


def other_key(key: str, every: dict[str, np.ndarray]) -> np.ndarray:
    """The tensor of the next block in its place."""
    return every.get(key.replace("layers.0.", "layers.1."), every[key])


SAT = {
    "q and k exchanged": renamed(("matrix_A.0", "matrix_A.1"), ("matrix_B.0", "matrix_B.1")),
    "A of q and of v exchanged": renamed(("matrix_A.0", "matrix_A.2")),
    "blocks exchanged": renamed(("layers.0", "layers.1")),
    "A and B exchanged": renamed(("matrix_A", "matrix_B")),
    "a part left out": without(r"layers\.0\..*matrix_[AB]\.2"),
    "a module left out": without(r"layers\.0\.attention\.dense\.matrix"),
    "an A left out": without(r"layers\.0\.attention\.dense\.matrix_A"),
    "parts numbered from 1": changed(r"(matrix_.)\.2$", r"\1.3"),
    "names SAT does not know": Fault(names=original),
    "no prefix": changed(r"^model\.diffusion_model\.", ""),
    "float16 in the file": shaped("matrix_B", lambda x: x.astype(np.float16)),
    "YAML: alpha twice": section(lambda m: m["lora_config"]["params"].update(lora_alpha=2)),
    "YAML: alpha dropped": section(lambda m: m["lora_config"]["params"].pop("lora_alpha")),
    "YAML: the rank wrong": section(lambda m: m["lora_config"]["params"].update(r=8)),
    "YAML: no lora_config": section(lambda m: m.pop("lora_config")),
    "YAML: gone": Fault(beside=lambda texts: {k: v for k, v in texts.items() if "yaml" not in k}),
    "latest: names another": Fault(beside=lambda texts: texts | {"latest": "2"}),
    "latest: gone": Fault(beside=lambda texts: {k: v for k, v in texts.items() if k != "latest"}),
    "base: a weight of zeros": in_base(np.zeros_like),
    "base: a bit of one number": in_base(bit),
    "base: the weight of another block": Fault(base=other_key),
    "base: a weight transposed": in_base(lambda x: np.ascontiguousarray(x.T) if x.ndim == 2 else x),
}  # fmt: skip
