"""The built-in formats pass the kit that plugins are asked to pass."""

from loraforge.testing import FormatConformance


class TestSat(FormatConformance):
    format = "sat"
    options = {"lora_only": True}  # noqa: RUF012


class TestDiffusers(FormatConformance):
    format = "diffusers"


class TestDiffusersScaleInTheHeader(FormatConformance):
    format = "diffusers"
    options = {"scale_in": "metadata"}  # noqa: RUF012


class TestPeft(FormatConformance):
    format = "peft"
