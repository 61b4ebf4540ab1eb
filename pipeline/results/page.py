"""The pieces of a report as one HTML page that loads nothing: its style, sections, tables, notes, legends, pictures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

from pipeline.imagery import storage
from pipeline.imagery.storage import Place

SIGNIFICANT = 0.05
STYLE = """
:root{--ink:#1f2933;--faint:#5f6c7b;--rule:#e4e7eb;--paper:#fff;--tint:#f5f7fa;--accent:#2563a8}
*{box-sizing:border-box}
body{margin:0;background:var(--tint);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Helvetica,Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:27px;margin:0 0 2px;letter-spacing:-.01em}h2{font-size:19px;margin:0 0 10px}h3{font-size:15px;margin:22px 0 8px}
section{background:var(--paper);border:1px solid var(--rule);border-radius:10px;padding:20px 24px;margin:18px 0}
p{margin:6px 0;max-width:86ch}.faint,small{color:var(--faint)}small{font-size:12px}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13.5px}
th,td{padding:6px 12px;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}
thead th{color:var(--faint);font-weight:600;border-bottom:2px solid var(--rule)}
td small{display:block}.best{font-weight:700;color:var(--accent)}.sure{background:#e8f1fb}
.dot{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:7px;border:1px solid #0002;vertical-align:-1px}
.note{border-left:3px solid #e0a030;background:#fff8ea;padding:8px 14px;border-radius:0 6px 6px 0;margin:8px 0}
.sample{display:inline-block;vertical-align:top;border:1px solid var(--rule);border-radius:8px;padding:10px 12px;margin:0 14px 14px 0}
.wrapped th,.wrapped td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:64px;max-width:190px}
.wrapped th{vertical-align:bottom}.wrapped td,.wrapped th{padding:6px 8px}
.wrapped th:first-child,.wrapped td:first-child{min-width:110px;padding-left:0}
.shade{display:block;padding:1px 6px;border-radius:4px}
.sample{max-width:100%;overflow-x:auto}.pictures{margin-top:6px;white-space:nowrap}
figure{display:inline-block;vertical-align:top;margin:0 8px 0 0}
figure img{display:block;border-radius:4px;max-width:176px;image-rendering:pixelated}
figcaption{font-size:12px;color:var(--faint);max-width:176px;white-space:normal;overflow-wrap:anywhere}
svg{max-width:100%;height:auto;display:block}
.legend{max-width:none}.legend>span{display:inline-block;margin-right:16px}
@media (max-width:600px){main{padding:14px 8px 40px}section{padding:14px 12px;margin:12px 0}h1{font-size:22px;overflow-wrap:anywhere}}
"""


def write_page(html: str, path: Place) -> None:
    """Write a page, in place of what is there."""
    made = storage.temporary(path.parent, path.name)
    with storage.discarded(made):
        made.write_text(html, encoding="utf-8")
        storage.publish(made, path)


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """A page; title and body are HTML already; `style` is CSS of its own."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}{style}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def note(text: str) -> str:
    return f'<div class="note">{escape(text)}</div>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML already; of `kind` wrapped, long heads take several lines."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+.4f}"


def p_value(p: float | None) -> str:
    return "none" if p is None else "&lt; 0.001" if p < 0.001 else f"{p:.3f}"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Colours, #RRGGBB, and what they mean."""
    dots = "".join(f'<span><span class="dot" style="background:{escape(colour)}"></span>{escape(text)}</span>' for colour, text in entries)
    return f'<p class="legend">{dots}</p>'


def picture_uri(picture_HWC: np.ndarray | Image.Image, form: str = "PNG") -> str:
    """A picture (an array is uint8 H x W x 3) as a data URI; JPEG for photographs, which it makes a tenth."""
    file = io.BytesIO()
    options = {"optimize": True} if form == "PNG" else {"quality": 82}
    picture = Image.fromarray(picture_HWC) if isinstance(picture_HWC, np.ndarray) else picture_HWC
    picture.save(file, format=form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def amount(value: float) -> str:
    """A number in as many digits as a person reads."""
    if math.isnan(value):
        return "none"
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def area_unit(area_m2: float) -> tuple[float, str]:
    """Hectares up to a million, then square kilometres; square metres below one."""
    return (1e6, "km²") if area_m2 >= 1e10 else (1e4, "ha") if area_m2 >= 1e4 else (1.0, "m²")


def tail(place: str) -> str:
    return place if len(place) <= 60 else f"…{place[-59:]}"


def marked(text: str, p: float | None) -> str:
    return f'<span class="sure">{text}</span>' if p is not None and p < SIGNIFICANT else text
