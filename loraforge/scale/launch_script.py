"""What states lora_alpha and rank: its names, and its options in launch scripts of shell, PowerShell and batch."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from loraforge.errors import ScaleError
from loraforge.text import command, listed, plain, shown

SAT_DEFAULT = "SAT's default lora_alpha"
ALPHAS = ("lora_alpha", "network_alpha", SAT_DEFAULT, "alpha")
RANKS = ("lora_rank", "lora_r", "network_dim", "network_rank", "rank", "r")
RSLORA = ("use_rslora", "rslora")
PATTERNS = ("alpha_pattern", "rank_pattern")
NAMES = frozenset((*ALPHAS, *RANKS, *RSLORA, *PATTERNS))

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


class _Entry(NamedTuple):
    """An entry of a configuration or script that states alpha, rank or patterns, and where it stands."""

    name: str
    value: object
    place: str


def _wrong(path: Path, what: str) -> ScaleError:
    look = command("grep", "-n", "-i", "-E", "alpha|rank|lora", path)
    return ScaleError(f"{path}: {what} State what this run used with --alpha.", look)


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
