"""The tables of `moiety validate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cli.table import table
from moiety.validation.score import (
    error_percents,
    group_scores,
    metric_scores,
    plan_choice,
    skipped_reasons,
    training_choice,
    worst_groups,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from moiety.validation.compare import Compared
    from moiety.validation.rows import ReadRows

_WORST, _LEAST_ROWS = 8, 5


def validation_sections(
    files: Sequence[ReadRows], compared: Sequence[Compared], *, as_planned: bool
) -> Iterator[RenderableType]:
    """Yield what was read, the errors by metric and by group, the worst groups, and why rows were left out."""
    rows = sum(len(file.rows) for file in files)
    malformed = sum(len(file.malformed) for file in files)
    title = f"{rows:,} rows" + (f", {malformed:,} malformed lines left out" if malformed else "")
    title += ", serving runs as `moiety plan` would time them" if as_planned else ""
    metrics = metric_scores(compared)
    yield table(
        title,
        ("metric", ">rows", ">coverage", ">MAPE", ">median", ">bias", ">Spearman"),
        [
            (
                name,
                f"{each.score.num_rows:,}",
                f"{each.coverage:.1%}",
                *error_percents(each.score),
                "" if each.spearman is None else f"{each.spearman:.3f}",
            )
            for name, each in metrics.items()
        ],
    )
    for grouping, values in group_scores(compared).items():
        found = [
            (value, name, f"{s.num_rows:,}", *error_percents(s))
            for value, by in values.items()
            for name, s in by.items()
        ]
        yield table(
            f"By {grouping}, the worst first", (grouping, "metric", ">rows", ">MAPE", ">median", ">bias"), found
        )
    for name in metrics:
        worst = worst_groups(compared, name, _LEAST_ROWS)[:_WORST]
        if worst:
            cells = [(f"{s.num_rows:,}", *error_percents(s), group) for group, s in worst]
            yield table(f"Worst groups in {name}", (">rows", ">MAPE", ">median", ">bias", "group"), cells)
    choices = (("serving", plan_choice(compared)), ("training", training_choice(compared)))
    if any(choice is not None for _, choice in choices):
        yield table(
            "Choosing by plans" if as_planned else "Choosing by the predictions",
            ("of", ">groups", ">within 5 % of the best", ">mean loss", ">Spearman in groups"),
            [
                (
                    what,
                    f"{choice.num_groups:,}",
                    f"{choice.share_near_best:.0%}",
                    f"{choice.mean_loss:.1%}",
                    "" if choice.spearman is None else f"{choice.spearman:.3f}",
                )
                for what, choice in choices
                if choice is not None
            ],
        )
    skipped = skipped_reasons(compared)
    if skipped:
        yield table("Not predicted", (">rows", "why"), [(f"{count:,}", reason) for reason, count in skipped.items()])
