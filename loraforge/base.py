"""Which released base models an adapter's shapes allow."""

from __future__ import annotations

from loraforge.adapter import Adapter
from loraforge.catalog import architecture
from loraforge.layout import Index, Variant
from loraforge.lora import rows


def fits(adapter: Adapter) -> tuple[Variant, ...]:
    """The variants that no shape of the adapter, nor of base weights found beside it, speaks against."""
    arch = architecture(adapter.architecture)
    layout = arch.layouts[adapter.layout]
    shapes: list[tuple[str, Index, tuple[int, ...]]] = [
        (segment, (), shape) for segment, shape in adapter.evidence.items()
    ]
    for path, delta in adapter.modules.items():
        if place := layout.locate(path):
            template, index = place
            segments = layout.modules[template]
            sizes = arch.sizes(segments, rows(delta)) or []
            shapes += [(s, index, delta[0].base_shape(size)) for s, size in zip(segments, sizes, strict=False)]
    return tuple(v for v in arch.variants if not any(v.objection(*place) for place in set(shapes)))
