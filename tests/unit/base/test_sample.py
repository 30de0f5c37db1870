"""What a base model states about itself in a SAT run's YAML, or in a header that anybody can write."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from loraforge.base.config import _configured
from loraforge.base.origin import held

SAMPLE = {"sample_frames": 49, "sample_height": 60, "sample_width": 90, "temporal_compression_ratio": 4}
OTHER = {name: number + 1 for name, number in SAMPLE.items()}
RUN = {"num_frames": 49, "latent_height": 60, "latent_width": 90, "time_compressed_rate": 4}
TEXT = {"modules": {"pos_embed_config": {"params": {"text_length": 226}}}}
ENTRY = {"path": "a", "format": "peft", "digests": ["d"], "strength": 1, "scalings": [0.5], "provenance": "given"}
ENTRY |= {"said": "--alpha"}


def base(folder: Path, origin: object = None) -> SimpleNamespace:
    file = SimpleNamespace(metadata={"loraforge": json.dumps(origin)})
    return SimpleNamespace(kind="sat", folder=folder, files=(file,))


@pytest.mark.parametrize(
    ("params", "sample"),
    [
        (RUN | TEXT, SAMPLE | {"max_text_seq_length": 226}),
        (RUN, SAMPLE),
        (RUN | {"modules": None}, SAMPLE),
        (RUN | {"modules": {"pos_embed_config": ["params"]}}, SAMPLE),
        ({"num_frames": 0, "latent_height": -1, "latent_width": True, "time_compressed_rate": "4"}, {}),
        ({}, {}),
    ],
)
def test_a_run_states_its_sample(params: dict, sample: dict, tmp_path: Path) -> None:
    document = {"model": {"network_config": {"params": params}}}
    (tmp_path / "training_config.yaml").write_text(yaml.safe_dump(document))
    found = _configured(base(tmp_path / "1", {"base": {"sample": OTHER}}))
    assert found == (sample, "training_config.yaml" if sample else "")


@pytest.mark.parametrize(
    ("origin", "sample"),
    [
        ({"base": {"sample": SAMPLE}}, SAMPLE),
        ({"base": {"sample": SAMPLE | {"sample_frames": 0, "other": 3}}}, {k: SAMPLE[k] for k in list(SAMPLE)[1:]}),
        ({"base": {"sample": [49]}}, {}),
        ({"base": "sample"}, {}),
        (["base"], {}),
        (None, {}),
    ],
)
@pytest.mark.parametrize("text", [None, "model: [network_config]\n"], ids=["no YAML", "YAML without params"])
def test_else_the_header_does(text: str | None, origin: object, sample: dict, tmp_path: Path) -> None:
    if text:
        (tmp_path / "training_config.yaml").write_text(text)
    assert _configured(base(tmp_path, origin)) == (sample, "the file's own header" if sample else "")


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"said": None},
        {"path": 3},
        {"digests": [1]},
        {"digests": "d"},
        {"strength": "1"},
        {"strength": 1e39},
        {"scalings": []},
        {"scalings": [0.5, None]},
        {"scalings": [float("nan")]},
    ],
    ids=str,
)
def test_an_entry_unlike_ours_is_left_out(change: dict, tmp_path: Path) -> None:
    assert held(base(tmp_path, {"fused": [ENTRY | change, ENTRY]})) == [ENTRY]
    lacking = {key: value for key, value in ENTRY.items() if key not in change}
    assert held(base(tmp_path, {"fused": [ENTRY, lacking]})) == [ENTRY] * (2 if lacking == ENTRY else 1)
