"""What choosing a deployment by the predictions costs, and how well they order deployments and loads."""

from __future__ import annotations

import pytest

from moiety.validation.compare import Compared
from moiety.validation.score import plan_choice
from moiety.validation.serving_case import serving_case
from moiety.validation.serving_row import ServingRow

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
