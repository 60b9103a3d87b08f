"""`moiety simulate`: a finished plan run again, and under what-ifs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moiety.cli.output import JsonSwitch, Output, QuietSwitch
from moiety.errors import InputError
from moiety.files import checked_target, write_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.projection.project import Evaluation

MAX_SIZES = 32
_MOST_GPUS = 1_048_576
_MOST_REQUESTS = 10_000_000


def simulate(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="The plan's method JSON, or the folder that holds it.")],
    *,
    fail: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="What fails: gpu:17, node:3, link:infiniband (half its bandwidth), link:nvlink:0.25, "
            "rail:infiniband, or slow:17:1.5 (a GPU that takes so many times as long). Repeat it.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST_GPUS, help="Plan anew on so many GPUs of the same kind.", show_default=False),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.json", help="Where the Perfetto trace goes; else beside the plan.", show_default=False
        ),
    ] = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="What each option alone is worth.")] = False,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="32,64,...", help="Strong and weak scaling over these numbers of GPUs.", show_default=False
        ),
    ] = None,
    skew: Annotated[
        float | None,
        typer.Option(
            min=0, max=4, help="Experts loaded by a Zipf law of this exponent, placed as they are.", show_default=False
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(min=0, max=1e6, help="Price of a GPU and hour, for that of a million tokens.", show_default=False),
    ] = None,
    repair_hours: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=10_000,
            help="Interruptions of a month and what they cost, if a lost GPU is gone for so long.",
            show_default=False,
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST_REQUESTS, help="Serve so many requests, one by one.", show_default=False),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST_REQUESTS, help="For --requests: so many always in flight.", show_default=False),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1e9, help="For --requests: Poisson arrivals, so many a second.", show_default=False),
    ] = None,
    arrivals: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="For --requests: at_s, input_tokens, output_tokens a line.",
            show_default=False,
        ),
    ] = None,
    prefix_hits: Annotated[
        float, typer.Option(min=0, max=1, help="For --requests: share of the prompts' tokens that are cached.")
    ] = 0.0,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> None:
    """Simulate a finished plan: its timeline, what happens if, and what requests see of it."""
    from moiety.cli.json_text import json_text
    from moiety.cli.plan_file import calibration_of, load_plan
    from moiety.cli.serving_load import ServingLoad, check_load, serve_load
    from moiety.cli.verification import refuse_unsound
    from moiety.cli.what_if import Answers, WhatIf
    from moiety.projection.project import evaluate
    from moiety.search.failure import parse_failures

    output = Output(json, quiet)
    loaded, path = load_plan(plan)
    calibration = calibration_of(loaded, str(path))
    refuse_unsound(loaded, calibration, str(path))
    sizes = gpu_counts(scale)
    parse_failures(fail or (), loaded.cluster)
    load = ServingLoad(requests or 0, concurrency, rate, arrivals, prefix_hits)
    check_load(load)
    target = checked_target("--trace", trace if trace is not None else str(path.parent / f"{loaded.name}_trace.json"))
    evaluation = evaluate(loaded, calibration)
    case = WhatIf(evaluation.plan, calibration, output)
    answers = Answers(
        failure=case.failure(fail) if fail else None,
        resized=case.resized(gpus) if gpus is not None else None,
        ablation=case.ablation() if ablate else None,
        scaling=case.scaling(sizes) if sizes else None,
        skewed=case.skewed(skew) if skew is not None else None,
        price=case.price(price) if price is not None else None,
        interruptions=case.interruptions(repair_hours) if repair_hours is not None else None,
        serving=serve_load(evaluation.plan, calibration, load) if requests else None,
    )
    (written,) = write_all(target.parent, {target.name: trace_text(evaluation)})
    output.document(lambda: json_text(case.document(evaluation, answers) | {"trace": str(written)}))
    if output.shows_tables:
        from moiety.cli.simulation_tables import simulation_sections

        output.tables(simulation_sections(loaded, evaluation, answers, str(written)))


def gpu_counts(text: str | None) -> tuple[int, ...]:
    """Return the numbers of `32,64,128`, in order; raise InputError for anything else."""
    if text is None:
        return ()
    sizes: set[int] = set()
    for part in text.split(","):
        word = part.strip()
        if (
            not word.isascii()
            or not word.isdigit()
            or len(word) > len(str(_MOST_GPUS))
            or not 0 < int(word) <= _MOST_GPUS
        ):
            rule = f"must be numbers of GPUs from 1 to {_MOST_GPUS:,}, joined with commas"
            raise InputError(rule, field="--scale", value=text, remedy="e.g. 32,64,128,256")
        sizes.add(int(word))
    if len(sizes) > MAX_SIZES:
        raise InputError(f"names {len(sizes)} sizes; at most {MAX_SIZES} are planned", field="--scale", value=text)
    return tuple(sorted(sizes))


def trace_text(evaluation: Evaluation) -> str:
    """Return the Chrome trace of every pool's step."""
    from moiety.report.chrome_trace import TracedPool, chrome_trace

    plan = evaluation.plan
    tiers = tuple(tier.name for tier in plan.cluster.tiers)
    pools: list[TracedPool] = []
    for pool, phase in zip(plan.pools, evaluation.phases, strict=True):
        timeline = phase.outcome.timeline
        assert timeline is not None, "the plan was simulated, not estimated"
        pools.append(TracedPool(pool.role, pool.strategy.name, timeline, tiers))
    return chrome_trace(pools, _title(evaluation))


def _title(evaluation: Evaluation) -> str:
    plan = evaluation.plan
    names: Sequence[str] = [pool.strategy.name for pool in plan.pools]
    return f"{plan.name}: {plan.model.name} on {plan.cluster.name}, {' + '.join(names)}"
