"""Which formats there are, and how the one for a source is found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from loraforge.errors import FormatError, Try, adding
from loraforge.format.builtin import FORMATS
from loraforge.format.data import DataFormat
from loraforge.format.protocol import Format
from loraforge.names.catalog import architectures, data_files
from loraforge.plugin.host import BUILT_IN, depends_on_plugins, host
from loraforge.text import command

_MEMBERS = ("name", "summary", "layouts", "options", "storage", "writer", "find", "claims", "read")
"""What a format must have; see `loraforge.formats.Format`."""


@depends_on_plugins
@cache
def _registered() -> tuple[dict[str, Format], dict[str, str]]:
    """Format by name, and the plugin of each. What is no format, or has a name already taken, is noted and left out."""
    found, owners = dict[str, Format](), dict[str, str]()

    def add(owner: str, form: Format) -> None:
        if form.name in owners:
            taken = f"format {form.name!r} is already added by {owners[form.name]}; this one is left out"
            host().fault(owner, taken)
            return
        found[form.name], owners[form.name] = form, owner
        host().plugins[owner].adds.append(f"format {form.name}")

    for form in FORMATS:
        add(BUILT_IN, form)
    for owner, item in host().results("loraforge_formats"):
        if hasattr(item, "read_text"):
            continue
        lacking = [member for member in _MEMBERS if not hasattr(item, member)]
        name = getattr(item, "name", None)
        if lacking or not isinstance(name, str) or re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) is None:
            why = f"without {', '.join(lacking)}" if lacking else f"with the name {name!r:.60}"
            host().fault(owner, f"loraforge_formats returned {type(item).__name__} {why}: that is no format")
            continue
        add(owner, item)
    known = architectures()
    for owner, data, where in data_files():
        if "format" not in data:
            continue
        form = DataFormat(data["format"])
        unknown = [
            f"{arch}/{used}" for arch, used in form.layouts.items() if arch in known and used not in known[arch].layouts
        ]
        if not unknown and not form.layouts.keys() & known.keys():
            unknown = [f"{arch}/{used}" for arch, used in form.layouts.items()] or ["of the name it gives"]
        if unknown:
            host().fault(owner, f"{where}: there is no layout {', '.join(unknown)}")
            continue
        add(owner, form)
    return found, owners


def formats() -> Mapping[str, Format]:
    """Every format by name."""
    return _registered()[0]


def owners() -> Mapping[str, str]:
    """The plugin each format comes from."""
    return _registered()[1]


def named(name: str, flag: str = "--from") -> Format:
    """The format of that name. Raises FormatError with the names there are, and the plugins that failed.

    `flag` is the option it was given by, for the remedies.
    """
    if name not in formats():
        if family := [form for form in formats().values() if getattr(form, "family", None) == name]:
            text = (
                f"{name!r} is {len(family)} formats: "
                + "; ".join(f"{f.name}, {f.summary}" for f in family)
                + ". Which?"
            )
            raise FormatError(text, *(adding(flag, f.name, why=f.summary) for f in family))
        broken = [Try(command("loraforge", "plugins", "list"), f"{p.name}: {p.errors[0]}") for p in host().broken()]
        text = f"there is no format {name!r}; there are {', '.join(formats())}."
        raise FormatError(text, *(broken[:3] or [Try(command("loraforge", "formats"))]))
    return formats()[name]


_MOST = 50
"""Files of a folder that are opened to see what they are."""
