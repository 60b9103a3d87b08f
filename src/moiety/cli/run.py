"""`moiety run`: a plan executed, on this machine or as one of the ranks that `torchrun` or Slurm started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moiety.cli.output import JsonSwitch, Output, QuietSwitch
from moiety.cli.rank_options import (  # typer reads them when the program runs
    CheckpointOption,  # noqa: TC001
    DispatchOption,  # noqa: TC001
    FoldOption,  # noqa: TC001
    RankOutputOption,  # noqa: TC001
    TransportOption,  # noqa: TC001
)
from moiety.errors import InputError
from moiety.files import checked_target, write_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.cli.run_preparation import Preparation
    from moiety.runtime.post import Report

_MOST_TOKENS = 1_000_000


def run(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="The plan's method JSON, or the folder that holds it.")],
    *,
    checkpoint: CheckpointOption,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.jsonl",
            help='A line each: {"token_ids": [...]} or {"text": "..."}. Without it: a few random ones.',
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=_MOST_TOKENS, help="Tokens that each prompt is continued by at most.")
    ] = 16,
    temperature: Annotated[float, typer.Option(help="0: the most likely token (greedy).")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the fewest tokens that are so likely together.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many of the most likely tokens; 0: from all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on to --max-new-tokens, whatever token comes.")
    ] = False,
    dispatch: DispatchOption = None,
    transport: TransportOption = "sockets",
    fold: FoldOption = None,
    bench: Annotated[
        bool,
        typer.Option("--bench", help="Time the plan's own step beside its prediction, and refit the constants to it."),
    ] = False,
    calibration_out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.json", help="Where --bench writes the constants; else beside the plan.", show_default=False
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(metavar="FILE.json", help="Where a Perfetto trace of all ranks goes.", show_default=False),
    ] = None,
    rank_output: RankOutputOption = None,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> None:
    """Execute a plan: load a checkpoint by its placement, generate, and set what was measured beside the prediction.

    All ranks run on this machine; under `torchrun` or Slurm, this process is one of theirs.
    """
    from moiety.cli.run_checkpoint import check_libraries

    check_libraries("run")
    from moiety.cli.run_preparation import Wish, prepare
    from moiety.cli.run_ranks import run_ranks

    wish = Wish(
        plan=plan,
        checkpoint=checkpoint,
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        ignore_eos=ignore_eos,
        dispatch=dispatch,
        transport=transport,
        fold=fold,
        bench=bench,
        trace=trace is not None,
    )
    if calibration_out is not None and not bench:
        raise InputError(
            "says where --bench writes", field="--calibration-out", value=calibration_out, remedy="add --bench"
        )
    for option, file in (("--trace", trace), ("--calibration-out", calibration_out)):
        if file is not None:
            checked_target(option, file)
    output = Output(json, quiet)
    prepared, reports = run_ranks(lambda world: prepare(wish, world), output, rank_output)
    if prepared is not None:
        _show(prepared, reports, output, trace, calibration_out)


def _show(
    prepared: Preparation,
    reports: tuple[Report, ...],
    output: Output,
    trace: str | None,
    calibration_out: str | None,
) -> None:
    from moiety.cli.json_text import json_text
    from moiety.cli.run_bench import bench_result
    from moiety.cli.run_result import RunResult, run_sections

    result = RunResult(prepared.job, reports, prepared.folding)
    result = result.with_texts(prepared.texts(result.outputs))
    if prepared.job.bench:
        result = result.with_bench(bench_result(prepared.job.plan, prepared.calibration, result.bench_outcome))
    written: dict[str, str | None] = {"trace": None, "calibration": None}
    if trace is not None:
        written["trace"] = _written(Path(trace), result.trace_text(), write_all)
    if result.bench is not None:
        target = Path(calibration_out) if calibration_out else prepared.folder / f"{result.plan.name}_calibration.json"
        text = json_text(result.bench.calibration.model_dump(mode="json"))
        written["calibration"] = _written(target, text, write_all)
    output.document(lambda: json_text({**result.document(), **written}))
    if output.shows_tables:
        output.tables(run_sections(result, written["calibration"]))


def _written(target: Path, text: str, write_all: Callable[[Path, dict[str, str]], tuple[Path, ...]]) -> str:
    (path,) = write_all(target.parent, {target.name: text})
    return str(path)
