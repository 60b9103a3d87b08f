"""The calibrations that the package carries."""

from __future__ import annotations

import pytest

from moiety.calibration.catalog import DEFAULT_CALIBRATION, calibration_for, catalog_calibrations, load_calibration


@pytest.mark.parametrize("name", catalog_calibrations())
def test_every_calibration_is_whole_and_says_its_sources(name: str) -> None:
    calibration = load_calibration(name)
    assert calibration.name == name
    parts = [*calibration.roofline.values(), *calibration.engines.values()]
    parts += [calibration.collectives, calibration.expert_exchange, calibration.power]
    assert all(part.source for part in parts)


def test_devices_get_the_constants_of_their_architecture_and_others_the_default() -> None:
    assert "cpu" in calibration_for("cpu").architectures
    assert calibration_for("hopper").name == DEFAULT_CALIBRATION
    assert calibration_for("of-another-world").name == DEFAULT_CALIBRATION


def test_constants_are_assumptions_on_other_architectures() -> None:
    calibration = load_calibration()
    fitted = calibration.roofline["dense_gemm"]
    assert calibration.basis_on("hopper", fitted) == "fitted"
    assert calibration.basis_on("hopper", fitted, calibration.roofline["memory_pass"]) == "assumed"
    assert calibration.basis_on("ampere", fitted) == "assumed"
