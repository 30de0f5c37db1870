"""What `loraforge inspect` of adapters with many modules costs: ratios to reading their headers as JSON and to click.

`inspect_many.py [--modules 20000] [--runs 5]`. Whole processes of the interpreter that runs this, one of each in turn,
CPU seconds (user and system), medians after one round that is not counted. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

from startup import COMMANDS, LORAFORGE, seconds

PAIR = {".lora_A.weight": [1, 8], ".lora_B.weight": [8, 1]}
KOHYA = {".lora_down.weight": [1, 8], ".lora_up.weight": [8, 1], ".alpha": []}
KINDS = {
    "Diffusers' names": ("transformer.transformer_blocks.{}.attn1.", ("to_q", "to_k", "to_v", "to_out.0"), PAIR),
    "kohya's names": ("lora_unet_blocks_{}_", ("self_attn_q", "self_attn_k", "cross_attn_v", "cross_attn_o"), KOHYA),
    "with wrappers": ("model.module.blocks.{}.", ("self_attn.q", "self_attn.k", "cross_attn.v", "cross_attn.o"), PAIR),
    "of no known model": ("unknown.widget.{}.thing.", ("to_q", "to_k", "to_v", "to_o"), PAIR),
}
HEADER = "import json, sys; f = open(sys.argv[1], 'rb'); json.loads(f.read(int.from_bytes(f.read(8), 'little')))"


def write(path: Path, kind: str, modules: int) -> None:
    """An adapter of rank 1 whose numbers are all 1."""
    stem, words, shapes = KINDS[kind]
    header, end = {}, 0
    for name in (stem.format(n) + word for n in range(modules // len(words)) for word in words):
        for suffix, shape in shapes.items():
            start, end = end, end + (32 if shape else 4)
            header[name + suffix] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x00\x00\x80\x3f" * (end // 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    print(f"{given.modules} modules       header s  click s  inspect s  x header  x click")
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder) / "adapter.safetensors"
            write(path, kind, given.modules)
            plain = [[sys.executable, "-c", HEADER, str(path)], COMMANDS["import click"]]
            commands = [*plain, [LORAFORGE, "inspect", str(path)]]
            rounds = [[seconds(one, refused=True) for one in commands] for _ in range(given.runs + 1)][1:]
            header, click, ours = map(median, zip(*rounds, strict=True))
            print(f"{kind:<20}{header:>10.3f}{click:>9.3f}{ours:>11.3f}{ours / header:>10.1f}{ours / click:>9.1f}")


if __name__ == "__main__":
    main()
