"""The constants of an engine's plans: those of the serving runs, one record for planning and for validating."""

from __future__ import annotations

import pytest

from moiety.calibration.calibration import EngineOverheads
from moiety.calibration.catalog import calibration_for, load_calibration
from moiety.calibration.engines import engine_calibration
from moiety.calibration.serving_catalog import load_serving

GIB = 2**30


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
@pytest.mark.parametrize("architecture", ["hopper", "blackwell"])
def test_an_engine_has_the_overheads_and_kernels_of_its_newest_release(engine: str, architecture: str) -> None:
    found = engine_calibration(engine, architecture, 80 * GIB)
    family = load_serving().family(architecture)
    release = family.release(engine, "999.0.0")
    assert all(getattr(found.engines[engine], name) == getattr(release, name) for name in EngineOverheads.model_fields)
    assert found.roofline == {**load_calibration().roofline, **family.roofline}
    assert found.collectives == family.collectives
    assert found.name == load_serving().name
    assert found.basis_on(architecture, found.engines[engine]) == "fitted"


def test_where_no_serving_runs_were_measured_the_kernels_are_the_device_s_and_the_overheads_assumed() -> None:
    found = engine_calibration("vllm", "generic", 8 * GIB)
    assert found.roofline == calibration_for("generic").roofline
    assert found.engines["vllm"].basis == "assumed"
    assert found.engines["moiety"] == calibration_for("generic").engines["moiety"]


def test_constants_of_the_user_stand() -> None:
    given = load_calibration().model_copy(update={"name": "mine"})
    found = engine_calibration("sglang", "hopper", 80 * GIB, given)
    assert found.model_copy(update={"engines": given.engines}) == given
    assert engine_calibration("sglang", "blackwell", 8 * GIB, found) is found
    assert engine_calibration("moiety", "hopper", 80 * GIB) is calibration_for("hopper")


def test_more_memory_leaves_more_to_an_engine_s_cache() -> None:
    small, large = (
        engine_calibration("vllm", "hopper", each * GIB).engines["vllm"].reserve_bytes for each in (80, 141)
    )
    assert 0 < small < large < 80 * GIB / 4
