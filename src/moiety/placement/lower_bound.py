"""The least that the busiest GPU of a layer can carry, whatever the placement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.problem import Loads

_HALVINGS = 40
_ROUNDS = 3
_SLACK = 1e-9


def peak_lower_bound(loads: Loads, *, num_gpus: int, num_slots: int, gpu_speed: Loads | None = None) -> Loads:
    """Return a lower bound on the peak of each row of `loads` [..., experts]: max over GPUs of load / speed, [...].

    It holds for every placement of the experts on `num_slots` slots, equally many on each of `num_gpus` GPUs, in which
    every expert has a copy, no GPU two copies of one, and the copies of an expert share its load equally. `gpu_speed`
    [GPUs] is relative to the mean (mean 1), None where all are alike. `mean / bound` is an upper bound on balance.

    The argument, for a peak t that some placement reaches, with s slots a GPU and f the fastest GPU's speed:

    - Mean: the loads of the GPUs sum to the total, and each is at most t x its speed; the speeds sum to the number of
      GPUs. So t >= total / GPUs.
    - Pigeonhole: a GPU with a copy of expert e carries load_e / c_e and s - 1 other experts' copies, together at
      most t f. If s - 1 copies of different experts weigh at least m, then c_e >= load_e / (t f - m); also c_e >= 1.
      The c_e sum to the slots: a t at which the least counts sum to more is out of reach.
    - Company: with these least counts, an expert can have at most its own least count and all slots that are left
      over, and never more copies than GPUs. Its copies weigh at least load_e / that; m is the sum of the s - 1 least
      of these. Starting from m = 0 the two steps only raise each other, and each round is valid.

    The least t that is not out of reach is found by bisection, which returns the lower end.
    """
    rows = loads.reshape(-1, loads.shape[-1]).astype(np.float64)
    fastest = 1.0 if gpu_speed is None else float(gpu_speed.max())
    low = rows.sum(axis=1) / num_gpus
    high = np.maximum(rows.sum(axis=1) / fastest, low)
    done = _may_reach(rows, low, fastest, num_gpus, num_slots)
    for _ in range(_HALVINGS):
        if done.all():
            break
        open_rows = ~done
        middle = (low[open_rows] + high[open_rows]) / 2
        reached = _may_reach(rows[open_rows], middle, fastest, num_gpus, num_slots)
        high[open_rows] = np.where(reached, middle, high[open_rows])
        low[open_rows] = np.where(reached, low[open_rows], middle)
    return low.reshape(loads.shape[:-1])


def _may_reach(rows: Loads, peak: Loads, fastest: float, num_gpus: int, num_slots: int) -> NDArray[np.bool_]:
    """Return whether the argument of `peak_lower_bound` leaves each row's peak possible, [rows]."""
    others = min(num_slots // num_gpus, rows.shape[1]) - 1  # fewer experts than slots a GPU: some must be repeated
    room = peak[:, None] * fastest * (1 + _SLACK)
    company = np.zeros_like(room)
    possible = np.ones(rows.shape[0], dtype=np.bool_)
    for _ in range(_ROUNDS):
        left = room - company
        least = np.divide(rows, left, out=np.full_like(rows, np.inf), where=left > 0)
        least = np.where(rows == 0, 1.0, np.ceil(least * (1 - _SLACK))).clip(1.0, num_slots + 1.0)
        spare = num_slots - least.sum(axis=1)
        possible &= spare >= 0
        if not possible.any() or others == 0:
            break
        most = np.minimum(np.where(possible[:, None], least + spare[:, None], 1.0), num_gpus)
        company = np.partition(rows / most, others - 1, axis=1)[:, :others].sum(axis=1, keepdims=True)
    return possible
