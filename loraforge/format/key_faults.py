"""What is wrong with the keys and shapes of an adapter, one problem for each kind."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from loraforge.algebra.dtypes import FLOATS
from loraforge.files.tensorfile import TensorInfo
from loraforge.names.layout import Architecture, Layout
from loraforge.text import listed

if TYPE_CHECKING:
    from loraforge.format.keys import KeyStyle

Tensors = Mapping[str, TensorInfo]

_REFUSED = {
    r"lora_B\.([^.]+\.)?bias": "a bias of the LoRA itself (lora_bias), of a module that is none of {title}'s",
    r"set_weight": "a weight that replaces the base model's (.set_weight), whatever the base model has",
    r"hada_(w[12]_[ab]|t[12])": "LoHa",
    r"lokr_(w[12](_[ab])?|t2)": "LoKr",
    r"matrix_[AB]\.[1-9]\d*": "one of several pairs of a module, as SAT stores them: read with SAT's own names only",
    r"lora_embedding_[AB]": "a LoRA of an embedding, of which {title} has none",
    r"alpha": "an alpha tensor, which records a scale and which this format is not read with: keep it",
}
"""The end of a key that no LoRA of this kind has -> what it means."""
_WHOLE = {
    r"(?<!lora_A\.)(?<!lora_B\.)(weight|bias)": "a whole weight saved beside the LoRA (modules_to_save)",
    r"diff": "a weight difference (.diff), the whole change of a weight saved beside the LoRA",
    r"diff_b": "a bias difference (.diff_b), the whole change of a bias saved beside the LoRA",
}
"""The same, for the keys of known modules only."""


def mixed(spelled: Mapping[str, str], factors: Iterable[set[str]]) -> str:
    """Why keys of several spellings are refused: one adapter in mixed spellings, or several adapters."""
    keys, groups = listed(sorted(spelled.values()), 4), list(factors)
    if sum(map(len, groups)) == len(set().union(*groups)):  # no factor is spelled twice
        what = "it is one adapter in a mixture of several spellings, which is not read"
        return f"{what}: {keys}. All of them belong to it."
    return f"it holds several adapters, or one in several spellings: {keys}. Which of them is meant is not known"


def unknown(keys: list[str], arch: Architecture) -> Iterator[str]:
    """One problem per kind of key that is not understood, with the first of its kind."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        what, whole = _meaning(key, _REFUSED), _meaning(key, _WHOLE)
        words = key.split(".")[:-1]
        tails = [".".join(words[start:]) for start in range(min(len(words), 4))]  # whatever prefix the module has
        if whole and any(layout.locate(tail) for layout in arch.layouts.values() for tail in tails):
            what = what or whole
        kinds["a bundled embedding" if key.startswith("bundle_emb") else what.format(title=arch.title)].append(key)
    for what, group in kinds.items():
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        is_no = "is no LoRA key" if len(group) == 1 else "are no LoRA keys"
        yield (f"{group[0]}{more}: {what}" if what else f"{group[0]}{more} {is_no} of {arch.title} in this format")


def _meaning(key: str, endings: Mapping[str, str]) -> str:
    return next((what for ending, what in endings.items() if re.search(rf"(?:^|[._])(?:{ending})$", key)), "")


def module_faults(
    path: str, parts: list[dict[str, str]], tensors: Tensors, arch: Architecture, layout: Layout, style: KeyStyle
) -> Iterator[str]:
    """What is wrong with the tensors of one module; `parts`: the keys of each pair of factors, by factor."""
    faults = [fault for keys in parts for fault in _pair_faults(path, keys, tensors, style)]
    yield from faults
    if faults:
        return
    stack = layout.stacked(path)
    A, *_ = shapes = [tensors[keys["A"]].shape for keys in parts]
    if len(A) > 2 and arch.variants:  # where no model is known, nothing says which module is a convolution
        kernels, plain = arch.kernel_sizes(stack), layout.plain_kernel(path, A[2:])
        if not kernels and set(A[2:]) == {1}:  # a linear layer, stored as a 1x1 convolution
            return
        if not kernels:
            yield f"{path} is no convolution, and its A has shape {list(A)}"
        elif layout.kernel(path, plain) != A[2:] or len(plain) not in kernels:
            yield f"{path}: its A has shape {list(A)}, which is not how this format has that convolution"
    if style.parts:
        heights, widths = [tensors[keys["B"]].shape[0] for keys in parts], {shape[1] for shape in shapes}
        if arch.sizes(stack, sum(heights)) != heights:
            yield f"{path}: its parts have {heights} rows"
        elif len(widths) > 1:
            yield f"{path}: its parts have {sorted(widths)} inputs"


def _pair_faults(path: str, keys: Mapping[str, str], tensors: Tensors, style: KeyStyle) -> Iterator[str]:
    dimensions = (2,) if style.parts else (2, 4, 5)
    for factor in ("A", "B"):
        if factor not in keys:
            yield f"{path} has no {factor}"
            continue
        key, info = keys[factor], tensors[keys[factor]]
        if info.dtype not in FLOATS:
            yield f"{key} is {info.dtype}, not a floating type"
        if info.repeats:
            yield f"{key} repeats its numbers (strides {list(info.strides or ())})"
        if len(info.shape) not in dimensions or 0 in info.shape:
            yield f"{key} has shape {list(info.shape)}, not two dimensions with a rank of 1 or more"
    if not {"A", "B"} <= keys.keys():
        return
    a, b = tensors[keys["A"]].shape, tensors[keys["B"]].shape
    if len(a) == len(b) and len(a) in dimensions and a[0] != b[1]:
        turned = ": the factors look transposed" if a[1] == b[0] else ""
        yield f"{path}: A {list(a)} and B {list(b)} disagree on the rank{turned}"
    elif len(a) != len(b) or b[2:] != (1,) * (len(b) - 2):
        yield f"{path}: A {list(a)} and B {list(b)} are not those of one module"
    if "magnitude" in keys:
        info = tensors[keys["magnitude"]]
        want = style.length_shape(b[0], len(b) - 2, keys["magnitude"])
        if info.dtype not in FLOATS or info.shape != want:
            have = f"{keys['magnitude']} is {info.dtype} {list(info.shape)}"
            yield f"{have}, not floating numbers, one per row: {list(want)}"
        if info.repeats:
            yield f"{keys['magnitude']} repeats its numbers (strides {list(info.strides or ())})"
