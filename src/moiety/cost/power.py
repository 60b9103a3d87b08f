"""Power of a GPU from how busy its compute units and its memory are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.calibration.calibration import Engine, PowerConstants
    from moiety.cluster.device import Device
    from moiety.model.model import Model
    from moiety.plan import DtypePolicy

_TILE_ROWS: dict[Engine, int] = {"vllm": 64}
"""Rows of a tile of an engine's kernel for experts in FP8 blocks where none is tuned (vLLM's `get_default_config` in
fused_moe.py, whose tiles of other formats follow the tokens); of engines that are not named it is not known, and
nothing is taken for padding."""


def power_w(
    device: Device, constants: PowerConstants, *, mfu: float, mbu: float, is_moe: bool, clock_share: float = 1.0
) -> float:
    """Return watts of one GPU: `idle + (base - idle + kc MFU^e) phi(f) + km MBU`, phi = (f / fmax)^2.5.

    `clock_share` is f / fmax, `mfu` the share of the matrix peak at that clock, in the products' format, `mbu` that of
    the memory bandwidth. The constants are those of the architecture, scaled by the device's maximum power. Never more
    than the power limit, never less than idle.

    What SMs draw beyond idle follows frequency and voltage whether or not they compute (Guerreiro et al., "GPGPU Power
    Modeling for Multi-Domain Voltage-Frequency Scaling", HPCA 2018: the core domain has a term in V^2 f without any
    utilization); memory has a clock of its own, and idle power is taken for constant.
    """
    known = constants.of(device.architecture)
    curve = known.moe if is_moe else known.dense
    phi = clock_share**constants.clock_exponent
    cores = curve.base_w - known.idle_w + curve.compute_w * mfu**constants.compute_exponent
    watts = (known.idle_w + cores * phi + curve.memory_w * mbu) * device.max_power_w / known.max_power_w
    return min(max(watts, device.idle_power_w), device.max_power_w)


def products_peak(device: Device, model: Model, dtypes: DtypePolicy) -> float:
    """Return the peak FLOP/s of a device in the format of most products: the experts', without any the weights'."""
    return device.peak(dtypes.weights if model.moe is None else dtypes.experts)


def padding_flops(engine: Engine, model: Model, dtypes: DtypePolicy, tokens: float) -> float:
    """Return what all layers' experts in FP8 blocks compute on padding for so many tokens: those with any, whole tiles.

    Experts in another format, or in FP8 with one scale, have none that is known. Those of a checkpoint whose dense
    weights have a scale a block have one too.
    """
    height = _TILE_ROWS.get(engine)
    if height is None or dtypes.experts != "fp8" or not dtypes.block_scales or not tokens:
        return 0.0
    flops = 0.0
    for moe in (block.moe for block in model.layers if block.moe is not None):
        touched, rows = moe.num_experts * (1 - (1 - moe.top_k / moe.num_experts) ** tokens), tokens * moe.top_k
        padding = touched * math.ceil(rows / touched / height) * height - rows
        flops += 2.0 * padding * moe.expert_parameters(model.hidden_size)
    return flops
