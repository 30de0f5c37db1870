"""Finds the scale that a run used in the files of its trainer, its trackers or the user's launch script.

Sources: CogVideo sat/configs/*_lora.yaml and finetune/*.sh, cogvideox-factory, finetrainers and VideoX-Fun launch
scripts, sd-scripts config files, diffusion-pipe train.py (copied to epoch{n}, step{n}), accelerate tracking.py
(`hparams.yml` in logs/<project>/<time>/), wandb config.yaml.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import tomli

from loraforge.errors import ScaleError
from loraforge.files.neighbours import BESIDE
from loraforge.files.texts import once, parse_yaml
from loraforge.foreign import content, reading
from loraforge.scale.rule import number, over
from loraforge.text import command, listed, plain, shown

SAT_DEFAULT = "SAT's default lora_alpha"
PIPE_DEFAULT = "diffusion-pipe's alpha"
"""Which is the rank: since 2024-12-10 it refuses a configuration that states another, and before it was the default."""
ALPHAS = (PIPE_DEFAULT, "lora_alpha", "network_alpha", SAT_DEFAULT, "alpha")
RANKS = ("lora_rank", "lora_r", "network_dim", "network_rank", "rank", "r")
RSLORA = ("use_rslora", "rslora")
PATTERNS = ("alpha_pattern", "rank_pattern")
NAMES = frozenset((*ALPHAS, *RANKS, *RSLORA, *PATTERNS))
BARE = ("alpha", "rank", "r")
"""Names with other meanings too (a blend, a process): ignored if the same mapping has a clearer name."""
OUTPUTS = ("output_dir", "output_path")
MOST_BYTES, MOST_MAPPINGS, DEEPEST = 1 << 20, 20_000, 64


class _Entry(NamedTuple):
    """An entry of a configuration or script that states alpha, rank or patterns, and where it stands."""

    name: str
    value: object
    place: str


def _wrong(path: Path, what: str) -> ScaleError:
    look = command("grep", "-n", "-i", "-E", "alpha|rank|lora", path)
    return ScaleError(f"{path}: {what} State what this run used with --alpha.", look)


class _SilentError(ScaleError):
    """The file states no scale or cannot be read: the search goes on."""


@dataclass(frozen=True, slots=True)
class TrainingScale:
    """What a configuration says training used; `said` is one phrase: `lora_alpha 64, rank 128`."""

    alpha: float
    rank: float | None
    rslora: bool
    said: str
    output: str = ""
    """The output folder that it states; empty if it states none or several."""

    def scaling(self, rank: int) -> float:
        """The scaling of a module of this rank."""
        return over(self.alpha, rank, rslora=self.rslora)


def read_training_config(path: Path) -> TrainingScale:
    """The alpha that a YAML, JSON or TOML file or a launch script states, and the rank with it.

    Raises ScaleError if the file cannot be read, states no alpha or two, or a value that is not a number.
    """
    return read_text(_text(path), path)


def read_text(text: str, path: Path) -> TrainingScale:
    """The same for a text; `path` gives its kind, by the suffix, and its name in messages."""
    read = _document if path.suffix.lower() in _PARSERS else _script
    alphas, ranks, flags = list[_Entry](), list[_Entry](), list[_Entry]()
    outputs = set[str]()
    # Only these words state an alpha; a file without them need not be parsed.
    for group in read(text, path) if re.search(r"alpha|lora_config|\[adapter\]", text) else []:
        flags += _named(group, RSLORA)
        outputs |= {entry.value for entry in _named(group, OUTPUTS) if isinstance(entry.value, str)}
        alpha, rank = _named(group, ALPHAS), _named(group, RANKS)
        if not alpha or (alpha[0].name == "alpha" and all(number(entry.value) is None for entry in rank)):
            continue
        if own := [entry.place for entry in _named(group, PATTERNS) if entry.value != {}]:
            raise _wrong(path, f"{own[0]} gives modules scales of their own, so there is no one alpha.")
        alphas += alpha
        ranks += rank
    if not alphas:
        text = f"{path} states no lora_alpha, network_alpha, or alpha beside a rank."
        raise _SilentError(text)
    a, r, flag = (_agreed(path, entries) for entries in (alphas, ranks, flags))
    rslora = any(value for _, value in flag)
    said = ", ".join([f"{entry.name} {value:g}" for entry, value in a + r] + ["rslora"] * rslora)
    output = outputs.pop() if len(outputs) == 1 else ""
    return TrainingScale(a[0][1], r[0][1] if r else None, rslora, said, output)


def stated_in(folder: Path) -> dict[Path, TrainingScale | None]:
    """The configurations in a folder that state a lora alpha; None for one that contradicts itself."""
    scales = dict[Path, TrainingScale | None]()
    logged = [*folder.glob("logs/*/hparams.yml"), *folder.glob("logs/*/*/hparams.yml")]
    copied = sorted(folder.glob("*.toml")) * bool(re.fullmatch(r"(epoch|step)\d+", folder.name))  # by diffusion-pipe
    for path in [folder / name for name in BESIDE] + logged * (len(logged) == 1) + copied:
        try:
            scales[path] = read_training_config(path)
        except _SilentError:
            continue
        except ScaleError:
            scales[path] = None
    return scales


def _named(group: list[_Entry], names: Iterable[str]) -> list[_Entry]:
    chosen = [entry for entry in group if entry.name in names]
    return [entry for entry in chosen if entry.name not in BARE] or chosen


def _agreed(path: Path, entries: list[_Entry]) -> list[tuple[_Entry, float]]:
    """The first entry and its value; empty without entries. Raises ScaleError if they differ."""
    values = list[tuple[_Entry, float]]()
    for entry in entries:
        value = float(entry.value) if isinstance(entry.value, bool) and entry.name in RSLORA else number(entry.value)
        if value is None or not math.isfinite(value):
            raise _wrong(path, f"{entry.name} ({entry.place}) is {shown(entry.value)}: no value it can have.")
        values.append((entry, value))
        if value != values[0][1]:
            one, other = (f"{e.name} {v:.12g} ({e.place})" for e, v in (values[0], values[-1]))
            raise _wrong(path, f"two values are stated: {one}, but {other}.")
    return values[:1]


def _text(path: Path) -> str:
    with reading(path, "a training configuration", kind=_SilentError):
        # a .bat may have comments in its system's encoding; options are ASCII
        text = content(path, MOST_BYTES).decode("utf-8-sig", "replace")
        if re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", text):
            raise ValueError("it is not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _document(text: str, path: Path) -> Iterator[list[_Entry]]:
    """The entries of each mapping of a document. Each is visited once, however many aliases name it."""
    with reading(path, path.suffix[1:].upper(), kind=_SilentError):
        root = _PARSERS[path.suffix.lower()](text)
    seen, queue = set[int](), list[tuple[tuple[str, ...], object]]([((), root)])
    for keys, node in queue:
        if not isinstance(node, dict | list) or id(node) in seen:
            continue
        seen.add(id(node))
        if len(seen) > MOST_MAPPINGS or len(keys) > DEEPEST:
            text = f"{path} holds too much to be a training configuration."
            raise _SilentError(text)
        group = list[_Entry]()
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, dict) and "value" in value and value.keys() <= {"desc", "value"}:
                value = value["value"]  # wandb wraps each value
            at = (*keys, plain(key, 40) if isinstance(key, str) else shown(key))
            if (key in NAMES or key in OUTPUTS) and value is not None:
                group.append(_Entry(key, value, ".".join(at)))
            if isinstance(value, dict | list):
                queue.append((at, value))
        if keys[-2:] == ("lora_config", "params") and isinstance(node, dict) and "lora_alpha" not in node:
            group += [_Entry(SAT_DEFAULT, 1, ".".join(keys))] * ("r" in node)
        if keys == ("adapter",) and isinstance(node, dict) and node.get("type") == "lora" and "alpha" not in node:
            group += [_Entry(PIPE_DEFAULT, node[key], "adapter") for key in node if key == "rank"]
        yield group


_NOT_RUN = re.compile(
    r"""(?mix) <\#[\s\S]*?(?:\#>|\Z)                              # PowerShell's block comment
    | ^[ \t]*:[ \t]*(?:'[^']*(?:'|\Z)|<<-?[ \t]*['"]?(\w+)[\s\S]*?(?:^\1$|\Z))  # the shell's no-op, used as one
    | ^[ \t]*@?(?:rem\b|::).* | (?<!\S)\#.* | ^[ \t]*@?(?:echo|printf|write-host)\b[^;&|\n]*
    | "[^"\n]*" | '[^'\n]*'                                       # kept: a # inside starts no comment"""
)
_VALUE = r"""(\$\(\w+\)|[^\s"',;)|&]*)"""
_OPTION = re.compile(rf"(?<![\w-])--({'|'.join(NAMES).replace('_', '[_-]')})(?![\w-])[ \t=,\"']*(?!--){_VALUE}")
_EQUALS = rf"""[ \t]*([-+*/?]?):?=(?!=)[ \t]*["']?{_VALUE}(?=["']?[ \t]+([-+*/%])[ \t]|)"""
_ASSIGNED = re.compile(rf"""(?mi)(?:^[ \t]*\$?(?:env:)?|[\s;"'&])(\w+)(?:{_EQUALS}|[ \t]+(in)\b)""")
_REFERENCE = re.compile(r"(?i)\$(?:env:)?([a-z_]\w*)|\$[{(](?:env:)?([a-z_]\w*)[})]|%(\w+)%|!(\w+)!")


