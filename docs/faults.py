"""Writes docs/faults.md and the pages in docs/faults from loraforge/facts/symptoms: `python docs/faults.py`."""

from __future__ import annotations

import re
from pathlib import Path

from loraforge.cli.explain import shown
from loraforge.facts.symptoms import Symptom, filled, symptoms
from loraforge.tables import package_tables

INDEX = Path(__file__).with_suffix(".md")
FOLDER = Path(__file__).with_suffix("")
MADE = "<!-- Written by `python docs/faults.py` from loraforge/facts/symptoms: change the tables instead. -->"
HEAD = f"""{MADE}
# What went wrong with my LoRA? Error messages, explained

Error messages that trainers, loaders and converters print when an adapter goes wrong, by the program that prints them:
why, how to make sure, what to do. The command line finds them in a whole log, and quotes your own line:

```
loraforge explain train.log
python infer.py 2>&1 | loraforge explain - --file pytorch_lora_weights.safetensors
```

训练、加载和转换 LoRA 时常见的报错，按打印它的程序排列：原因、确认方法和解决办法，每条英文之后是中文。
命令行可以直接从整份日志里找出它们：`loraforge explain train.log --lang zh`。
"""
WORDS = {"en": ("Cause", "Check", "Fix", ": "), "zh": ("原因", "确认", "解决", "：")}


def pages() -> dict[Path, str]:
    """The text of every page."""
    made, index = dict[Path, str](), [HEAD]
    for name, file in package_tables("facts/symptoms").items():
        program = file["program"]
        known = [one for one in symptoms().values() if one.program == program]
        index += [f"## [{program}](faults/{name}.md)\n"]
        index += [  # the anchors are those of the one page that this was
            f'- <a id="{one.id.lower()}"></a>[{one.id}](faults/{name}.md#{one.id.lower()}) {one.title} · {one.title_zh}'
            for one in known
        ]
        index.append("")
        head = [
            MADE,
            f"# {program}: error messages, explained\n",
            "[All programs](../faults.md). `...` is what varies.\n",
        ]
        made[FOLDER / f"{name}.md"] = "\n".join([*head, *map(section, known)])
    return {INDEX: "\n".join(index), **made}


def section(one: Symptom) -> str:
    """One failure, in both languages."""
    lines = [f'<a id="{one.id.lower()}"></a>\n\n## {one.id}. {one.title} · {one.title_zh}\n']
    if not one.exact:
        lines.append("In other words than the program's own, which were not seen (大意，并非原文):\n")
    lines += ["```text", *map(shown, one.any), "```\n"]
    for lang in WORDS:
        lines += [*told(one, lang), ""]
    return "\n".join([*lines, f"Seen in: {', '.join(map(link, one.sources))}", ""])


def told(one: Symptom, lang: str) -> list[str]:
    """Cause, check and fix in one language."""
    cause, check, fix, colon = WORDS[lang]
    lines = [f"- **{cause}**{colon}{marked(one.text('cause', lang))}"]
    for word, name, template in ((check, "check", one.check_command), (fix, "fix", one.fix_command)):
        typed = filled(template, "ADAPTER")
        lines.append(f"- **{word}**{colon}{marked(one.text(name, lang))}{f' `{typed}`' if typed else ''}")
    return lines


def marked(text: str) -> str:
    """A sentence, with what Markdown would take for emphasis kept as it is."""
    return re.sub(r"([_*<])", r"\\\1", text)


def link(source: str) -> str:
    """A thread as a link; a source file as its path."""
    repo, mark, number = source.partition("#")
    return f"[{source}](https://github.com/{repo}/issues/{number})" if mark else f"`{source}`"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, "utf-8", newline="\n")
