"""The table of inference settings, how a user's are read, and what is found when the two are compared."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from loraforge import LoraforgeError
from loraforge.facts.given_settings import KEYS, KINDS, checked, parse, words
from loraforge.facts.setting_rules import Finding, compare
from loraforge.facts.variants import preset, settings, table

VARIANTS = list(table()["variants"])
PRESETS = list(table()["presets"])
variants = st.sampled_from(VARIANTS)


def found(variant: str, like: str | None = None, rank: int | None = None, **given: Any) -> dict[str, Finding]:
    return {finding.key: finding for finding in compare(given, variant, like=like, rank=rank)}


def one(variant: str, **given: Any) -> Finding:
    (finding,) = compare(given, variant)
    return finding


# The table


def test_the_variants_are_those_of_the_architecture() -> None:
    architecture = tomli.loads((files("loraforge") / "names" / "architectures" / "cogvideox.toml").read_text("utf-8"))
    assert list(architecture["variants"]) == VARIANTS
    for variant, facts in architecture["variants"].items():
        config, wants = {**architecture["config"], **facts.get("config", {})}, settings(variant)
        assert config["sample_frames"] == wants.num_frames
        learned, rotary = config["use_learned_positional_embeddings"], config["use_rotary_positional_embeddings"]
        assert wants.positions == ("learned" if learned else "rotary" if rotary else "computed")
        if not variant.startswith("CogVideoX1.5"):  # there sample_height and sample_width are only a bound
            assert (config["sample_height"] * 8, config["sample_width"] * 8) == (wants.height, wants.width)
            assert config["max_text_seq_length"] == wants.max_sequence_length


def test_every_scheduler_is_in_the_table() -> None:
    named = [*(facts["scheduler"] for facts in table()["variants"].values())]
    named += [entry["values"]["scheduler"] for entry in table()["presets"].values()]
    assert set(named) <= table()["schedulers"].keys()


def test_every_setting_has_a_source_and_every_preset_names_settings() -> None:
    assert KEYS.keys() <= table()["sources"].keys()
    assert {key for facts in table()["variants"].values() for key in facts} - table()["sources"].keys() == {
        "frames_step",  # told with num_frames
        "frames_most",
        "sides",  # told with height and width
    }
    for entry in table()["presets"].values():
        named = {*entry["values"], *entry.get("as_variant", ()), *entry.get("of_the_run", ())}
        assert named <= KEYS.keys()
        assert entry.get("still_differs", {}).keys() <= entry["values"].keys()
        assert set(entry.get("variants", VARIANTS)) <= set(VARIANTS)


def test_every_example_is_read() -> None:
    for key, kind in KEYS.items():
        assert parse([f"{key}={KINDS[kind][1]}"]).keys() == {key}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_variant_calls_for_is_fine_by_itself(variant: str) -> None:
    wants = settings(variant)
    given = {key: getattr(wants, key) for key in KEYS if hasattr(wants, key)}
    findings = compare({**given, "lora_scale": 1, "fuse_components": ["transformer"], "seed": 7}, variant)
    assert {finding.severity for finding in findings} == {"fine"}
    assert [finding.key for finding in findings] == [key for key in KEYS if key in {*given, "lora_scale", "seed"}] + [
        "fuse_components"
    ]


# Frames


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_frames_rule_by_brute_force(variant: str) -> None:
    step, most = (16, 161) if "1.5" in variant else (8, 49)
    for count in range(1, 201):
        finding = one(variant, num_frames=count)
        if (count - 1) % step:
            assert finding.severity == "wrong"
            near = [n for n in range(1, most + 1) if (n - 1) % step == 0]
            named = [int(word) for word in str(finding.wanted).split(" or ")]
            assert named == sorted(
                {max(n for n in near if n < count), min((n for n in near if n > count), default=most)}
            )
        elif count > most:
            assert (finding.severity, finding.wanted) == ("differs", most)
        elif variant == "CogVideoX-5B-I2V" and count != 49:
            assert (finding.severity, finding.wanted) == ("differs", 49)
        else:
            assert finding.severity == "fine"


def test_the_consequence_says_how_many_frames_come_out() -> None:
    assert "so 49 frames are made" in one("CogVideoX-5B", num_frames=50).consequence
    assert "come of it" not in one("CogVideoX-5B", num_frames=45).consequence  # 4N+1, which the VAE can do
    assert one("CogVideoX-5B", num_frames=45).wanted == "41 or 49"


# Sizes


def test_sizes() -> None:
    assert found("CogVideoX-5B", height=720, width=480)["width"].severity == "differs"
    assert "swapped" in found("CogVideoX-5B", height=720, width=480)["height"].consequence
    assert one("CogVideoX-5B-I2V", height=512).severity == "wrong"
    assert one("CogVideoX-2B", height=484).severity == "wrong"
    for height, width in ((768, 1360), (1360, 768), (768, 768), (768, 1024)):
        both = found("CogVideoX1.5-5B-I2V", height=height, width=width)
        assert {finding.severity for finding in both.values()} == {"fine"}
    assert found("CogVideoX1.5-5B-I2V", height=768, width=1376)["width"].severity == "differs"
    assert found("CogVideoX1.5-5B", height=768, width=1024)["width"].severity == "differs"


@hypothesis_given(variants, st.integers(1, 2000), st.integers(1, 2000))
def test_a_size_is_fine_only_where_it_is_allowed(variant: str, height: int, width: int) -> None:
    severities = {finding.severity for finding in compare({"height": height, "width": width}, variant)}
    assert (severities == {"fine"}) == settings(variant).allows(height, width)


# Types, schedulers, guidance


@pytest.mark.parametrize("variant", VARIANTS)
def test_element_types(variant: str) -> None:
    half = one(variant, torch_dtype="fp16")
    assert half.severity == ("fine" if variant == "CogVideoX-2B" else "wrong")
    assert half.severity == "fine" or "black video" in half.consequence
    assert one(variant, torch_dtype="torch.bfloat16").severity == ("differs" if variant == "CogVideoX-2B" else "fine")
    assert one(variant, torch_dtype="fp32").severity == "differs"


@pytest.mark.parametrize("variant", VARIANTS)
def test_schedulers(variant: str) -> None:
    for name in ("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"):
        finding = one(variant, scheduler=name)
        assert finding.severity == "wrong"
        assert ("snr_shift_scale" in finding.consequence) == (variant == "CogVideoX-2B")
    other = "CogVideoXDPMScheduler" if variant == "CogVideoX-2B" else "CogVideoXDDIMScheduler"
    assert one(variant, scheduler=other).severity == "differs"
    assert [one(variant, timestep_spacing=how).severity for how in ("trailing", "linspace", "leading")] == [
        "fine",
        "differs",
        "wrong",
    ]


def test_dynamic_guidance_goes_with_dpm() -> None:
    ddim, dpm = "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"
    assert one("CogVideoX-2B", use_dynamic_cfg=True).severity == "wrong"
    assert found("CogVideoX-2B", use_dynamic_cfg=True, scheduler=dpm)["use_dynamic_cfg"].severity == "fine"
    assert found("CogVideoX-5B", use_dynamic_cfg=True, scheduler=ddim)["use_dynamic_cfg"].severity == "wrong"
    assert found("CogVideoX-5B", use_dynamic_cfg=False, scheduler=ddim)["use_dynamic_cfg"].severity == "fine"
    assert one("CogVideoX-5B", use_dynamic_cfg=False).severity == "differs"


def test_guidance_steps_tokens_and_speed() -> None:
    assert one("CogVideoX-5B", guidance_scale=3).severity == "differs"
    assert "no guidance" in one("CogVideoX-5B", guidance_scale=1).consequence
    assert one("CogVideoX-5B", num_inference_steps=30).wanted == 50
    assert one("CogVideoX-5B", fps=15).wanted == 8
    assert one("CogVideoX1.5-5B", max_sequence_length=226).severity == "differs"
    assert one("CogVideoX-5B", max_sequence_length=100).severity == "differs"
    assert one("CogVideoX-2B", max_sequence_length=100).severity == "wrong"


# Strength


def test_two_strengths_are_multiplied() -> None:
    both = found("CogVideoX-5B", adapter_strength=0.5, lora_scale=0.5)
    assert {finding.severity for finding in both.values()} == {"wrong"}
    assert "0.25" in both["lora_scale"].consequence
    assert found("CogVideoX-5B", adapter_strength=0.5, lora_scale=1)["lora_scale"].severity == "fine"
    assert one("CogVideoX-5B", adapter_strength=0.8).severity == "differs"
    assert one("CogVideoX-5B", lora_scale=0).severity == "wrong"


@pytest.mark.parametrize("rank", [4, 64, 128, 256])
def test_one_over_the_rank_is_known(rank: int) -> None:
    finding = found("CogVideoX-2B", rank=rank, lora_scale=1 / rank)["lora_scale"]
    assert (finding.severity, finding.wanted) == ("differs", 1.0)
    assert f"1/{rank}" in finding.consequence
    assert "SAT" not in found("CogVideoX-2B", rank=rank, lora_scale=3 / rank)["lora_scale"].consequence


def test_components() -> None:
    assert one("CogVideoX-5B", fuse_components=("transformer", "text_encoder")).severity == "wrong"
    assert "text_encoder" in one("CogVideoX-5B", fuse_components=["text_encoder"]).consequence
    assert one("CogVideoX-5B", fuse_components=["transformer"]).severity == "fine"


# Presets


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_preset_is_like_itself(name: str, variant: str) -> None:
    entry = table()["presets"][name]
    if variant not in entry.get("variants", VARIANTS):
        with pytest.raises(LoraforgeError, match="does not run"):
            preset(name, variant)
        return
    values = preset(name, variant, rank=64)
    again = compare(values, variant, like=name, rank=64)
    assert {finding.key for finding in again} == values.keys()
    differing = {finding.key for finding in again if finding.severity == "differs"}
    own_mistakes = {finding.key for finding in compare(values, variant) if finding.severity != "fine"}
    assert differing <= {*entry.get("still_differs", ()), *own_mistakes}
    assert {finding.source for finding in again if finding.severity == "differs"} <= {
        entry["source"],
        *table()["sources"].values(),
    }


def test_what_the_issue_says_of_the_presets() -> None:
    guidance = {name: table()["presets"][name]["values"]["guidance_scale"] for name in PRESETS}
    assert guidance == {"cogvideo-validation": 6, "cli_demo": 6, "load_cogvideox_lora": 3, "sat": 6}
    assert found("CogVideoX-5B", "load_cogvideox_lora", guidance_scale=6)["guidance_scale"].severity == "differs"
    assert found("CogVideoX-5B", "load_cogvideox_lora", guidance_scale=3)["guidance_scale"].severity == "fine"


def test_what_is_not_given_is_compared_as_the_default() -> None:
    nothing = found("CogVideoX-5B", "load_cogvideox_lora", rank=128)
    assert (nothing["guidance_scale"].given, nothing["guidance_scale"].wanted) == (6.0, 3.0)
    assert nothing["seed"].given is None
    assert "num_inference_steps" not in nothing  # Diffusers does the same of itself
    assert nothing["adapter_strength"].wanted == 1 / 128
    assert compare({}, "CogVideoX-5B") == []


def test_a_strength_given_by_the_other_way_counts() -> None:
    given = found("CogVideoX-5B", "load_cogvideox_lora", rank=64, lora_scale=1 / 64)
    assert given["lora_scale"].severity == "fine"
    assert "adapter_strength" not in given
    for strength, scale in ((1, 1 / 64), (1 / 64, 1)):
        both = found("CogVideoX-5B", "load_cogvideox_lora", rank=64, adapter_strength=strength, lora_scale=scale)
        assert {both[key].severity for key in ("adapter_strength", "lora_scale")} == {"fine"}
    twice = found("CogVideoX-5B", "load_cogvideox_lora", rank=64, adapter_strength=1 / 64, lora_scale=1 / 64)
    assert {twice[key].severity for key in ("adapter_strength", "lora_scale")} == {"wrong"}
    assert found("CogVideoX-5B", "cli_demo", adapter_strength=0.5)["adapter_strength"].severity == "differs"


def test_devices_and_seeds() -> None:
    run = "cogvideo-validation"
    assert found("CogVideoX-5B", run, generator_device="cuda:1")["generator_device"].severity == "fine"
    finding = found("CogVideoX-5B", run, generator_device="cpu", seed=42)["generator_device"]
    assert finding.severity == "differs"
    assert "different noise" in finding.consequence
    assert found("CogVideoX-5B", "sat", seed=1234)["seed"].severity == "differs"
    assert found("CogVideoX-5B", run, seed=42)["seed"].consequence.startswith("one generator goes on")


def test_settings_that_are_nearly_equal_are_not_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table()["presets"]["cli_demo"]["values"], "seed", 10_000_000)
    assert found("CogVideoX-5B", "cli_demo", seed=10_000_001)["seed"].severity == "differs"
    assert found("CogVideoX-5B", "cli_demo", seed=10_000_000)["seed"].severity == "fine"


def test_what_is_wrong_stays_wrong_beside_a_preset() -> None:
    assert found("CogVideoX-5B", "cli_demo", torch_dtype="float16")["torch_dtype"].consequence.endswith("black video")
    assert found("CogVideoX-5B-I2V", "sat", height=512)["height"].severity == "wrong"
    assert found("CogVideoX1.5-5B-I2V", "sat", height=1360, width=768)["height"].severity == "fine"


# Reading


def test_words_and_files_are_read_alike(tmp_path: Path) -> None:
    said = {"num_frames": 49, "use_dynamic_cfg": True, "lora_scale": 0.0078125, "fuse_components": ["transformer"]}
    (tmp_path / "mine.json").write_text(json.dumps({**said, "torch_dtype": "torch.bfloat16"}))
    typed = [
        "num_frames=49",
        "use_dynamic_cfg=True",
        "lora_scale=1/128",
        "fuse_components=transformer",
        "torch_dtype=bf16",
    ]
    assert parse(typed) == parse(tmp_path / "mine.json") == parse([str(tmp_path / "mine.json")])
    assert parse(["fuse_components=['transformer', 'text_encoder']"]) == {
        "fuse_components": ("transformer", "text_encoder")
    }


@pytest.mark.parametrize(
    ("items", "says"),
    [
        (["nframes=49"], "no setting 'nframes'.*num_frames"),
        (["seed=1", "seed=1"], "seed is given twice"),
        (["num_frames=49.5"], "whole number"),
        (["num_frames=0"], "whole number"),
        (["num_frames="], "whole number"),
        (["num_frames=" + "9" * 5000], "whole number"),
        (["seed=-1"], "whole number from 0"),
        (["guidance_scale=nan"], "a number"),
        (["lora_scale=1/0"], "a number"),
        (["use_dynamic_cfg=maybe"], "true or false"),
        (["torch_dtype=int8"], "float16, bfloat16 or float32"),
        (["timestep_spacing=even"], "leading, linspace or trailing"),
        (["generator_device=gpu"], "cpu, cuda"),
        (["scheduler=a b"], "name of a class"),
        (["fuse_components=,"], "names of components"),
        (["nothing.json"], "KEY=VALUE, or a file"),
    ],
)
def test_what_is_refused_in_words(items: list[str], says: str) -> None:
    with pytest.raises(LoraforgeError, match=says) as refused:
        parse(items)
    assert refused.value.remedies
    for remedy in refused.value.remedies:
        parse([remedy.command.removeprefix("--settings ")])  # what is proposed is read


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"seed": 1, "seed": 2}', "seed is given twice"),
        ('{"seed": "one"}', "whole number"),
        ('{"seed": true}', "whole number"),
        ('{"seed": 1.0}', "whole number"),
        ('{"use_dynamic_cfg": 1}', "true or false"),
        ('{"guidance_scale": NaN}', "a number"),
        ('{"guidance_scale": 1e999}', "a number"),
        ('{"guidance_scale": {"a": 1}}', "a number, not a tuple"),
        ('{"fuse_components": []}', "names of components"),
        ('{"fuse_components": [1]}', "names of components"),
        ("[]", "no JSON object"),
        ("49", "no JSON object"),
        ("", "in JSON"),
        ("[" * 100_000, "in JSON"),
        ('{"seed": ' + "9" * 5000 + "}", "in JSON|whole number"),
        (" " * (1 << 20) + "{}", "1 MB"),
    ],
)
def test_what_is_refused_in_a_file(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(LoraforgeError, match=says) as refused:
        parse(tmp_path / "mine.json")
    assert refused.value.remedies


def test_names_are_refused_with_those_there_are() -> None:
    for call in (lambda: settings("CogVideoX-3B"), lambda: compare({}, "2B")):
        with pytest.raises(LoraforgeError, match=r"CogVideoX1\.5-5B-I2V"):
            call()
    with pytest.raises(LoraforgeError, match="load_cogvideox_lora"):
        compare({}, "CogVideoX-2B", like="demo")
    with pytest.raises(LoraforgeError, match="num_frames is a positive whole number"):
        compare({"num_frames": "many"}, "CogVideoX-2B")


values = st.fixed_dictionaries(
    {},
    optional={
        "scheduler": st.sampled_from(["CogVideoXDPMScheduler", "CogVideoXDDIMScheduler", "DDIMScheduler"]),
        "timestep_spacing": st.sampled_from(["leading", "linspace", "trailing"]),
        "use_dynamic_cfg": st.booleans(),
        "guidance_scale": st.floats(-10, 10),
        "num_frames": st.integers(1, 300),
        "height": st.integers(1, 2000),
        "torch_dtype": st.sampled_from(["float16", "bfloat16", "float32"]),
        "generator_device": st.sampled_from(["cpu", "cuda", "cuda:3"]),
        "seed": st.integers(0, 2**64 - 1),
        "adapter_strength": st.floats(-4, 4),
        "lora_scale": st.floats(-4, 4),
        "fuse_components": st.lists(st.sampled_from(["transformer", "text_encoder", "vae"]), min_size=1).map(tuple),
    },
)


@hypothesis_given(values, variants, st.sampled_from([None, "cli_demo", "sat", "cogvideo-validation"]))
def test_every_given_setting_has_one_finding_that_explains_itself(given: dict, variant: str, like: str | None) -> None:
    findings = compare(given, variant, like=like)
    keys = [finding.key for finding in findings]
    assert len(keys) == len(set(keys))
    assert given.keys() <= set(keys)
    assert like is not None or given.keys() == set(keys)
    for finding in findings:
        assert finding.source
        assert (finding.severity == "fine") == (not finding.consequence)


@hypothesis_given(values)
def test_what_is_shown_is_read_again(given: dict) -> None:
    given = {key: value for key, value in given.items() if not isinstance(value, float)}  # those are shown shortened
    assert parse([f"{key}={words(value)}" for key, value in given.items()]) == checked(given.items())


def test_a_seed_is_any_of_64_bits_as_text_and_as_number() -> None:
    most = (1 << 64) - 1
    assert parse([f"seed={most}"]) == checked([("seed", most)]) == {"seed": most}
    for beyond in (most + 1, "9" * 21):
        with pytest.raises(LoraforgeError, match="seed is a whole number"):
            parse([f"seed={beyond}"])
