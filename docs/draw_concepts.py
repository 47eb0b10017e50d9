"""Draw the pictures of docs/concepts.md.

    python docs/draw_concepts.py

Each is an SVG file of boxes, arrows and words, drawn on white so that it reads in a dark theme too. A test compares the
files with what this draws.
"""

from collections.abc import Callable
from html import escape
from pathlib import Path

from memax_rl.runs.files import write_atomically

FOLDER = Path(__file__).parent / "concepts"
# Okabe and Ito's colors, which differ for color-blind readers too, as light fills with dark edges.
A, B, C = ("#cfe3f2", "#0072b2"), ("#fde3c4", "#b35c00"), ("#cdeee2", "#00795a")
NONE = ("#f3f3f3", "#8a8a8a")
INK, RED = "#222222", "#b00020"
SIDE = 44


class Picture:
    """A drawing that grows: boxes of slots, arrows, words."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, *, size: int = 14, color: str = INK, anchor: str = "middle") -> None:
        """Write words, their baseline at y."""
        style = f'font-size="{size}" fill="{color}" text-anchor="{anchor}"'
        self.parts.append(f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>')

    def box(
        self,
        x: float,
        y: float,
        colors: tuple[str, str],
        words: str = "",
        *,
        start: bool = False,
        height: int = SIDE,
    ) -> None:
        """Draw a slot; with a flag where an episode starts."""
        fill, edge = colors
        dash = ' stroke-dasharray="4 3"' if colors == NONE else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{SIDE}" height="{height}" rx="5" fill="{fill}" stroke="{edge}" '
            f'stroke-width="1.6"{dash}/>'
        )
        self.text(x + SIDE / 2, y + height / 2 + 5, words)
        if start:
            pole = f"M{x + 7} {y - 2} v-17 h13 l-4 4.5 l4 4.5 h-13"
            self.parts.append(f'<path d="{pole}" fill="{RED}" stroke="{RED}" stroke-width="1.6"/>')

    def line(self, points: str, *, color: str = INK, arrow: bool = True, dashed: bool = False) -> None:
        """Draw a path."""
        end = f' marker-end="url(#{"red" if color == RED else "ink"})"' if arrow else ""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<path d="{points}" fill="none" stroke="{color}" stroke-width="1.6"{dash}{end}/>')

    def circle(self, x: float, y: float, colors: tuple[str, str]) -> None:
        """Draw an element of the scan."""
        fill, edge = colors
        self.parts.append(f'<circle cx="{x}" cy="{y}" r="8" fill="{fill}" stroke="{edge}" stroke-width="1.6"/>')

    def svg(self) -> str:
        """Return the file."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 L8 4 L0 8 z" fill="{color}"/></marker>'
            for name, color in (("ink", INK), ("red", RED))
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'font-family="Helvetica, Arial, sans-serif" role="img">\n<title>{escape(self.title)}</title>\n'
            f"<defs>{heads}</defs>\n"
            f'<rect width="{self.width}" height="{self.height}" rx="8" fill="#ffffff"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def _row(picture: Picture, x: float, y: float, slots: list[tuple[tuple[str, str], str, bool]]) -> None:
    for i, (colors, words, start) in enumerate(slots):
        picture.box(x + i * (SIDE + 4), y, colors, words, start=start)


def _episode(colors: tuple[str, str], length: int, first: int = 0) -> list[tuple[tuple[str, str], str, bool]]:
    return [(colors, f"o{first + i}", first + i == 0) for i in range(length)]


def tape() -> Picture:
    """Episodes end to end, beside rows that are padded."""
    p = Picture(720, 300, "A tape holds episodes end to end, with start flags; padding wastes slots")
    p.text(24, 34, "Padded: one episode a row, and the longest one says how long rows are", anchor="start")
    for row, (colors, length) in enumerate([(A, 4), (B, 7), (C, 3)]):
        for i in range(7):
            p.box(24 + i * 48, 48 + row * 34, colors if i < length else NONE, f"o{i}" if i < length else "", height=28)
    p.text(390, 100, "7 of 21 slots hold nothing", anchor="start", color="#555555")
    p.text(24, 196, "A tape: the same episodes end to end", anchor="start")
    _row(p, 24, 222, _episode(A, 4) + _episode(B, 7) + _episode(C, 3))
    p.text(
        24, 290, "The flag says where an episode starts; no slot is empty.", anchor="start", color="#555555", size=13
    )
    return p


