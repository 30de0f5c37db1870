"""The YAML at the head of a model card: what stands in it, and how ours is merged in without touching the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loraforge.errors import HubError, Try

if TYPE_CHECKING:
    import yaml

_FENCE = "---"


def split(card: str) -> tuple[str, str]:
    """The YAML between the first two lines of `---`, and the text after them; no YAML where a card has none."""
    card = card.removeprefix("\ufeff").replace("\r\n", "\n")
    lines = card.split("\n")
    if lines[0].rstrip() != _FENCE:
        return "", card
    end = next((n for n, line in enumerate(lines) if n and line.rstrip() == _FENCE), None)
    if end is None:
        return "", card
    return "".join(f"{line}\n" for line in lines[1:end]), "\n".join(lines[end + 1 :])


def join(front: str, body: str) -> str:
    """A card of the two."""
    return f"{_FENCE}\n{front}{_FENCE}\n{body}"


def fields(front: str, where: str) -> dict[str, Any]:
    """What the YAML says. Raises HubError where it is none, or no mapping."""
    import yaml

    try:
        found = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = f" (line {line + 2})" if line is not None else ""
        raise HubError(f"the head of {where} is no YAML{at}: mend it there first.", _edit(where)) from error
    if found is not None and not isinstance(found, dict):
        raise HubError(f"the head of {where} is no table of fields: mend it there first.", _edit(where))
    return found or {}


def _edit(where: str) -> Try:
    return Try(f"# edit {where}")


def merged(front: str, new: Mapping[str, Any]) -> str:
    """The YAML with these fields set. Lines, comments and order of all others stay as their owner wrote them."""
    import yaml

    tree = yaml.compose(front, Loader=yaml.SafeLoader)
    pairs = tree.value if isinstance(tree, yaml.MappingNode) else []
    spans = {key.value: (key.start_mark.line, _after(value, front)) for key, value in pairs}
    lines = front.split("\n")[: front.count("\n")] if front.endswith("\n") else front.split("\n") * bool(front)
    old = yaml.safe_load(front) or {}
    changes = {key: value for key, value in new.items() if old.get(key) != value}
    if isinstance(tree, yaml.MappingNode) and tree.flow_style:  # {a: 1, b: 2} on one line has no lines of its own
        return written({**old, **changes})
    for key in sorted(changes.keys() & spans.keys(), key=lambda key: -spans[key][0]):
        start, end = spans[key]
        lines[start:end] = written({key: changes[key]}).splitlines()
    lines += [line for key in changes if key not in spans for line in written({key: changes[key]}).splitlines()]
    return "".join(f"{line}\n" for line in lines)


def _after(value: yaml.Node, front: str) -> int:
    """The line after the last of a value."""
    mark = value.end_mark
    return mark.line if mark.column == 0 and mark.line else min(mark.line + 1, front.count("\n") + 1)


def written(values: Mapping[str, Any]) -> str:
    """Fields as YAML, in their order, no line folded."""
    import yaml

    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=10_000))
