"""A report as an SVG picture: ratios against their limits, peers, and round robins over ever more contexts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

WIDTH: Final = 920
_LEFT: Final = 280
_RIGHT: Final = 820
_ROW: Final = 22
_LINES: Final = ("b26a00", "8a97a6", "a9c8e8", "6f9fd0", "2f5f94", "b5dbae", "7fb974", "3c7a32")
"""Colours: the plain instructions, merely reading, and each core in three ways."""
_STYLE: Final = """text { font-family: "DejaVu Sans", Verdana, sans-serif; font-size: 12px; fill: #1d2733; }
    .head { font-size: 15px; font-weight: bold; } .small { font-size: 10px; fill: #4a5868; } .end { text-anchor: end; }
    .ours { fill: #3c7a32; } .full { fill: #2f5f94; } .part { fill: #b9c4d0; } .missed { fill: #b3261e; }
    .limit { stroke: #1d2733; stroke-width: 2; } .grid { stroke: #dde3ea; } .line { fill: none; stroke-width: 2; }"""


def draw(report: dict[str, Any]) -> str:
    """Return the picture; panels whose section was not measured are left out."""
    parts, top = [], 20
    for panel in (_ratios, _peers, _walks):
        drawn, height = panel(report, top)
        parts += drawn
        top += height
    machine = report["machine"]
    about = f"{machine['signature']}, {machine['kernel']}, {report['settings']['repeats']} samples of each in turn"
    parts.append(_text(20, top + 6, about, "small"))
    body = "\n  ".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 20}" role="img">\n'
        f"  <title>What a switch costs</title>\n  <style>{_STYLE}</style>\n"
        f'  <rect width="{WIDTH}" height="{top + 20}" fill="#ffffff"/>\n  {body}\n</svg>\n'
    )


def _ratios(report: dict[str, Any], top: int) -> tuple[list[str], int]:
    """Bars for the ratios, each with a tick at its limit."""
    rows = [(name, ratio) for name, ratio in report["ratios"].items() if ratio["value"] is not None]
    if not rows:
        return [], 0
    largest = max(max(ratio["value"], ratio["limit"]) for _, ratio in rows)
    scale = (_RIGHT - _LEFT) / largest
    parts = [_text(20, top, "Ratios, and the most that they may be", "head")]
    for row, (name, ratio) in enumerate(rows):
        y = top + 14 + row * _ROW
        end, limit = _LEFT + ratio["value"] * scale, _LEFT + ratio["limit"] * scale
        parts.append(_text(_LEFT - 8, y + 12, name, "end"))
        parts.append(_bar(y, end - _LEFT, "ours" if ratio["met"] else "missed"))
        parts.append(f'<line class="limit" x1="{limit:.1f}" x2="{limit:.1f}" y1="{y - 2}" y2="{y + 18}"/>')
        parts.append(
            _text(max(end, limit) + 8, y + 12, f"{ratio['value']:.2f} of {ratio['limit']:.2f}", "small")
        )
    return parts, 50 + len(rows) * _ROW


def _peers(report: dict[str, Any], top: int) -> tuple[list[str], int]:
    """Bars for the peers on a scale of powers of ten; what keeps the full state is told by colour."""
    rows = report.get("peers", {}).get("rows", [])
    if not rows:
        return [], 0
    low, high = _decades([row["min"] for row in rows])
    scale = (_RIGHT - _LEFT) / (high - low)
    bottom = top + 14 + len(rows) * _ROW
    title = "A switch, nanoseconds: ours green, others that keep all state blue, those that keep less grey"
    parts = [_text(20, top, title, "head"), *_decade_lines(low, high, scale, top + 8, bottom)]
    for row, peer in enumerate(rows):
        y = top + 14 + row * _ROW
        kind = "full" if peer["keeps"].startswith("all") else "part"
        width = (math.log10(peer["min"]) - low) * scale
        parts.append(_text(_LEFT - 8, y + 12, peer["name"], "end"))
        parts.append(_bar(y, width, "ours" if peer["name"].startswith("fpstate") else kind))
        parts.append(_text(_LEFT + width + 8, y + 12, f"{peer['min']:.1f}", "small"))
    return parts, bottom - top + 50


def _walks(report: dict[str, Any], top: int) -> tuple[list[str], int]:
    """Lines for the round robins in random order with all but x87 in use, both axes in powers of ten."""
    walks = [
        walk
        for walk in report.get("many", {}).get("walks", [])
        if walk["order"] == "random" and walk["class"] == "all but x87"
    ]
    if len(walks) < 2:
        return [], 0
    height, left = 260, 60
    ways = list(walks[0]["ns"])
    low, high = _decades([figure["min"] for walk in walks for figure in walk["ns"].values()])
    last = math.log10(max(walk["contexts"] for walk in walks))
    across, up = (_RIGHT - 150 - left) / last, height / (high - low)
    bottom = top + 20 + height
    parts = [
        _text(20, top, "Round robin in random order, all but x87 in use: ns a switch, by contexts", "head")
    ]
    for decade in range(low, high + 1):
        y = bottom - (decade - low) * up
        parts.append(f'<line class="grid" x1="{left}" x2="{_RIGHT - 150}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, f"{10**decade:,}", "small end"))
    for walk in walks:
        x = left + math.log10(walk["contexts"]) * across
        parts.append(_text(x - 8, bottom + 16, f"{walk['contexts']:,}", "small"))
    for index, way in enumerate(ways):
        points = " ".join(
            f"{left + math.log10(walk['contexts']) * across:.1f},"
            f"{bottom - (math.log10(walk['ns'][way]['min']) - low) * up:.1f}"
            for walk in walks
            if way in walk["ns"]
        )
        colour = f"#{_LINES[index % len(_LINES)]}"
        parts.append(f'<polyline class="line" stroke="{colour}" points="{points}"/>')
        key = top + 30 + index * 18
        parts.append(f'<line class="line" stroke="{colour}" x1="720" x2="745" y1="{key}" y2="{key}"/>')
        parts.append(_text(752, key + 4, way, "small"))
    return parts, height + 70


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _decade_lines(low: int, high: int, scale: float, top: int, bottom: int) -> Iterator[str]:
    for decade in range(low, high + 1):
        x = _LEFT + (decade - low) * scale
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        yield _text(x - 6, bottom + 12, f"{10**decade:,}", "small")


def _bar(y: int, width: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{max(width, 1):.1f}" height="16" rx="2"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
