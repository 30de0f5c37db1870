"""What stands where on a film of several clips and on a contact sheet, read from their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from loraforge.errors import LoraforgeError
from loraforge.media.sheet import contact_sheet, side_by_side

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200), (200, 0, 200), (90, 60, 30), (9, 90, 9)]
LABELS = [f"strength {n / 4:g}" for n in range(9)]


def clip(colour: tuple[int, int, int], frames: int = 3, height: int = 24, width: int = 160) -> np.ndarray:
    """Frames of one colour, the frame number added to each level."""
    each = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(np.array(colour, np.uint8) + each, (frames, height, width, 3)).copy()


def panels(frame: np.ndarray) -> list[list[tuple[tuple[int, int, int], int, int]]]:
    """Rows of pictures, each as its colour, top and left: runs of one saturated colour."""
    coloured = np.ptp(frame.astype(int), axis=2) > 20
    found = list[list[tuple[tuple[int, int, int], int, int]]]()
    for top in range(1, frame.shape[0]):
        if not coloured[top].any() or coloured[top - 1].any():
            continue
        lefts = [x for x in np.flatnonzero(coloured[top]) if x == 0 or not coloured[top, x - 1]]
        found.append([(tuple(map(int, frame[top, x])), top, int(x)) for x in lefts])
    return found


@pytest.mark.parametrize(
    ("count", "rows"), [(1, [1]), (3, [3]), (4, [4]), (5, [3, 2]), (6, [3, 3]), (7, [4, 3]), (8, [4, 4])]
)
def test_clips_stand_in_order_and_wrap_above_four(count: int, rows: list[int]) -> None:
    film = side_by_side([clip(c) for c in COLOURS[:count]], LABELS[:count])
    assert film.dtype == np.uint8 and film.shape[0] == 3
    for n, frame in enumerate(film):
        seen = panels(frame)
        assert [len(row) for row in seen] == rows
        assert [c for row in seen for c, _, _ in row] == [tuple(v + n for v in c) for c in COLOURS[:count]]


def test_pictures_are_as_they_were_and_no_text_is_on_them() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 2, 40, 200, 3), np.uint8)
    film = side_by_side(list(noise), ["one", "two"])
    top = film.shape[1] - 40
    assert np.array_equal(film[:, top:, :200], noise[0])
    assert np.array_equal(film[:, top:, -200:], noise[1])


@pytest.mark.parametrize("width", [16, 64, 80, 160, 720, 1360])
def test_each_clip_has_its_own_label_above_it(width: int) -> None:
    clips = [clip(c, 1, 16, width) for c in COLOURS[:2]]
    ab = side_by_side(clips, ["strength 0", "strength 1"])[0]
    ba = side_by_side(clips, ["strength 1", "strength 0"])[0]
    (_, top, left), (_, _, right) = panels(ab)[0]
    strip = [
        (frame[:top, left : left + max(width, 100)], frame[:top, right:][:, : max(width, 100)]) for frame in (ab, ba)
    ]
    assert all(part.min() < 50 for pair in strip for part in pair)  # ink
    assert np.array_equal(strip[0][0], strip[1][1]) and np.array_equal(strip[0][1], strip[1][0])
    assert not np.array_equal(strip[0][0], strip[0][1])
    ink = np.flatnonzero(strip[0][0].min(axis=(1, 2)) < 128)
    assert np.ptp(ink) >= max(10, width // 40)  # letters as high as that: legible where it is shown small
    assert not strip[0][0][:2].min() < 255 and top - ink[-1] >= 2  # nothing cut off above or below


def test_a_label_stays_next_to_its_picture_when_another_takes_two_lines() -> None:
    frame = side_by_side([clip(c) for c in COLOURS[:2]], ["short", "a label of more words than fit into a line " * 3])[
        0
    ]
    (_, top, _), (_, _, right) = panels(frame)[0]
    short, long = (
        np.flatnonzero(part.min(axis=(1, 2)) < 128) for part in (frame[:top, : right - 8], frame[:top, right:])
    )
    assert long[0] < short[0] and top - short[-1] < 12
    assert (frame[:top, -2:] == 255).all()  # what does not fit is cut before the edge


ODD = ["", "提示 🎬 عربى", "a\nb\x00\x1b[31m", "\ud800", "w" * 5000, "word " * 1000]


@pytest.mark.parametrize("label", ODD, ids=["empty", "not Latin", "control", "surrogate", "one word", "many words"])
def test_no_text_crashes(label: str) -> None:
    assert side_by_side([clip(COLOURS[0])], [label]).shape[1] < 100
    assert contact_sheet([clip(COLOURS[0])], [label], [label]).width <= 2400


def test_a_sheet_has_rows_of_clips_and_columns_from_first_to_last_frame() -> None:
    sheet = np.asarray(contact_sheet([clip(c, 49) for c in COLOURS[:3]], LABELS[:3], ["a note"] * 3))
    seen = panels(sheet)
    assert [[c for c, _, _ in row] for row in seen] == [
        [tuple(v + n for v in colour) for n in (0, 10, 19, 29, 38, 48)] for colour in COLOURS[:3]
    ]
    for n, row in enumerate(seen):
        before = seen[n - 1][0][1] + 24 + 30 if n else 0
        assert sheet[before : row[0][1]].min() < 50  # a label above each row
        for _, top, left in row:
            assert sheet[top + 24 : top + 24 + 20, left : left + 160].min() < 128  # a number below each picture


def test_each_row_of_a_sheet_has_its_own_label_and_note() -> None:
    labels, notes = ["strength 0", "strength 1", "strength 2"], ["PSNR 11.1 dB", "PSNR 22.2 dB", "PSNR 33.3 dB"]
    sheet = np.asarray(contact_sheet([clip(c) for c in COLOURS[:3]], labels, notes))
    row = (sheet.shape[0] - 8) // 3
    for n, (label, note) in enumerate(zip(labels, notes, strict=True)):
        alone = np.asarray(contact_sheet([clip(COLOURS[n])], [label], [note]))[8:]
        assert np.array_equal(sheet[8 + n * row :][: row - 8], alone[: row - 8])


@pytest.mark.parametrize(("held", "asked", "shown"), [(1, 6, [0]), (2, 6, [0, 1]), (5, 3, [0, 2, 4]), (9, 1, [0])])
def test_a_sheet_shows_no_frame_twice(held: int, asked: int, shown: list[int]) -> None:
    row = panels(np.asarray(contact_sheet([clip(COLOURS[1], held)], ["x"], [""], asked)))[0]
    assert [c for c, _, _ in row] == [(n, 200 + n, n) for n in shown]


def test_numbers_labels_and_notes_differ_where_they_should() -> None:
    def drawn(label: str = "x", note: str = "y", frames: int = 2) -> np.ndarray:
        return np.asarray(contact_sheet([clip(COLOURS[0], frames)], [label], [note], 2))

    assert not np.array_equal(drawn(), drawn(label="z"))
    assert not np.array_equal(drawn(), drawn(note="z"))
    assert not np.array_equal(drawn(frames=2)[-40:], drawn(frames=9)[-40:])  # frame 1, frame 8


@pytest.mark.parametrize(
    ("width", "height", "picture"),
    [
        (64, 48, (192, 144)),
        (80, 48, (160, 96)),
        (320, 200, (320, 200)),
        (1360, 768, (390, 220)),
        (768, 1360, (271, 480)),
    ],
)
def test_pictures_of_a_sheet_are_enlarged_by_whole_factors_or_reduced(
    width: int, height: int, picture: tuple[int, int]
) -> None:
    sheet = contact_sheet(
        [clip(COLOURS[0], 6, height, width)], ["strength 0.5"], ["PSNR 31.2 dB, SSIM 0.93, flicker 2.1"]
    )
    row = panels(np.asarray(sheet))[0]
    _, top, left = row[0]
    shown = np.ptp(np.asarray(sheet).astype(int), axis=2) > 20
    assert (int(shown[top, left : row[1][2]].sum()), int(shown[top:, left].sum())) == picture
    assert 900 < sheet.width <= 2400


def test_small_pixels_stay_sharp() -> None:
    checks = np.zeros((1, 40, 80, 3), np.uint8)
    checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = (255, 0, 0)
    seen = np.asarray(contact_sheet([checks], ["x"], [""]))
    levels = seen[..., 0][np.ptp(seen.astype(int), axis=2) > 0]
    assert set(levels.tolist()) == {255}


def test_a_sheet_can_be_written(tmp_path) -> None:
    contact_sheet([clip(COLOURS[0])], ["x"], ["y"]).save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as stored:
        assert stored.mode == "RGB"


def test_clips_labels_and_notes_must_match() -> None:
    both = [clip(COLOURS[0]), clip(COLOURS[1])]
    with pytest.raises(LoraforgeError, match="2 clips have 1 texts"):
        side_by_side(both, ["x"])
    with pytest.raises(LoraforgeError, match="2 clips have 3 texts"):
        contact_sheet(both, ["x", "y"], ["", "", ""])
    with pytest.raises(LoraforgeError, match="clip 2 has the shape"):
        side_by_side([both[0], both[1][:, :10]], ["x", "y"])
    with pytest.raises(LoraforgeError, match="no clip"):
        contact_sheet([], [], [])
