"""Both formats keep what the conformance kit asks for."""

from loraforge.testing import FormatConformance


class TestNative(FormatConformance):
    format = "comfyui-native"


class TestWrapper(FormatConformance):
    format = "comfyui-wrapper"
