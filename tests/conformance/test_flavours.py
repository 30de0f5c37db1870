"""The flavours, which are data, pass the kit that plugins are asked to pass, for every architecture they have."""

from typing import ClassVar

from loraforge.testing import FormatConformance


class TestComfyui(FormatConformance):
    format = "comfyui"


class TestDiffsynth(FormatConformance):
    format = "diffsynth"


class TestKohya(FormatConformance):
    format = "kohya"
    shares: ClassVar = frozenset({"musubi"})


class TestLycoris(FormatConformance):
    format = "lycoris"


class TestMusubi(FormatConformance):
    format = "musubi"
    shares: ClassVar = frozenset({"kohya"})


class TestOnetrainer(FormatConformance):
    format = "onetrainer"


class TestVideoxFun(FormatConformance):
    format = "videox-fun"


class TestOriginal(FormatConformance):
    format = "original"


class TestXlabs(FormatConformance):
    format = "xlabs"
