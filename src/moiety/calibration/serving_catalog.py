"""The serving constants that the package carries, as `python -m moiety.validation.fit serving` writes them."""

from __future__ import annotations

from functools import cache

from moiety.calibration.serving import ServingConstants
from moiety.package_data import catalog_text

DEFAULT_SERVING = "serving-2026-11"


@cache
def load_serving(name: str = DEFAULT_SERVING) -> ServingConstants:
    """Return the serving constants of the catalogue."""
    return ServingConstants.model_validate_json(catalog_text("serving", name, ".json"))
