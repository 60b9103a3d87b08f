"""From DOT to SVG, and the same picture in fewer bytes."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Generator

_ATTRIBUTE = re.compile(r'\s([a-z-]+)="([^"]*)"')
_PLACE = re.compile(r'\s(points|d|x|y|class|id|transform|textLength)="([^"]*)"')
"""What is an element's own; the other attributes are its style."""
_ELEMENT = re.compile(r"<(polygon|path|text)( [^>]*)>")


def render_svg(dot: str) -> str:
    """Return the SVG that Graphviz draws from a DOT text, with shared styles instead of repeated attributes.

    Text is placed without looking at the fonts of this machine, so that every machine gives the same bytes.
    """
    pygraphviz = _graphviz()
    with _no_fonts(), _silent_stderr():
        graph = pygraphviz.AGraph(string=dot)
        graph.has_layout = True  # its positions are in the text
        drawn: bytes = graph.draw(format="svg")
        graph.close()
    return compact_svg(drawn.decode("utf-8"))


def _graphviz() -> Any:  # noqa: ANN401 - the library has no types
    """Return the library, imported here because it takes a while; InputError where the system lacks what it needs."""
    try:
        return import_module("pygraphviz")
    except ImportError as error:
        rule = f"drawings are made by Graphviz, which pygraphviz cannot load here: {error}"
        raise InputError(rule, remedy="install what it names (libgobject: Debian's libglib2.0-0)") from error


def compact_svg(svg: str) -> str:
    """Return the same picture with each set of style attributes as one class, and without what shows nothing."""
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<g id="edge\d+" class="edge">)\n<title>[^<]*</title>', r"\1", svg)
    svg = re.sub(r'<g id="(?:node|edge|clust)\d+" class="(node|edge|cluster)">', r'<g class="\1">', svg)
    classes: dict[str, str] = {}
    class_of: dict[str, str] = {}

    def shared(match: re.Match[str]) -> str:
        name, text = match.groups()
        closing = "/" if text.endswith("/") else ""
        kept: list[str] = []
        for key, value in _PLACE.findall(text):
            if key == "points":
                name, geometry = _polygon(value)
                kept += geometry
            elif key == "d":
                kept.append(f'd="{_path(value)}"')
            else:
                kept.append(f'{key}="{_short(value) if key in {"x", "y"} else value}"')
        look = _PLACE.sub("", text)
        label = class_of.get(look)
        if label is None:
            label = class_of[look] = classes.setdefault(_style(look), f"s{len(classes)}")
        return f'<{name} class="{label}" {" ".join(kept)}{closing}>'

    body = _ELEMENT.sub(shared, svg)
    rules = "".join(f".{label}{{{style}}}\n" for style, label in classes.items())
    sheet = f"<style>\n{rules}.node rect+text:not(:last-of-type){{font-weight:bold}}\n</style>\n"
    return body.replace('<g id="graph0"', f'{sheet}<g id="graph0"', 1)


def _style(attributes: str) -> str:
    """Return as CSS what an element's attributes say of its look."""
    found = (each for each in _ATTRIBUTE.findall(attributes) if each[0] != "space")
    return ";".join(f"{key}:{value}px" if key == "font-size" else f"{key}:{value}" for key, value in found)


def _polygon(points: str) -> tuple[str, list[str]]:
    """Return element name and attributes of a polygon: a rectangle if it is one."""
    numbers = list(map(float, points.replace(",", " ").split()))
    xs, ys = set(numbers[::2]), set(numbers[1::2])
    if len(numbers) == 10 and len(xs) == 2 and len(ys) == 2:  # noqa: PLR2004 - the corners of a rectangle, closed
        (left, right), (top, bottom) = sorted(xs), sorted(ys)
        sides = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        return "rect", [f'{key}="{_short(value)}"' for key, value in sides.items()]
    corners = zip(numbers[::2], numbers[1::2], strict=True)
    return "polygon", ['points="' + " ".join(f"{_short(x)},{_short(y)}" for x, y in corners) + '"']


def _path(data: str) -> str:
    """Return a path; where all of its curves are straight pieces along the axes, as lines."""
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", data)]
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    straight = data.startswith("M") and data.count("C") == 1 and len(points) % 3 == 1
    if not straight or any(points[at] != points[at + 1] for at in range(0, len(points) - 1, 3)):
        return data
    out = [f"M{_short(points[0][0])},{_short(points[0][1])}"]
    for at in range(3, len(points), 3):
        (x0, y0), (x1, y1) = points[at - 3], points[at]
        if (x0, y0) == (x1, y1):
            continue
        out.append(f"H{_short(x1)}" if y0 == y1 else f"V{_short(y1)}" if x0 == x1 else f"L{_short(x1)},{_short(y1)}")
    return "".join(out)


def _short(value: float | str) -> str:
    return f"{float(value):.1f}".removesuffix(".0")


@contextmanager
def _no_fonts() -> Generator[None]:
    """Point Graphviz's font search at a folder that has no fonts, while it starts."""
    name = "FONTCONFIG_SYSROOT"
    before = os.environ.get(name)
    os.environ[name] = os.devnull
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _silent_stderr() -> Generator[None]:
    """Drop what the C libraries write to the error stream (that there are no fonts); errors arrive as exceptions."""
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
