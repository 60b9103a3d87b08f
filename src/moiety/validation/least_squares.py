"""Damped least squares (Levenberg 1944, Marquardt 1963) with a numerical Jacobian; enough for a few dozen constants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_STEP = 1e-5
_FIRST_DAMPING, _MOST_DAMPING = 1e-2, 1e6


def minimise(
    residuals: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    start: NDArray[np.float64],
    *,
    rounds: int,
    together: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]] | None = None,
) -> NDArray[np.float64]:
    """Return the point near `start` [parameters] where the squares of `residuals` [terms] add up to least.

    Stops after `rounds` Jacobians, or where no damped step improves on the last point. `together` holds sets of
    parameters no term depends on two of (Curtis, Powell and Reid 1974), whose columns take one evaluation together:
    (the set, which of it each term depends on [terms], -1 for none).
    """
    sets = (
        together if together is not None else [(np.array([i]), np.zeros(1, dtype=np.intp)) for i in range(len(start))]
    )
    point, damping = start.copy(), _FIRST_DAMPING
    now = residuals(point)
    cost = float(now @ now)
    for _ in range(rounds):
        jacobian = np.zeros((len(now), len(point)))
        for members, owner in sets:
            moved = point.copy()
            moved[members] += _STEP
            slopes = (residuals(moved) - now) / _STEP
            for place, member in enumerate(members):
                jacobian[:, member] = np.where(owner == place, slopes, 0.0)
        normal, slope = jacobian.T @ jacobian, jacobian.T @ now
        improved = False
        while damping < _MOST_DAMPING and not improved:
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), -slope)
            tried = point + np.clip(step, -1.0, 1.0)
            then = residuals(tried)
            if (after := float(then @ then)) < cost:
                gain, improved = cost - after, True
                point, now, cost, damping = tried, then, after, damping / 5
                if gain < 1e-5 * cost:
                    return point
            else:
                damping *= 4
        if not improved:
            break
    return point


def robust(errors: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Return residuals whose squares grow as `errors` squared when small, and only linearly beyond `scale`."""
    return np.sign(errors) * scale * np.sqrt(2 * (np.sqrt(1 + np.square(errors / scale)) - 1))
