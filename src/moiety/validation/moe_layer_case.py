"""A mixture's layer as one measurement: dispatch, the experts' products and combine, in one kernel or in several."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.calibration.catalog import calibration_for
from moiety.cost.expert_exchange import exchange_transfer
from moiety.cost.roofline import compute_seconds
from moiety.dtypes import BYTES_PER_ELEMENT, ROW_BYTES_PER_ELEMENT
from moiety.graph.op import Collective, Gemm, MemoryPass
from moiety.model.feed_forward import MoeFeedForward
from moiety.strategy.strategy import Strategy
from moiety.validation.serving_case import row_cluster
from moiety.validation.skipped import SkippedRow
from moiety.validation.transfer_case import row_device, tokens_per_gpu

if TYPE_CHECKING:
    from typing import Literal

    from moiety.cluster.cluster import Cluster
    from moiety.dtypes import Dtype
    from moiety.validation.system_row import SystemRow

MOE_LAYER = re.compile(r"(?:DSV4-(?P<name>\w+) MoE layer|.*\((\d+)e top(\d+) h(\d+) i(\d+)\))$")
_NAMED = {"Flash": (256, 6, 4096, 2048), "Pro": (384, 6, 7168, 3072)}
"""Experts, top-k, hidden size and width of DeepSeek-V4's layers (deepseek-ai/DeepGEMM, PR #316)."""
_WEIGHTS: dict[str, Dtype] = {"fp8": "fp8", "fp8xfp4": "fp4"}
_HIDING = {"hopper": 1.0, "blackwell": 2.0}
"""Exponent by which computation and transfers of one fused kernel add up: on Hopper they hide nothing of each other, on
Blackwell, whose tensor cores work by themselves, a part. No plan rests on it.

Chosen on 14 rows of H200 and 8 of B200, 8 ranks of one node (deepseek-ai/DeepGEMM, PR #383 and #316). The mean error of
the former is 7 % for exponents of 1 to 1.3 and 14 % for 2; of the latter 11 % for 2, 15 % for 1.5 or 3 and 33 % for 1.
"""


@dataclass(frozen=True, slots=True)
class _Layer:
    moe: MoeFeedForward
    hidden_size: int
    weights: Dtype
    tokens: int
    """Of each GPU."""
    cluster: Cluster

    @property
    def rows(self) -> float:
        """Rows that the experts of a GPU get."""
        return float(self.tokens * self.moe.top_k)


def predict_moe_layer(row: SystemRow) -> dict[str, float]:
    """Return microseconds of the layer in one kernel, and in several; raise SkippedRow where that cannot be told."""
    layer = _layer(row)
    start_s, wire_s = _exchanges(layer)
    products_s, passes_s = _products(layer), _passes(layer)
    power = _HIDING.get(layer.cluster.device.architecture)
    apart_us = 1e6 * (start_s + wire_s + products_s + passes_s)
    if power is None:
        return {"deepep_ht_plus_gemm_us": apart_us}
    fused_us = 1e6 * (start_s + (wire_s**power + products_s**power) ** (1 / power))
    return {"moe_layer_us": fused_us, "megamoe_us": fused_us, "deepep_ht_plus_gemm_us": apart_us}


def _layer(row: SystemRow) -> _Layer:
    match = MOE_LAYER.match(row.model)
    weights, ep = _WEIGHTS.get(row.precision or ""), row.degree("ep") or 0
    if match is None or match["name"] not in {None, *_NAMED} or weights is None or ep < 2:  # noqa: PLR2004 - one rank exchanges nothing
        raise SkippedRow("the sizes, the format or the ranks of the mixture's layer are not stated")
    experts, top_k, hidden, width = _NAMED.get(match["name"]) or map(int, match.groups()[1:])
    cluster = row_cluster(row_device(row).name, ep)
    if ep > cluster.tiers[0].num_gpus:
        raise SkippedRow("mixtures' layers over several nodes were not measured")
    moe = MoeFeedForward(num_experts=experts, top_k=top_k, expert_intermediate_size=width)
    return _Layer(moe, hidden, weights, tokens_per_gpu(row), cluster)


def _exchanges(layer: _Layer) -> tuple[float, float]:
    """Return (start-up, wire) seconds of dispatch and combine, a row to every expert."""
    gpus = layer.cluster.num_gpus
    start_s = wire_s = 0.0
    formats: tuple[tuple[Literal["dispatch", "combine"], Dtype], ...] = (("dispatch", "fp8"), ("combine", "bf16"))
    for kind, dtype in formats:
        row_bytes = layer.hidden_size * ROW_BYTES_PER_ELEMENT[dtype]
        work = Collective(kind, "stage", row_bytes, tokens=layer.tokens, method="flat")
        calibration = calibration_for(layer.cluster.device.architecture)
        strategy = Strategy(attn_dp=gpus, ep=gpus)
        found = exchange_transfer(work, layer.moe, strategy, layer.cluster, calibration, decode=True)
        wire_s += max(found.tier_seconds)
        start_s += found.seconds - max(found.tier_seconds)
    return start_s, wire_s


def _products(layer: _Layer) -> float:
    """Return the seconds of the experts' products: FP8 rows run at the rate of FP8, however narrow the weights."""
    device, moe, gpus = layer.cluster.device, layer.moe, layer.cluster.num_gpus
    peaks = {**device.peak_flops_per_s, layer.weights: device.peak("fp8")}
    at_fp8 = device.model_copy(update={"peak_flops_per_s": peaks})
    idle = math.log1p(-moe.top_k / moe.num_experts) if moe.top_k < moe.num_experts else -math.inf
    touched = moe.num_experts / gpus * -math.expm1(layer.tokens * gpus * idle)
    width, hidden = moe.expert_intermediate_size, layer.hidden_size
    works = (
        Gemm(layer.rows, 2 * width, hidden, layer.weights, "bf16", touched, experts=True),
        Gemm(layer.rows, hidden, width, layer.weights, "bf16", touched, experts=True),
    )
    calibration = calibration_for(device.architecture)
    return sum(compute_seconds(work, at_fp8, calibration) for work in works)


def _passes(layer: _Layer) -> float:
    """Return the seconds of what runs between separate kernels: rows sorted by expert, the activation."""
    device, element = layer.cluster.device, BYTES_PER_ELEMENT["bf16"]
    moved = (2 * layer.hidden_size * element, 3 * layer.moe.expert_intermediate_size * element)
    calibration = calibration_for(device.architecture)
    return sum(compute_seconds(MemoryPass(layer.rows * each), device, calibration) for each in moved)
