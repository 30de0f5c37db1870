"""What an adapter looks like if no format reads its names: another model's, or a known one's with an odd word."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any

from loraforge.names.catalog import architectures
from loraforge.names.index import pattern
from loraforge.names.layout import Architecture
from loraforge.tables import package_table

_FACTOR = re.compile(
    r"(?P<path>.+?)(?P<word>\.lora_[AaBb]|\.lora_(?:down|up)|[._]lora\.(?:down|up)|\.lora_magnitude_vector|\.(?:down|up)(?=\.weight)"
    r"|\.hada_[wt]\d\w*|\.lokr_[wt]\d\w*|\.oft_\w+|\.dora_scale|\.diff(?:_b)?|\.alpha)(?P<rest>\..*)?",
    re.DOTALL,
)
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "processor")
"""Words that wrappers of training add anywhere in a module path."""
_READ = (
    "transformer.", "base_model.model.", "diffusion_model.", "lora_unet_", "lora_unet__", ".lora_A", ".lora_B",
    ".lora_down", ".lora_up", ".lora.down", ".lora.up", ".lora_magnitude_vector", ".dora_scale", ".alpha",
)  # fmt: skip
"""Words of the known formats: each is odd only beside those of another format."""
_FUSED = {"to_qkv": "q, k and v in one, as fuse_qkv_projections makes them", "to_kv": "k and v in one"}


def lora_paths(keys: Iterable[str]) -> dict[str, str]:
    """Key -> its module path with any prefix, for the keys that end like an adapter's."""
    return {key: match["path"] for key in keys if (match := _FACTOR.fullmatch(key))}


def models() -> Mapping[str, Mapping[str, Any]]:
    """The table of other models, by title."""
    return package_table("names/othermodels")


@cache
def _pattern(title: str, names: str, sep: str) -> re.Pattern[str] | None:
    """The names of a model's modules; None if it has no names of that kind."""
    modules = models()[title].get(names, ())
    text = "|".join(modules).replace("{i}", r"\d+").replace(".*", "\0").replace(".", sep).replace("\0", ".*")
    return re.compile(f"(?:{text})") if modules else None


def sharing(paths: Collection[str], names: str, sep: str = ".") -> tuple[str, ...]:
    """The models that have all of these modules, under names of this kind (a layout's name)."""
    names, tried = "comfyui" if names == "original" else names, [p.replace(".", sep) for p in paths]
    known = {title: _pattern(title, names, re.escape(sep)) for title in _others()}
    return tuple(t for t, pattern in known.items() if pattern and all(map(pattern.fullmatch, tried)))


def other_model(paths: Iterable[str], *, tied: bool = False) -> str | None:
    """The other model with the most of these module kinds, and at least half; None if an architecture has as many.

    With `tied`: None only if an architecture has more.
    """
    kinds = {re.sub(r"(?<=[._])\d+(?=[._])", "0", path) for path in paths}  # one for all blocks
    each = ((title, [_pattern(title, names, "[._]") for names in ("comfyui", "diffusers")]) for title in _others())
    ends = {title: [re.compile(rf"(?:^|[._])(?:{p.pattern})$") for p in both if p] for title, both in each}
    counts = {title: sum(any(end.search(path) for end in both) for path in kinds) for title, both in ends.items()}
    most, ours = max(counts.values(), default=0), sum(_located(path) is not None for path in kinds)
    if not kinds or 2 * most < len(kinds) or most < ours or (most == ours and not tied):
        return None
    return " or ".join(title for title, count in counts.items() if count == most)


def _others() -> list[str]:
    """The titles of the models that are no architecture here."""
    return [title for title in models() if title not in architectures().index.titles.values()]


def of_repo(repo: str) -> str | None:
    """The other model in a repository, by the repository's name; None if not known."""
    starts = {start.lower(): title for title, model in models().items() for start in model.get("repos", ())}
    return next((title for start, title in starts.items() if repo.lower().startswith(start)), None)


def of_words(text: str) -> str | None:
    """The title of the model that a header entry names, by the longest word; None if it names none that is known."""
    name, index = re.sub(r"[^a-z0-9]", "", text.lower()), architectures().index
    words = {word: title for title, model in models().items() for word in model.get("words", ())}
    words |= {word: index.titles[arch] for word, arch in index.words.items()}
    return words[max(hits, key=len)] if (hits := [word for word in words if name.startswith(word)]) else None


def odd_words(keys: Iterable[str]) -> tuple[Architecture, str] | None:
    """The architecture of the modules in the keys, and the odd words around them; None if fewer than half are known."""
    matches = [match for key in keys if (match := _FACTOR.fullmatch(key))]
    found = [(match["word"], hit) for match in matches if (hit := _located(match["path"]))]
    if not found or 2 * len(found) < len(matches):
        return None
    every = dict.fromkeys(word for factor, (_, words) in found for word in (*words, factor))
    odd = [word for word in every if word not in _READ]
    return found[0][1][0], ", ".join(f"`{word}`" for word in odd or [*every])


def _located(path: str) -> tuple[Architecture, tuple[str, ...]] | None:
    """The architecture with a module at the end of this path, and the words of the path that are not its name."""
    words = path.split(".")
    wrapped, bare = ([word for word in words if (word in _WRAPPERS) == kind] for kind in (True, False))
    # prefix, module, separator
    tries = [("".join(f"{w}." for w in bare[:n]), ".".join(bare[n:]), ".") for n in range(min(len(bare), 5))]
    cuts = [match.end() for match in re.finditer("_", bare[-1])][:4] if len(bare) < 3 else []
    tries += [("".join([*(f"{w}." for w in bare[:-1]), bare[-1][:cut]]), bare[-1][cut:], "_") for cut in cuts]
    ends = (("", []), ("_", ["_ at the end of the module"]))
    for before, whole, sep in (one for one in tries if not re.search(r"\d", one[0])):
        for module, after in ((whole.rstrip(end), words) for end, words in ends):
            fused = next((f for f in _FUSED if module.endswith(f)), "")
            plain = module.removesuffix(fused) + "to_k" if fused else module
            for name, layout in architectures().index.homes([pattern(plain)]):
                if (arch := architectures()[name]).layouts[layout].locate(plain, sep):
                    note = [f"{fused}: {_FUSED[fused]}"] if fused else []
                    return arch, (*filter(None, [before]), *(f"{w}." for w in wrapped), *after, *note)
    return None
