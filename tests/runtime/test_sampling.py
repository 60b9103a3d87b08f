"""Sampling: greedy is the most likely token; a draw is its sequence's own, from what top-k and top-p leave."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from moiety.runtime.sampling import NO_TOKEN, Sampling

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


def test_greedy_takes_the_most_likely() -> None:
    rows = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert Sampling().draw(rows, [0, 1], [0, 0]).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-30, 0.009])
def test_temperatures_that_leave_nothing_to_chance_take_the_most_likely(temperature: float) -> None:
    rows = torch.tensor([[0.0, 2.0, 1.999], [3e4, -2.0, 1.0]])
    assert Sampling(temperature=temperature).draw(rows, [0, 1], [0, 0]).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_comes_of_logits_that_are_not_finite(temperature: float, dtype: torch.dtype) -> None:
    inf, nan = torch.inf, torch.nan
    rows = [[0.0, 9.0, -inf], [0.0, inf, 1.0], [nan, 9.0, 1.0], [9.0, 1.0, nan], [-inf] * 3, [0.0, -99.0, 88.0]]
    drawn = Sampling(temperature=temperature).draw(torch.tensor(rows, dtype=dtype), list(range(6)), [0] * 6)
    assert drawn.tolist() == [1, NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, 2]


def test_logits_that_leave_fp32_by_the_temperature_give_no_token() -> None:
    rows = torch.tensor([[3e38, 0.0], [0.0, 9.0]])
    assert Sampling(temperature=0.01).draw(rows, [0, 1], [0, 0]).tolist() == [NO_TOKEN, 1]


def test_a_draw_does_not_depend_on_the_batch_it_is_made_in() -> None:
    sampling = Sampling(temperature=1.0, seed=3)
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    together = sampling.draw(rows, [4, 8, 2, 9, 1], [7, 7, 3, 2, 1]).tolist()
    alone = [
        int(sampling.draw(rows[index : index + 1], [number], [place])[0])
        for index, (number, place) in enumerate(zip([4, 8, 2, 9, 1], [7, 7, 3, 2, 1], strict=True))
    ]
    assert together == alone


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(temperature=1.0, top_k=2), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.8), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.81), {0, 1, 2}),
        (Sampling(temperature=1.0), {0, 1, 2, 3}),
    ],
)
def test_draws_come_from_what_is_left_and_reach_all_of_it(sampling: Sampling, allowed: set[int]) -> None:
    drawn = {int(sampling.draw(LOGITS, [0], [place])[0]) for place in range(400)}
    assert drawn == allowed


def test_probabilities_are_those_of_the_temperature() -> None:
    sampling = Sampling(temperature=2.0, seed=1)
    drawn = [int(sampling.draw(LOGITS, [0], [place])[0]) for place in range(4000)]
    expected = torch.softmax(LOGITS[0] / 2.0, dim=0)
    for token, probability in enumerate(expected.tolist()):
        assert drawn.count(token) / 4000 == pytest.approx(probability, abs=0.03)
