"""Names are grouped by their words, and each has the number that it has alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loraforge.numbered import by_words, parted

WORDS = st.sampled_from(["blocks", "to_out", "0", "1", "07", "12", "999999", "1234567", "x1", ""])
NAMES = st.lists(st.tuples(WORDS, st.sampled_from("._"), WORDS, st.sampled_from("._"), WORDS), max_size=12)


@given(NAMES)
def test_a_name_among_others_is_parted_as_it_is_alone(names: list[tuple[str, ...]]) -> None:
    every = sorted({"".join(words) for words in names})
    for keys in (every, every[::-1]):
        kinds = by_words(keys)
        assert sorted(name for kind in kinds.values() for name in kind.values()) == every
        for (start, end), kind in kinds.items():
            for number, name in kind.items():
                assert parted(name) == (start, number, end)
                assert f"{start}{number}{end}" == name


def test_a_word_that_is_no_number_of_a_block() -> None:
    assert parted("blocks.3.to_q") == ("blocks.", "3", ".to_q")
    assert parted("lora_unet_blocks_3_to_q") == ("lora_unet_blocks_", "3", "_to_q")
    for name in ("x", "blocks.03.x", "blocks.1234567.x", "3.x", "x.3"):
        assert parted(name) == (name, "", "")
