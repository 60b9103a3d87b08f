"""The KV cache has the format and the bytes of the plan, and costs no more than the format's rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from moiety.errors import InputError
from moiety.plan import Plan
from moiety.runtime.model.batch import Segment, packed
from moiety.runtime.model.kv_cache import KvCache, cache_dtype
from moiety.verify.closed_form import cache_bytes
from tests.runtime.checkpoints import reference_model, save_checkpoint
from tests.runtime.model.cases import NEW, PROMPTS, case, run

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.dtypes import Dtype

NAMES = "qwen3_moe", "deepseek_v3"
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
    """Return a checkpoint with grouped-query and one with latent attention, both in float32."""
    folder = tmp_path_factory.mktemp("models")
    return {name: save_checkpoint(name, folder / name) for name in NAMES}


@pytest.fixture(scope="module")
def outcomes(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, Dtype, str], tuple[Plan, Ranks]]:
    """Return the plan of every case and what the ranks report of it."""
    cases = {
        (name, kept, division): case(folders[name], kv_cache=kept, **DIVISIONS[division])
        for name in NAMES
        for kept in FORMATS
        for division in DIVISIONS
    }
    reports = run(list(cases.values()), tmp_path_factory.mktemp("cases"), ranks=2)
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
        planned = sum(cache_bytes(block, tp, tokens, len(PROMPTS), kept) for block in plan.model.layers)
        for rank in (each for each in ranks if each is not None):
            assert rank["cache_bytes"] == planned, (name, kept, division)


@pytest.mark.parametrize("name", NAMES)
def test_logits_differ_by_the_rounding_of_the_format(
    name: str, folders: dict[str, Path], outcomes: dict[tuple[str, Dtype, str], tuple[Plan, Ranks]]
) -> None:
    with torch.no_grad():
        expected = reference_model(folders[name])(torch.tensor([PROMPTS[0]])).logits[0, -1]
    for kept, rounding in FORMATS.items():
        for division in DIVISIONS:
            found = torch.tensor(outcomes[name, kept, division][1][0]["logits"])
            error = (found - expected).abs().max() / expected.abs().max()
            assert error <= 2e-6 + rounding, (kept, division)
            assert kept == "fp32" or error > 1e-6, "the format is not what values are kept in"


def test_chunks_and_tensor_parallelism_continue_alike_in_every_format(
    outcomes: dict[tuple[str, Dtype, str], tuple[Plan, Ranks]],
) -> None:
    for name in NAMES:
        for kept in FORMATS:
            whole, *others = (outcomes[name, kept, division][1][0]["outputs"] for division in DIVISIONS)
            assert all(each == whole for each in others), (name, kept)


def test_fp8_saturates() -> None:
    cache = KvCache(1, 2, dtype=cache_dtype("fp8"))
    given = torch.tensor([1e4, -1e4, 448.0, 0.3]).view(1, 1, 1, 4)
    cache.begin(packed([Segment(0, 0, (1,), emits=True)]))
    cache.update(given, given, 0)
    for kept in cache.layer(0):
        assert kept[0, 0, 0].float().tolist() == [448.0, -448.0, 448.0, 0.3125]


def test_a_format_that_no_cache_is_kept_in_is_refused() -> None:
    with pytest.raises(InputError, match=r"options\.dtypes\.kv_cache = int4: .*fp32, bf16, fp16, fp8"):
        cache_dtype("int4")