def _script(text: str, path: Path) -> list[list[_Entry]]:
    """The options of all commands of a script, as one group: a script with two alphas is refused."""
    starts = list(accumulate((len(line) + 1 for line in text.split("\n")), initial=0))
    # Comments become blanks and continued lines are joined; every character keeps its position.
    code = _NOT_RUN.sub(lambda match: match[0] if match[0][0] in "\"'" else re.sub(r"[^\n]", " ", match[0]), text)
    code = re.sub(r"[\\^`][ \t]*\n[ \t\n]*\n(?=[ \t]*-)", lambda match: "\0".rjust(len(match[0])), code)
    code = re.sub(r"[\\^`][ \t]*\n", lambda match: " " * len(match[0]), code)
    if lost := re.search(rf"\0[^\n]*?{_OPTION.pattern}", code):
        line = bisect_right(starts, lost.start(1))
        raise _wrong(path, f"line {line}: a comment or gap above --{lost[1]} ends its command.")
    variables = dict[str, dict[str, int]]()
    for match in _ASSIGNED.finditer(code):  # `A+=1`, `A = B / 2`, `for A in`: the value is not in one line
        value = match[0].strip() if match[2] or match[4] or match[5] else match[3]
        variables.setdefault(match[1], {}).setdefault(value, bisect_right(starts, match.end() - 1))
    options = [(m[1].replace("-", "_"), m[2], bisect_right(starts, m.start())) for m in _OPTION.finditer(code)]
    return [[_Entry(name, _value(text, name in RSLORA, variables, path), f"line {n}") for name, text, n in options]]


def _value(text: str, switch: bool, variables: dict[str, dict[str, int]], path: Path) -> object:
    for _ in range(8):  # at most 8, as variables can refer to each other
        reference = _REFERENCE.fullmatch(text)
        given = variables.get(reference[reference.lastindex or 0], {}) if reference else {}
        if len(given) > 1:
            values = listed([f"{shown(value)} (line {line})" for value, line in given.items()])
            raise _wrong(path, f"{plain(text, 40)} has two values: {values}.")
        text = next(iter(given), text)
    try:
        return {"": True, "true": True, "false": False}.get(text.lower(), text) if switch else float(text)
    except ValueError:
        return text


_PARSERS: dict[str, Callable[[str], object]] = {
    ".yaml": partial(parse_yaml, objects=True),
    ".yml": partial(parse_yaml, objects=True),
    ".json": lambda text: json.loads(text, object_pairs_hook=once),
    ".toml": tomli.loads,
}
