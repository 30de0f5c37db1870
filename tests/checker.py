"""A second opinion on a conversion: `python tests/checker.py SOURCE RESULT [--alpha N]`.

Reads both by rules of its own and compares s B A of every module in float64. It imports nothing of loraforge, and
runs no code of a torch file. `--alpha`: the lora_alpha of a source that records none. Exit code 1 where they differ.
"""

import io
import json
import math
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
STORAGES = {"Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16"}
LIMIT = {"F64": 1e-6, "F32": 1e-6, "F16": 2e-3, "BF16": 8e-3}  # of a module's update, by the coarser of the two types
PREFIX = r"^(base_model\.model\.|(?:model\.)?diffusion_model\.|transformer\.|lora_unet__?|lora_transformer_|lycoris_)?"
PAIR = re.compile(PREFIX + r"(.+?)\.(?:lora_(A|B|down|up|magnitude_vector)|lora\.(down|up)|(alpha|dora_scale))(\..+)?$")
SAT = re.compile(r"(?:model\.diffusion_model\.)?transformer\.layers\.(\d+)\.attention\.(\w+)\.matrix_([AB])\.(\d)$")
SAT_NAMES = {"query_key_value": ["to_q", "to_k", "to_v"], "dense": ["to_out_0"]}
INERT = type("Inert", (dict,), dict.fromkeys(("__init__", "__setstate__", "__call__"), lambda *_, **__: None))
OWN_NAMES = {  # DiffSynth's and ComfyUI's, in Diffusers' words
    r"^blocks_": "transformer_blocks_", r"^context_embedder$": "patch_embed_text_proj",
    r"_(attn1_to_out|attn_out)$": "_attn1_to_out_0", r"(?<!attn1_to)_([qkv])$": r"_attn1_to_\1",
    r"^time_embedder_timestep_embedder_0": "time_embedding_linear_1", r"^patchify_": "patch_embed_",
    r"_(ff_0|ff_proj)$": "_ff_net_0_proj", r"_(ff_2|ff_out)$": "_ff_net_2",
    r"^time_embedder_timestep_embedder_2": "time_embedding_linear_2",
}  # fmt: skip


class Module(NamedTuple):
    update: np.ndarray  # s B A
    lengths: np.ndarray  # of rows, with DoRA
    kind: str


def decoded(raw: bytes, kind: str, shape: Sequence[int]) -> np.ndarray:
    numbers = np.frombuffer(raw, KINDS[kind])
    wide = (numbers.astype("<u4") << 16).view("<f4") if kind == "BF16" else numbers
    return wide.astype(np.float64).reshape(tuple(shape))


def safetensors(path: Path) -> tuple[dict[str, tuple[np.ndarray, str]], dict[str, str]]:
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    said, raw = header.pop("__metadata__", None) or {}, content[start:]
    places = {key: (slice(*entry["data_offsets"]), entry["dtype"], entry["shape"]) for key, entry in header.items()}
    return {key: (decoded(raw[at], kind, shape), kind) for key, (at, kind, shape) in places.items()}, said


def torch_file(path: Path) -> dict[str, tuple[np.ndarray, str]]:
    with zipfile.ZipFile(path) as archive:
        inner = next(name for name in archive.namelist() if name.endswith("data.pkl"))

        class Reader(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if name == "_rebuild_tensor_v2":
                    return lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides)
                return OrderedDict if name == "OrderedDict" else name if name.endswith("Storage") else INERT

            def persistent_load(self, pid: Any) -> Any:
                return STORAGES.get(str(pid[1]).removesuffix("Storage")), f"{inner[: -len('.pkl')]}/{pid[2]}"

        tree = Reader(io.BytesIO(archive.read(inner))).load()
        found = {}
        for key, value in (tree.get("module") or tree.get("state_dict") or tree).items():
            if isinstance(value, tuple) and ("lora" in key or ".matrix_" in key):
                (kind, name), offset, shape, strides = value
                flat = decoded(archive.read(name), kind, (-1,))[offset:]
                found[key] = np.lib.stride_tricks.as_strided(flat, shape, [8 * n for n in strides]).copy(), kind
    return found


