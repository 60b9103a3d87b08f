"""Least squares by SciPy, of errors that count robustly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def minimise(
    residuals: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    start: NDArray[np.float64],
    *,
    rounds: int,
    reach: float = np.inf,
    depends: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Return the point near `start` [parameters] where the squares of `residuals` [terms] add up to least.

    Stops after trying `rounds` points; none is farther than `reach` from the start in a parameter. `depends` [terms,
    parameters] says which parameters each term depends on: the derivatives by those that no term has two of take one
    evaluation together. Raises InputError where SciPy is not installed.
    """
    try:
        from scipy.optimize import least_squares  # noqa: PLC0415 - an extra; only a fit needs it
    except ModuleNotFoundError:
        rule = "constants are fitted with SciPy, which is not installed"
        raise InputError(rule, source="python -m moiety.validation.fit", remedy="pip install 'moiety[fit]'") from None
    bounds = (start - reach, start + reach)
    return least_squares(residuals, start, bounds=bounds, jac_sparsity=depends, x_scale="jac", max_nfev=rounds).x


def robust(errors: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Return residuals whose squares grow as `errors` squared when small, and only linearly beyond `scale`.

    That is SciPy's `soft_l1`, for the errors alone: what constants are expected to be counts as it is.
    """
    return np.sign(errors) * scale * np.sqrt(2 * (np.sqrt(1 + np.square(errors / scale)) - 1))
