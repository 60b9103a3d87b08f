"""Calibration files: what is written is read back equal, and what is not a calibration is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from moiety.calibration.catalog import catalog_calibrations, load_calibration
from moiety.calibration.reader import read_calibration
from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("name", catalog_calibrations())
def test_a_calibration_comes_back_equal_from_its_json(name: str) -> None:
    calibration = load_calibration(name)
    assert read_calibration(calibration.model_dump_json(), source="x") == calibration


@pytest.mark.parametrize(
    ("change", "field", "rule"),
    [
        (lambda c: c.pop("name"), "name", "required"),
        (lambda c: c.update(name="two\nlines"), "name", "pattern"),
        (lambda c: c.update(other=1), "other", "Extra"),
        (lambda c: c.update(architectures=[]), "architectures", "at least 1"),
        (lambda c: c["roofline"]["dense_gemm"].update(memory_efficiency=17), "memory_efficiency", "less than"),
        (lambda c: c["roofline"]["dense_gemm"].update(basis="guess"), "roofline.dense_gemm.basis", "measured"),
        (lambda c: c["roofline"].pop("memory_pass"), None, "roofline.memory_pass missing"),
        (lambda c: c["engines"].pop("moiety"), None, "engines.moiety missing"),
        (lambda c: c["engines"].update(mine=c["engines"]["moiety"]), "engines.mine", "moiety"),
        (lambda c: c["engines"]["moiety"].update(reserve_bytes=-1), "reserve_bytes", "greater"),
        (lambda c: c["collectives"].update(latency_s=[1e-6]), "collectives", "each of the 3 group_sizes"),
        (lambda c: c["collectives"].update(group_sizes=[8, 4, 2]), "collectives", "must grow"),
        (lambda c: c["collectives"].update(mid_bytes=2**40), "collectives", "below large_bytes"),
        (lambda c: c["power"]["devices"][0]["moe"].update(base_w=-1.0), "power.devices.0.moe.base_w", "greater"),
        (lambda c: c["power"]["devices"][0].update(idle_w=500.0), "power.devices.0", "must not be below idle_w"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused_with_its_field(
    change: Callable[[dict[str, Any]], object], field: str | None, rule: str
) -> None:
    document = json.loads(load_calibration().model_dump_json())
    change(document)
    with pytest.raises(InputError) as refused:
        read_calibration(json.dumps(document), source="constants.json")
    message = str(refused.value)
    assert message.startswith("constants.json: ")
    assert rule in message
    assert "moiety run --bench" in message
    assert (field or "") in (refused.value.field or "")


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"name": NaN}', '{"name": 1, "name": 2}'])
def test_text_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"constants\.json"):
        read_calibration(text, source="constants.json")
