"""ComfyUI's names for loraforge."""

from importlib.resources import files

from loraforge import hookimpl


@hookimpl
def loraforge_formats():
    """The data files beside this one."""
    return [files(__name__) / name for name in ("native.toml", "wrapper.toml")]
