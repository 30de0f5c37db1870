"""Lists the fusion backends and chooses one of them."""

from __future__ import annotations

from collections.abc import Mapping

from loraforge.errors import LoraforgeError, adding, no_such
from loraforge.fusion.backend import FusionBackend
from loraforge.fusion.with_numpy import NumpyBackend
from loraforge.fusion.with_torch import TorchBackend
from loraforge.plugin.host import BUILT_IN, load
from loraforge.plugin.registry import Reading, Registry, current
from loraforge.text import command

_MEMBERS = ("name", "summary", "devices", "fuse")


def read_backends(registry: Registry) -> Reading[dict[str, FusionBackend]]:
    """Every backend by name. Objects that are no backend, or whose name is taken, become faults of their plugin."""
    reading = Reading(dict[str, FusionBackend]())
    ours = [(BUILT_IN, backend) for backend in (NumpyBackend(), TorchBackend())]
    for owner, item in [*ours, *registry.read(load).value.returned["loraforge_fusion_backends"]]:
        lacking = [member for member in _MEMBERS if not hasattr(item, member)]
        if lacking:
            why = f"returned {type(item).__name__} without {', '.join(lacking)}: that is no backend"
            reading.fault(owner, f"loraforge_fusion_backends {why}")
        elif item.name in reading.value:
            reading.fault(owner, f"there is a fusion backend {item.name!r} already; this one is left out")
        else:
            reading.value[item.name] = item
            reading.adds.append((owner, f"fusion backend {item.name}"))
    return reading


def backends() -> Mapping[str, FusionBackend]:
    """Every backend by name."""
    return current().read(read_backends).value


def choose(name: str = "auto", device: str = "auto") -> tuple[FusionBackend, str]:
    """A backend and a device of it.

    `auto` is a GPU if a backend has one, else the first backend that runs here. Raises LoraforgeError, which lists the
    backends, if no backend of that name, or none with that device, can run.
    """
    known = backends()
    if name not in ("auto", *known):
        raise no_such("fusion backend", name, known, adding("--backend", "auto"))
    able = {key: devices for key, b in known.items() if name in ("auto", key) and (devices := b.devices())}
    kind = device.partition(":")[0]
    fitting = {key: devices for key, devices in able.items() if device == "auto" or kind in devices}
    if not fitting:
        each = (f"{key} ({b.summary}): {', '.join(b.devices()) or 'not installed'}" for key, b in known.items())
        what = f"no backend can use the device {device}" if able else f"the backend {name} cannot run here"
        auto = adding("--device", "auto", "--backend", "auto")
        raise LoraforgeError(f"{what}. There are: {'; '.join(each)}.", auto, command("loraforge", "plugins", "list"))
    with_gpu = (key for key, devices in fitting.items() if device == "auto" and devices[0] != "cpu")
    best = next(with_gpu, next(iter(fitting)))
    return known[best], fitting[best][0] if device == "auto" else device
