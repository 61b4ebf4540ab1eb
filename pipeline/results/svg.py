"""The strokes that charts are made of: inline SVG, for pages that load nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

INK, FAINT, GRID = "#1f2933", "#5f6c7b", "#e4e7eb"
FONT = 'font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif"'
LETTER = 6.4  # px: about the width of one at 12 px


def swatch(x: float, y: float, colour: str, name: str) -> str:
    return f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="10" height="10" rx="2" fill="{colour}"/>' + text(x + 15, y, name)


def svg(width: float, height: float, parts: Sequence[str], title: str = "") -> str:
    """The drawing; `title` is what it is called to those who do not see it."""
    box = f'viewBox="0 0 {width:g} {height:.0f}" width="{width:g}" height="{height:.0f}"'
    named = f' aria-label="{escape(title)}"' if title else ""
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img"{named}>{"".join(parts)}</svg>'


def line(x: float, y: float, to_x: float, to_y: float, colour: str, width: float = 1.0, extra: str = "") -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}" stroke-width="{width:g}"{extra}/>'


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = INK, size: int = 12, extra: str = "") -> str:
    return raw_text(x, y, escape(words), anchor, colour, size, extra)


def raw_text(x: float, y: float, words: str, anchor: str, colour: str, size: int, extra: str = "") -> str:
    """Of words that are SVG already."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}" {FONT}{extra}>{words}</text>'


def shortened(words: str, room: float) -> str:
    """The text, cut where it would be wider than `room` px."""
    most = max(3, int((room - 10) / LETTER))
    return words if len(words) <= most else f"{words[: most - 1]}…"


def brief(count: int) -> str:
    """A count in few letters: 1,234 or 12k or 3.4M."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.1f}M" if count < 1e9 else f"{count / 1e9:.1f}G"
