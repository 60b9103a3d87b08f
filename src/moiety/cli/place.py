"""`moiety place`: where each expert lives, from a routing dump, and what that does to balance and traffic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moiety.cli.output import JsonSwitch, Output, QuietSwitch
from moiety.errors import InputError, nearest
from moiety.files import checked_target, write_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.cli.place_result import Placed

TARGETS = ("moiety", "sglang")
DEFAULT_METHOD = "joint"
NO_COMPARISON = "none"
_MOST = 2**31 - 1
_MOST_EXPERTS = 65_536
_MOST_SHOWN = 8


def place(
    routing: Annotated[
        str,
        typer.Argument(
            metavar="ROUTING", help="Where real tokens went: .npz, JSON or SGLang's expert-distribution dump (.pt)."
        ),
    ],
    *,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST, help="GPUs that share the experts; without it 8.", show_default=False),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            min=1, max=_MOST, help="Nodes that the GPUs are in; without it eight GPUs each.", show_default=False
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1, max=_MOST, help="Expert slots of a layer; without it the fewest that divide.", show_default=False
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="joint (balance and traffic; the default), balance, eplb, eplb-global, linear or round-robin.",
            show_default=False,
        ),
    ] = None,
    previous: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The placement in use, ours or SGLang's JSON: what moves.", show_default=False
        ),
    ] = None,
    max_moves: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            min=0,
            max=_MOST,
            help="Change at most K slots a layer of --previous; without it the method places anew.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where the placement goes, as JSON.", show_default=False)
    ] = None,
    to: Annotated[str, typer.Option(help="Whose format --out has: moiety or sglang.")] = TARGETS[0],
    cluster: Annotated[
        str | None,
        typer.Option(help="GPUs, nodes and links: of the catalogue, h200x32, or a YAML file.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model: of the catalogue or a config.json; its experts, their size and the router's groups.",
            show_default=False,
        ),
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option(
            min=1, max=_MOST_EXPERTS, help="Experts of a layer, where the dump does not tell.", show_default=False
        ),
    ] = None,
    expert_bytes: Annotated[
        str | None,
        typer.Option(help='Size of one expert of a layer ("44 MB"), to state what moves.', show_default=False),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(
            min=1, max=_MOST, help="Cut the trace into so many windows; the worst counts.", show_default=False
        ),
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST, help="Groups of experts of a node-limited router.", show_default=False),
    ] = None,
    gpu_speed: Annotated[
        str | None,
        typer.Option(help="Relative speed of each GPU: 1,1,0.9,... or a file of numbers.", show_default=False),
    ] = None,
    compare: Annotated[str, typer.Option(help="Method to compare with, or none.")] = "eplb-global",
    picture: Annotated[
        str | None,
        typer.Option(metavar="FILE.svg", help="Draw expert x node traffic before and after.", show_default=False),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(min=0, max=_MOST, help="Layer to draw; without it the one that changes most.", show_default=False),
    ] = None,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> None:
    """Place experts on GPUs: even load and little traffic between nodes, from where real tokens went.

    Without a dump of single tokens (topk), only the load is known and no traffic is stated.
    """
    from moiety.cli.place_files import read_previous
    from moiety.cli.place_machine import machine_of
    from moiety.cli.place_solution import Request, place_experts

    output = Output(json, quiet)
    _check_names(method, compare, to)
    _check_files(out, to, picture, layer)
    if picture is not None and compare == NO_COMPARISON and previous is None:
        raise InputError("shows two placements", field="--picture", remedy="give --compare or --previous")
    if max_moves is not None and previous is None:
        raise InputError(
            "limits what changes in a placement", field="--max-moves", value=max_moves, remedy="name it with --previous"
        )
    before = None if previous is None else read_previous(previous)
    request = Request(
        routing=routing,
        machine=machine_of(
            gpus=gpus, nodes=nodes, cluster=cluster, model=model, expert_bytes=expert_bytes, previous=before
        ),
        method=method or DEFAULT_METHOD,
        slots=slots,
        experts=experts,
        windows=windows,
        groups=groups,
        gpu_speed=gpu_speed,
        compare=None if compare == NO_COMPARISON else compare,
        previous=before,
        max_moves=max_moves,
    )
    with output.progress(f"placing the experts of {Path(routing).name}") as progress:
        placed = place_experts(request, progress)
        contents = _contents(placed, out, to, picture, layer)
    paths = _written(contents)
    _notes(placed, output, method, to if out else None)
    _show(placed, output, paths)


def _check_names(method: str | None, compare: str, to: str) -> None:
    from moiety.placement.methods.table import METHODS

    for option, name, known in (
        ("--method", method, METHODS),
        ("--compare", compare, (*METHODS, NO_COMPARISON)),
        ("--to", to, TARGETS),
    ):
        if name is not None and name not in known:
            what = "format" if option == "--to" else "method"
            raise InputError(f"no such {what} is known", field=option, value=name, remedy=nearest(name, known))


def _check_files(out: str | None, to: str, picture: str | None, layer: int | None) -> None:
    if to != TARGETS[0] and out is None:
        raise InputError("says the format of a file", field="--to", value=to, remedy="name it with --out")
    if layer is not None and picture is None:
        raise InputError("says which layer is drawn", field="--layer", value=layer, remedy="name a file with --picture")
    if picture is not None and not picture.endswith(".svg"):
        raise InputError("must end in .svg", field="--picture", value=picture)
    for option, name in (("--out", out), ("--picture", picture)):
        if name is not None:
            checked_target(option, name)
    if out is not None and picture is not None and Path(out).resolve() == Path(picture).resolve():
        raise InputError("is the file of --out too", field="--picture", value=picture, remedy="name two files")


def _contents(placed: Placed, out: str | None, to: str, picture: str | None, layer: int | None) -> dict[Path, str]:
    """Return the text of each file to write."""
    from moiety.cli.json_text import json_text
    from moiety.placement.engine_map import expert_location

    contents: dict[Path, str] = {}
    if out is not None:
        document = placed.placement.model_dump(mode="json")
        if to == "sglang":
            document = expert_location(placed.slot_map, placed.machine.model)
        contents[Path(out)] = json_text(document)
    if picture is not None:
        contents[Path(picture)] = _picture(placed, layer)
    return contents


def _picture(placed: Placed, layer: int | None) -> str:
    """Return the picture's SVG; raise InputError where there is nothing to draw."""
    from moiety.report.placement_picture import PicturedMap, placement_picture

    layers, moved = placed.placement.layers, placed.moved
    if placed.problem.topk is None:
        raise InputError("needs each token's choice (topk); the dump has counts only", field="--picture")
    if placed.problem.num_nodes == 1:
        raise InputError("shows traffic between nodes; all GPUs are in one", field="--picture", remedy="give --nodes")
    if layer is not None and layer not in layers:
        rule = f"no experts are placed there; layers {layers[0]} to {layers[-1]} have them"
        raise InputError(rule, field="--layer", value=layer)
    if moved is not None:
        before = PicturedMap("previous placement", moved.previous, cover=True)
    else:
        assert placed.compared is not None, "checked before"
        before = PicturedMap(placed.compared[0], placed.compared[1], cover=False)
    return placement_picture(
        placed.problem,
        before,
        PicturedMap(placed.placement.method, placed.slot_map, cover=True),
        title=Path(placed.source).name,
        layer=None if layer is None else layers.index(layer),
        layer_names=layers,
    )


