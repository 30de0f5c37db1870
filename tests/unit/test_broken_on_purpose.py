"""Faults put in by hand. Each must be caught, by the oracle or by the verification of what was written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import tomli
from helpers.oracle import Case, assert_acts_as_trained

import loraforge
from loraforge.adapter import fit
from loraforge.algebra import folding, lora
from loraforge.errors import LoraforgeError, VerificationError
from loraforge.format.diffusers import DiffusersWriter
from loraforge.names import bijection
from loraforge.plugin.registry import Registry, use
from loraforge.scale import resolve, rule


def convert(case: Case, place: Path) -> Path:
    return Path(loraforge.convert(case.run(place), to="diffusers", out=place / "out").output["path"])


@pytest.fixture
def changed_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Puts a fault into cogvideox.toml as every module sees it."""

    def change(old: str, new: str) -> None:
        text = (files("loraforge") / "names" / "architectures" / "cogvideox.toml").read_text("utf-8")
        assert old in text
        wrong = bijection.parse(tomli.loads(text.replace(old, new)), "cogvideox.toml")
        monkeypatch.setattr(bijection, "built", lambda *_: wrong)
        use(Registry())

    yield change
    monkeypatch.undo()
    use(Registry())


@pytest.mark.parametrize("order", ['["q", "v", "k"]', '["k", "q", "v"]', '["v", "k", "q"]'])
def test_the_oracle_catches_an_exchange_of_q_k_v(case: Case, order: str, tmp_path: Path, changed_table) -> None:
    changed_table('["q", "k", "v"]', order)
    with pytest.raises(AssertionError, match="is off by"):
        assert_acts_as_trained(convert(case, tmp_path), case)


@pytest.mark.parametrize("factor", [0.5, 2.0, -1.0, 128.0])
def test_the_oracle_catches_a_scale_read_wrongly(case: Case, factor: float, tmp_path: Path, monkeypatch) -> None:
    right = rule.Rule.of
    monkeypatch.setattr(rule.Rule, "of", lambda rule, path, rank: right(rule, path, rank) * factor)
    monkeypatch.setattr(resolve, "_check", lambda rule, ranks: None)
    with pytest.raises((AssertionError, VerificationError), match=r"off by|to act at scale 1, and"):
        assert_acts_as_trained(convert(case, tmp_path), case)


def broken_fit(monkeypatch: pytest.MonkeyPatch, change) -> None:
    right = fit.carry_out

    def wrong(plan: fit.Plan):
        delta, step = right(plan)
        return tuple(change(w, plan) for w in delta), step

    monkeypatch.setattr(fit, "carry_out", wrong)


def scaled_row(w: lora.LoraWeight) -> lora.LoraWeight:
    factor = np.where(np.arange(w.rows) == 5, 1.001, 1).astype(w.B.dtype)
    return dataclasses.replace(w, B=w.B * factor[:, None])


def folded_again(w: lora.LoraWeight, plan: fit.Plan) -> lora.LoraWeight:
    return folding.fold(dataclasses.replace(w, scaling=plan.delta[0].scaling), *plan.types(w))[0]


FAULTS = {
    "a row shifted": lambda w, plan: dataclasses.replace(w, B=np.roll(w.B, 1, axis=0)),
    "a column of A shifted": lambda w, plan: dataclasses.replace(w, A=np.roll(w.A, 1, axis=1)),
    "the fold applied twice": folded_again,
    "the fold left out": lambda w, plan: dataclasses.replace(plan.delta[0], scaling=1.0),
    "one row zeroed": lambda w, plan: dataclasses.replace(w, B=w.B * (np.arange(w.rows) != 7)[:, None]),
    "one row off by a thousandth": lambda w, plan: scaled_row(w),
    "A reversed along the rank": lambda w, plan: dataclasses.replace(w, A=w.A[::-1]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_verification_catches(fault: str, case: Case, tmp_path: Path, monkeypatch) -> None:
    broken_fit(monkeypatch, FAULTS[fault])
    with pytest.raises(VerificationError, match="does not do what the source does"):
        convert(case, tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_verification_catches_two_modules_exchanged(case: Case, tmp_path: Path, monkeypatch) -> None:
    right = DiffusersWriter.encode

    def exchanged(self, path: str, delta) -> Iterator:
        names = {"to_q": "to_k", "to_k": "to_q"}
        end = path.rpartition(".")[2]
        return right(self, path.replace(end, names.get(end, end)), delta)

    monkeypatch.setattr(DiffusersWriter, "encode", exchanged)
    with pytest.raises(VerificationError):
        convert(case, tmp_path)


def test_a_key_dropped_from_the_result_is_caught(case: Case, tmp_path: Path, monkeypatch) -> None:
    right = DiffusersWriter.encode
    monkeypatch.setattr(
        DiffusersWriter,
        "encode",
        lambda self, path, delta: iter(() if "0.attn1.to_v" in path else right(self, path, delta)),
    )
    victims = [path for path in case.deltas if "0.attn1.to_v" in path]
    if not victims:
        assert_acts_as_trained(convert(case, tmp_path), case)
        return
    with pytest.raises(LoraforgeError, match=r"adapts other modules|rank"):
        convert(case, tmp_path)
    assert not (tmp_path / "out").exists()


def test_bytes_changed_on_the_way_to_the_disk_are_caught(case: Case, tmp_path: Path, monkeypatch) -> None:
    right = DiffusersWriter.write

    def damaged(self, path: Path, *rest) -> dict[str, int]:
        sums = right(self, path, *rest)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # the lowest bit of an exponent, of one number
        path.write_bytes(content)
        return dict(sums)

    monkeypatch.setattr(DiffusersWriter, "write", damaged)
    with pytest.raises(VerificationError, match="gave back other bytes"):
        convert(case, tmp_path)


def test_a_header_that_declares_the_scale_again_is_caught(case: Case, tmp_path: Path, monkeypatch) -> None:
    """Folded *and* declared: a loader would apply the scale twice."""
    right = DiffusersWriter.header

    def twice(self, target):
        declared = {
            path: tuple(dataclasses.replace(w, scaling=case.scale) for w in delta)
            for path, delta in target.outlines.items()
        }
        return right(self, dataclasses.replace(target, outlines=declared))

    monkeypatch.setattr(DiffusersWriter, "header", twice)
    with pytest.raises(VerificationError):
        convert(case, tmp_path)
