"""Diffusers' names behind ComfyUI's prefix, for loraforge."""

from importlib.resources import files

from loraforge import hookimpl


@hookimpl
def loraforge_formats():
    """The data file beside this one."""
    return [files(__name__) / name for name in ("wrapper.toml",)]
