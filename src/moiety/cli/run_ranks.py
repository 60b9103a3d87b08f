"""The ranks of a verb that executes: started on this machine, or this process as one of those that others started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import typer

from moiety.errors import InputError, MoietyError
from moiety.runtime.attached import Attached
from moiety.runtime.interrupts import Interrupts
from moiety.runtime.launch import launch
from moiety.runtime.world import world_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.cli.output import Output
    from moiety.runtime.job import Job
    from moiety.runtime.post import Report
    from moiety.runtime.world import World


class Prepared(Protocol):
    """A job that nothing is known to be wrong with."""

    @property
    def job(self) -> Job:
        """What the ranks do."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before they do it."""
        ...


SomePrepared = TypeVar("SomePrepared", bound=Prepared)


def run_ranks(
    prepare: Callable[[World | None], SomePrepared], output: Output, rank_output: str | None
) -> tuple[SomePrepared | None, tuple[Report, ...]]:
    """Do the job that `prepare` returns; return it and the reports of all ranks, by rank.

    All ranks run on this machine, or under `torchrun` or Slurm this process is one of theirs: then rank 0 prepares and
    shows the result, and the others get None. `rank_output` is the folder for what each rank writes.
    """
    world = world_of(os.environ)
    if world is None:
        return _launched(prepare, output, rank_output)
    return _attached(prepare, output, rank_output, world)


def _launched(
    prepare: Callable[[World | None], SomePrepared], output: Output, rank_output: str | None
) -> tuple[SomePrepared, tuple[Report, ...]]:
    """Run all ranks on this machine."""
    with Interrupts().noted():  # torch may be imported there, and swallow what a signal raises
        prepared = prepare(None)
    _say(prepared, output)
    folder = None if rank_output is None else Path(rank_output)
    try:
        with output.progress(f"running {prepared.job.num_ranks} ranks") as progress:
            return prepared, launch(prepared.job, output_folder=folder, progress=progress)
    except (KeyboardInterrupt, SystemExit):
        output.complain("interrupted: every rank has been ended")
        raise


def _attached(
    prepare: Callable[[World | None], SomePrepared], output: Output, rank_output: str | None, world: World
) -> tuple[SomePrepared | None, tuple[Report, ...]]:
    """Run this rank among those that others started.

    What goes wrong is said by one of the ranks; all leave with exit code 2.
    """
    attached = Attached(world)
    made: list[SomePrepared] = []

    def prepared() -> Job:
        if rank_output is not None:
            rule = "is for ranks that this command starts"
            remedy = "torchrun keeps their output with --log-dir and --redirects, srun with --output"
            raise InputError(rule, field="--rank-output", value=rank_output, remedy=remedy)
        made.append(prepare(world))
        _say(made[0], output)
        return made[0].job

    try:
        reports = attached.run(attached.shared(prepared))
    except Exception as error:
        attached.complain(error, output.complain)
        raise typer.Exit(MoietyError.exit_code) from error
    return (made[0] if made else None), reports


def _say(prepared: Prepared, output: Output) -> None:
    for note in prepared.notes:
        output.note(note)
