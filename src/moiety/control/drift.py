"""Drift: layers in which the fullest GPU is expected to carry more than the forecast's own uncertainty explains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.forecast.kalman import noise_and_walk, steady_gain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.problem import Loads, SlotMap

_ALARM, _HEED = 7.0, 1.0
"""Standard deviations that raise the alarm, and that count once it is raised: hysteresis. A peak among hundreds of
GPUs, layers and windows must not be taken for drift; once there is drift, small imbalances are part of it."""
_CALM = 8
"""Windows without imbalance after which the alarm is off."""
_LEAST_GAIN = 1 / 9
"""Of the variance of one window: no forecast is trusted to average over more than about nine windows."""
_FEWEST = 8
"""Windows before which nothing is known of the noise."""


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """What is known of each layer."""

    level: Loads
    """Peak load that was expected when the layer was last placed, [layers]; 1 is the mean GPU load."""
    alarm: NDArray[np.bool_]
    """[layers]"""
    calm: SlotMap
    """Windows without imbalance, [layers]."""
    uncertainty: Loads
    """Standard deviation of the forecast of a GPU's load, [layers]."""
    adrift: NDArray[np.bool_]
    """Layers to be placed anew, [layers]."""


def no_drift(num_layers: int) -> Drift:
    """Return what is known before the first window."""
    never, ones = np.zeros(num_layers, dtype=np.bool_), np.ones(num_layers)
    return Drift(ones, never, np.zeros(num_layers, dtype=np.int64), ones * 0.0, never)


def observed_drift(before: Drift, loads: Loads, expected: Loads, lone: NDArray[np.bool_], rows: Loads) -> Drift:
    """Return the drift after a window.

    `loads` [windows, layers, GPUs] are the GPUs' loads of the last windows under the map in use, `expected`
    [layers, GPUs] those of the next, all over the GPU's speed and relative to the mean. `lone` [layers] says where they
    rest on the last window alone, and so have all of its noise. `rows` [layers] are those that the last window counted:
    counts scatter as those of a multinomial law at the least, however alike the few windows are that have been seen.
    """
    noise, walk = noise_and_walk(loads)
    noise = np.maximum(noise, (loads.shape[2] - 1) / np.maximum(rows, 1.0))
    gain = np.where(lone, 1.0, np.maximum(steady_gain(noise, walk), _LEAST_GAIN))
    uncertainty = np.sqrt(noise * gain)
    above = expected.max(axis=1) - np.maximum(before.level, 1.0)
    heeded = above > _HEED * uncertainty
    calm = np.where(heeded, 0, before.calm + 1)
    known = len(loads) >= _FEWEST
    alarm = (before.alarm | (above > _ALARM * uncertainty)) & (calm < _CALM) & known
    return replace(before, alarm=alarm, calm=calm, uncertainty=uncertainty, adrift=alarm & heeded)


def placed(before: Drift, layers: NDArray[np.bool_], level: Loads) -> Drift:
    """Return the drift after `layers` [layers] were looked at, and placed so that peaks of `level` are expected."""
    return replace(before, level=np.where(layers, level, before.level), adrift=before.adrift & ~layers)
