"""The pictures of an architecture show everything once."""

from __future__ import annotations

import re

import pytest

from loraforge.names.bijection import parse
from loraforge.names.catalog import architecture
from loraforge.names.layout import Architecture
from loraforge.names.picture import dropped, mermaid, table

COGVIDEOX = architecture("cogvideox")
TOY = parse(
    {
        "architecture": "toy",
        "title": "toy",
        "segments": ["a", "b", "c"],
        "layouts": {
            "fused": {"modules": {"x.{i}.all": ["a", "b"], "c": ["c"]}, "dropped": {"the.key": 'a "reason"'}},
            "split": {"modules": {"y.{i}.a": ["a"], "y.{i}.b": ["b"]}, "absent": ["c"]},
            "third": {"modules": {"z.{i}": ["b", "a"], "end": ["c"]}},
        },
    },
    "toy.toml",
)
BOTH = pytest.mark.parametrize("arch", [COGVIDEOX, TOY], ids=lambda arch: arch.name)


def test_the_table_of_a_toy() -> None:
    assert table(TOY) == [
        ["segment", "fused", "split", "third", "variants"],
        ["a", "x.{i}.all [1/2]", "y.{i}.a", "z.{i} [2/2]", "all"],
        ["b", "x.{i}.all [2/2]", "y.{i}.b", "z.{i} [1/2]", "all"],
        ["c", "c", "-", "end", "all"],
    ]
    assert dropped(TOY)[1:] == [["fused", "the.key", 'a "reason"']]


def test_the_table_names_the_variants_that_have_a_segment() -> None:
    rows = {row[0]: row for row in table(COGVIDEOX)[1:]}
    assert rows["pos"][-1] == "CogVideoX-5B-I2V"
    assert rows["ofs1"][-1] == "CogVideoX1.5-5B-I2V"
    assert rows["mod1_text"][1:3] == [
        "mixins.adaln_layer.adaLN_modulations.{i}.1 [3/4]",
        "transformer_blocks.{i}.norm1.linear [2/2]",
    ]


@BOTH
def test_every_segment_has_one_row(arch: Architecture) -> None:
    assert [row[0] for row in table(arch)[1:]] == list(arch.segments)
    assert len({len(row) for row in table(arch)}) == 1
    assert [row[1] for row in dropped(arch)[1:]] == [
        key.text for layout in arch.layouts.values() for key in layout.dropped
    ]


NODE = re.compile(r'^ {4}(\w+)\["([^"]*)"\]$')
EDGE = re.compile(r"^  (\w+) -->(?:\|(\d+/\d+)\|)? (\w+)$")
OPENS = re.compile(r'^(flowchart LR|  subgraph (\w+)\["[^"]*"\])$')


@BOTH
def test_every_segment_and_module_is_drawn_once_and_every_line_is_understood(arch: Architecture) -> None:
    nodes, edges, groups, depth = {}, [], [], 0
    for line in mermaid(arch).splitlines():
        if found := NODE.match(line):
            assert found[1] not in nodes
            nodes[found[1]] = found[2]
        elif found := EDGE.match(line):
            edges.append((found[1], found[3], found[2]))
        elif found := OPENS.match(line):
            depth += 1
            groups.append(found[2])
        else:
            assert line == "  end"
            depth -= 1
    assert depth == 1  # a chart ends with its text
    assert len(set(groups)) == len(groups)
    assert not set(groups) & nodes.keys()
    labels = sorted(label for label in nodes.values() if ": " not in label)
    drawn = sorted(label.split(" (only ")[0] for label in labels)
    modules = [template.text for layout in arch.layouts.values() for template in layout.modules]
    assert drawn == sorted([*modules, *arch.segments])
    first, want = next(iter(arch.layouts.values())), []
    for layout in arch.layouts.values():
        for template, stack in layout.modules.items():
            for n, segment in enumerate(stack, 1):
                pair = (template.text, segment) if layout is first else (segment, template.text)
                want.append((*pair, f"{n}/{len(stack)}" if len(stack) > 1 else ""))
    shown = [(*(nodes[node].split(" (only ")[0] for node in (start, end)), place or "") for start, end, place in edges]
    assert sorted(shown) == sorted(want)
    for layout in arch.layouts.values():
        for key in layout.dropped:
            assert sum(label.startswith(f"{key.text}: ") for label in nodes.values()) == 1
