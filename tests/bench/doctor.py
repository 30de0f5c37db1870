"""`loraforge doctor` on an adapter of 1 GB: `doctor.py [--runs 3]`. Exits with 1 over 5 s or 1 GB. Linux only."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from processes import LORAFORGE, measure

WALL, PEAK = 5.0, 1.0
RANK, HIDDEN, BLOCKS = 512, 3072, 42


def write(file: Path) -> None:
    """bf16 factors of rank 512 on q, k, v and out of a 5B, one block of random bytes behind all of them."""
    noise = (np.random.default_rng(0).standard_normal(RANK * HIDDEN) * 0.02).astype(np.float32)
    content = (noise.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for i in range(BLOCKS):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            for factor, shape in (("A", [RANK, HIDDEN]), ("B", [HIDDEN, RANK])):
                key = f"transformer.transformer_blocks.{i}.attn1.{name}.lora_{factor}.weight"
                header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + len(content)]}
                end += len(content)
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _ in range(len(header) - 1):
            stream.write(content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "adapter.safetensors"
        write(file)
        results = [measure([LORAFORGE, "doctor", file, "--trained-scale", "1"]) for _ in range(options.runs + 1)][1:]
        print(f"{file.stat().st_size / 1e9:.2f} GB, {options.runs} runs")
    wall, peak = median(r[0] for r in results), max(r[1] for r in results)
    print(f"wall {wall:.2f} s, budget {WALL} s; peak {peak:.2f} GB, budget {PEAK} GB")
    return 0 if wall <= WALL and peak <= PEAK else 1


if __name__ == "__main__":
    sys.exit(main())
