"""Drawing: boxes, lines and frames at computed places, and their DOT text, in which every position stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Point = tuple[float, float]

FONT_SIZE = 8
FONT = "Helvetica,Arial,sans-serif"

FILLS = {
    "product": "#cfe2f7",
    "expert": "#dccff2",
    "attention": "#c4e8d2",
    "memory": "#e9e9e9",
    "inside": "#ffe79a",
    "across": "#f8b188",
    "gpu": "#ffffff",
    "strip": "#dfe5ea",
}
"""Fill colour of each style of box; a style that is not here has no box around its text."""

STROKES = {"inside": "#b08900", "across": "#c2410c", "plain": "#52606d"}
"""Colour of each style of line."""

_PLAIN_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True, slots=True)
class Shape:
    """A box with lines of text; lengths in points, `top` counted downwards."""

    key: str
    lines: tuple[str, ...]
    left: float
    top: float
    width: float
    height: float
    style: str
    facts: tuple[tuple[str, str], ...] = ()
    """What the box stands for, written as attributes that Graphviz ignores."""
    at_top: bool = False
    """Text at the upper edge instead of in the middle."""
    font_size: int = FONT_SIZE
    justify: str = "n"
    """`l`: lines start at the left."""


@dataclass(frozen=True, slots=True)
class Line:
    """An arrow along straight pieces, from `points[0]` to the arrow's tip."""

    tail: str
    head: str
    points: tuple[Point, ...]
    style: str = "plain"


