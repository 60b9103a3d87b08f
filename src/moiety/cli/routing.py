"""`moiety routing`: what a routing dump says of its model, and synthetic routing made after one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moiety.cli.output import JsonSwitch, Output, QuietSwitch
from moiety.errors import InputError, nearest
from moiety.files import checked_target, read_bytes, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from moiety.workload.routing import Routing
    from moiety.workload.routing_statistics import RoutingStatistics

_USAGE = "write moiety routing show FILE, or moiety routing synthesize --like FILE --out X.npz"
_MAX_COUNT = 2**31
_FIGURES = (
    ("max_over_mean", "busiest expert over the mean", 2),
    ("coefficient_of_variation", "coefficient of variation of loads", 3),
    ("gini", "Gini coefficient of loads", 3),
    ("window_distance", "distance between windows", 3),
    ("window_cosine", "cosine between windows", 3),
    ("coactivation_lift", "lift of two experts of a token", 3),
    ("coactivation_distance", "distance of pairs from chance", 3),
    ("chance_affinity", "experts shared by chance", 3),
    ("previous_token_affinity", "experts shared with the previous token", 3),
    ("same_sequence_affinity", "experts shared within the sequence", 3),
    ("same_window_affinity", "experts shared with other sequences", 3),
    ("next_layer_lift", "lift of an expert and one of the next layer", 3),
)


def routing(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="show FILE | synthesize",
            help="`show FILE` prints the statistics of a dump; `synthesize` makes routing with those of --like.",
            show_default=False,
        ),
    ] = None,
    *,
    like: Annotated[
        str | None, typer.Option(metavar="FILE", help="The dump whose statistics are matched.", show_default=False)
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="X.npz", help="Where the synthetic dump goes.", show_default=False)
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, max=_MAX_COUNT, help="Layers.", show_default=False)] = None,
    experts: Annotated[
        int | None, typer.Option(min=1, max=_MAX_COUNT, help="Experts a layer.", show_default=False)
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, max=_MAX_COUNT, help="Experts a token.", show_default=False)
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=1, max=_MAX_COUNT, help="Tokens.", show_default=False)] = None,
    sequences: Annotated[
        int | None, typer.Option(min=1, max=_MAX_COUNT, help="Sequences, of equal length.", show_default=False)
    ] = None,
    groups: Annotated[
        int, typer.Option(min=1, max=_MAX_COUNT, help="Groups of experts that a token chooses half of first.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, max=_MAX_COUNT, help="The same seed gives the same bytes.")] = 0,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> None:
    """Show the statistics of a routing dump, or synthesize one like it in any size."""
    output = Output(json, quiet)
    sizes = {
        "num_layers": layers,
        "num_experts": experts,
        "top_k": top_k,
        "num_tokens": tokens,
        "num_sequences": sequences,
    }
    match what or []:
        case ["show", path]:
            options = {**sizes, "like": like, "out": out, "num_groups": groups - 1 or None, "seed": seed or None}
            given = [_option(key) for key, value in options.items() if value is not None]
            if given:
                raise InputError("takes no options but --json and --quiet", field=f"routing show {given[0]}")
            _show(path, output)
        case ["synthesize"]:
            if like is None or out is None:
                missing = "--like" if like is None else "--out"
                raise InputError("is needed", field=missing, remedy=_USAGE)
            try:
                _synthesize(like, Path(out), sizes, groups, seed, output)
            except InputError as error:
                if error.field not in {*sizes, "num_groups"}:
                    raise
                remedy = error.remedy
                for key in sizes if remedy else ():
                    remedy = remedy and remedy.replace(key, _option(key))
                raise InputError(error.rule, field=_option(error.field), value=error.value, remedy=remedy) from None
        case [word, *_] if word not in {"show", "synthesize"}:
            remedy = nearest(word, ("show", "synthesize"))
            raise InputError("is not understood", field="routing", value=word, remedy=remedy)
        case words:
            raise InputError("is not complete", field="routing", value=" ".join(words) or None, remedy=_USAGE)


def _option(field: str) -> str:
    """Return how the command spells a size of the synthetic routing."""
    return "--" + field.removeprefix("num_").replace("_", "-")


def _read(path: str) -> Routing:
    from moiety.workload.routing import read_routing

    return read_routing(read_bytes(path), source=path)


def _show(path: str, output: Output) -> None:
    from moiety.workload.routing_statistics import routing_statistics

    _print({"file": path}, routing_statistics(_read(path)), f"Routing {path}", output)


def _synthesize(like: str, out: Path, sizes: dict[str, int | None], groups: int, seed: int, output: Output) -> None:
    from moiety.workload.routing_file import npz_bytes
    from moiety.workload.routing_statistics import routing_statistics
    from moiety.workload.synthetic_routing import synthesize

    if out.suffix != ".npz":
        raise InputError("must end in .npz", field="--out", value=str(out))
    checked_target("--out", str(out))
    made = synthesize(_read(like), **sizes, num_groups=groups, seed=seed)
    found = {"topk": made.topk, "sequence": made.sequence}
    arrays = {key: array for key, array in found.items() if array is not None}
    (written,) = write_all(out.parent, {out.name: npz_bytes(arrays)})
    heading = {"file": str(written), "synthetic": True, "like": like, "seed": seed}
    _print(heading, routing_statistics(made), f"Synthetic routing {written}, like {like}", output)


def _print(heading: Mapping[str, object], statistics: RoutingStatistics, title: str, output: Output) -> None:
    from moiety.cli.json_text import json_text
    from moiety.cli.table import table

    output.document(lambda: json_text({**heading, **statistics.model_dump(mode="json")}))
    if output.shows_tables:
        size = f"{statistics.num_layers} layers, {statistics.num_experts} experts"
        size += f", top-{statistics.top_k}" if statistics.top_k is not None else ""
        size += f", {statistics.num_tokens:,} tokens" if statistics.num_tokens is not None else ""
        size += f", {statistics.num_sequences:,} sequences" if statistics.num_sequences is not None else ""
        size += f", {statistics.num_windows} windows"
        columns = (">mean", ">lowest layer", ">highest layer", "of")
        lacking = [said for name, said, _ in _FIGURES if getattr(statistics, name) is None]
        notes = [f"The dump cannot tell: {', '.join(lacking)}."] if lacking else []
        output.tables([table(f"{title}: {size}", columns, _rows(statistics), notes=notes)])


def _rows(statistics: RoutingStatistics) -> Iterator[tuple[str, str, str, str]]:
    for name, said, digits in _FIGURES:
        figures = getattr(statistics, name)
        if figures is not None:
            numbers = (figures.mean, min(figures.per_layer), max(figures.per_layer))
            mean, low, high = (f"{number:.{digits}f}" for number in numbers)
            yield mean, low, high, said
