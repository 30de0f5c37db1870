"""The format keeps what the conformance kit asks for."""

from loraforge.testing import FormatConformance


class TestWrapper(FormatConformance):
    format = "comfyui-wrapper"
    shares = frozenset({"comfyui"})  # Qwen-Image has Diffusers' names in ComfyUI itself
