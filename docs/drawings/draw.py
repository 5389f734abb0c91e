"""Draw the pictures of the documentation, from the library's own rule: `python docs/drawings/draw.py`."""

import sys
from pathlib import Path
from xml.sax.saxutils import escape

import torch

from streamlm.cache.attention import streaming_mask
from streamlm.cache.plan import slot_of
from streamlm.config import StreamConfig

CELL = 28
SINK, WINDOW, NEW, HIDDEN = "#3b4a6b", "#b7c6e0", "#e8b45a", "#f4f4f4"  # dark to light in grey as well
INK, LINE = "#1d1d1d", "#8a8a8a"
CFG = StreamConfig(n_sink=2, window_size=4)


class Drawing:
    """An SVG picture that grows by shapes, on white so that a dark page shows it too."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" font-family="sans-serif" font-size="13">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        ]

    def text(self, x: float, y: float, words: object, *, anchor: str = "middle", fill: str = INK) -> None:
        """Write words with their middle height at y."""
        written = escape(str(words))
        self.parts.append(
            f'<text x="{x:g}" y="{y + 4.5:g}" text-anchor="{anchor}" fill="{fill}">{written}</text>'
        )

    def cell(self, x: float, y: float, fill: str, words: object = "") -> None:
        """Draw a square, with words in it."""
        self.frame(x, y, CELL, CELL, fill=fill, line=LINE, width=1)
        if words != "":
            self.text(x + CELL / 2, y + CELL / 2, words, fill="#ffffff" if fill == SINK else INK)

    def frame(
        self, x: float, y: float, w: float, h: float, *, fill: str = "none", line: str = INK, width: float = 2
    ) -> None:
        """Draw a rectangle."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" stroke="{line}" '
            f'stroke-width="{width:g}"/>'
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Draw a line that ends in a dot."""
        self.parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{INK}" stroke-width="1.5"/>'
            f'<circle cx="{x2:g}" cy="{y2:g}" r="3" fill="{INK}"/>'
        )

    def legend(self, x: float, y: float, *entries: tuple[str, str]) -> None:
        """Explain fills, one below the other."""
        for i, (fill, words) in enumerate(entries):
            self.cell(x, y + 36 * i, fill)
            self.text(x + CELL + 10, y + 36 * i + CELL / 2, words, anchor="start")

    def svg(self) -> str:
        """Return the picture."""
        return "\n".join([*self.parts, "</svg>", ""])


def fill_of(query: int, key: int, cfg: StreamConfig) -> str:
    """Return how a key is drawn in the row of a query."""
    if not streaming_mask(torch.tensor([query]), torch.tensor([key]), cfg).item():
        return HIDDEN
    return SINK if key < cfg.n_sink and query - key >= cfg.window_size else WINDOW


def draw_matrix(drawing: Drawing, n_tokens: int, cfg: StreamConfig, left: int, top: int) -> None:
    """Draw which keys (columns) each query (row) sees."""
    drawing.text(left + n_tokens * CELL / 2, top - 38, "key j")
    drawing.text(left - 4, top - 12, "query t", anchor="end")
    for t in range(n_tokens):
        middle = t * CELL + CELL / 2
        drawing.text(left + middle, top - 12, t)
        drawing.text(left - 14, top + middle, t)
        for j in range(n_tokens):
            drawing.cell(left + j * CELL, top + t * CELL, fill_of(t, j, cfg))


def draw_visibility() -> Drawing:
    """Return the visibility matrix of 2 sinks and a window of 4."""
    drawing = Drawing(680, 420, "Which keys each query sees: 2 sinks and a window of 4")
    draw_matrix(drawing, 12, CFG, 70, 60)
    drawing.legend(
        430,
        90,
        (WINDOW, "in the window: t - j < 4"),
        (SINK, "seen as a sink only: j < 2"),
        (HIDDEN, "not seen"),
    )
    drawing.text(430, 230, "The diagonal is the query's own token:", anchor="start")
    drawing.text(430, 250, "the window counts it.", anchor="start")
    drawing.text(430, 284, "Up to t = 5 = capacity - 1 every row", anchor="start")
    drawing.text(430, 304, "is plain causal attention.", anchor="start")
    return drawing


def draw_positions() -> Drawing:
    """Return the positions of the tokens that query 11 sees, in the text and in the cache."""
    query, left = 11, 150
    seen = [j for j in range(query + 1) if fill_of(query, j, CFG) != HIDDEN]
    drawing = Drawing(680, 300, "Positions in the text and in the cache")
    drawing.text(left - 16, 60 + CELL / 2, "in the text", anchor="end")
    drawing.text(left - 16, 190 + CELL / 2, "in the cache", anchor="end")
    for j in range(query + 1):
        drawing.cell(left + 40 * j, 60, fill_of(query, j, CFG), j)
    for position, j in enumerate(seen):
        x = left + 40 * position
        drawing.arrow(left + 40 * j + CELL / 2, 60 + CELL, x + CELL / 2, 188)
        drawing.cell(x, 190, fill_of(query, j, CFG), position)
    drawing.text(
        left,
        24,
        "query t = 11 sees two sinks and the window; its position is p(t) = min(11, 5) = 5",
        anchor="start",
    )
    drawing.text(
        left, 246, "sink 0 is 11 tokens before the query in the text, and 5 in the cache;", anchor="start"
    )
    drawing.text(
        left, 268, "a window key is equally far in both, so only the sinks need a rotation", anchor="start"
    )
    return drawing


def draw_ring() -> Drawing:
    """Return the tokens in the slots after some numbers of tokens."""
    drawing = Drawing(680, 372, "The ring: token u is in slot 2 + (u - 2) % 4")
    left = 210

    def left_of(slot: int) -> int:
        return left + slot * 44 + (0 if slot < CFG.n_sink else 20)

    drawing.text(left - 16, 40, "slot", anchor="end")
    for slot in range(CFG.capacity):
        drawing.text(left_of(slot) + CELL / 2, 40, slot)
    for row, n_seen in enumerate((6, 7, 8, 10)):
        y = 64 + 62 * row
        drawing.text(left - 16, y + CELL / 2, f"after {n_seen} tokens", anchor="end")
        tokens = {s: s for s in range(CFG.n_sink)}
        tokens |= {slot_of(u, CFG): u for u in range(CFG.n_sink, n_seen)}
        for slot, token in tokens.items():
            newest = token == n_seen - 1
            drawing.cell(left_of(slot), y, SINK if slot < CFG.n_sink else NEW if newest else WINDOW, token)
            if newest:
                drawing.frame(left_of(slot), y, CELL, CELL)
        nearer = n_seen - 1 - min(n_seen - 1, CFG.capacity - 1)
        drawing.text(left + 310, y + CELL / 2, f"sinks rotated by {nearer}", anchor="start")
    drawing.legend(left - 190, 316, (SINK, "sinks: never overwritten"))
    drawing.legend(left + 30, 316, (NEW, "the newest token"))
    drawing.frame(left + 30, 316, CELL, CELL)
    drawing.legend(left + 210, 316, (WINDOW, "window, in any order"))
    return drawing


def draw_blocks() -> Drawing:
    """Return what one pass over blocks of 4 queries multiplies: the sinks, and one band of keys."""
    block, n_tokens, left, top = 4, 16, 70, 60
    drawing = Drawing(
        800, 540, "Scoring in blocks: each block of queries takes the sinks and one band of keys"
    )
    draw_matrix(drawing, n_tokens, CFG, left, top)
    for start in range(0, n_tokens, block):
        low, stop = max(CFG.n_sink, start - CFG.window_size + 1), start + block
        y = top + start * CELL
        drawing.frame(left, y, CFG.n_sink * CELL, block * CELL, width=3)
        drawing.frame(left + low * CELL, y, (stop - low) * CELL, block * CELL, width=3)
    drawing.legend(
        545, 100, (WINDOW, "in the window"), (SINK, "seen as a sink only"), (HIDDEN, "hidden by the mask")
    )
    for i, line in enumerate(
        (
            "Frames: what is multiplied for",
            "one block of 4 queries. However",
            "long the text, it is the sinks",
            "and block + window - 1 keys.",
        )
    ):
        drawing.text(545, 226 + 20 * i, line, anchor="start")
    return drawing


DRAWINGS = {
    "visibility": draw_visibility, "positions": draw_positions, "ring": draw_ring, "blocks": draw_blocks,
}  # fmt: skip


def draw(folder: Path) -> None:
    """Write every picture to `folder`."""
    for name, make in DRAWINGS.items():
        (folder / f"{name}.svg").write_text(make().svg(), encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
