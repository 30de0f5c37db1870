"""What the known writers of a format mean if a file records no scale: agreement is assumed, one doubt is a question."""

from __future__ import annotations

from typing import Any

import pytest

import loraforge
from loraforge.names.catalog import architectures
from loraforge.scale import writers as module
from loraforge.scale.writers import agreed, candidates, differ, narrowed, writers
from loraforge.tables import package_table

AI_TOOLKIT = {"software": '{"name": "ai-toolkit", "repo": "https://github.com/ostris/ai-toolkit", "version": "0.7.1"}'}
"""As toolkit/metadata.py and info.py of ai-toolkit write it."""

FIXED = {"title": "One", "alpha": "rank", "fixed": True, "source": "", "writes": {"comfyui": ["flux"]}}
FREE = {"title": "Two", "alpha": "rank", "source": "", "writes": {"comfyui": ["flux"]}}
HALF = {"title": "Three", "alpha": 32, "ranks": [64], "source": "", "writes": {"comfyui": ["flux"]}}
OTHER = {**HALF, "writes": {"comfyui": ["wan"], "diffusers": ["flux"]}}
ANY = {**FIXED, "title": "Tool", "writes": {"comfyui": ["*"]}}
RECORDS = {"title": "Four", "source": "", "records": {"comfyui": ["flux"]}}


def judged(monkeypatch: pytest.MonkeyPatch, metadata: dict[str, str] | None = None, **table: dict[str, Any]) -> Any:
    monkeypatch.setattr(module, "package_table", lambda _: table)
    known, header = writers("flux", "comfyui", metadata or {}), metadata or {}
    return (
        agreed(known, "comfyui", "Flux.1", header),
        candidates({"a": 16, "b": 16}, known),
        differ(known, "comfyui", "Flux.1"),
    )


def test_writers_that_all_fix_alpha_at_the_rank_make_an_assumption_that_names_them(monkeypatch) -> None:
    rule, _, _ = judged(
        monkeypatch,
        one=FIXED,
        other=OTHER,
        recording=RECORDS,
        all={**FIXED, "title": "Six"},
    )
    assert rule.scaling == 1.0
    assert (
        rule.said
        == "no number in the file; every known writer of comfyui files for Flux.1 trains at alpha = rank: One, Six"
    )


@pytest.mark.parametrize(
    ("doubt", "why", "offered"),
    [
        (FREE, "alpha, by default the rank, can be set in Two", [("--trained-scale", "1", 1.0)]),
        (
            HALF,
            "trainers that write comfyui files differ",
            [("--alpha", "32", 2.0), ("--trained-scale", "0.5", 0.5), ("--trained-scale", "1", 1.0)],
        ),
    ],
)
def test_one_writer_that_may_differ_leaves_the_scale_open(monkeypatch, doubt, why: str, offered) -> None:
    rule, tries, reason = judged(monkeypatch, one=FIXED, two=doubt)
    assert rule is None and reason == why
    assert [(*t.options[:2], t.scale) for t in tries] == offered
    assert "as in One" in tries[-1].why


def test_nothing_known_leaves_it_open_and_offers_alpha_equal_to_the_rank(monkeypatch) -> None:
    rule, tries, reason = judged(monkeypatch, other=OTHER, recording=RECORDS)
    assert rule is None and reason == "no trainer is known that writes comfyui files for Flux.1 without it"
    assert [(t.options[:2], t.scale) for t in tries] == [(("--trained-scale", "1"), 1.0)]


def test_a_tool_that_writes_files_of_any_model_is_no_trainer_of_this_one(monkeypatch) -> None:
    rule, tries, reason = judged(monkeypatch, tool=ANY, other=OTHER)
    assert rule is None and reason == "no trainer is known that writes comfyui files for Flux.1 without it"
    assert [(t.options[:2], t.scale) for t in tries] == [(("--trained-scale", "1"), 1.0)]
    assert "as in Tool" in tries[0].why
    assert judged(monkeypatch, tool=ANY, one=FIXED)[0].said.endswith("alpha = rank: Tool, One")
    assert judged(monkeypatch, tool={**ANY, **HALF, "writes": ANY["writes"]}, one=FIXED)[0] is None


def test_a_header_that_names_its_writer_leaves_that_one(monkeypatch) -> None:
    marked = {**FIXED, "header": {"software": "one-trainer"}}
    rule, _, _ = judged(monkeypatch, {"software": '{"name": "one-trainer"}'}, one=marked, two=HALF)
    assert rule.said == "no number in the file; software in its header names One: alpha = rank"
    assert judged(monkeypatch, {"software": "another"}, one=marked, two=HALF)[0] is None
    wan = {**marked, "writes": {"comfyui": ["wan"]}}  # it is not known to write such files
    assert judged(monkeypatch, {"software": "one-trainer"}, one=wan, two=HALF)[0] is None


