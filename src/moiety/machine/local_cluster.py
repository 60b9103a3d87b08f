"""The machine at hand as a cluster: `local:4` is a node of 4 CPU ranks, `local:2x2` two nodes of 2."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moiety.cluster.cluster import Cluster, LinkTier
from moiety.cluster.device import Device
from moiety.errors import InputError
from moiety.machine.readings import available_memory_bytes, clock_hz, num_cores, processor_name
from moiety.machine.speed import measured_speed

if TYPE_CHECKING:
    from moiety.machine.speed import MachineSpeed

MAX_RANKS = 64
"""Each rank is a process with the libraries of a whole run time, a third of a gigabyte before any weight."""
_SPELLING = re.compile(r"local:([0-9]{1,12})(?:x([0-9]{1,12}))?", re.IGNORECASE)
_REMEDY = "write local:4 for one node of 4 ranks, local:2x2 for 2 nodes of 2"
_ASSUMED_MEMORY_BYTES = 8 * 10**9
_ASSUMED_CLOCK_HZ = 2.5e9
_ASSUMED_MAX_W_PER_CORE = 5.0
_ASSUMED_IDLE_W_PER_CORE = 1.0


def local_cluster(spelling: str) -> Cluster:
    """Return `local:NODESxRANKS` (`local:RANKS`: one node) with this machine's memory and its speed as measured now.

    A rank has its share of what the machine reaches when as many ranks as it has cores work at once. Raises InputError
    for a spelling that says no number of ranks, or more than 64.
    """
    num_nodes, per_node = _sizes(spelling)
    num_ranks = num_nodes * per_node
    try:
        speed = measured_speed(min(num_ranks, num_cores()))
    except OSError as error:
        rule = f"this machine's loopback network cannot be measured: {error.strerror or error}"
        raise InputError(rule, field="--cluster", value=spelling, remedy="describe it in a YAML file") from None
    spans = [("node-loopback", per_node), ("network-loopback", num_ranks)]
    return Cluster(
        name=spelling.lower(),
        device=_device(num_ranks, speed),
        num_nodes=num_nodes,
        gpus_per_node=per_node,
        tiers=tuple(
            LinkTier(
                name=name,
                num_gpus=span,
                bandwidth_bytes_per_s=speed.loopback_bytes_per_s / num_ranks,
                per="gpu",
                latency_s=speed.loopback_latency_s,
                reach=span,
            )
            for name, span in spans[: 2 if num_nodes > 1 else 1]
        ),
        source="this machine: loopback TCP timed when the plan was made, all ranks sending at once",
        basis="measured",
    )


def _sizes(spelling: str) -> tuple[int, int]:
    """Return the nodes and the ranks of each."""
    found = _SPELLING.fullmatch(spelling)
    if found is None:
        rule = "must be local:RANKS or local:NODESxRANKS"
        raise InputError(rule, field="--cluster", value=spelling, remedy=_REMEDY)
    num_nodes, per_node = (int(found[1]), int(found[2])) if found[2] else (1, int(found[1]))
    if not 0 < num_nodes * per_node <= MAX_RANKS:
        rule = f"makes {num_nodes * per_node:,} ranks; this machine runs 1 to {MAX_RANKS}, each a process of its own"
        raise InputError(rule, field="--cluster", value=spelling, remedy=_REMEDY)
    return num_nodes, per_node


def _device(num_ranks: int, speed: MachineSpeed) -> Device:
    """Return one rank's share of this machine."""
    cores, clock, memory = num_cores(), clock_hz(), available_memory_bytes()
    share = cores / num_ranks
    flops = speed.fp32_flops_per_s / num_ranks
    assumed = [
        "peak.bf16: as fp32, because the measuring library has no bf16",
        f"num_sms: the cores of a rank, {cores} among {num_ranks}, at least 1",
        f"idle_power: {_ASSUMED_IDLE_W_PER_CORE:g} W a core, no sensor is read",
        f"max_power: {_ASSUMED_MAX_W_PER_CORE:g} W a core, no sensor is read",
    ]
    if memory is None:
        assumed.append(f"memory: {_ASSUMED_MEMORY_BYTES / 1e9:g} GB among the ranks, the system does not say")
    if clock is None:
        assumed.append(f"max_clock: {_ASSUMED_CLOCK_HZ / 1e9:g} GHz, the system does not say")
    return Device(
        name="local-cpu",
        architecture="cpu",
        memory_bytes=max((memory or _ASSUMED_MEMORY_BYTES) // num_ranks, 1),
        memory_bandwidth_bytes_per_s=speed.copied_bytes_per_s / num_ranks,
        peak_flops_per_s={"fp32": flops, "bf16": flops},
        num_sms=max(cores // num_ranks, 1),
        max_clock_hz=clock or _ASSUMED_CLOCK_HZ,
        idle_power_w=_ASSUMED_IDLE_W_PER_CORE * share,
        max_power_w=_ASSUMED_MAX_W_PER_CORE * share,
        source=f"{processor_name()}: memory available, products and copies timed when the plan was made; "
        f"a rank's share of {num_ranks}",
        assumed=tuple(assumed),
    )
