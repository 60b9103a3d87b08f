"""`moiety control gpus`, `power`, `restore`: limits on this machine's GPUs, chosen from a plan, held, restored."""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moiety.cli.ending import ended_by
from moiety.cli.output import JsonSwitch, Output, QuietSwitch
from moiety.errors import InputError
from moiety.gpus.nvml import GpuError, open_gpus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.control.energy import LimitChoice
    from moiety.gpus.journal import Journal
    from moiety.gpus.limits import Limit
    from moiety.gpus.nvml import Gpus

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Limits are restored before the process ends by one of these."""
JournalOption = Annotated[
    str | None,
    typer.Option(
        "--journal",
        metavar="FILE",
        help="Where changed limits are noted until they are restored; else in the machine's own file.",
        show_default=False,
    ),
]


def gpus(*, json: JsonSwitch = False, quiet: QuietSwitch = False) -> None:
    """Show power, clock, heat, throttling, memory and use of this machine's GPUs."""
    from moiety.cli.control_power_tables import gpus_table
    from moiety.cli.json_text import json_text

    output = Output(json, quiet)
    with open_gpus() as found:
        readings = [found.read(index) for index in range(len(found))]
    output.document(lambda: json_text({"gpus": [asdict(each) for each in readings]}))
    output.tables([gpus_table(readings)])


def power(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="The plan's method JSON, or the folder that holds it.")],
    *,
    apply: Annotated[
        bool, typer.Option("--apply", help="Set it on this machine's GPUs, until interrupted. Else nothing is set.")
    ] = False,
    phase: Annotated[
        str | None, typer.Option(metavar="PHASE", help="What this machine does, where the plan has several pools.")
    ] = None,
    on: Annotated[
        str | None, typer.Option("--gpus", metavar="0,1,...", help="Which GPUs; else all.", show_default=False)
    ] = None,
    slowdown: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of the step, at most, as a share.", show_default="the policy's, 0.035"),
    ] = None,
    journal: JournalOption = None,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> None:
    """Choose the clock or the power cap of each phase of a plan; with --apply, hold it on this machine's GPUs."""
    output, noted = Output(json, quiet), _journal(journal)
    choices = _choices(plan, slowdown)
    chosen = _of_phase(choices, phase)
    if apply:
        _hold(choices, chosen, on, noted, output)
    else:
        _show(choices, chosen, on, noted, output)


def _show(
    choices: Sequence[LimitChoice], chosen: LimitChoice | None, on: str | None, noted: Journal, output: Output
) -> None:
    """Print the choices and, where this machine has GPUs, what would be set on them."""
    from moiety.cli.control_power_tables import choices_table, limits_table
    from moiety.cli.json_text import json_text

    document, sections = _document(choices), [choices_table(choices)]
    left = noted.read()
    try:
        with open_gpus() as found:
            indices = _indices(on, found)
            if chosen and chosen.lowers:
                limit = _limit(chosen, indices)
                document |= {"limit": asdict(limit), "gpus": indices, "applied": False}
                sections.append(limits_table(found, indices, limit, applied=False))
    except GpuError as error:
        document["no_gpus"] = str(error)
        output.note(f"nothing would be set here: {error}")
    output.document(lambda: json_text(document))
    output.tables(sections)
    if left:
        output.note(f"{noted.path} names limits that are still set, by a run that goes on or was killed")


def _hold(
    choices: Sequence[LimitChoice], chosen: LimitChoice | None, on: str | None, noted: Journal, output: Output
) -> None:
    """Set the chosen limit, wait to be interrupted, restore."""
    from moiety.cli.control_power_tables import choices_table, limits_table
    from moiety.cli.json_text import json_text
    from moiety.gpus.limits import held

    if chosen is None:
        phases = ", ".join(each.phase for each in choices)
        raise InputError("must say which pool this machine belongs to", field="--phase", remedy=f"one of {phases}")
    if not chosen.lowers:
        raise InputError(f"there is nothing to set for {chosen.phase}: {chosen.reason}", field="--apply")
    with open_gpus() as found:
        indices = _indices(on, found)
        limit = _limit(chosen, indices)
        with ended_by(_ENDING) as ended, held(found, indices, limit, noted):
            output.tables([choices_table(choices), limits_table(found, indices, limit, applied=True)])
            output.note(f"limits are set on {len(indices)} GPUs; interrupt to restore them")
            ended.wait()
            readings = [asdict(found.read(index)) for index in indices]
        document = {"limit": asdict(limit), "gpus": indices, "applied": True, "readings": readings}
        output.document(lambda: json_text(_document(choices) | document))
        output.note("limits are restored")


def restore_limits(*, journal: JournalOption = None, json: JsonSwitch = False, quiet: QuietSwitch = False) -> None:
    """Restore the limits that a run which was killed has left on this machine's GPUs."""
    from moiety.cli.json_text import json_text
    from moiety.gpus.limits import restore

    output, noted = Output(json, quiet), _journal(journal)
    if not noted.read():
        output.document(lambda: json_text({"restored": []}))
        output.note(f"nothing to restore: {noted.path} names no limit")
        return
    with open_gpus() as found:
        restored = restore(found, noted)
    output.document(lambda: json_text({"restored": [each.model_dump(mode="json") for each in restored]}))
    output.note(f"{len(restored)} limits are restored")


def _journal(path: str | None) -> Journal:
    from moiety.gpus.journal import Journal

    return Journal() if path is None else Journal(Path(path))


def _limit(chosen: LimitChoice, indices: tuple[int, ...]) -> Limit:
    """Return what the control plane's command sets on a GPU."""
    from moiety.control.energy import limit_command
    from moiety.gpus.limits import Limit

    return Limit(*limit_command(chosen.point, chosen.phase, indices).limit)


def _choices(plan: str, slowdown: float | None) -> list[LimitChoice]:
    """Return the choice of each pool of the plan."""
    from moiety.cli.plan_file import calibration_of, load_plan
    from moiety.control.deployment import limit_choices
    from moiety.control.policy import Policy

    loaded, path = load_plan(plan)
    most = Policy().most_slowdown if slowdown is None else slowdown
    return list(limit_choices(loaded, calibration_of(loaded, str(path)), most))


def _of_phase(choices: Sequence[LimitChoice], phase: str | None) -> LimitChoice | None:
    """Return the choice that counts on this machine; None where nobody has said which of several."""
    if phase is None:
        return choices[0] if len(choices) == 1 else None
    found = next((each for each in choices if each.phase == phase), None)
    if found is None:
        known = ", ".join(each.phase for each in choices)
        raise InputError("the plan has no such pool", field="--phase", value=phase, remedy=f"it has {known}")
    return found


def _indices(given: str | None, found: Gpus) -> tuple[int, ...]:
    if given is None:
        return tuple(range(len(found)))
    parts = given.split(",")
    if not all(part.strip().isdecimal() and int(part) < len(found) for part in parts):
        raise InputError(f"must be numbers below {len(found)}, with commas", field="--gpus", value=given)
    return tuple(sorted({int(part) for part in parts}))


def _document(choices: Sequence[LimitChoice]) -> dict[str, Any]:
    return {
        "choices": [
            {
                **asdict(each),
                "saved_share": each.saved_share,
                "longer_share": each.longer_share,
                "energy_saved_share": each.energy_saved_share,
            }
            for each in choices
        ]
    }
