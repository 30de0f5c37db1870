"""The reference of plugins says what the code says. `python plugins/test_docs.py` writes the matrix anew."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import loraforge
from loraforge.format.protocol import Wanted
from loraforge.plugin import hooks

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "plugins.md"
SCALES = {"tensors": "nothing: folded in", "metadata": "the header", "config": "its files"}


def matrix() -> str:
    """What `loraforge formats` knows, as a table."""
    rows = [
        "| format | modules | ranks | DoRA | whole differences | the scale stands in |",
        "|---|---|---|---|---|---|",
    ]
    for name, form in sorted(loraforge.formats().items()):
        modules, ranks, dora, *whole = form.storage.text().split("; ")
        if form.writer is None:
            continue
        wanted = Wanted(lora_only=True) if "lora_only" in form.options else Wanted()
        scale = SCALES[form.writer(wanted).stored]
        scale += ", or the header (`--scale-in metadata`)" if "scale_in" in form.options else ""
        held = ", ".join(f"`{end}`" for end in whole[0].split(", ")) if whole else "no"
        rows.append(f"| `{name}` | {modules} | {ranks} | {'yes' if dora == 'DoRA' else 'no'} | {held} | {scale} |")
    return "\n".join(rows)


def entries() -> str:
    """The entries of a format's table, as the schema describes them."""
    table = json.loads((ROOT / "schemas" / "plugin.schema.json").read_text("utf-8"))["properties"]["format"]
    needed = set(table["required"])
    rows = [
        f"| `{name}`{'' if name in needed else ' (may be left out)'} | {entry['description']} |"
        for name, entry in table["properties"].items()
    ]
    return "\n".join(["| entry | says |", "|---|---|", *rows])


def test_the_entries_are_those_of_the_schema() -> None:
    shown = re.search(r"<!-- entries -->\n(.*?)\n<!-- /entries -->", PAGE.read_text("utf-8"), re.DOTALL)
    assert shown is not None
    assert shown[1] == entries()


def test_the_matrix_is_what_the_formats_say() -> None:
    shown = re.search(r"<!-- matrix -->\n(.*?)\n<!-- /matrix -->", PAGE.read_text("utf-8"), re.DOTALL)
    assert shown is not None
    assert shown[1] == matrix()


def test_the_hooks_have_the_signatures_shown() -> None:
    shown = set(re.findall(r"def (\w+)(\(.*?\) -> .*?): \.\.\.", PAGE.read_text("utf-8")))
    known = {
        (name, str(inspect.signature(hook)).replace("'", ""))
        for name, hook in vars(hooks).items()
        if name.startswith("loraforge_")
    }
    assert shown == known


def test_the_directory_lists_every_package_here() -> None:
    shown = set(re.findall(r"\(\.\./plugins/([\w-]+)\)", PAGE.read_text("utf-8")))
    assert shown == {folder.parent.name for folder in ROOT.glob("plugins/*/pyproject.toml")}


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    for name, content in (("matrix", matrix()), ("entries", entries())):
        block = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
        text = re.sub(rf"<!-- {name} -->.*<!-- /{name} -->", lambda _, new=block: new, text, flags=re.DOTALL)
    PAGE.write_text(text, "utf-8")
