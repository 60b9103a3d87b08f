"""The KV cache has the format, the windows and the bytes of the plan, and rounds values to the format, no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from moiety.errors import InputError
from moiety.plan import DtypePolicy, Plan
from moiety.runtime.model.batch import Segment, packed
from moiety.runtime.model.kv_cache import CachedStep, KvCache, cache_dtype
from moiety.verify.closed_form import cache_bytes
from tests.runtime.checkpoints import reference_model, save_checkpoint
from tests.runtime.model.cases import NEW, PROMPTS, case, run

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.dtypes import Dtype

NAMES = "qwen3_moe", "deepseek_v3", "mixtral-window", "gpt_oss"
FORMATS: dict[Dtype, float] = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8, "fp8": 2.0**-4}
"""By format: the largest relative error of a value that it keeps."""
DIVISIONS: dict[str, dict[str, Any]] = {
    "one rank": {"strategy": "tp1"},
    "in chunks": {"strategy": "tp1", "max_tokens_per_step": 5},
    "tp2": {"strategy": "tp2", "per_node": 2},
}
Ranks = list[Any]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return checkpoints with grouped-query and latent attention, and with windows shorter than the prompts."""
    folder = tmp_path_factory.mktemp("models")
    return {name: save_checkpoint(name, folder / name) for name in NAMES}


@pytest.fixture(scope="module")
def outcomes(folders: dict[str, Path]) -> dict[tuple[str, Dtype, str], tuple[Plan, Ranks]]:
    """Return the plan of every case and what the ranks report of it."""
    cases = {
        (name, kept, division): case(folders[name], kv_cache=kept, **DIVISIONS[division])
        for name in NAMES
        for kept in FORMATS
        for division in DIVISIONS
    }
    reports = run(list(cases.values()), ranks=2)
    return {
        key: (Plan.model_validate(each["plan"]), ranks)
        for (key, each), ranks in zip(cases.items(), reports, strict=True)
    }


def test_a_rank_keeps_the_bytes_that_the_plan_counts(
    outcomes: dict[tuple[str, Dtype, str], tuple[Plan, Ranks]],
) -> None:
    tokens = len(PROMPTS) * (max(map(len, PROMPTS)) + NEW)
    for (name, kept, division), (plan, ranks) in outcomes.items():
        tp = plan.pools[0].strategy.tp
        dtypes = DtypePolicy(kv_cache=kept)
        planned = sum(cache_bytes(block, tp, tokens, len(PROMPTS), dtypes) for block in plan.model.layers)
        for rank in (each for each in ranks if each is not None):
            assert rank["cache_bytes"] == planned, (name, kept, division)


class RoundedCache(DynamicCache):
    """transformers' cache, with every value rounded to a format on its way in."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *arguments: Any) -> Any:  # noqa: ANN401
        rounded = (each.to(self._dtype).float() for each in (key_states, value_states))
        return super().update(*rounded, *arguments)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers_with_a_cache_of_that_format(
    name: str, folders: dict[str, Path], outcomes: dict[tuple[str, Dtype, str], tuple[Plan, Ranks]]
) -> None:
    reference = reference_model(folders[name])
    for kept, rounding in FORMATS.items():
        with torch.no_grad():
            cache = RoundedCache(cache_dtype(kept))
            expected = reference(torch.tensor([PROMPTS[0]]), past_key_values=cache).logits[0, -1]
        # a value between two codes may get the other one
        tolerance = 2e-6 + rounding / 10 * float(expected.abs().max())
        for division in DIVISIONS:
            found = torch.tensor(outcomes[name, kept, division][1][0]["logits"])
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, msg=f"{kept}, {division}")


def test_chunks_and_tensor_parallelism_continue_alike_in_every_format(
    outcomes: dict[tuple[str, Dtype, str], tuple[Plan, Ranks]],
) -> None:
    for name in NAMES:
        for kept in FORMATS:
            whole, *others = (outcomes[name, kept, division][1][0]["outputs"] for division in DIVISIONS)
            assert all(each == whole for each in others), (name, kept)


@settings(max_examples=60, deadline=None)
@given(
    window=st.integers(1, 9), cuts=st.lists(st.integers(1, 12), min_size=1, max_size=8), slots=st.permutations([0, 1])
)
def test_a_window_gives_what_a_cache_of_all_tokens_does(window: int, cuts: list[int], slots: list[int]) -> None:
    """Two sequences, the second one token ahead of the first, in steps of any size; single tokens are decoded."""
    length = sum(cuts) + 1
    whole, windowed = (KvCache(2, length, windows=each) for each in ({}, {0: window}))
    values = torch.arange(1.0, 2 * length + 1).view(2, length)
    ends = [0, 0]
    for number, cut in enumerate(cuts):
        starts, ends = ends, [ends[0] + cut, ends[1] + cut + (number == 0)]
        segments = [
            Segment(slot, low, (1,) * (high - low), emits=True)
            for slot, low, high in zip(slots, starts, ends, strict=True)
        ]
        batch = packed(segments)
        new = torch.cat([values[row, each.start : each.end] for row, each in enumerate(segments)]).view(1, 1, -1, 1)
        CachedStep(batch, whole).update(new, new, 0)
        given, _ = CachedStep(batch, windowed).update(new, new, 0)
        for row, each in enumerate(segments):
            kept = windowed.layer(0)[0][each.slot, 0, :, 0]
            assert set(kept[kept > 0].tolist()) == set(values[row, max(0, each.end - window) : each.end].tolist())
            before = windowed.num_before(each, 0)
            seen = whole.layer(0)[0][each.slot, 0, each.start - before : each.end, 0]
            if not batch.is_decode and windowed.window(0) is not None:
                assert given[0, 0, : len(seen), 0].equal(seen)
                given = given[:, :, len(seen) :]


def test_fp8_saturates() -> None:
    cache = KvCache(1, 2, dtype=cache_dtype("fp8"))
    given = torch.tensor([1e4, -1e4, 448.0, 0.3]).view(1, 1, 1, 4)
    CachedStep(packed([Segment(0, 0, (1,), emits=True)]), cache).update(given, given, 0)
    for kept in cache.layer(0):
        assert kept[0, 0, 0].float().tolist() == [448.0, -448.0, 448.0, 0.3125]


def test_a_format_that_no_cache_is_kept_in_is_refused() -> None:
    with pytest.raises(InputError, match=r"options\.dtypes\.kv_cache = int4: .*fp32, bf16, fp16, fp8"):
        cache_dtype("int4")