def _written(contents: dict[Path, str]) -> tuple[str, ...]:
    """Write each file whole, those of one folder all or none, and return their paths."""
    folders: dict[Path, dict[str, str]] = {}
    for path, text in contents.items():
        folders.setdefault(path.parent, {})[path.name] = text
    return tuple(str(path) for folder, texts in folders.items() for path in write_all(folder, texts))


def _notes(placed: Placed, output: Output, method: str | None, to: str | None) -> None:
    """Say on standard error what the options do not do."""
    if placed.moved is not None and placed.moved.moves is not None and method is not None:
        output.note(f"--max-moves: the moves are chosen one by one, --method {method} has no part in it")
    if to == "sglang" and placed.machine.model is None:
        output.note("SGLang wants a row for every layer: name the --model where some layers have no experts")
    if placed.nodes_as_one > 1:
        what = f"each {placed.nodes_as_one} neighbours" if placed.nodes_as_one < placed.problem.num_nodes else "all"
        output.note(f"{placed.problem.num_nodes} nodes are too many to tell apart: {what} are searched as one")
    tokens = placed.problem.counts.sum(axis=2)  # [windows, layers]
    empty = [layer for row, layer in enumerate(placed.placement.layers) if not tokens[:, row].any()]
    if empty:
        output.note(f"layers without any token, placed as if all experts were alike: {_some(empty)}")
    empty = [window for window, row in enumerate(tokens) if not row.any()]
    if empty:
        output.note(f"windows without any token, taken as the mean of the others: {_some(empty)}")


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(str(each) for each in numbers[:_MOST_SHOWN]) + (", ..." if len(numbers) > _MOST_SHOWN else "")


def _show(placed: Placed, output: Output, paths: tuple[str, ...]) -> None:
    from moiety.cli.json_text import json_text

    output.document(lambda: json_text(placed.document()))
    if output.shows_tables:
        from moiety.cli.place_tables import place_sections

        output.tables(place_sections(placed, paths))
