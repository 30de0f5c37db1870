"""Write the tables of training-and-inference.md and its translation anew from loraforge/facts/variants.toml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from loraforge.facts.given_settings import KEYS, words
from loraforge.facts.variants import VariantSettings, preset, settings, table

DOCS = Path(__file__).parent
PAGES = {"training-and-inference.md": "en", "training-and-inference_zh.md": "zh"}
SAYS: dict[str, dict[str, Any]] = {
    "en": {
        "setting": "setting",
        "frames": "{0.num_frames} ({0.frames_step}N+1, up to {0.frames_most})",
        "never": "{0}, never {1}",
        "sides": "{0}, or shorter side {1.shorter}, longer a multiple of {1.multiple} up to {1.longer_most}",
        "positions": {"computed": "computed", "rotary": "rotary", "learned": "rotary and learned"},
        "run": "as the run",
        "variant": "as the variant",
    },
    "zh": {
        "setting": "设置",
        "frames": "{0.num_frames}（{0.frames_step}N+1，最多 {0.frames_most}）",
        "never": "{0}，不可用 {1}",
        "sides": "{0}，或短边 {1.shorter}、长边为 {1.multiple} 的倍数且不超过 {1.longer_most}",
        "positions": {"computed": "计算得出", "rotary": "旋转", "learned": "旋转加可学习"},
        "run": "随训练",
        "variant": "随模型",
    },
}


def variants(language: str) -> str:
    """What each variant calls for."""
    says, wants = SAYS[language], [settings(name) for name in table()["variants"]]

    def size(one: VariantSettings) -> str:
        usual = f"{one.height}x{one.width}"
        return says["sides"].format(usual, one.sides) if one.sides else usual

    def dtype(one: VariantSettings) -> str:
        return (
            says["never"].format(one.torch_dtype, ", ".join(one.dtypes_wrong)) if one.dtypes_wrong else one.torch_dtype
        )

    rows: dict[str, list[str]] = {
        key: [words(getattr(one, key)) for one in wants] for key in KEYS if hasattr(wants[0], key)
    }
    rows["num_frames"] = [says["frames"].format(one) for one in wants]
    rows["torch_dtype"] = [dtype(one) for one in wants]
    rows["height"] = [size(one) for one in wants]
    rows["height x width"] = rows.pop("height")
    del rows["width"]
    rows["positions"] = [says["positions"][one.positions] for one in wants]
    return _table([says["setting"], *(one.variant for one in wants)], rows)


def presets(language: str) -> str:
    """What known programs use."""
    says, names = SAYS[language], list(table()["presets"])
    rows: dict[str, list[str]] = {}
    for key in KEYS:
        cells = []
        for name in names:
            entry = table()["presets"][name]
            if key in entry.get("as_variant", ()):
                cells.append(says["variant"])
            elif key in entry.get("of_the_run", ()):
                cells.append(says["run"])
            elif entry["values"].get(key) == "1/rank":
                cells.append("lora_alpha / lora_r")
            else:
                cells.append(words(preset(name, "CogVideoX-5B").get(key, "")))
        rows[key] = cells
    return _table([says["setting"], *(f"`{name}`" for name in names)], rows)


def _table(head: list[str], rows: dict[str, list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([f"`{key}`", *cells] for key, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def renewed(text: str, language: str) -> str:
    """The page with its tables as the data has them."""
    for name, make in (("variants", variants), ("presets", presets)):
        inner = f"<!-- {name} -->\n{make(language)}\n<!-- end -->"
        text = re.sub(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, inner=inner: inner, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for page, language in PAGES.items():
        (DOCS / page).write_text(renewed((DOCS / page).read_text("utf-8"), language), "utf-8")
