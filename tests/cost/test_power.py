"""Power: within the device's limits, more when more is done, less at lower clocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.cluster.catalog import catalog_devices, load_device
from moiety.cost.power import padding_flops, power_w
from moiety.plan import DtypePolicy
from tests.scenarios import CALIBRATION, moe, small_model

share = st.floats(0, 1)


@given(st.sampled_from(catalog_devices()), share, share, st.booleans(), st.floats(0.1, 1), share)
def test_power_stays_within_the_limits_and_rises_with_work(
    name: str, mfu: float, mbu: float, is_moe: bool, clock: float, more: float
) -> None:
    device = load_device(name)

    def watts(compute: float, memory: float, clock_share: float) -> float:
        return power_w(device, CALIBRATION.power, mfu=compute, mbu=memory, is_moe=is_moe, clock_share=clock_share)

    found = watts(mfu, mbu, clock)
    assert device.idle_power_w <= found <= device.max_power_w
    assert watts(max(mfu, more), mbu, clock) >= found
    assert watts(mfu, max(mbu, more), clock) >= found
    assert watts(mfu, mbu, 1.0) >= found


def test_the_formula_by_hand() -> None:
    h100, law = load_device("h100"), CALIBRATION.power
    known = law.of("hopper")
    curve, phi = known.dense, 0.8**law.clock_exponent
    watts = power_w(h100, law, mfu=0.04, mbu=0.3, is_moe=False, clock_share=0.8)
    active = (curve.base_w - known.idle_w + 0.2 * curve.compute_w) * phi
    assert law.compute_exponent == 0.5
    assert watts == pytest.approx(known.idle_w + active + 0.3 * curve.memory_w)


def test_architectures_have_their_own_constants_and_others_those_of_the_first() -> None:
    law = CALIBRATION.power
    assert law.of("blackwell") is not law.of("hopper")
    assert law.of("of another kind") is law.devices[0]
    b200 = load_device("b200")
    assert power_w(b200, law, mfu=0, mbu=0, is_moe=True) == law.of("blackwell").moe.base_w


def test_no_clock_goes_below_what_memory_and_idle_draw() -> None:
    h100, known = load_device("h100"), CALIBRATION.power.of("hopper")
    watts = power_w(h100, CALIBRATION.power, mfu=0.1, mbu=0.5, is_moe=True, clock_share=1e-3)
    assert watts == pytest.approx(known.idle_w + 0.5 * known.moe.memory_w, rel=1e-3)


def test_experts_with_a_token_have_whole_tiles() -> None:
    part, touched = moe(num_experts=4, top_k=1), 4 * (1 - (3 / 4) ** 2)
    model = small_model(part=part, dense_layers=1)
    of_row = 2 * model.num_moe_layers * part.expert_parameters(model.hidden_size)
    blocks = DtypePolicy(weights="fp8", experts="fp8", block_scales=True)
    assert padding_flops("vllm", model, blocks, 2) == pytest.approx((64 * touched - 2) * of_row)
    assert padding_flops("vllm", model, blocks, 4 * 6400) < 0.01 * 4 * 6400 * of_row
    assert padding_flops("moiety", model, blocks, 2) == 0  # whose tiles no published run says anything of
    others = (blocks.model_copy(update={"block_scales": False}), blocks.model_copy(update={"experts": "bf16"}))
    assert [padding_flops("vllm", model, each, 2) for each in others] == [0, 0]
