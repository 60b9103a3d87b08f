"""The calibrations that the package carries."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from moiety.calibration.reader import read_calibration
from moiety.package_data import catalog_names, catalog_text

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration

DEFAULT_CALIBRATION = "published-2026-11"


def catalog_calibrations() -> tuple[str, ...]:
    """Return the names of the calibrations, sorted."""
    return catalog_names("calibration", ".json")


@cache
def load_calibration(name: str = DEFAULT_CALIBRATION) -> Calibration:
    """Return a calibration of the catalogue."""
    return read_calibration(catalog_text("calibration", name, ".json"), source=f"catalogue calibration {name}")


def calibration_for(architecture: str) -> Calibration:
    """Return the catalogue's calibration for devices of an architecture; the default where none was made for them."""
    known = (load_calibration(name) for name in catalog_calibrations())
    return next((each for each in known if architecture in each.architectures), load_calibration())
