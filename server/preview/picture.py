"""The picture of a feature: its label, its strongest contexts, and how its activations are distributed."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from feature_store.dictionary_files import DictionaryCard
from server.preview.page import title_of

WIDTH, HEIGHT = 1200, 630  # as the sites that show such pictures want them
MARGIN, LINE = 60, 52
BACKGROUND, INK, FAINT, ACCENT, MARK = "#ffffff", "#1c2024", "#667079", "#3b5bdb", "#dbe4ff"
N_CONTEXTS = 4
BARS_TOP, BARS_HEIGHT = 470, 90


def picture(card: DictionaryCard, detail: dict[str, Any], contexts: dict[str, Any]) -> bytes:
    """A PNG of 1200 x 630 points of a feature, of its `FeatureDetail` and `ContextList`.

    Letters that the font of Pillow does not hold (it has those of Latin scripts) are shown as empty boxes.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(image)
    title = _fitting(title_of(detail["feature"], detail["label"]), _font(44), WIDTH - 2 * MARGIN)
    draw.text((MARGIN, 44), title, INK, _font(44))
    facts = f"{card.model.name} · {card.sae['hook']} · fires on {detail['density']:.2%} of tokens"
    draw.text((MARGIN, 108), _fitting(facts, _font(26), WIDTH - 2 * MARGIN), FAINT, _font(26))

    tops = [item for item in contexts["items"] if item["group"] == "top"][:N_CONTEXTS]
    for number, item in enumerate(tops):
        _draw_context(draw, 180 + number * LINE, item)
    if not tops:
        draw.text((MARGIN, 180), "It never fires on the indexed text.", FAINT, _font(28))

    _draw_bars(draw, detail["histogram"])
    draw.text((MARGIN, HEIGHT - 54), "how strong, from weak to strong", FAINT, _font(20))
    draw.text((WIDTH - MARGIN, HEIGHT - 54), "saedex", ACCENT, _font(26), anchor="ra")

    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitting(text: str, font: Any, width: float, *, keep: str = "first") -> str:
    """As much of a text as fits, its first or its last part."""
    text = " ".join(text.split("\n"))
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"…{text}") > width:
        text = text[:-1] if keep == "first" else text[1:]
    return f"{text}…" if keep == "first" else f"…{text}"


def _draw_context(draw: ImageDraw.ImageDraw, top: int, item: dict[str, Any]) -> None:
    """One line: the peak in the middle on a coloured ground, what is before it on the left, what follows on the right."""
    font, texts, peak = _font(28), item["texts"], item["peak"]
    marked = _fitting(texts[peak].strip() or texts[peak].replace("\n", "⏎"), font, WIDTH / 3)
    width, middle = font.getlength(marked), WIDTH // 2
    left, right = middle - width / 2, middle + width / 2
    room = left - MARGIN - 12
    before = _fitting("".join(texts[:peak])[-80:], font, room, keep="last")
    after = _fitting("".join(texts[peak + 1 :])[:80], font, room)

    draw.rounded_rectangle((left - 6, top - 4, right + 6, top + 36), 6, MARK)
    draw.text((left - 12, top), before, FAINT, font, anchor="ra")
    draw.text((left, top), marked, INK, font)
    draw.text((right + 12, top), after, FAINT, font)


def _draw_bars(draw: ImageDraw.ImageDraw, counts: list[int]) -> None:
    """The histogram of activations, each bar as high as the share of its count in the largest."""
    filled = [n for n, count in enumerate(counts) if count]
    if not filled:
        return
    shown = counts[filled[0] : filled[-1] + 1]
    step = (WIDTH - 2 * MARGIN) / len(shown)
    draw.line((MARGIN, BARS_TOP + BARS_HEIGHT, WIDTH - MARGIN, BARS_TOP + BARS_HEIGHT), FAINT)
    for n, count in enumerate(shown):
        height = BARS_HEIGHT * count / max(shown)
        left = MARGIN + n * step
        draw.rectangle((left, BARS_TOP + BARS_HEIGHT - height, left + step - 3, BARS_TOP + BARS_HEIGHT), ACCENT)
