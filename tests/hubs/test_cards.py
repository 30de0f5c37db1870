"""An owner's card, whatever its YAML: every value and every line that is not ours stays. And what a card may carry."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loraforge.errors import HubError
from loraforge.names.catalog import architecture
from loraforge.publishing.card import BEGIN, END, Facts, new_card, section, updated_card
from loraforge.publishing.front_matter import fields, merged, split

OURS = {
    "license": "other",
    "base_model": "zai-org/CogVideoX-5b",
    "base_model_relation": "adapter",
    "tags": ["mine", "lora", "cogvideox"],
    "instance_prompt": "D\nx: 'y' # z",
}
FRONTS = {
    "braces": "{a: 1,\n b: 2}\n",
    "a flow list with a remark": "tags: [mine]  # chosen\nx: 1\n",
    "a flow list on two lines": "tags: [mine,\n  lora]\nx: 1\n",
    "a flow list with a comma at its end": "tags: [mine, lora,]\n",
    "an empty list": "tags: []\nx: 1\n",
    "an anchor of another": "a: &x [mine]\nb: *x\ntags: *x\n",
    "an anchor of ours": "tags: &t\n- mine\nother: *t\n",
    "an anchored base": "base_model: &b /data/x\nmine: *b\n",
    "a merge key": "x: &d {a: 1}\ny:\n  <<: *d\n  b: 2\n",
    "a merge key at the top": "x: &d {tags: [mine]}\n<<: *d\n",
    "literal": "desc: |\n  one\n  --- two\n  ---\n  ...\n  # three\nbase_model: x\n",
    "our literal": "base_model: |\n  /data/x\n  \n\n# remark\nlicense: mit\n",
    "folded and kept": "instance_prompt: >+\n  a\n  b\n\n\nlicense: mit\n",
    "keys that are no text": "1: x\ntrue: y\n2020-01-01: z\nnull: w\n",
    "a key twice": "tags: [a]\nlicense: mit\ntags: [b]\n",
    "remarks after a list": "tags:\n- mine\n# after the list\n\n# before the licence\nlicense: mit\n",
    "remarks in a list": "tags:\n# first\n    - mine   # why\n    # second\n    - lora\nlicense: mit\n",
    "tags are a text": "tags: lora  # one\nx: 1\n",
    "a list of bases": "base_model:\n- /data/x\n# remark\nlicense: mit\n",
    "dates": "date: 2020-01-01\nt: 2020-01-01 10:00:00\n",
    "letters": "emoji: 🎥\nname: größe\n",
    "an end": "a: 1\n...\n",
    "keys in quotes": "\"tags\": [mine]\n'license': mit\n",
    "a key with a question mark": "? base_model\n: /data/x\nlicense: mit\n",
    "plain over lines": "instance_prompt: a\n  b\n  c\nbase_model: /data/\n  x\nlicense: mit\n",
    "quoted over lines": 'base_model: "/data/\n  x"\nlicense: mit\n',
    "nothing in a field": "tags:\nlicense: mit\nbase_model:\n\n# remark\nx: 1\n",
    "nothing in the last": "license: mit\nbase_model:",
    "remarks only": "# just a remark\n",
    "null": "~\n",
    "all of it indented": "  license: mit\n  x: 1\n",
    "spaces at the ends": "license: mit   \nbase_model: /a/b   \n   \nx: 1\n",
    "tags of YAML": "license: !!str mit\nmine: !!set {a, b}\n",
    "other ends of lines": 'a: "x\u2028y"\nbase_model: /a/b\nl: 1\n',
    "carriage returns": "a: 1\rbase_model: /x/y\rlicense: mit\r",
    "nothing": "",
}
AS_A_WHOLE = {"braces", "an anchor of another", "an anchor of ours", "an anchored base", "an end", "null"}
"""What no line can be changed in: the values stay."""


@pytest.mark.parametrize("name", FRONTS)
@pytest.mark.parametrize("keys", [tuple(OURS), ("base_model",), ("tags",)], ids="-".join)
def test_values_and_lines_of_others_stay(name: str, keys: tuple[str, ...]) -> None:
    front, new = FRONTS[name], {key: OURS[key] for key in keys}
    made = merged(front, new)
    assert yaml.safe_load(made) == {**(yaml.safe_load(front) or {}), **new}
    assert merged(made, new) == made and made.endswith("\n")
    if name in AS_A_WHOLE or "question" in name or name == "carriage returns":
        return
    remarks = [line[line.index("#") :] for line in front.splitlines() if "#" in line]
    assert [remark for remark in remarks if remark not in made] == []


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@given(
    had=st.dictionaries(WORDS.filter(bool) | st.sampled_from(sorted(OURS)), VALUES, max_size=6),
    keys=st.sets(st.sampled_from(sorted(OURS))),
    style=st.sampled_from([None, False]),
    remarks=st.booleans(),
)
def test_any_owners_fields(had: dict[str, Any], keys: set[str], style: bool | None, remarks: bool) -> None:
    pieces = [yaml.safe_dump({k: v}, allow_unicode=True, default_flow_style=style) for k, v in had.items()]
    if any(piece.startswith("{") for piece in pieces):
        pieces = [yaml.safe_dump({k: v}, allow_unicode=True) for k, v in had.items()]
    front = "".join(f"# remark {n}\n\n{piece}" if remarks else piece for n, piece in enumerate(pieces))
    new = {key: OURS[key] for key in keys}
    made = merged(front, new)
    assert yaml.safe_load(made or "{}") == {**had, **new}
    assert merged(made, new) == made
    for n, (key, piece) in enumerate(zip(had, pieces, strict=True)):
        assert key in new or piece in made
        assert not remarks or f"# remark {n}\n" in made


def test_a_yaml_that_is_made_to_blow_up_is_refused() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    for front in (bomb + "library_name: *i\n", "tags: &t [*t]\n", "[" * 3000, "? [a]\n: b\n", "a:\n\t- b\n", "x\x07y"):
        with pytest.raises(HubError, match="Mend it there first"):
            fields(front, "the card")


FACTS = Facts(
    repo="me/style", kind="adapter", as_trained=True, format="diffusers",
    architecture=architecture("cogvideox"), base_model="zai-org/CogVideoX-5b",
    variant=next(v for v in architecture("cogvideox").variants if v.name == "CogVideoX-5B"),
    weights="pytorch_lora_weights.safetensors",
    rows=(("rank", "8"),), commands=("loraforge convert a.pt --to diffusers",), prompts=(), samples=(),
    example=None, trigger=None,
)  # fmt: skip
CARDS = {
    "empty front matter": "---\n---\n# Mine\n",
    "front matter only": "---\nlicense: mit\n---",
    "no front matter": "# Mine\n\n---\nx: y\n---\n",
    "empty lines before": "\n\n---\nlicense: mit\nx: 1\n---\n# Mine\n",
    "a mark of the order of bytes": "\ufeff---\nlicense: mit\nx: 1\n---\n# Mine\n",
    "DOS": "---\r\nlicense: mit\r\nx: 1 # mine\r\n---\r\n# Mine\r\n\r\nwords\r\n",
    "a rule that never ends": "---\nlicense: mit\n# Mine\n",
    "no end of the last line": "---\nlicense: mit\n---\n# Mine",
    "the end before": f"# Mine\n{END}\n\nwords of mine\n\n{BEGIN}\nold\n{END}\nmore of mine\n",
    "the beginning twice": f"# Mine\n{BEGIN}\n\nwords of mine\n\n{BEGIN}\nold\n{END}\nmore of mine\n",
}


@pytest.mark.parametrize("name", CARDS)
def test_a_second_push_changes_nothing(name: str) -> None:
    card, licence = CARDS[name], {"license": "mit"}
    once, _ = updated_card(card, FACTS, licence, frozenset())
    assert updated_card(once, FACTS, licence, frozenset())[0] == once
    assert once.count(section(FACTS).replace("\n", "\r\n" if name == "DOS" else "\n")) == 1
    changed, _ = updated_card(once, replace(FACTS, rows=(("rank", "16"),)), licence, frozenset())
    assert "| rank | 8 |" not in changed and changed.count("| rank | 16 |") == 1
    for words in ("# Mine", "words of mine", "more of mine"):
        assert (words in changed) == (words in card)
    found = fields(split(once)[0], "it")
    assert found["license"] == "mit" and found["library_name"] == "diffusers"
    assert found.get("x") == (1 if "x: 1" in card else None)
    assert ("\n" in once.replace("\r\n", "")) == (name != "DOS")


PROMPTS = [
    "two\nlines", "'a' \"b\"", "```\n# not mine\n```", "</details><!-- x -->", f"{BEGIN}x{END}", END,
    "a | b \\| c \\", "\\<!--",
    "x" * 10_000, "\x00\x1b[2J\x07\x85\u2028\u202e", "{a}: [b] # c", "---\na: b\n---\n",
    "🎥 ☕", "- x", "%s {0}", "\udcff", "'''\"\"\"\\",
]  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_carried_as_it_is(prompt: str) -> None:
    _carried(prompt)


@given(st.text(min_size=1))
def test_any_prompt_is_carried_as_it_is(prompt: str) -> None:
    _carried(prompt)


def _carried(prompt: str) -> None:
    facts = replace(FACTS, prompts=(prompt,), samples=("samples/1.mp4",), example=prompt, trigger=prompt)
    card = new_card(facts, {"license": "mit"})
    found = fields(split(card)[0], "it")
    assert found["widget"][0]["text"] == prompt and found["instance_prompt"] == prompt
    blocks = re.findall(r"^```python\n(.*?)\n```$", card, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    said = [
        word.value for word in ast.walk(ast.parse(blocks[0])) if isinstance(word, ast.keyword) and word.arg == "prompt"
    ]
    assert [value.value for value in said if isinstance(value, ast.Constant)] == [prompt]
    assert split(card)[1].count(BEGIN) == split(card)[1].count(END) == 1
    assert updated_card(card, facts, {"license": "mit"}, frozenset())[0] == card
    card.encode()


def test_what_others_wrote_into_a_header_stays_in_its_place() -> None:
    text = f"x\n```\n<script>alert(1)</script>\n{END}\n{BEGIN} \ud800 `"
    facts = replace(FACTS, commands=(text, "```"), rows=(("scale", text),), trigger=text)
    card = new_card(facts, {})
    assert not [line for line in card.splitlines() if line.startswith(("<script", "x", "alert"))]
    assert len(re.findall(r"^```", card, re.MULTILINE)) == 6
    assert updated_card(card, facts, {}, frozenset())[0] == card
    card.encode()
