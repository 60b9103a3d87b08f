"""`moiety plan`: from a model, a cluster and a workload to a plan, its verification and its drawings."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated

import typer

from moiety.cli.output import JsonSwitch, Output, QuietSwitch
from moiety.errors import InputError, OutputError
from moiety.files import checked_folder, naming, write_all

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.plan import Options, Plan
    from moiety.projection.project import Evaluation
    from moiety.projection.scenario import Scenario
    from moiety.verify.findings import Verification
    from moiety.workload.workload import Workload

DEFAULT_NAME = "enhanced"
DEFAULT_FOLDER = "moiety-plan"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_MOST = 10**9
_TUNED = {"two_batch_overlap", "virtual_stages", "fully_sharded"}
"""Options that the search decides, unless one of them is set; what is fully sharded stays so without that."""


def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A model of the catalogue, a Hugging Face config.json or the folder that holds one. "
            "Without it: the reference scenario.",
            show_default=False,
        ),
    ] = None,
    *,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A cluster of the catalogue, N of its GPUs (h200x32), a YAML file, or this machine (local:2x2: 2 "
            "nodes of 2 CPU ranks).",
            show_default=False,
        ),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(help="A workload of the catalogue or a YAML file; without it: chat.", show_default=False),
    ] = None,
    routing: Annotated[
        str | None, typer.Option(help="A routing dump (.npz, JSON or .pt): where real tokens went.", show_default=False)
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="Pin the strategy instead of searching: ep64_tp2, tp8_pp16, ...", show_default=False),
    ] = None,
    engine: Annotated[str, typer.Option(help="Whose overheads: moiety, vllm, sglang or tensorrt-llm.")] = "moiety",
    name: Annotated[str, typer.Option(help="What the plan's files are called after.")] = DEFAULT_NAME,
    out: Annotated[str, typer.Option(help="Folder for the files; made where it is missing.")] = DEFAULT_FOLDER,
    redundant_experts: Annotated[
        int, typer.Option(metavar="N", help="Expert slots of a layer beyond one copy of each expert.")
    ] = 0,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Constants measured by `moiety run --bench` (JSON), instead of the catalogue's. The plan holds them.",
            show_default=False,
        ),
    ] = None,
    tables: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER:ENGINE/RELEASE",
            help="Kernel times measured by aiconfigurator (Parquet): a system's folder and whose tables of it, e.g. "
            "systems/data/h200_sxm:vllm/0.24.0. They count instead of the laws for the shapes they cover.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            help="Set an option of the plan: two_batch_overlap=false, all_to_all=flat, dtypes.kv_cache=fp8, ...",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=_MOST, help="Requests in flight, instead of the workload's load.")
    ] = None,
    request_rate: Annotated[
        float | None, typer.Option(help="Requests per second, instead of the workload's load.")
    ] = None,
    input_tokens: Annotated[
        int | None, typer.Option(min=1, max=_MOST, help="Tokens of a prompt, instead of the workload's.")
    ] = None,
    output_tokens: Annotated[
        int | None, typer.Option(min=0, max=_MOST, help="Tokens of an answer, instead of the workload's.")
    ] = None,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> None:
    """Plan a deployment: search every legal strategy, verify the best, write and draw it.

    Without arguments it plans the built-in reference scenario. Files go to the folder of --out.
    """
    from moiety.cli.option_settings import changed_options, checked_redundancy, pinned_strategy
    from moiety.cli.scenario_arguments import changed_workload, load_workload
    from moiety.cli.verification import leave_if_wrong
    from moiety.cli.version import installed_version
    from moiety.search.options import default_options
    from moiety.search.planner import make_plan

    output = Output(json, quiet)
    checked_name(name)
    folder = checked_folder("--out", out)
    base = load_workload(workload, model=model)
    scenario = _scenario(
        model,
        cluster,
        changed_workload(
            base,
            concurrency=concurrency,
            request_rate=request_rate,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        ),
        routing,
        engine,
        calibration,
        tables,
    )
    slots = checked_redundancy(redundant_experts, scenario.model, scenario.cluster.num_gpus)
    settings = settings or []
    options = changed_options(default_options(scenario, slots), settings)
    checked_redundancy(options.redundant_experts, scenario.model, scenario.cluster.num_gpus)
    pinned = pinned_strategy(strategy, scenario.model, scenario.cluster.num_gpus, options.redundant_experts)
    for warning in scenario.model.warnings:
        output.note(f"warning: {warning}")
    with output.progress(f"planning {scenario.model.name} on {scenario.cluster.name}") as progress:
        made = make_plan(
            scenario,
            options,
            name=name,
            version=installed_version(),
            pinned=pinned,
            tune=not _fixes_tuned(settings, options),
            progress=progress,
        )
    document, verification, paths = write_plan(made, scenario, folder)
    output.document(lambda: document)
    if output.shows_tables:
        from moiety.cli.plan_tables import plan_sections

        output.tables(plan_sections(made.plan, verification, paths))
    leave_if_wrong(verification, output)


def _fixes_tuned(settings: list[str], options: Options) -> bool:
    """Return whether an option is set that the search would decide otherwise."""
    decided = _TUNED - ({"fully_sharded"} if options.fully_sharded else set())
    return any(each.partition("=")[0].strip().replace("-", "_") in decided for each in settings)


def _scenario(
    model: str | None,
    cluster: str | None,
    workload: Workload,
    routing: str | None,
    engine: str,
    calibration: str | None,
    tables: str | None,
) -> Scenario:
    from moiety.calibration.engines import engine_calibration
    from moiety.cli.scenario_arguments import (
        engine_named,
        expert_shares,
        load_calibration_file,
        load_cluster,
        load_model,
        load_routing,
    )
    from moiety.projection.scenario import Scenario

    shape = load_model(model)
    measured = load_routing(routing, shape)
    constants = load_calibration_file(calibration)
    where, chosen = load_cluster(cluster, model=model), engine_named(engine)
    priced_with = engine_calibration(chosen, where.device.architecture, where.device.memory_bytes, constants)
    if tables is not None:
        from moiety.cli.table_files import load_tables

        priced_with = priced_with.model_copy(update={"tables": load_tables(tables, where)})
    return Scenario(
        model=shape,
        cluster=where,
        workload=workload,
        engine=chosen,
        calibration=priced_with,
        expert_shares=expert_shares(measured),
        routing=measured,
        carries_calibration=constants is not None,
    )


def write_plan(made: Evaluation, scenario: Scenario, folder: Path) -> tuple[str, Verification, tuple[str, ...]]:
    """Write every file of the plan, all or none; return the method JSON, the verification and the files' paths."""
    from moiety.cli.json_text import json_text
    from moiety.cli.plan_file import METHOD_SUFFIX, method_json
    from moiety.cli.verification import verified

    finished = made.plan
    document = method_json(finished)
    verification = verified(finished, scenario.calibration, evaluation=made)
    contents = {
        f"{finished.name}{METHOD_SUFFIX}": document,
        f"{finished.name}_deployment_verification.json": json_text(verification.model_dump(mode="json")),
        **_drawn(finished),
    }
    with naming("--out"):
        paths = write_all(folder, contents)
    return document, verification, tuple(map(str, paths))


def _drawn(finished: Plan) -> dict[str, str]:
    """Return the drawings' texts; raise OutputError where Graphviz finds no room for its temporary file."""
    from tempfile import gettempdir

    from moiety.report.dag import dag_files

    try:
        return dag_files(finished, finished.name)
    except OSError as error:
        place = os.environ.get("TMPDIR") or gettempdir()
        rule = f"{place}: no temporary file can be written: {error.strerror or error}; nothing was changed"
        raise OutputError(rule) from None


def checked_name(name: str) -> str:
    """Return a name that file names can begin with; raise InputError for any other."""
    if not _NAME.fullmatch(name):
        rule = "must begin with a letter or digit and hold up to 80 letters, digits, '.', '_' and '-'"
        raise InputError(rule, field="--name", value=name, remedy=f"e.g. {DEFAULT_NAME}")
    return name
