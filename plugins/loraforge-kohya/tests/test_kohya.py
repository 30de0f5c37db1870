"""Both formats keep what the conformance kit asks for."""

from loraforge.testing import FormatConformance


class TestKohya(FormatConformance):
    format = "kohya"


class TestFun(FormatConformance):
    format = "cogvideox-fun"
