"""Several clips shown together: side by side in a film, and on a labelled contact sheet.

The film keeps every pixel as it is; the sheet scales the pictures to a page. Texts stand beside the pictures, in the
font of Pillow, the same on every machine: it has Latin letters, and draws a missing character as a box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loraforge.errors import of_pipeline
from loraforge.media.metrics import Frames, alike
from loraforge.text import plain

if TYPE_CHECKING:
    from PIL.Image import Image

_IN_A_ROW = 4
"""The most clips in a row of a film; more are put into rows of about equal length."""
_NARROWEST = 128
"""The least width of a label, in pixels: room for `strength 0.5` in letters of 14 pixels."""
_WIDEST = 2400
"""The largest width of a sheet, in pixels, which image viewers and printed pages still show well."""
_PICTURE = (160, 480)
"""The least width and the largest height of a picture on a sheet, in pixels."""
_LONGEST = 200
"""The most characters of a text; no page has room for more."""
_GAP = 8
_WHITE, _BLACK, _GREY = (255, 255, 255), (0, 0, 0), (96, 96, 96)


def side_by_side(clips: Sequence[Frames], labels: Sequence[str]) -> Frames:
    """One film [frames, height', width', 3] of clips of the same shape, in the given order, each below its label.

    A row has up to four clips; five make rows of three and two. Labels have at most two lines and are cut to fit.
    Clips narrower than 128 pixels get a white margin, so that the label has room. Nothing is scaled. Raises
    LoraforgeError if the clips differ in shape or do not have one label each.
    """
    count, height, width = alike(clips, labels)
    rows = math.ceil(len(clips) / _IN_A_ROW)
    columns = math.ceil(len(clips) / rows)
    cell = max(width, _NARROWEST)
    strips = _strips(labels, cell)
    strip = strips[0].shape[0]
    shape = (count, rows * (strip + height) + (rows - 1) * _GAP, columns * cell + (columns - 1) * _GAP, 3)
    film = np.full(shape, 255, np.uint8)
    for n, (clip, text) in enumerate(zip(clips, strips, strict=True)):
        top, left = n // columns * (strip + height + _GAP), n % columns * (cell + _GAP)
        film[:, top : top + strip, left : left + cell] = text
        film[:, top + strip : top + strip + height, left : left + width] = clip
    return film


def contact_sheet(clips: Sequence[Frames], labels: Sequence[str], notes: Sequence[str], frames: int = 6) -> Image:
    """A page with a row per clip: label, note, and `frames` evenly spaced pictures, including the first and last frame.

    The frame number, counted from 0, is below each picture. A clip of fewer frames shows all of them. Small
    pictures are enlarged by a whole factor, without smoothing; large ones are reduced until the page is at most
    2400 pixels wide. Raises LoraforgeError if the clips differ in shape or do not have one label and note each.
    """
    with of_pipeline("a contact sheet"):
        from PIL import Image, ImageDraw, ImageFont

    count, height, width = alike(clips, labels, notes)
    labels, notes = ([plain(text, _LONGEST) for text in texts] for texts in (labels, notes))
    most = min(count, max(frames, 1))
    shown = [round(n * (count - 1) / max(most - 1, 1)) for n in range(most)]
    picture = _fitted(width, height, len(shown))
    across = len(shown) * (picture[0] + _GAP) + _GAP
    size = min(30, max(16, across // 70))
    large, small = (ImageFont.load_default(points) for points in (size, max(14, size * 4 // 5)))
    text_width = max([large.getlength(label) for label in labels] + [small.getlength(note) for note in notes])
    page_width = min(_WIDEST, max(across, math.ceil(text_width) + 2 * _GAP))
    line = size * 3 // 2
    row = 3 * line + picture[1] + 2 * _GAP  # label, note, pictures, numbers
    page = Image.new("RGB", (page_width, len(clips) * row + _GAP), _WHITE)
    draw = ImageDraw.Draw(page)
    for n, (clip, label, note) in enumerate(zip(clips, labels, notes, strict=True)):
        top = n * row + _GAP
        draw.text((_GAP, top), _cut(label, large, page_width - 2 * _GAP), _BLACK, large)
        draw.text((_GAP, top + line), _cut(note, small, page_width - 2 * _GAP), _GREY, small)
        top += 2 * line
        for m, number in enumerate(shown):
            left = _GAP + m * (picture[0] + _GAP)
            method = Image.Resampling.NEAREST if picture[0] >= width else Image.Resampling.LANCZOS
            page.paste(Image.fromarray(clip[number]).resize(picture, method), (left, top))
            draw.text((left, top + picture[1] + 2), f"frame {number}", _GREY, small)
        if n:
            draw.line((0, n * row, page_width, n * row), (208,) * 3)
    return page


def _fitted(width: int, height: int, columns: int) -> tuple[int, int]:
    """Width and height of a picture on a sheet of so many `columns`, with the proportions of `width` and `height`."""
    least, tallest = _PICTURE
    widest = (_WIDEST - _GAP) // columns - _GAP
    factor = min(widest / width, tallest / height)
    if factor >= 1:
        factor = min(int(factor), math.ceil(least / width))
    return max(1, int(width * factor)), max(1, int(height * factor))


def _strips(labels: Sequence[str], width: int) -> list[Frames]:
    """A white strip [height, width, 3] for each label; all are as high as the label with the most lines needs."""
    with of_pipeline("a label"):
        from PIL import Image, ImageDraw, ImageFont

    size = max(14, width // 28)  # a row of four, scaled to a screen of 1920 pixels, has letters of about 14 pixels
    font = ImageFont.load_default(size)
    margin, line = size // 4, size * 5 // 4
    texts = [_lines(label, font, width - 2 * margin) for label in labels]
    height = max(map(len, texts)) * line + size // 2
    strips = list[Any]()
    for text in texts:
        strip = Image.new("RGB", (width, height), _WHITE)
        top = height - len(text) * line - margin  # near its own picture, away from the one above
        for n, words in enumerate(text):
            ImageDraw.Draw(strip).text((margin, top + n * line), words, _BLACK, font)
        strips.append(np.asarray(strip))
    return strips


def _lines(text: str, font: Any, width: int) -> list[str]:
    """The text in one line, or in two if it is too long; the last one is cut to fit."""
    first, rest = "", plain(text, _LONGEST).split()
    while rest and (not first or font.getlength(f"{first} {rest[0]}") <= width):
        first = f"{first} {rest.pop(0)}".strip()
    return [_cut(line, font, width) for line in (first, " ".join(rest)) if line] or [""]


def _cut(text: str, font: Any, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
