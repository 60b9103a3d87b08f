"""The machine and the model that `moiety place` places for: what its options, a cluster and a model say together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.errors import InputError
from moiety.units import format_si, parse_quantity

if TYPE_CHECKING:
    from moiety.cli.place_files import Previous
    from moiety.cluster.cluster import Cluster
    from moiety.model.model import Model
    from moiety.placement.problem import Loads, PlacementProblem

DEFAULT_GPUS = 8
GPUS_PER_NODE = 8
MOST_GPUS = 16_384
MOST_SLOTS = 1_048_576


@dataclass(frozen=True, slots=True)
class Machine:
    """GPUs in nodes, and where they are known the cluster, the model and the size of one expert of one layer."""

    num_gpus: int
    num_nodes: int
    cluster: Cluster | None
    model: Model | None
    expert_bytes: float | None

    @property
    def num_experts(self) -> int | None:
        """Routed experts of the model's layers, where it is known."""
        return None if self.model is None or self.model.moe is None else self.model.moe.num_experts

    def node_distance(self) -> Loads | None:
        """Return the cost of a row from node to node; None where all links are alike or unknown."""
        from moiety.placement.machine import node_distance

        return None if self.cluster is None else node_distance(self.cluster)


def machine_of(
    *,
    gpus: int | None,
    nodes: int | None,
    cluster: str | None,
    model: str | None,
    expert_bytes: str | None,
    previous: Previous | None,
) -> Machine:
    """Return the machine that the options name; what they leave open a previous placement says, else the defaults.

    Raises InputError where options, cluster and previous placement disagree, or the model has no experts.
    """
    from moiety.cli.scenario_arguments import load_cluster, load_model
    from moiety.placement.machine import expert_size_bytes, num_link_domains

    known_cluster = None if cluster is None else load_cluster(cluster, model=model)
    known_model = None if model is None else load_model(model)
    if known_model is not None and known_model.moe is None:
        raise InputError("the model has no experts to place", field="--model", value=model)
    before = (None, None) if previous is None else (previous.num_gpus, previous.num_nodes)
    if known_cluster is not None:
        _agree("--gpus", gpus, known_cluster.num_gpus, "GPUs")
        _agree("--nodes", nodes, num_link_domains(known_cluster), "innermost domains of links")
        gpus, nodes = known_cluster.num_gpus, num_link_domains(known_cluster)
    gpus = gpus or before[0] or DEFAULT_GPUS
    if gpus > MOST_GPUS:
        raise InputError(f"experts are placed on up to {MOST_GPUS:,} GPUs", field="GPUs", value=gpus)
    if previous is not None and before[0] not in {None, gpus}:
        raise InputError(f"places on {before[0]} GPUs, not {gpus}", source=previous.source, field="num_gpus")
    if nodes is None and before[1] is not None and gpus % before[1] == 0:
        nodes = before[1]
    if nodes is None:
        nodes = gpus // GPUS_PER_NODE if gpus % GPUS_PER_NODE == 0 else 1
    size = None if expert_bytes is None else _size(expert_bytes)
    if size is None and known_model is not None:
        size = float(expert_size_bytes(known_model))
    return Machine(num_gpus=gpus, num_nodes=nodes, cluster=known_cluster, model=known_model, expert_bytes=size)


def _agree(option: str, given: int | None, found: int, what: str) -> None:
    if given is not None and given != found:
        rule = f"disagrees with --cluster, which has {found} {what}"
        raise InputError(rule, field=option, value=given, remedy=f"leave out {option}, or --cluster")


def _size(text: str) -> float:
    """Return the bytes that a text says, with a unit or without."""
    try:
        value: object = float(text)
    except ValueError:
        value = text
    return parse_quantity(value, "bytes", field="--expert-bytes")


def check_memory(machine: Machine, problem: PlacementProblem) -> None:
    """Raise InputError, with the most slots that fit, where the weights alone overflow the cluster's memory."""
    from moiety.placement.machine import most_slots

    cluster, model = machine.cluster, machine.model
    if cluster is None or model is None or machine.expert_bytes is None:
        return
    most = most_slots(model, cluster, machine.expert_bytes)
    if problem.num_slots <= most:
        return
    size = problem.slots_per_gpu * machine.expert_bytes * model.num_moe_layers
    rule = f"{problem.slots_per_gpu} slots a GPU in {model.num_moe_layers} layers take {format_si(size, 'B')}, "
    rule += f"more than its {format_si(cluster.device.memory_bytes, 'B')} hold beside its part of the other weights"
    least = -(-problem.num_experts // problem.num_gpus) * problem.num_gpus
    remedy = f"at most {most} slots fit" if most >= least else "more GPUs are needed"
    raise InputError(rule, field="--slots", value=problem.num_slots, remedy=remedy)
