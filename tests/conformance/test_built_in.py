"""The built-in formats pass the kit that plugins are asked to pass."""

from typing import ClassVar

from loraforge.testing import FormatConformance


class TestSat(FormatConformance):
    format = "sat"
    options: ClassVar = {"lora_only": True}


class TestDiffusers(FormatConformance):
    format = "diffusers"


class TestDiffusersScaleInTheHeader(FormatConformance):
    format = "diffusers"
    options: ClassVar = {"scale_in": "metadata"}


class TestPeft(FormatConformance):
    format = "peft"
