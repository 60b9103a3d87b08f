"""`moiety control`: the control plane on its own."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from moiety.cli.control_power import gpus, power, restore_limits
from moiety.cli.control_watch import watch
from moiety.cli.output import JsonSwitch, Output, QuietSwitch
from moiety.errors import InputError

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.placement.problem import Loads
    from moiety.plan import Plan

control = typer.Typer(help="The control plane on its own.")
control.command()(gpus)
control.command()(power)
control.command("restore")(restore_limits)
control.command()(watch)
_MOST_HOURS = 24 * 31
_MOST_SEED = 2**63 - 1


@control.callback(invoke_without_command=True)
def _without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@control.command()
def simulate(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="The plan's method JSON, or the folder that holds it.")],
    *,
    hours: Annotated[float, typer.Option(min=0.1, max=_MOST_HOURS, help="How long it lasts, from midnight.")] = 24.0,
    fail: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="What falls silent, and at which hour: gpu:3, node:1, gpu:3@6.5. Repeat it.",
            show_default=False,
        ),
    ] = None,
    window: Annotated[
        float, typer.Option(min=10, max=3600, metavar="SECONDS", help="Between two counts of the experts' tokens.")
    ] = 300.0,
    seed: Annotated[int, typer.Option(min=0, max=_MOST_SEED, help="Of the traffic.")] = 0,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> None:
    """Simulate a day of traffic, faults and heat under the policy of the control plane."""
    from moiety.cli.control_tables import day_sections
    from moiety.cli.json_text import json_text
    from moiety.cli.plan_file import calibration_of, load_plan
    from moiety.control.day.conditions import Conditions, parse_faults
    from moiety.control.day.simulate import simulate_day
    from moiety.control.deployment import deployment_of, pool_of, slot_map_of
    from moiety.control.policy import Policy

    output = Output(json, quiet)
    loaded, path = load_plan(plan)
    calibration, pool = calibration_of(loaded, str(path)), pool_of(loaded)
    deployment = deployment_of(loaded, calibration)
    conditions = Conditions()
    if hours * 3600 < window:
        raise InputError("is longer than the day", field="--window", value=window)
    faults = parse_faults(fail or (), deployment, hours)
    day = simulate_day(
        deployment,
        slot_map_of(pool),
        expert_shares(loaded, calibration),
        loaded.cluster.device,
        Policy(window_s=window),
        conditions,
        top_k=loaded.model.moe.top_k if loaded.model.moe else 1,
        hours=hours,
        faults=faults,
        seed=seed,
    )
    document = {"plan": loaded.name, "pool": pool.role, "day": asdict(day), "conditions": asdict(conditions)}
    output.document(lambda: json_text(document))
    output.tables(day_sections(loaded.name, pool.role, day, conditions))


def expert_shares(plan: Plan, calibration: Calibration) -> Loads:
    """Return each expert's share of the tokens, [MoE layers, experts]: measured, or by the workload's law."""
    import numpy as np

    from moiety.control.deployment import pool_of
    from moiety.projection.load import expert_share
    from moiety.projection.scenario import scenario_of

    placement = pool_of(plan).placement
    assert placement is not None, "`pool_of` gives pools with experts"
    scenario = scenario_of(plan, calibration)
    rows = range(len(placement.layers))
    return np.array([expert_share(scenario, row, placement.num_logical_experts) for row in rows], dtype=np.float64)
