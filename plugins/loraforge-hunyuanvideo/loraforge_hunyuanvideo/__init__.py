"""HunyuanVideo for loraforge. All of it is in the TOML file beside this one."""

from importlib.resources import files

from loraforge import hookimpl


@hookimpl
def loraforge_formats():
    return [files(__name__) / "hunyuanvideo.toml"]
