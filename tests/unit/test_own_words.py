"""No code of loraforge decides by what a sentence of loraforge says: a reworded message changes no behaviour."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "loraforge"
SENTENCES = {
    "command", "consequence", "fault", "fix", "instead", "line", "lost", "message", "note", "notes", "otherwise",
    "problem", "problems", "raises", "reason", "remedies", "said", "shown", "source", "text", "title", "verdict",
    "what", "why",
}  # fmt: skip
"""Attributes that hold texts for readers, and what variables with such a text are called."""
FOREIGN = {"line", "said", "shown", "source", "text"}
"""Of these names, variables hold texts of files and of users too: only attributes of these names count."""
TAKES_APART = {
    "startswith", "endswith", "partition", "rpartition", "split", "rsplit", "removeprefix", "removesuffix", "find",
    "index", "count",
}  # fmt: skip
MATCHES = {"search", "match", "fullmatch", "findall", "finditer", "split"}
ALLOWED = {"plugin/schema_check.py: what.startswith('Expected')": "the words are those of tomli, and choose a hint"}
"""`file: code` -> why it decides nothing by words of ours."""


def of_ours(node: ast.expr) -> bool:
    """Whether an expression is a text for readers, or the one that an f-string or a method makes of it."""
    match node:
        case ast.Attribute(attr=name):
            return name in SENTENCES
        case ast.Name(id=name):
            return name in SENTENCES - FOREIGN
        case ast.Call(func=ast.Attribute(value=inner)) | ast.Subscript(value=inner):
            return of_ours(inner)
        case ast.Call(func=ast.Name(id="str"), args=[inner]):
            return of_ours(inner)
    return False


def decisions(tree: ast.Module) -> Iterator[ast.expr]:
    """Every expression that takes a text for readers apart, or looks for words in it."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=text, attr=method)) if method in TAKES_APART and of_ours(text):
                yield node
            case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=method), args=[_, text, *_]):
                if method in MATCHES and of_ours(text):
                    yield node
            case ast.Compare(ops=ops, left=left, comparators=[*rights]):
                for operator, text in zip(ops, rights, strict=True):
                    if isinstance(operator, ast.In | ast.NotIn) and of_ours(text):
                        yield node
                    words = isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value != ""
                    if isinstance(operator, ast.Eq | ast.NotEq) and words and of_ours(left):
                        yield node


def test_no_code_decides_by_a_sentence() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in decisions(ast.parse(path.read_text("utf-8"))):
            found[f"{path.relative_to(PACKAGE).as_posix()}: {ast.unparse(node)}"] = node.lineno
    assert found.keys() == ALLOWED.keys(), found


def test_options_that_a_remedy_adds_are_words() -> None:
    """`Try("--alpha 1")` would be a line that nobody can take apart; `adding("--alpha", "1")` says what it is."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[*args]) if name == "Try" or name.endswith("Error"):
                    texts = args[name != "Try" :]
                case ast.Assign(targets=[ast.Attribute(attr="remedies")], value=ast.Tuple(elts=texts)):
                    pass
                case _:
                    continue
            for text in texts:
                start = next((inner for inner in ast.walk(text) if isinstance(inner, ast.Constant)), None)
                is_option = isinstance(text, ast.Constant | ast.JoinedStr) and str(
                    getattr(start, "value", "")
                ).startswith("-")
                assert not is_option or any(k.arg == "instead" for k in getattr(node, "keywords", ())), ast.unparse(
                    node
                )


def test_the_test_sees_such_code() -> None:
    for code in (
        'found.verdict.startswith("cannot tell (")',
        'remedy.why.rpartition("scale ")[2]',
        '[note for note in report.notes if "shapes of" in note]',
        'found.verdict == "cannot tell"',
        'remedy.command.split()[-1]',
        're.search("rank [0-9]", adapter.scale.source)',
        'str(error.message).lower().startswith("no")',
    ):  # fmt: skip
        assert list(decisions(ast.parse(code))), code