def declared(config: dict[str, Any], path: str, rank: int) -> float:
    """PEFT's rule: a pattern is the end of a path, or a regular expression for it."""
    patterns = (config.get("alpha_pattern") or {}).items()
    found = next((value for pattern, value in patterns if re.match(rf"(.*\.)?({pattern})$", path)), None)
    alpha = float(config.get("lora_alpha", 8) if found is None else found)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def located(source: Path) -> Path:
    if (source / "latest").is_file():
        return next((source / (source / "latest").read_text().strip()).glob("*.pt"))
    files = [p for name in ("adapter_model", "pytorch_lora_weights") for p in source.rglob(f"{name}.safetensors")]
    runs = files or source.glob("*.safetensors")
    return source if source.is_file() else max(runs, key=lambda p: [int(n) for n in re.findall(r"\d+", p.parent.name)])


def read(source: Path, alpha: float | None = None) -> dict[str, Module]:
    """Module (in Diffusers' words, `_` for `.`) -> what it adds to the base weight."""
    path = located(source)
    tensors, said = safetensors(path) if path.suffix == ".safetensors" else (torch_file(path), dict[str, str]())
    config = json.loads(said.get("lora_adapter_metadata") or said.get("lora_config") or "{}")
    config = {key.removeprefix("transformer."): value for key, value in config.items()}
    if (beside := path.with_name("adapter_config.json")).is_file() and path.name == "adapter_model.safetensors":
        config = json.loads(beside.read_text())
    if any(map(SAT.match, tensors)):
        run = next((p for p in (place / "training_config.yaml" for place in path.parents[:2]) if p.is_file()), None)
        modules = yaml.safe_load(run.read_text())["model"]["network_config"]["params"]["modules"] if run else {}
        config = {"lora_alpha": modules.get("lora_config", {}).get("params", {}).get("lora_alpha", 1)}
    parts: dict[str, dict[str, Any]] = {}
    for key, (tensor, kind) in tensors.items():
        if sat := SAT.match(key):
            name, role = f"transformer_blocks.{sat[1]}.attn1.{SAT_NAMES[sat[2]][int(sat[4])]}", sat[3]
        elif (pair := PAIR.match(key)) and not key.startswith("lora_te"):
            name, role = pair[2], pair[3] or pair[4] or pair[5]
        else:
            continue
        role = {"down": "A", "up": "B", "dora_scale": "magnitude_vector"}.get(role, role)
        parts.setdefault(name, {}).update({role: tensor} | ({"kind": kind} if role == "B" else {}))
    out = {}
    for name, part in parts.items():
        A, B = part["A"].reshape(len(part["A"]), -1), part["B"].reshape(len(part["B"]), -1)
        s = float(part["alpha"]) / len(A) if "alpha" in part else declared(config, name, len(A)) if config else 1.0
        s = s if alpha is None else alpha / len(A)
        name = re.sub(r"\W", "_", name)
        for old, new in OWN_NAMES.items():
            name = re.sub(old, new, name)
        out[name] = Module(s * (B @ A), part.get("magnitude_vector", np.zeros(0)).reshape(-1), part["kind"])
    return {name: module for name, module in out.items() if module.update.any() or module.lengths.size}


def differences(one: dict[str, Module], other: dict[str, Module]) -> dict[str, tuple[float, float]]:
    """Module -> how far apart the two are, as a share of the first, and how far they may be."""
    out = dict.fromkeys(one.keys() ^ other.keys(), (math.inf, 0.0))
    for name in one.keys() & other.keys():
        pairs = list(zip(one[name][:2], other[name][:2], strict=True))
        same = all(a.shape == b.shape for a, b in pairs)
        shares = [np.linalg.norm(b - a) / (np.linalg.norm(a) or 1.0) for a, b in pairs] if same else [math.inf]
        out[name] = float(max(shares)), max(LIMIT[side[name].kind] for side in (one, other))
    return dict(sorted(out.items()))


if __name__ == "__main__":
    alpha = float(sys.argv[sys.argv.index("--alpha") + 1]) if "--alpha" in sys.argv else None
    found = differences(read(Path(sys.argv[1]), alpha), read(Path(sys.argv[2])))
    for module, (off, limit) in found.items():
        print(f"{module:<48} {off:.1e} {'' if off <= limit else 'DIFFERENT'}")
    sys.exit(not found or any(not off <= limit for off, limit in found.values()))
