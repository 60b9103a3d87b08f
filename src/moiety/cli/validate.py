"""`moiety validate`: predicted beside measured, row by row, and error by group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moiety.cli.output import JsonSwitch, Output, QuietSwitch
from moiety.errors import InputError
from moiety.files import checked_target, read_text, write_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.validation.compare import Compared
    from moiety.validation.rows import ReadRows


def validate(
    data: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DATA]...", help="Files of measurements, JSON Lines; else the catalogue's own facts."),
    ] = None,
    *,
    as_planned: Annotated[
        bool,
        typer.Option(
            "--as-planned",
            help="Predict serving rows as `moiety plan` would time them: by the engine's newest constants and its "
            "defaults, whatever is known of the run.",
        ),
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE.svg", help="Where a plot of predicted against measured goes.", show_default=False),
    ] = None,
    page: Annotated[
        str | None,
        typer.Option(metavar="FILE.md", help="Where a page of the errors goes, in Markdown.", show_default=False),
    ] = None,
    left_out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="For the page: what a cross-validated fit printed.", show_default=False),
    ] = None,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> None:
    """Set predictions beside published measurements; malformed rows are named by line and do not stop the rest.

    Serving rows are predicted with what is known of the run: its engine's release, and what the operator published of
    its settings. A plan knows neither; --as-planned tells how far plans err.
    """
    from moiety.cli.json_text import json_text
    from moiety.validation.compare import compare_rows
    from moiety.validation.facts import catalog_facts
    from moiety.validation.rows import read_rows, refuse_empty

    output = Output(json, quiet)
    files = [read_rows(Path(each)) for each in data] if data else [catalog_facts()]
    refuse_empty(files)
    if as_planned and page is not None:
        rule = "holds the errors of plans beside those of runs as it is"
        raise InputError(rule, field="--page", value=page, remedy="leave --as-planned out")
    if left_out is not None and page is None:
        raise InputError("stands in a page", field="--left-out", value=left_out, remedy="name one with --page")
    lines = read_text(left_out).splitlines() if left_out is not None else []
    drawn = checked_target("--plot", plot) if plot is not None else None
    written = checked_target("--page", page) if page is not None else None
    if drawn is not None and written is not None and drawn.resolve() == written.resolve():
        raise InputError("is the file of --plot too", field="--page", value=page, remedy="name two files")
    for file in files:
        for each in file.malformed:
            output.complain(f"{file.source}:{each.line}: {each.reason}")
    with output.progress("rows") as moved:
        rows = [row for file in files for row in file.rows]
        compared = compare_rows(rows, moved, as_planned=as_planned)
    if drawn is not None:
        from moiety.report.accuracy_plot import accuracy_svg

        write_all(drawn.parent, {drawn.name: accuracy_svg(compared, "planned" if as_planned else "predicted")})
    if written is not None:
        from moiety.report.accuracy_page import accuracy_page

        with output.progress("rows as planned") as moved:
            planned = compare_rows(rows, moved, as_planned=True)
        write_all(written.parent, {written.name: accuracy_page(compared, planned, lines)})
    output.document(lambda: json_text(document(files, compared, as_planned=as_planned)))
    if output.shows_tables:
        from moiety.cli.validate_tables import validation_sections

        output.tables(validation_sections(files, compared, as_planned=as_planned))


def document(files: Sequence[ReadRows], compared: Sequence[Compared], *, as_planned: bool) -> dict[str, Any]:
    """Return the JSON document: every row, every malformed line, the errors by metric and by group.

    `as_planned` says whose predictions these are: a plan's, or those of what is known of the runs.
    """
    from moiety.validation.score import as_document, group_scores, metric_scores, skipped_reasons

    sources = [file.source for file in files for _ in file.rows]
    return {
        "as_planned": as_planned,
        "rows": [_row(each, source) for each, source in zip(compared, sources, strict=True)],
        "malformed": [
            {"file": file.source, "line": each.line, "reason": each.reason} for file in files for each in file.malformed
        ],
        "metrics": {
            name: {
                **as_document(each.score),
                "coverage": each.coverage,
                "spearman": each.spearman,
                "attainable_spearman": each.attainable,
            }
            for name, each in metric_scores(compared).items()
        },
        "groups": {
            grouping: {value: {n: as_document(s) for n, s in by.items()} for value, by in values.items()}
            for grouping, values in group_scores(compared).items()
        },
        "skipped": skipped_reasons(compared),
        **_choices(compared),
    }


def _choices(compared: Sequence[Compared]) -> dict[str, Any]:
    """Return what choosing a deployment by the predictions costs, of serving and of training; null where none is."""
    from moiety.validation.score import plan_choice, training_choice

    return {
        name: None
        if choice is None
        else {
            "num_groups": choice.num_groups,
            "mean_loss": choice.mean_loss,
            "share_within_5_percent": choice.share_near_best,
            "spearman": choice.spearman,
        }
        for name, choice in (("plan_choice", plan_choice(compared)), ("training_choice", training_choice(compared)))
    }


def _row(each: Compared, source: str) -> dict[str, Any]:
    found: dict[str, Any] = {"id": each.id, "file": source, "line": each.line, "measured": dict(each.measured)}
    if each.skipped is not None:
        return found | {"skipped": each.skipped}
    found |= {"predicted": dict(each.predicted), "error": each.error}
    return found | ({"unpredicted": dict(each.unpredicted)} if each.unpredicted else {})