@dataclass(frozen=True, slots=True)
class Frame:
    """A titled rectangle around the shapes that belong together."""

    key: str
    title: str
    left: float
    top: float
    width: float
    height: float
    shapes: tuple[Shape, ...]
    facts: tuple[tuple[str, str], ...] = ()
    font_size: int = 20
    fill: str = "#f7f8fa"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A page."""

    name: str
    comments: tuple[str, ...]
    width: float
    height: float
    frames: tuple[Frame, ...]
    shapes: tuple[Shape, ...]
    """Shapes outside of the frames; those inside lie on them."""
    lines: tuple[Line, ...]
    scale: float = 1.0
    """How much larger than its lengths say it is shown."""


def text_width(text: str, font_size: float = FONT_SIZE) -> float:
    """Return a width that `text` does not exceed in the usual sans-serif fonts."""
    narrow = sum(char in " ,.[]()|:;'/-ijltf" for char in text)
    return font_size * (0.63 * (len(text) - narrow) + 0.36 * narrow)


def safe_width(text: str, font_size: float = FONT_SIZE) -> float:
    """Return the width of a box in which Graphviz surely finds room for `text`, so that it starts at the left."""
    # 7.5 points a character is what it reckons with where there are no fonts
    return max(text_width(text, font_size), 7.6 * len(text)) + 8


def width_of(lines: Iterable[str], font_size: float = FONT_SIZE) -> float:
    """Return the width of a box that holds `lines`."""
    # the first line is bold
    widths = [text_width(line, font_size) * (1 if at else 1.09) for at, line in enumerate(lines)]
    return float(round(max(widths, default=0.0) + 8))


def to_dot(drawing: Drawing) -> str:
    """Return the DOT text of a drawing; Graphviz needs to place nothing (`layout=nop2`)."""
    height = drawing.height
    out = [f"// {_one_line(comment)}" for comment in drawing.comments]
    # sizes are in inches
    size = f"{_n(drawing.width * drawing.scale / 72)},{_n(height * drawing.scale / 72)}!"
    page = f"0,0,{_n(drawing.width)},{_n(height)}"
    out += [
        f"digraph {_quoted(drawing.name)} {{",
        f'graph [layout=nop2, bb="{page}", size="{size}", pad=0.1, outputorder=nodesfirst];',
        'node [shape=box, fixedsize=true, margin=0, style=filled, color="#7b8794", penwidth=0.6];',
        f'node [fontname="{FONT}", fontsize={FONT_SIZE}];',
        f'edge [arrowsize=0.45, penwidth=0.9, color="{STROKES["plain"]}"];',
    ]
    out += [_shape_line(shape, height) for shape in drawing.shapes]
    for frame in drawing.frames:
        out += _frame_lines(frame, height)
    out += [_edge_line(line, height) for line in drawing.lines]
    return "\n".join([*out, "}", ""])


def _frame_lines(frame: Frame, page: float) -> list[str]:
    low, high = page - frame.top - frame.height, page - frame.top
    box = f"{_n(frame.left)},{_n(low)},{_n(frame.left + frame.width)},{_n(high)}"
    title = Shape(
        key=f"title_{frame.key}",
        lines=(frame.title,),
        left=frame.left + 8,
        top=frame.top + 4,
        width=safe_width(frame.title, frame.font_size),
        height=1.5 * frame.font_size,
        style="text",
        font_size=frame.font_size,
        justify="l",
    )
    facts = "".join(f"{name}={_quoted(value)}; " for name, value in frame.facts)
    return [
        f"subgraph {_quoted('cluster_' + frame.key)} {{",
        f'{facts}label=""; bb="{box}"; style=filled; fillcolor="{frame.fill}"; color="#9aa5b1";',
        *(_shape_line(shape, page) for shape in (*frame.shapes, title)),
        "}",
    ]


def _shape_line(shape: Shape, page: float) -> str:
    x, y = shape.left + shape.width / 2, page - shape.top - shape.height / 2
    ending = "\\l" if shape.justify == "l" else "\\n"
    label = ending.join(_escaped(line) for line in shape.lines) + ("\\l" if shape.justify == "l" else "")
    look = f'fillcolor="{FILLS[shape.style]}"' if shape.style in FILLS else "shape=plaintext, style=solid"
    if shape.at_top:
        look += ", labelloc=t"
    if shape.justify == "l" and shape.style != "text":
        look += ', margin="0.06,0"'
    if shape.font_size != FONT_SIZE:
        look += f", fontsize={shape.font_size}"
    facts = "".join(f", {name}={_quoted(value)}" for name, value in shape.facts)
    return (
        f'{_quoted(shape.key)} [label="{label}", pos="{_n(x)},{_n(y)}", width={_n(shape.width / 72, 4)}, '
        f"height={_n(shape.height / 72, 4)}, {look}{facts}];"
    )


def _edge_line(line: Line, page: float) -> str:
    points = [(x, page - y) for x, y in line.points]
    tip, shaft_end = points[-1], _before(points[-2], points[-1], 4.5)
    corners = [*points[:-1], shaft_end]
    spline = [corners[0]]
    for start, end in pairwise(corners):
        spline += [start, end, end]
    path = " ".join(f"{_n(x)},{_n(y)}" for x, y in spline)
    style = "" if line.style == "plain" else f', color="{STROKES[line.style]}", penwidth=1.6'
    return f'{_quoted(line.tail)} -> {_quoted(line.head)} [pos="e,{_n(tip[0])},{_n(tip[1])} {path}"{style}];'


def _before(start: Point, end: Point, distance: float) -> Point:
    """Return the point `distance` before `end` on the way from `start`; arrows run along one axis."""
    if start[0] == end[0]:
        return end[0], end[1] - distance if end[1] > start[1] else end[1] + distance
    return end[0] - distance if end[0] > start[0] else end[0] + distance, end[1]


def _n(value: float, digits: int = 1) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _quoted(text: str) -> str:
    return text if _PLAIN_ID.match(text) and text.lower() not in _KEYWORDS else f'"{_escaped(text)}"'


_KEYWORDS = {"node", "edge", "graph", "digraph", "subgraph", "strict"}


def _escaped(text: str) -> str:
    """Return `text` as a DOT string shows it literally: one line, backslashes and quotes escaped."""
    return _one_line(text).replace("\\", "\\\\").replace('"', '\\"')


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
