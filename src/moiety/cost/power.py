"""Power of a GPU from how busy its compute units and its memory are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.cluster.device import Device


def power_w(
    device: Device, calibration: Calibration, *, mfu: float, mbu: float, is_moe: bool, clock_share: float = 1.0
) -> float:
    """Return watts of one GPU: `P0 + (kc MFU phi(f) + km MBU)`, phi = (f / fmax)^2.5, scaled by the device's maximum.

    `mfu` is the share of the matrix peak, `mbu` the share of the memory bandwidth, `clock_share` f / fmax. Never more
    than the device's power limit, never less than its idle power.
    """
    constants = calibration.power
    curve = constants.moe if is_moe else constants.dense
    scale = device.max_power_w / constants.reference_max_power_w
    phi = clock_share**constants.clock_exponent
    watts = scale * (curve.base_w + curve.compute_w * mfu * phi + curve.memory_w * mbu)
    return min(max(watts, device.idle_power_w), device.max_power_w)
