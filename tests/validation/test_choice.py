"""What choosing a deployment by the predictions costs, and how well they order deployments and loads."""

from __future__ import annotations

import pytest

from moiety.validation.compare import Compared
from moiety.validation.noise import repeat_spread
from moiety.validation.score import plan_choice, training_choice
from moiety.validation.serving_case import serving_case
from moiety.validation.serving_row import ServingRow
from moiety.validation.training_case import TrainedDeployment

OUTPUT_TOKENS = 1001


def run(gpus: int, concurrency: int, *, predicted_s: float, measured_s: float) -> Compared:
    """Return a run on some GPUs of which a request takes `measured_s` from its first token to its last."""
    row = ServingRow.model_validate(
        {
            "id": f"{gpus}-{concurrency}",
            "source": "made here",
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "system": "h200_sxm",
            "num_gpus": gpus,
            "backend": "vllm",
            "backend_version": "0.12.0",
            "precision": "bf16",
            "mode": "agg",
            "isl": 1000,
            "osl": OUTPUT_TOKENS,
            "concurrency": concurrency,
            "tp": gpus,
            "measured": {"ttft_ms": 1.0, "tpot_ms": 1.0},
        }
    )
    latencies = [{"ttft_ms": 1e-9, "tpot_ms": each * 1e3 / (OUTPUT_TOKENS - 1)} for each in (measured_s, predicted_s)]
    return Compared(row.id, 1, {"model": row.model}, *latencies, case=serving_case(row))


def test_the_deployment_that_is_predicted_to_serve_most_for_each_gpu_is_chosen() -> None:
    choice = plan_choice(
        [
            run(1, 16, predicted_s=10, measured_s=10),
            run(2, 16, predicted_s=4, measured_s=5.5),
            # under another load the better one is chosen
            run(1, 32, predicted_s=10, measured_s=10),
            run(2, 32, predicted_s=6, measured_s=6),
        ]
    )
    assert choice is not None
    assert choice.num_groups == 2
    # two GPUs serve 16 / 5.5 / 2 where one serves 16 / 10
    assert choice.mean_loss == pytest.approx((5.5 * 2 / 10 - 1) / 2)
    assert choice.share_near_best == 0.5


def test_what_was_measured_does_not_choose_between_equal_predictions() -> None:
    choice = plan_choice([run(1, 16, predicted_s=8, measured_s=10), run(2, 16, predicted_s=4, measured_s=4)])
    assert choice is not None
    assert choice.mean_loss == pytest.approx(10 / (4 * 2) - 1)


@pytest.mark.parametrize(("swapped", "reached"), [(False, 1.0), (True, 0.8)])
def test_ranks_are_those_of_throughput_for_each_gpu_whatever_the_load(swapped: bool, reached: float) -> None:
    times = {(1, 16): 10, (2, 16): 4, (1, 32): 11, (2, 32): 6}
    predicted = dict(times)
    if swapped:
        # 16 / 10, 16 / 4 / 2, 32 / 11, 32 / 6 / 2: the last two change places
        predicted[2, 32] = 5.0
    rows = [run(*key, predicted_s=predicted[key], measured_s=measured) for key, measured in times.items()]
    choice = plan_choice(rows)
    assert choice is not None
    assert choice.spearman == pytest.approx(reached)


def test_nothing_is_ranked_where_too_few_were_measured() -> None:
    choice = plan_choice([run(1, 16, predicted_s=10, measured_s=10), run(2, 16, predicted_s=4, measured_s=4)])
    assert choice is not None
    assert choice.spearman is None


def trained(way: str, release: str, *, predicted: float, measured: float, gpus: int = 64) -> Compared:
    """Return a training run of one model in some way on as many GPUs."""
    deployment = TrainedDeployment((gpus, 4096), (way,), release)
    return Compared(way, 1, {"model": "m"}, {"mfu": measured}, {"mfu": predicted}, trained=deployment)


def test_of_training_runs_under_one_load_and_release_the_fastest_predicted_one_is_chosen() -> None:
    choice = training_choice(
        [
            trained("a", "26.02", predicted=0.4, measured=0.4),
            trained("b", "26.02", predicted=0.5, measured=0.32),
            trained("a", "26.04", predicted=0.4, measured=0.3),
            trained("b", "26.04", predicted=0.5, measured=0.5),
            trained("a", "26.04", predicted=0.9, measured=0.9, gpus=128),
        ]
    )
    assert choice is not None
    assert choice.num_groups == 2
    assert choice.mean_loss == pytest.approx((0.4 / 0.32 - 1) / 2)
    assert choice.share_near_best == 0.5
    assert training_choice([trained("a", "", predicted=0.4, measured=0.4)]) is None
    assert training_choice([run(1, 16, predicted_s=10, measured_s=10)]) is None


def test_training_in_another_release_is_measured_again() -> None:
    rows = [
        trained(f"way {way}", f"26.0{release}", predicted=0.4, measured=way * 1.1**release)
        for way in range(1, 11)
        for release in range(3)
    ]
    # a tenth up and down of the middle one, 3 values having 2 degrees of freedom
    deviation = 2 / 3 * 1.5**0.5 * 0.0953
    assert repeat_spread(rows, "mfu") == pytest.approx(deviation * 1.2533, rel=1e-3)
    assert repeat_spread([row for row in rows if row.trained and row.trained.release == "26.00"], "mfu") is None