def reset() -> Picture:
    """The reset inside an associative scan."""
    p = Picture(720, 316, "The memory resets itself at a start flag inside one associative scan")
    p.text(24, 32, "Each slot is an element (start, decay, write). Two neighbors are joined into one:", anchor="start")
    _row(p, 60, 62, [*_episode(A, 4)[1:], *_episode(B, 4)])
    colors, levels = [A, A, A, B, B, B, B], (148, 196, 244, 292)
    xs = [60 + i * 48 + 22 for i in range(7)]
    for x in xs:
        p.line(f"M{x} 106 V{levels[0] - 11}")
    for step, y0, y in zip((1, 2, 4), levels[:-1], levels[1:], strict=True):
        for i in range(7):
            p.line(f"M{xs[i]} {y0 + 8} V{y - 11}", color="#bbbbbb", arrow=False)
        for i in range(step, 7):
            crosses = i - step < 3 <= i
            p.line(f"M{xs[i - step] + 7} {y0 + 4} L{xs[i] - 8} {y - 5}", color=RED if crosses else INK, dashed=crosses)
    for y in levels:
        for x, color in zip(xs, colors, strict=True):
            p.circle(x, y, color)
    p.text(430, 92, "right one starts an episode:", anchor="start", size=13)
    p.text(430, 112, "the left one is dropped", anchor="start", size=13, color=RED)
    p.text(430, 146, "else: decay and add", anchor="start", size=13)
    p.text(430, 204, "log2(T) rounds for T slots,", anchor="start", size=13)
    p.text(430, 224, "all slots at once", anchor="start", size=13)
    p.text(430, 262, "dashed: nothing gets across,", anchor="start", size=13, color=RED)
    p.text(430, 282, "neither value nor gradient", anchor="start", size=13, color=RED)
    return p


def final_observation() -> Picture:
    """The slot of the final observation after a time limit."""
    p = Picture(720, 250, "A truncated episode has one more slot, for its final observation")
    p.text(24, 34, "Terminated: nothing follows, so the last target is the reward alone", anchor="start")
    _row(p, 24, 62, _episode(A, 4) + _episode(B, 2))
    p.text(24 + 3.5 * 48 - 2, 124, "r", size=13)
    p.text(24, 152, "Truncated by a time limit: the value of what was seen last is in the next slot", anchor="start")
    _row(p, 24, 180, [*_episode(A, 4), (NONE, "o4", False), *_episode(B, 2)])
    p.line("M238 236 C230 250 200 250 192 230", color=INK)
    p.text(380, 196, "r + γ V(o4), by the memory that saw it all;", anchor="start", size=13)
    p.text(380, 216, "the slot itself enters no loss", anchor="start", size=13)
    p.text(380, 82, "target of the last step: r", anchor="start", size=13)
    return p


def pending() -> Picture:
    """The open episode at the end of a row."""
    p = Picture(720, 270, "The open episode at a row's end stands at the front of the next row")
    p.text(24, 34, "Update n: the row is full while an episode is open", anchor="start")
    _row(p, 24, 62, _episode(A, 5) + _episode(B, 3))
    p.text(24 + 8 * 48 + 16, 80, "learned from: the first 5 slots", anchor="start", size=13)
    p.text(24 + 8 * 48 + 16, 100, "pending: the last 3", anchor="start", size=13)
    _row(p, 24, 172, _episode(B, 6) + _episode(C, 2))
    for i in range(3):
        x0, x1 = 24 + (5 + i) * 48 + 22, 24 + i * 48 + 28
        p.line(f"M{x0} 108 C{x0 - 10} 136 {x1 + 40} 128 {x1} 168", dashed=True)
    p.text(24, 244, "Update n + 1: it was carried to the front, is continued, and learned from whole", anchor="start")
    p.text(24 + 8 * 48 + 16, 190, "full history, whole gradient;", anchor="start", size=13)
    p.text(24 + 8 * 48 + 16, 210, "3 slots are one update old", anchor="start", size=13)
    return p


def trials() -> Picture:
    """Trials of several episodes."""
    p = Picture(720, 230, "A trial is several episodes of one hidden task; the memory lives through it")
    p.text(24, 34, "To the agent a trial is one episode: one start flag, one memory", anchor="start")
    _row(p, 24, 72, [*_episode(A, 3), *_episode(A, 7, 3)[:7], *_episode(B, 3)])
    for i, words in ((0, "episode 1"), (3, "episode 2"), (6, "episode 3")):
        x0, x1 = 24 + i * 48, 24 + (i + (3 if i < 6 else 4)) * 48 - 4
        p.line(f"M{x0 + 2} 126 v8 H{x1 - 2} v-8", arrow=False)
        p.text((x0 + x1) / 2, 152, words, size=13)
    p.line("M26 168 v8 H500 v-8", arrow=False)
    p.text(263, 196, "trial: one task, drawn and hidden", size=13)
    p.line("M508 168 v8 H646 v-8", arrow=False)
    p.text(577, 196, "the next task", size=13)
    said = "Rewards and actions of one episode are shown in the next: what was learned stays."
    p.text(24, 220, said, anchor="start", color="#555555", size=13)
    return p


PICTURES: dict[str, Callable[[], Picture]] = {
    "tape": tape,
    "reset": reset,
    "final_observation": final_observation,
    "pending": pending,
    "trials": trials,
}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        write_atomically(FOLDER / f"{name}.svg", draw().svg())
