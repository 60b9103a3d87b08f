"""`moiety control watch`: the control plane beside engines that run already."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moiety.cli.ending import ended_by
from moiety.cli.output import JsonSwitch, Output, QuietSwitch
from moiety.errors import InputError, MoietyError, nearest
from moiety.files import checked_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from moiety.placement.problem import SlotMap
    from moiety.plan import Plan, Pool
    from moiety.watch.advice import Advice
    from moiety.watch.controller import Controller
    from moiety.watch.known import Round
    from moiety.watch.site import Site, Target


TARGETS = ("sglang", "vllm-ascend", "moiety")
_LARGEST_PORT = 65_535
_LOCAL = "127.0.0.1"


def watch(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="The plan's method JSON, or the folder that holds it.")],
    *,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL[,URL...]",
            help="Where an instance of the engine shows its metrics, http://HOST:PORT. Repeat it for each instance.",
            show_default=False,
        ),
    ] = None,
    dumps: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Where expert-distribution dumps appear: SGLang's .pt, or .npz and JSON as `place` reads them.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="FOLDER", help="For placement.json, advice.jsonl and the state that survives.")
    ] = "moiety-watch",
    to: Annotated[str, typer.Option(help="Whose format placement.json has: sglang, vllm-ascend or moiety.")] = "sglang",
    placement: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="What the engine was started with; without it the plan's own.", show_default=False
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option(min=0.1, max=86_400, metavar="SECONDS", help="From one look to the next.")
    ] = 60.0,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=600, metavar="SECONDS", help="After which an endpoint is given up.")
    ] = 5.0,
    once: Annotated[
        bool,
        typer.Option("--once", help="Look once, and end with 1 where something could not be read; for cron and CI."),
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=_LARGEST_PORT,
            help=f"Show what is known on http://{_LOCAL}:PORT/metrics; 0: any free port.",
            show_default=False,
        ),
    ] = None,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> int:
    """Watch vLLM or SGLang at work: keep a placement file for its next start, and say what else to do, and why.

    It reads metrics and dumps, and writes into its folder. It starts, stops and sets nothing. SIGTERM and SIGINT end it
    after the round that it is in; started anew it goes on where it was.
    """
    from moiety.watch.controller import Controller, sole_controller

    _check_library()
    if to not in TARGETS:
        raise InputError("no such format is known", field="--to", value=to, remedy=nearest(to, TARGETS))
    if not (endpoint or dumps or once):
        remedy = "give --endpoint, --dumps, or both; --once alone writes the placement"
        raise InputError("has nothing to look at", field="moiety control watch", remedy=remedy)
    if dumps is not None and Path(dumps).exists() and not Path(dumps).is_dir():
        raise InputError("is a file, not a folder", field="--dumps", value=dumps)
    output, folder = Output(json, quiet), checked_folder("--out", out)
    site = site_of(plan, endpoint or (), placement, to, interval)
    with ExitStack() as stack:
        stack.enter_context(sole_controller(folder))
        controller = Controller(site, folder, None if dumps is None else Path(dumps), timeout)
        if metrics_port is not None:
            from moiety.watch.exporter import exported

            address = stack.enter_context(exported(_LOCAL, metrics_port, lambda: controller.watch))
            output.note(f"metrics on {address}")
        if once:
            done = controller.round()
            _show(done, site, output, alone=True)
            return 1 if done.unread else 0
        _run(controller, output)
    return 0


def site_of(plan: str, endpoints: Sequence[str], placement: str | None, target: Target, interval_s: float) -> Site:
    """Return what is to be watched; raise InputError for what is no plan of a serving pool, or does not fit it."""
    from moiety.cli.plan_file import calibration_of, load_plan
    from moiety.control.deployment import deployment_of, pool_of
    from moiety.watch.site import Site, instances_of

    instances = instances_of(endpoints)
    loaded, path = load_plan(plan)
    pool = pool_of(loaded)
    if pool.role == "training":
        raise InputError("serves nobody", source=str(path), field="workload.phase", value=pool.role)
    deployment = deployment_of(loaded, calibration_of(loaded, str(path)))
    slot_map = _slot_map(loaded, pool, placement)
    return Site(loaded.name, loaded.model, deployment, slot_map, instances, target, interval_s)


def _slot_map(plan: Plan, pool: Pool, placement: str | None) -> SlotMap:
    """Return the map that the engine was started with, [MoE layers, slots]."""
    from moiety.cli.place_files import read_previous
    from moiety.control.deployment import slot_map_of
    from moiety.placement.engine_map import MAP_KEY, moe_rows

    own = slot_map_of(pool)
    if placement is None:
        return own
    given = read_previous(placement)
    found = given.slot_map[moe_rows(len(given.slot_map), plan.model, placement)]
    if found.shape != own.shape or found.max() != own.max():
        rule = f"has {found.shape[1]} slots of {found.max() + 1} experts, the plan {own.shape[1]} of {own.max() + 1}"
        raise InputError(rule, source=placement, field=MAP_KEY, remedy="name the file that the engine was started with")
    return found


def _check_library() -> None:
    if find_spec("prometheus_client") is None:
        rule = "needs prometheus_client, which the plain installation leaves out"
        raise InputError(rule, field="moiety control watch", remedy="pip install 'moiety[control]'")


def _run(controller: Controller, output: Output) -> None:
    """Do rounds until a signal asks for the end; a folder that cannot be used is told of, and tried again."""
    with ended_by((signal.SIGTERM, signal.SIGINT)) as ended:
        while not ended.is_set():
            try:
                _show(controller.round(), controller.site, output, alone=False)
            except MoietyError as error:
                output.complain(str(error))
            ended.wait(controller.site.interval_s)


def _show(done: Round, site: Site, output: Output, *, alone: bool) -> None:
    """Print a round: a document on one line, the advice as lines, and a table where it is the only one."""
    output.document(lambda: f"{json.dumps(_document(done))}\n")
    if output.shows_tables:
        if alone:
            output.tables(_sections(done, site))
        for each in done.advice:
            typer.echo(advice_line(each))
    sys.stdout.flush()


def advice_line(advice: Advice) -> str:
    """Return a piece of advice as people read it."""
    at = datetime.fromtimestamp(advice.time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    figures = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in advice.figures.items())
    said = f"{at} {advice.kind}: {advice.do}. Why: {advice.reason}{f' ({figures})' if figures else ''}."
    return f"{said} Not done from here: {advice.limits}." if advice.limits else said


def _document(done: Round) -> dict[str, object]:
    figures: dict[str, object] = asdict(done)
    del figures["time_s"]
    time = datetime.fromtimestamp(done.time_s, UTC).isoformat(timespec="seconds")
    return {"time": time, **figures, "advice": [each.document() for each in done.advice]}


def _awaiting(done: Round) -> str:
    return f"; {done.dumps_awaiting} wait for other ranks' files" if done.dumps_awaiting else ""


def _sections(done: Round, site: Site) -> Iterator[RenderableType]:
    from moiety.cli.table import pairs

    def known(value: float | None, form: str, unit: str = "") -> str:
        return "not known yet" if value is None else f"{value:{form}}{unit}"

    rows = [
        ("instances that answer", f"{done.answering} of {len(site.instances)}"),
        ("demand", known(done.demand_tokens_per_s, ",.1f", " tokens/s")),
        ("of it served", known(done.served_tokens_per_s, ",.1f", " tokens/s")),
        ("waiting", known(done.backlog_tokens, ",.0f", " tokens")),
        ("time per output token", known(done.tpot_s, ".4f", " s")),
        ("dumps read", f"{done.dumps_read}, {done.windows} windows known{_awaiting(done)}"),
        ("slots changed in the file", f"{done.moves:,}"),
        ("balance expected of the file", known(done.expected_balance, ".3f")),
        ("balance expected of the engine", known(done.expected_balance_in_force, ".3f")),
        ("balance that SGLang measured", known(done.measured_balance, ".3f")),
    ]
    yield pairs(f"{site.plan}, as seen now", rows)
    if done.unread:
        yield pairs("Could not be read", list(done.unread.items()))
