"""Writes docs/faults.md from loraforge/facts/symptoms.toml: `python docs/faults.py`."""

from __future__ import annotations

import re
from pathlib import Path

from loraforge.cli.explain import shown
from loraforge.facts.symptoms import Symptom, filled, symptoms

PAGE = Path(__file__).with_suffix(".md")
HEAD = """<!-- Written by `python docs/faults.py` from loraforge/facts/symptoms.toml: change the table instead. -->
# What went wrong with my LoRA? Error messages, explained

Error messages that trainers, loaders and converters print when an adapter goes wrong: why, how to make sure, what to
do. `...` stands for what varies. The command line finds them in a whole log:

```
python infer.py 2>&1 | loraforge explain - --file pytorch_lora_weights.safetensors
```

训练、加载和转换 LoRA 时常见的报错：原因、确认方法和解决办法，每条英文之后是中文。命令行可以直接从整份日志里找出它们：
`loraforge explain - --lang zh`。
"""
WORDS = {"en": ("Cause", "Check", "Fix", ": "), "zh": ("原因", "确认", "解决", "：")}


def page() -> str:
    """The whole page."""
    known = symptoms().values()
    rows = [f"- [{one.id}](#{one.id.lower()}) {one.title} · {one.title_zh}" for one in known]
    return "\n".join([HEAD, *rows, "", *map(section, known)])


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
    PAGE.write_text(page(), "utf-8", newline="\n")