def test_a_header_that_names_its_writer_leaves_the_models_that_it_writes() -> None:
    assert narrowed(["flux", "chroma"], "comfyui", AI_TOOLKIT) == ["chroma"]  # whose Flux has Diffusers' names
    assert narrowed(["hunyuanvideo", "flux"], "diffusers", AI_TOOLKIT) == ["flux"]
    for form, header in (("comfyui", {}), ("comfyui", {"software": "another"}), ("sat", AI_TOOLKIT)):
        assert narrowed(["flux", "chroma"], form, header) == ["flux", "chroma"]


def test_a_writer_that_records_counts_where_its_mark_is(monkeypatch) -> None:
    """A converter that multiplies alpha in leaves the header of the trainer: that header tells, and nothing else."""
    marked = {**FIXED, "header": {"ss_network_module": "networks.lora"}, "records": FIXED["writes"]}
    del marked["writes"]
    assert judged(monkeypatch, {"ss_network_module": "networks.lora_wan"}, one=marked, two=HALF)[0].scaling == 1.0
    assert judged(monkeypatch, {"ss_network_module": "lycoris.kohya"}, one=marked, two=HALF)[0] is None
    assert judged(monkeypatch, one=marked)[0] is None


def test_the_mark_of_a_trainer_does_not_lend_it_to_the_others(monkeypatch) -> None:
    """Without the entry, a trainer that would have left its mark is one writer among the others."""
    rule, _, _ = judged(monkeypatch, one={**FIXED, "header": {"software": "one-trainer"}})
    assert "every known writer" in rule.said
    marked = {**FIXED, "header": {"software": "one-trainer"}}
    assert "every known writer" in judged(monkeypatch, {"software": "a converter"}, one=marked)[0].said


KNOWN = [
    # architecture, format, header, whether all agree
    ("flux", "diffusers", {}, False),  # SimpleTuner took --lora_alpha and did not record it
    ("flux", "diffusers", AI_TOOLKIT, True),
    ("flux", "xlabs", {}, True),
    ("flux", "kohya", {}, False),
    ("flux", "peft", {}, False),
    ("flux", "comfyui", {}, False),  # ComfyUI's extraction alone: it writes files of any model
    ("sd3", "comfyui", {}, False),
    ("mochi", "comfyui", {}, False),
    ("hunyuanvideo", "comfyui", {}, False),
    ("cogvideox", "comfyui", {}, False),
    ("chroma", "comfyui", {}, True),
    ("wan", "comfyui", {}, True),
    ("wan", "original", {}, False),
    ("wan", "diffsynth", {}, False),
    ("qwen", "diffsynth", {}, True),
    ("ltx", "comfyui", {}, False),
    ("z_image", "comfyui", {}, True),
    ("hunyuanvideo", "original", {}, True),
    ("mochi", "original", {}, False),
]


@pytest.mark.parametrize(("architecture", "form", "header", "agree"), KNOWN)
def test_what_the_table_says_of_files_without_a_number(
    architecture: str, form: str, header: dict[str, str], agree: bool
) -> None:
    known = writers(architecture, form, header)
    rule = agreed(known, form, architecture, header)
    assert (rule is not None) == agree
    if header:
        assert list(known) == ["ai-toolkit"]


@pytest.mark.parametrize("form", ["diffusers", "peft", "comfyui", "videox-fun", "diffsynth", "sat", "kohya"])
def test_cogvideox_is_never_assumed(form: str) -> None:
    assert agreed(writers("cogvideox", form, AI_TOOLKIT), form, "CogVideoX", AI_TOOLKIT) is None


def test_every_entry_says_where_it_was_read() -> None:
    for name, trainer in package_table("facts/trainers").items():
        assert any(ending in trainer["source"] for ending in (".py", ".sh", ".yaml")), name


def test_the_table_is_about_formats_and_architectures_that_exist() -> None:
    """A name that is misspelled would never be asked for. Those of packages and of models to come are named here."""
    forms = [
        form
        for t in package_table("facts/trainers").values()
        for w in ("writes", "records")
        for form in t.get(w, {}).items()
    ]
    assert {name for name, _ in forms} - loraforge.formats().keys() <= {"comfyui-wrapper", "mlx"}
    assert {name for _, names in forms for name in names} - architectures().keys() <= {"hidream", "*"}
