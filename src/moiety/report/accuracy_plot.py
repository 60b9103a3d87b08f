"""Predicted against measured, one point a row on logarithmic axes, as SVG."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.validation.compare import Compared

_SIDE, _MARGIN, _GAP = 420, 60, 40
_COLOURS = ("#1b6ca8", "#c8553d", "#4f772d", "#7d4e9e", "#b8860b", "#3a3a3a", "#008080", "#a0306a")


def accuracy_svg(rows: Sequence[Compared], foretold: str = "predicted", colour_by: str = "backend") -> str:
    """Return a panel for each metric: the diagonal is a perfect prediction, the band within 15 % of it.

    `foretold` is the word for what stands upwards.
    """
    points: dict[str, list[tuple[float, float, str]]] = {}
    for row in rows:
        label = row.group.get(colour_by) or row.group.get("kind", "")
        for name in row.error:
            if row.measured[name] > 0 and row.predicted[name] > 0:
                points.setdefault(name, []).append((row.measured[name], row.predicted[name], label))
    labels = sorted({label for found in points.values() for *_, label in found})
    colours = {label: _COLOURS[index % len(_COLOURS)] for index, label in enumerate(labels)}
    width = max(len(points), 1) * (_SIDE + _GAP) + _MARGIN
    height = _SIDE + 2 * _MARGIN
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, (name, found) in enumerate(sorted(points.items())):
        parts += _panel(name, found, colours, foretold, _MARGIN + index * (_SIDE + _GAP))
    for index, (label, colour) in enumerate(colours.items()):
        x = _MARGIN + index * 130
        parts.append(f'<circle cx="{x}" cy="20" r="4" fill="{colour}"/><text x="{x + 8}" y="24">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    name: str, points: Sequence[tuple[float, float, str]], colours: Mapping[str, str], foretold: str, left: int
) -> list[str]:
    numbers = [math.log10(value) for measured, predicted, _ in points for value in (measured, predicted)]
    low, high = math.floor(min(numbers)), max(math.ceil(max(numbers)), math.floor(min(numbers)) + 1)
    scale = _SIDE / (high - low)

    def place(measured: float, predicted: float) -> tuple[float, float]:
        return left + (measured - low) * scale, _MARGIN + _SIDE - (predicted - low) * scale

    parts = [f'<rect x="{left}" y="{_MARGIN}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#888"/>']
    for decade in range(low, high + 1):
        x, y = place(decade, decade)
        parts.append(f'<text x="{x:.1f}" y="{_MARGIN + _SIDE + 16}" text-anchor="middle">{10.0**decade:g}</text>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>')
    for factor, dash in ((1.0, ""), (1.15, ' stroke-dasharray="4 4"'), (1 / 1.15, ' stroke-dasharray="4 4"')):
        shift = math.log10(factor)
        (x1, y1), (x2, y2) = place(low, low + shift), place(high, high + shift)
        parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#888"{dash}/>')
    for measured, predicted, label in points:
        x, y = place(math.log10(measured), math.log10(predicted))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colours[label]}" fill-opacity="0.4"/>')
    middle = left + _SIDE / 2
    parts.append(f'<text x="{middle}" y="{_MARGIN + _SIDE + 36}" text-anchor="middle">measured {escape(name)}</text>')
    parts.append(f'<text x="{middle}" y="{_MARGIN - 8}" text-anchor="middle">{foretold} {escape(name)}, upwards</text>')
    return parts
