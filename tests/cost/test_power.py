"""Power: within the device's limits, more when more is done, less at lower clocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.cluster.catalog import catalog_devices, load_device
from moiety.cost.power import power_w
from tests.scenarios import CALIBRATION

share = st.floats(0, 1)


@given(st.sampled_from(catalog_devices()), share, share, st.booleans(), st.floats(0.1, 1), share)
def test_power_stays_within_the_limits_and_rises_with_work(
    name: str, mfu: float, mbu: float, is_moe: bool, clock: float, more: float
) -> None:
    device = load_device(name)

    def watts(compute: float, memory: float, clock_share: float) -> float:
        return power_w(device, CALIBRATION, mfu=compute, mbu=memory, is_moe=is_moe, clock_share=clock_share)

    found = watts(mfu, mbu, clock)
    assert device.idle_power_w <= found <= device.max_power_w
    assert watts(max(mfu, more), mbu, clock) >= found
    assert watts(mfu, max(mbu, more), clock) >= found
    assert watts(mfu, mbu, 1.0) >= found


def test_the_formula_by_hand() -> None:
    h100 = load_device("h100")
    dense = power_w(h100, CALIBRATION, mfu=0.2, mbu=0.3, is_moe=False)
    assert dense == pytest.approx((382 + 875 * 0.2 + 141 * 0.3) * h100.max_power_w / 700)
