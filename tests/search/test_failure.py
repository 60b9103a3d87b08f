"""What-if: what failures leave."""

from __future__ import annotations

import pytest

from moiety.cluster.catalog import load_cluster
from moiety.errors import InputError
from moiety.plan import Options, Phase, Plan
from moiety.search.failure import degrade, parse_failures, with_links
from tests.scenarios import CALIBRATION, LOADS, evaluated, scenario, served_plan, small_model

CLUSTER = load_cluster("h100x16")


def plan_of(name: str, phase: Phase = "prefill", options: Options | None = None) -> Plan:
    if phase == "prefill" and options is None:
        return served_plan(name)
    return evaluated(scenario(small_model(), "h100x16", LOADS[phase]), name, options)


def expert_bytes(plan: Plan) -> int:
    """Return the bytes of an expert of one layer, of a plan with six."""
    memory, placement = plan.pools[0].memory, plan.pools[0].placement
    assert memory is not None
    assert placement is not None
    return memory.bytes_by_kind["expert_weights"] // placement.slots_per_rank // 6


@pytest.mark.parametrize("name", ["ep16_tp1", "tp8_x2", "tp2_dp4_ep8_pp2"])
def test_losing_nothing_changes_nothing(name: str) -> None:
    plan = plan_of(name)
    after = degrade(plan, [], CALIBRATION)
    assert after.throughput_share == pytest.approx(1.0)
    assert after.alive_gpus == 16
    assert after.pools[0].expert_coverage == 1.0
    assert after.pools[0].reloaded_experts == after.pools[0].lost_instances == 0


@pytest.mark.parametrize("phase", ["prefill", "decode", "mixed", "training"])
@pytest.mark.parametrize("name", ["ep16_tp1", "ep4_tp2_x2", "tp8_x2", "ep8_tp2", "tp1_dp16_ep4"])
def test_losing_more_never_raises_throughput(phase: Phase, name: str) -> None:
    plan = plan_of(name, phase)
    shares = [
        degrade(plan, texts, CALIBRATION).throughput_share
        for texts in ([], ["gpu:3"], ["gpu:3", "gpu:12"], ["node:0", "gpu:12"], ["node:0", "node:1"])
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(1.0)
    assert shares[-1] == 0.0


def test_coverage_by_hand() -> None:
    # 16 experts, one a GPU: a GPU takes its expert along, a node half of them
    plan = plan_of("ep16_tp1")
    for text, share in (("gpu:5", 15 / 16), ("node:1", 1 / 2)):
        pool = degrade(plan, [text], CALIBRATION).pools[0]
        assert pool.expert_coverage == pytest.approx(share)
        assert pool.reloaded_experts == round(16 * (1 - share))
        assert pool.throughput_share <= share
        # the lost experts of all six layers are shared out over who is left: one each, or one of every layer
        assert pool.reload_bytes_per_gpu == expert_bytes(plan) * (1 if share > 1 / 2 else 6)
    # with a copy of each on the next rank one loss is covered
    spare = plan_of("ep16_tp1", options=Options(redundant_experts=16))
    pool = degrade(spare, ["gpu:5"], CALIBRATION).pools[0]
    assert pool.expert_coverage == 1.0
    assert pool.reload_bytes_per_gpu == 0
    # without one of both, it is read into the slot of an expert that has two copies, and takes no memory
    pool = degrade(spare, ["gpu:5", "gpu:6"], CALIBRATION).pools[0]
    assert (pool.reloaded_experts, pool.fits) == (1, True)
    assert pool.reload_bytes_per_gpu == expert_bytes(spare)
    # tensor-parallel partners stop together: GPUs 4 and 5 hold experts 4 and 5
    pool = degrade(plan_of("ep8_tp2"), ["gpu:5"], CALIBRATION).pools[0]
    assert pool.expert_coverage == pytest.approx(14 / 16)


def test_a_pipeline_loses_the_experts_of_one_stage_and_its_instance() -> None:
    plan = plan_of("tp1_dp8_ep8_pp2")
    pool = degrade(plan, ["gpu:9"], CALIBRATION).pools[0]
    assert pool.expert_coverage == pytest.approx(1 - 1 / 2 / 8)  # an eighth of half of the layers
    assert pool.lost_instances == 1
    assert pool.throughput_tokens_per_s == 0


def test_instances_fail_alone() -> None:
    pool = degrade(plan_of("tp8_x2"), ["gpu:1", "gpu:2"], CALIBRATION).pools[0]
    assert (pool.lost_instances, pool.throughput_share) == (1, pytest.approx(0.5))
    assert pool.lost_ranks == (1, 2)


def test_slow_links_slow_plans_that_use_them() -> None:
    crossing, inside = plan_of("ep16_tp1"), plan_of("tp1_x16")
    assert degrade(crossing, ["link:infiniband:0.1"], CALIBRATION).throughput_share < 0.95
    assert degrade(inside, ["link:infiniband:0.1"], CALIBRATION).throughput_share == pytest.approx(1.0)


def test_failures_are_read() -> None:
    failures = parse_failures(["gpu:3", "node:1", "link:infiniband"], CLUSTER)
    assert failures.ranks == frozenset({3, *range(8, 16)})
    slower = with_links(CLUSTER, failures.link_shares)
    assert slower.tiers[1].bandwidth_bytes_per_s == CLUSTER.tiers[1].bandwidth_bytes_per_s / 2


@pytest.mark.parametrize(
    "text",
    [
        "gpu:16",
        "node:2",
        "gpu:-1",
        "gpu",
        "",
        "link:ethernet",
        "link:nvlink:0",
        "link:nvlink:1.5",
        "link:nvlink:1.2.3",
        "rack:1",
        "slow:16",
        "slow:3:0.5",
        "slow:3:nan",
        "rail:nvlink",
        "rail:ethernet",
    ],
)
def test_failures_of_what_is_not_there_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--fail"):
        parse_failures([text], CLUSTER)


def test_a_slow_gpu_sets_the_pace_of_its_instance_alone() -> None:
    two, one = plan_of("tp8_x2"), plan_of("ep16_tp1")
    slow = degrade(two, ["slow:3:2"], CALIBRATION).throughput_share
    assert 0.75 <= slow < 0.95  # half of the plan at half its pace or, where it waits for links, a better one
    assert degrade(two, ["slow:3:2", "slow:5:1.5"], CALIBRATION).throughput_share == pytest.approx(slow)
    assert (
        degrade(one, ["slow:3:4"], CALIBRATION).throughput_share
        < degrade(one, ["slow:3:2"], CALIBRATION).throughput_share
    )
    assert degrade(two, ["slow:3:1"], CALIBRATION).throughput_share == pytest.approx(1.0)
    # gone is gone, however slow it was
    lost = degrade(two, ["gpu:3"], CALIBRATION).throughput_share
    assert degrade(two, ["gpu:3", "slow:3:9"], CALIBRATION).throughput_share == pytest.approx(lost)
    assert degrade(two, ["gpu:3", "slow:9:2"], CALIBRATION).throughput_share == pytest.approx(slow - (1 - lost))


def test_a_rail_is_one_of_a_nodes_cards() -> None:
    failures = parse_failures(["rail:infiniband"], CLUSTER)
    assert failures.link_shares == ((1, pytest.approx(7 / 8)),)
