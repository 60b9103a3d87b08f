"""The arguments that say what a plan is for: a model, a cluster, a workload and a routing dump, from name or file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, get_args

from pydantic import ValidationError

from moiety.errors import InputError, nearest
from moiety.files import read_bytes, read_text, resolve_input
from moiety.records import broken_rule

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.calibration.calibration import Calibration, Engine
    from moiety.cluster.cluster import Cluster
    from moiety.model.model import Model
    from moiety.workload.routing import Routing
    from moiety.workload.workload import Workload

REFERENCE_MODEL = "reference-moe-235b"
REFERENCE_CLUSTER = "reference-128"
REFERENCE_WORKLOAD = "reference-prefill"
DEFAULT_WORKLOAD = "chat"
_YAML = (".yaml", ".yml")


def load_model(argument: str | None) -> Model:
    """Return the model that MODEL names: of the catalogue, a `config.json` or its folder; None: the reference model."""
    from moiety.model.catalog import catalog_models, load_catalog_model
    from moiety.model.reader import read_model

    if argument is None:
        return load_catalog_model(REFERENCE_MODEL)
    known = catalog_models()
    path = resolve_input(argument, in_folder="config.json", suffixes=(".json",), known=known)
    if path is None:
        lower = argument.lower().replace("_", "-")
        if lower not in known:
            raise _unknown_model(argument, lower, known)
        return load_catalog_model(lower)
    if not path.exists() and path.suffix != ".json":  # spelled as on the Hugging Face hub: owner/name
        raise _unknown_model(argument, argument.rstrip("/").rpartition("/")[2].lower(), known)
    return read_model(read_text(path), name=_model_name(path), source=str(path))


def _unknown_model(argument: str, name: str, known: tuple[str, ...]) -> InputError:
    rule = "is not a model of the catalogue, a config.json or a folder that holds one"
    return InputError(rule, field="MODEL", value=argument, remedy=nearest(name, known))


def _model_name(path: Path) -> str:
    """Return what a model read from a file is called: its folder's name, or the file's where that says more."""
    whole = path.resolve()
    name = whole.parent.name if whole.name == "config.json" else whole.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80].strip("-") or "model"


def load_cluster(argument: str | None, *, model: str | None) -> Cluster:
    """Return the cluster of `--cluster`: of the catalogue (`h200x32`), a YAML file, or this machine (`local:2x2`).

    Without the argument the reference cluster, for the reference model only: InputError for any other.
    """
    from moiety.cluster.catalog import catalog_clusters, load_device
    from moiety.cluster.catalog import load_cluster as load_catalog_cluster
    from moiety.cluster.reader import read_cluster

    known = catalog_clusters()
    if argument is None:
        if model is not None and model != REFERENCE_MODEL:
            rule = f"is missing: on which GPUs should {model} run?"
            remedy = "name 32 GPUs of the catalogue's H200 nodes (--cluster h200x32), "
            remedy += f"another of {', '.join(known)}, a YAML file, or this machine (--cluster local:2x2)"
            raise InputError(rule, field="--cluster", remedy=remedy)
        return load_catalog_cluster(REFERENCE_CLUSTER)
    if names_this_machine(argument):
        from moiety.machine.local_cluster import local_cluster

        return local_cluster(argument)
    path = resolve_input(argument, suffixes=_YAML, known=known)
    if path is None:
        return load_catalog_cluster(argument)
    return read_cluster(read_text(path), source=str(path), devices=load_device)


def names_this_machine(cluster: str) -> bool:
    """Return whether the argument is meant to be this machine: `local`, with or without its ranks."""
    return cluster.lower().partition(":")[0] == "local"


def load_calibration_file(argument: str | None) -> Calibration | None:
    """Return the calibration in the JSON file of `--calibration`; None without the argument."""
    if argument is None:
        return None
    from moiety.calibration.reader import read_calibration

    return read_calibration(read_text(argument), source=argument)


def load_workload(argument: str | None, *, model: str | None) -> Workload:
    """Return the workload of `--workload`: of the catalogue or a YAML file; without it what suits the model."""
    from moiety.workload.catalog import catalog_workloads
    from moiety.workload.catalog import load_workload as load_catalog_workload
    from moiety.workload.reader import read_workload

    if argument is None:
        return load_catalog_workload(REFERENCE_WORKLOAD if model in {None, REFERENCE_MODEL} else DEFAULT_WORKLOAD)
    path = resolve_input(argument, suffixes=_YAML, known=catalog_workloads())
    if path is None:
        return load_catalog_workload(argument)
    return read_workload(read_text(path), source=str(path))


def changed_workload(
    workload: Workload,
    *,
    concurrency: int | None,
    request_rate: float | None,
    input_tokens: int | None,
    output_tokens: int | None,
) -> Workload:
    """Return the workload with the load and lengths that the command line gives; its name says so.

    Raises InputError for what such a workload cannot have.
    """
    changes: dict[str, object] = {
        "concurrency": concurrency,
        "request_rate_per_s": request_rate,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    if not given:
        return workload
    if concurrency is not None and request_rate is not None:
        raise InputError("give --concurrency or --request-rate, not both", field="--concurrency", value=concurrency)
    fields: dict[str, object] = dict(workload.model_dump())
    if concurrency is not None or request_rate is not None:
        fields |= {"tokens_in_flight": None, "concurrency": None, "request_rate_per_s": None}
    said = ", ".join(f"{key} {value:g}" for key, value in given.items() if isinstance(value, (int, float)))
    try:
        return type(workload).model_validate({**fields, **given, "name": f"{workload.name} with {said}"})
    except ValidationError as error:
        first = broken_rule(error)
        where = first.field or ""
        option = {"request_rate_per_s": "request_rate"}.get(where, where).replace("_", "-")
        value = given.get(where)
        raise InputError(first.rule, field=f"--{option}" if where in given else "workload", value=value) from None


def load_routing(argument: str | None, model: Model) -> Routing | None:
    """Return a routing dump with a row for each MoE layer of the model; None without an argument.

    The dump has a row for every MoE layer, or for every layer of the model, and where it holds tokens, as many experts
    a token as the router chooses; InputError otherwise.
    """
    if argument is None:
        return None
    from dataclasses import replace

    from moiety.workload.routing import read_routing

    moe = model.moe
    if moe is None:
        raise InputError("the model has no experts, so nothing is routed", field="--routing", value=argument)
    routing = read_routing(read_bytes(argument), source=argument, num_experts=moe.num_experts)
    layers = [i for i, block in enumerate(model.layers) if block.moe is not None]
    if routing.num_layers == model.num_layers:
        topk = None if routing.topk is None else routing.topk[layers]
        routing = replace(routing, counts=routing.counts[:, layers], topk=topk)
    elif routing.num_layers != len(layers):
        all_layers = f" (of {model.num_layers} layers)" if model.num_layers != len(layers) else ""
        rule = f"has {routing.num_layers} layers, the model has {len(layers)} with experts{all_layers}"
        raise InputError(rule, source=argument, field="layers")
    if routing.topk is not None and routing.topk.shape[2] != moe.top_k:
        rule = f"has {routing.topk.shape[2]} experts a token, the model's router chooses {moe.top_k}"
        raise InputError(rule, source=argument, field="topk")
    return routing


def expert_shares(routing: Routing | None) -> tuple[tuple[float, ...], ...] | None:
    """Return each expert's share of its layer's tokens, [MoE layers][experts]; None where nothing is measured."""
    if routing is None:
        return None
    rows: list[list[float]] = routing.load_share().tolist()
    return tuple(tuple(row) for row in rows)


def engine_named(text: str) -> Engine:
    """Return the serving engine of that name; raise InputError with the nearest for an unknown one."""
    from moiety.calibration.calibration import Engine

    engines: tuple[Engine, ...] = get_args(Engine)
    for engine in engines:
        if text.lower() == engine:
            return engine
    raise InputError("no such engine is known", field="--engine", value=text, remedy=nearest(text, engines))
