"""The quantities that a claim can be about, each with the units it may be written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from moiety.units import UNITS

if TYPE_CHECKING:
    from collections.abc import Mapping

Aspect = Literal["of", "over", "tier", "by"]

_TOKENS_PER_S = {"tokens/s": 1.0, "k tokens/s": 1e3, "M tokens/s": 1e6}
_SHARE = {"%": 0.01, "x": 1.0}
_FACTOR = {"x": 1.0}
_MEASURED = frozenset({*_TOKENS_PER_S, *_SHARE, *(unit for units in UNITS.values() for unit in units)})


def _count(*names: str) -> Mapping[str, float]:
    return dict.fromkeys(names, 1.0)


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is measured: the units it is written in with their size in base units, and what a claim must also say."""

    units: Mapping[str, float]
    needs: tuple[Aspect, ...] = ()
    may: tuple[Aspect, ...] = ()

    @property
    def is_count(self) -> bool:
        """Whether it counts things: such figures are exact."""
        return not self.units.keys() & _MEASURED


QUANTITIES: dict[str, Quantity] = {
    "throughput": Quantity(_TOKENS_PER_S, ("of",)),
    "latency_per_token": Quantity(UNITS["s"], ("of",)),
    "gpu_utilization": Quantity(_SHARE, ("of",)),
    "achieved_flops_per_gpu": Quantity(UNITS["flops_per_s"], ("of",)),
    "throughput_gain": Quantity(_FACTOR, ("of", "over")),
    "latency_gain": Quantity(_FACTOR, ("of", "over")),
    "throughput_change": Quantity(_SHARE, ("of", "over")),
    "latency_change": Quantity(_SHARE, ("of", "over")),
    "utilization_change": Quantity(_SHARE, ("of", "over")),
    "all_reduce_latency": Quantity(UNITS["s"], ("of",)),
    "all_reduce_latency_change": Quantity(_SHARE, ("of", "over")),
    "communication_overlap": Quantity(_SHARE, ("of",)),
    "exposed_communication": Quantity(_SHARE, ("of",)),
    "cross_node_traffic_reduction": Quantity(_SHARE, ("of", "by")),
    "activation_memory_reduction": Quantity(_SHARE, ("of", "by")),
    "memory_per_gpu": Quantity(UNITS["bytes"], ("of",)),
    "memory_utilization": Quantity(_SHARE, ("of",)),
    "memory_headroom": Quantity(_SHARE, ("of",)),
    "compute_headroom": Quantity(_SHARE, ("of",)),
    "num_gpus": Quantity(_count("GPUs")),
    "num_nodes": Quantity(_count("nodes")),
    "gpus_per_node": Quantity(_count("GPUs")),
    "gpu_memory": Quantity(UNITS["bytes"]),
    "gpu_peak_flops": Quantity(UNITS["flops_per_s"]),
    "link_bandwidth": Quantity(UNITS["bytes_per_s"], ("tier",)),
    "effective_bandwidth": Quantity(UNITS["bytes_per_s"], (), ("tier",)),
    "num_experts": Quantity(_count("experts")),
    "tensor_parallelism": Quantity(_count("GPUs", "partitions")),
    "expert_parallelism": Quantity(_count("GPUs", "shares")),
    "num_modules": Quantity(_count("modules")),
    "modules_per_gpu": Quantity(_count("modules")),
    "experts_per_gpu": Quantity(_count("experts")),
    "consecutive_experts_per_node": Quantity(_count("experts")),
    "expert_load_imbalance": Quantity(_FACTOR),
    "memory_imbalance": Quantity(_FACTOR),
    "compute_imbalance": Quantity(_FACTOR),
    "power_reduction": Quantity(_SHARE, ("of",)),
    "linear_scaling_gpus": Quantity(_count("GPUs")),
    "supported_gpus": Quantity(_count("GPUs")),
}
