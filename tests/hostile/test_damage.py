"""Healthy files with bytes changed, cut or doubled at random: each converts or is refused, and nothing worse."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path

import pytest

from hostile.builders import archive, diffusers_lora, safetensors, sat

TIMES = 150
SAT = sat(iteration=3, buffer_names=[("a", 1.5, None, True)])
CONFIG = {"transformer.r": 4, "transformer.lora_alpha": 2, "transformer.rank_pattern": {"to_q": 4}}
DIFFUSERS = safetensors(diffusers_lora(), {"lora_adapter_metadata": json.dumps(CONFIG)})


def damaged(data: bytes, chance: random.Random, start: int = 0, stop: int | None = None) -> bytes:
    """A few bytes between start and stop flipped, set, removed, inserted or copied."""
    out, stop = bytearray(data), len(data) if stop is None else stop
    for _ in range(chance.choice((1, 1, 2, 8))):
        at, other = (min(chance.randrange(start, stop), len(out) - 1) for _ in range(2))
        length = chance.randrange(1, 30)
        match chance.choice(("flip", "flip", "flip", "set", "cut", "insert", "copy")):
            case "flip":
                out[at] ^= 1 << chance.randrange(8)
            case "set":
                out[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
            case "cut":
                del out[at : at + length]
            case "insert":
                out[at:at] = chance.randbytes(length)
            case "copy":
                out[at : at + length] = out[other : other + length]
    return bytes(out)


def pickle_damaged(data: bytes, chance: random.Random) -> bytes:
    """Damage to the pickle alone, in an archive whose checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        records = {name: whole.read(name) for name in whole.namelist()}
    records["archive/data.pkl"] = damaged(records["archive/data.pkl"], chance)
    return archive(records, folder="")


DAMAGES = {
    "a pickle": lambda chance: pickle_damaged(SAT, chance),
    "a zip's directory": lambda chance: damaged(SAT, chance, SAT.index(b"PK\x01\x02")),
    "a torch archive anywhere": lambda chance: damaged(SAT, chance),
    "a safetensors header": lambda chance: damaged(DIFFUSERS, chance, 0, DIFFUSERS.index(b"}}") + 2),
    "a safetensors file cut": lambda chance: DIFFUSERS[: chance.randrange(len(DIFFUSERS))],
    "a torch archive cut": lambda chance: SAT[: chance.randrange(len(SAT))],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage(tmp_path: Path, cli, out: Path, damage):
    chance = random.Random(20_240_817)
    refusals = 0
    for number in range(TIMES):
        file = tmp_path / "x.pt"
        file.write_bytes(damage(chance))
        result = cli("convert", file, "--to", "diffusers", "-o", out / f"{number}.safetensors")
        assert result.exception is None or isinstance(result.exception, SystemExit), (number, result.exception)
        assert result.exit_code in (0, 1), (number, result.output)
        assert (out / f"{number}.safetensors").exists() == (result.exit_code == 0), number
        refusals += result.exit_code
    assert refusals > TIMES // 3, "the damage is too light to prove anything"
