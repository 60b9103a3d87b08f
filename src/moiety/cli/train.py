"""`moiety train`: fine-tuning steps under a plan, on this machine or as one of the ranks that others started."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from moiety.cli.output import JsonSwitch, Output, QuietSwitch
from moiety.cli.rank_options import (  # typer reads them when the program runs
    CheckpointOption,  # noqa: TC001
    FoldOption,  # noqa: TC001
    RankOutputOption,  # noqa: TC001
    TransportOption,  # noqa: TC001
)

_MOST_STEPS = 1_000_000
_MOST_ROWS = 1_000_000
_QUIET_LIBRARIES = {"KINETO_LOG_LEVEL": "9", "TORCH_CPP_LOG_LEVEL": "ERROR"}
"""What keeps torch's profiler, which counts allocations, from telling of itself where this process is a rank."""


def train(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="The plan's method JSON, or the folder that holds it.")],
    *,
    checkpoint: CheckpointOption,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE.jsonl",
            help='Rows of equal length, a line each: {"token_ids": [...]}. Taken in order, then from the first again.',
            show_default=False,
        ),
    ],
    steps: Annotated[int, typer.Option(min=1, max=_MOST_STEPS, help="Optimizer steps.", show_default=False)],
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW; weight decay is 0, all else torch's default.")] = (
        1e-3
    ),
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MOST_ROWS,
            metavar="ROWS",
            help="Rows of a step, a multiple of the plan's attention groups. Without it: those of a training plan's "
            "own step; for any other plan one a group.",
            show_default=False,
        ),
    ] = None,
    transport: TransportOption = "sockets",
    fold: FoldOption = None,
    save: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where the state goes after the last step: parameters and optimizer, in PyTorch's distributed "
            "checkpoint format.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Go on from a state that --save has written, under this plan or any other of the model.",
            show_default=False,
        ),
    ] = None,
    balance_router: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Each step moves the bias that routers like DeepSeek-V3's choose experts by, by so much, towards "
            "equal loads (no auxiliary loss).",
            show_default=False,
        ),
    ] = None,
    rank_output: RankOutputOption = None,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> None:
    """Fine-tune a checkpoint under a plan, and set the memory that was measured beside the plan's.

    The loss is the mean next-token cross-entropy of each step's rows. All ranks run on this machine; under `torchrun`
    or Slurm, this process is one of theirs.
    """
    from moiety.runtime.interrupts import Interrupts

    with Interrupts().noted():  # what a signal raises in the midst of an import may be swallowed there
        from moiety.cli.run_checkpoint import check_libraries

        check_libraries("train")
        for name, level in _QUIET_LIBRARIES.items():
            os.environ.setdefault(name, level)
        from moiety.cli.json_text import json_text
        from moiety.cli.run_ranks import run_ranks
        from moiety.cli.train_preparation import Wish, prepare
        from moiety.cli.train_result import TrainResult, train_sections

    wish = Wish(
        plan=plan,
        checkpoint=checkpoint,
        data=data,
        steps=steps,
        learning_rate=lr,
        batch_size=batch_size,
        transport=transport,
        fold=fold,
        save=save,
        resume=resume,
        balance_rate=balance_router,
    )
    output = Output(json, quiet)
    prepared, reports = run_ranks(lambda world: prepare(wish, world), output, rank_output)
    if prepared is None:
        return
    result = TrainResult(prepared.job, reports, prepared.folding, prepared.peaks, prepared.sharding)
    output.document(lambda: json_text(result.document()))
    if output.shows_tables:
        output.tables(train_sections(result))
