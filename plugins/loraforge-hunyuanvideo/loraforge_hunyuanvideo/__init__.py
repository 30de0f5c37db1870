"""HunyuanVideo for loraforge. All of it is in the TOML files beside this one."""

from importlib.resources import files

from loraforge import hookimpl

FILES = ("hunyuanvideo.toml", "hunyuanvideo-comfyui.toml", "hunyuanvideo-musubi.toml")


@hookimpl
def loraforge_formats():
    return [files(__name__) / name for name in FILES]
