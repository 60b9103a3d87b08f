"""Change: whether GPUs' loads differ from what they were by more than chance, tested anew after every window.

Under no change the mean of the last k windows differs from the usual loads by noise alone, so its square over the
noise's variance follows an F law. Layers share their tokens, so their noise is not independent: how many directions it
has is measured (Satterthwaite, "An approximate distribution of estimates of variance components", 1946), and few
windows are taken to say little of that. Only products of different windows count (Chen and Qin, "A two-sample test for
high-dimensional data", 2010): one window that stands out is no change.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moiety.placement.problem import Loads

_RECENT = (2, 4, 8, 16)
"""Windows whose mean is looked at: jumps show in few, slow drift in many."""
_FEWEST = 4
"""Windows that say anything of the noise."""
_FALSE_ALARMS = 0.01
"""That are made in all the time that loads stay the same. The n-th window may spend 6 / (pi n)^2 of them."""


def has_changed(loads: Loads, usual: Loads, usual_windows: float, rows: Loads, tests: int) -> bool:
    """Return whether `loads` [windows, layers, GPUs], the newest last, are no longer those of before.

    `usual` [layers, GPUs] is the mean of `usual_windows` earlier windows (inf: known exactly). `rows` [layers] are
    those that the last window counted: counts scatter as those of a multinomial law at the least, however alike the few
    windows are that have been seen. `tests` is how often this was asked, this time included. Layers are judged
    together and each alone.
    """
    num_gpus = loads.shape[2]
    if len(loads) < _FEWEST or num_gpus == 1:  # one alone has all of the load, always
        return False
    off = loads - usual
    each = np.einsum("wlg,vlg->lwv", off, off)
    chance = num_gpus * (num_gpus - 1) / np.maximum(rows, 1.0)
    together = _deviates(each.sum(axis=0, keepdims=True), chance.sum(keepdims=True), usual_windows)
    alone = _deviates(each, chance, usual_windows)
    spent = _FALSE_ALARMS * 6 / (np.pi * tests) ** 2 / 2
    limits = (-NormalDist().inv_cdf(spent / layers) for layers in (1, len(each)))
    return any(float(found.max()) > limit for found, limit in zip((together, alone), limits, strict=True))


def _deviates(products: Loads, chance: Loads, usual_windows: float) -> Loads:
    """Return by how many standard deviations of chance recent means are off, [layers].

    `products` [layers, windows, windows] are those of the windows' deviations, summed over GPUs; `chance` [layers] is
    the least variance of a window, likewise.
    """
    windows = products.shape[1]
    noise, directions = _noise(products)
    noise = np.maximum(noise, chance)
    known = directions * 2 * (windows - 1) ** 2 / (3 * windows - 4)  # von Neumann (1941), of successive differences
    best = np.full(len(products), -np.inf)
    for count in _RECENT:
        if count > windows:
            break
        last = products[:, -count:, -count:]
        others = (last.sum(axis=(1, 2)) - np.trace(last, axis1=1, axis2=2)) / (count * (count - 1))
        ratio = 1 + others * (1 - 1 / count) / (noise * (1 / count + 1 / usual_windows))
        best = np.maximum(best, _normal_deviate(ratio, directions, known))
    return best


def _noise(products: Loads) -> tuple[Loads, Loads]:
    """Return a window's variance and the number of directions that it is spread over, each [layers].

    From successive differences, so that slow drift is no noise. Directions are the square of the covariance's trace
    over the trace of its square, which differences that share no window estimate; one more says that all is one
    direction.
    """
    differences = np.diff(np.diff(products, axis=1), axis=2) / 2
    noise: Loads = np.trace(differences, axis1=1, axis2=2) / differences.shape[1]
    one, other = np.triu_indices(differences.shape[1], 2)
    square = (noise**2 + (differences[:, one, other] ** 2).sum(axis=1)) / (1 + len(one))
    return noise, np.where(square > 0, noise**2 / np.where(square > 0, square, 1.0), 1.0)


def _normal_deviate(ratio: Loads, above: Loads, below: Loads) -> Loads:
    """Return the normal deviate as rare as an F ratio of these degrees of freedom (Paulson, 1942)."""
    one, other = 2 / (9 * above), 2 / (9 * below)
    root: Loads = np.cbrt(np.maximum(ratio, 0.0))
    return ((1 - other) * root - (1 - one)) / np.sqrt(other * root**2 + one)
