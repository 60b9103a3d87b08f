"""What a serving row is read as: names, formats, degrees, and why some cannot be read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from moiety.projection.admission import AT_EVERY_STEP, Admission
from moiety.validation.deployments import published
from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import ServingCase, serving_case
from moiety.validation.serving_row import ServingRow
from moiety.validation.skipped import SkippedRow

ROW: dict[str, Any] = {
    "id": "r",
    "model": "deepseek-ai/DeepSeek-V3",
    "system": "b200_sxm",
    "num_gpus": 8,
    "backend": "sglang",
    "backend_version": "0.5.9",
    "precision": "fp8",
    "mode": "agg",
    "isl": 1024,
    "osl": 1024,
    "concurrency": 16,
    "tp": 8,
    "pp": 1,
    "attention_dp": 1,
    "moe_tp": 8,
    "moe_ep": 1,
    "measured": {"ttft_ms": 100.0, "tpot_ms": 10.0},
}


def _case(**changes: object) -> ServingCase:
    return serving_case(ServingRow.model_validate(ROW | changes))


@pytest.mark.parametrize(
    ("changes", "strategy", "workers"),
    [
        ({}, "tp8", 1),
        ({"num_gpus": 16}, "tp8", 2),
        ({"moe_tp": 1, "moe_ep": 8}, "tp8_dp1_ep8", 1),
        ({"tp": 1, "attention_dp": 8, "moe_tp": 1, "moe_ep": 8}, "ep8_tp1", 1),
        ({"attention_dp": None, "moe_tp": None, "moe_ep": None}, "tp8", 1),
        ({"tp": 64, "num_gpus": 64, "moe_tp": 8, "moe_ep": 8}, "tp8_dp1_ep8", 1),
        ({"tp": 1, "attention_dp": 64, "num_gpus": 64, "moe_tp": 8, "moe_ep": 8}, "ep8_tp1", 1),
        ({"tp": 72, "num_gpus": 72, "moe_tp": 72, "system": "gb200", "precision": "fp4"}, "ep72_tp1", 1),
        ({"tp": 4, "attention_dp": 4, "num_gpus": 16, "moe_tp": 1, "moe_ep": 16}, "tp4_dp1_ep4", 1),
        ({"model": "openai/gpt-oss-120b"}, "tp8", 1),
        ({"tp": 32, "num_gpus": 32, "moe_tp": 32, "system": "gb200"}, "ep32_tp1", 1),
        ({"model": "Qwen/Qwen3-32B", "moe_tp": 1}, "tp8", 1),
    ],
)
def test_degrees_become_a_strategy(changes: dict[str, Any], strategy: str, workers: int) -> None:
    case = _case(**changes)
    assert (case.decode.strategy.name, case.decode.num_workers) == (strategy, workers)
    assert case.cluster.num_gpus >= case.decode.strategy.num_gpus


def test_a_row_that_leaves_data_parallel_attention_out_counts_gpus_without_it() -> None:
    label = {"model": "Qwen/Qwen3-235B-A22B-FP8", "system": "h200_sxm", "attention_dp": None, "moe_tp": 4}
    for tp in (1, 2, 4):
        case = _case(**label, tp=tp, num_gpus=tp)
        assert (case.decode.strategy.num_gpus, case.decode.num_workers) == (4, 1), "as many as the experts' degrees say"


WIDE = {"tp": 1, "pp": 1, "attention_dp": 8, "moe_tp": 1, "moe_ep": 8}
NARROW = {"tp": 4, "pp": 1, "attention_dp": 1, "moe_tp": 1, "moe_ep": 4}


def test_a_disaggregated_row_is_what_it_states() -> None:
    workers = {"prefill": NARROW | {"workers": 3}, "decode": WIDE | {"workers": 2}}
    case = _case(mode="disagg", num_gpus=28, **workers, draft_tokens=2)
    assert (case.prefill.num_workers, case.decode.num_workers, case.draft_tokens) == (3, 2, 2)
    assert case.cluster.num_gpus >= 28


def _published(**changes: object) -> ServingCase:
    """Return the case of an InferenceX run whose label has one worker of each kind and no speculation."""
    label: dict[str, Any] = {
        "mode": "disagg",
        "num_gpus": None,
        "system": "gb200",
        "backend": "trtllm",
        "backend_version": "0.8.1.post2",
        "concurrency": 256,
        "prefill": {"tp": 8, "moe_ep": 8},
        "decode": {"tp": 32, "moe_tp": 4, "moe_ep": 8},
    }
    return _case(**label | changes)


def test_what_a_label_leaves_out_is_read_where_it_was_published() -> None:
    case = _published()
    assert (case.prefill.strategy.name, case.prefill.num_workers) == ("ep8_tp1", 1)
    assert (case.decode.strategy.name, case.decode.num_workers, case.decode.max_sequences) == ("ep32_tp1", 1, 8)
    assert case.version == "1.2.0", "Dynamo 0.8.1 holds TensorRT-LLM 1.2.0"


def test_who_routes_requests_and_how_many_sequences_run_is_read_there_too() -> None:
    assert (_published().frontends, _case().frontends) == (9, 1)
    stated = _published(
        concurrency=24,
        system="gb300",
        prefill=WIDE | {"workers": 1, "attention_dp": 4, "moe_ep": 4},
        decode=NARROW | {"workers": 4, "tp": 8, "moe_ep": 8},
    )
    assert stated.decode.max_sequences == 4, "of two that were published one does not speculate"
    assert (stated.draft_tokens, stated.frontends) == (0, 1)


def test_a_label_that_counts_gpus_twice_is_found_where_it_was_published() -> None:
    label: dict[str, Any] = {"backend": "trtllm", "precision": "fp4", "isl": 8192, "concurrency": 32}
    label |= {"backend_version": "1.2.0rc6.post3"}
    twice, once = (
        {"tp": 16, "moe_tp": 4, "moe_ep": 4, "num_gpus": 16},
        {"tp": 4, "moe_tp": 1, "moe_ep": 4, "num_gpus": 4},
    )
    cases = [_case(**label | degrees) for degrees in (twice, once)]
    assert cases[0] == cases[1]
    assert cases[0].draft_tokens == 3


def test_a_label_of_workers_apart_with_such_degrees_counts_them_once() -> None:
    label = {"tp": 16, "attention_dp": 1, "moe_tp": 4, "moe_ep": 4, "workers": 1}
    stated = _published(prefill=NARROW | {"workers": 1}, decode=label, draft_tokens=0)
    assert stated.decode.strategy.num_gpus == 16
    found = _published(osl=8192, concurrency=3072, precision="fp4", prefill=NARROW, decode=label | {"workers": None})
    assert found.decode.strategy.num_gpus == 16, "published with as many"


def test_published_deployments_name_workers_and_loads() -> None:
    assert all(each.concurrency and each.decode.workers for each in published())


def test_runs_of_no_stated_release_are_divided_as_their_scripts_did_it() -> None:
    label: dict[str, Any] = {"backend": "trtllm", "backend_version": "nan", "isl": 8192}
    assert _case(concurrency=128, **label).decode.strategy.name == "ep8_tp1"
    assert _case(concurrency=16, **label).decode.strategy.name == "tp8_dp1_ep8"
    assert _case(concurrency=128, **label | {"backend_version": "1.2.0"}).decode.strategy.name == "tp8"
    assert _case(concurrency=128, **label | {"model": "Qwen/Qwen3-32B", "moe_tp": 1}).decode.strategy.name == "tp8"


def test_a_label_that_counts_all_gpus_of_a_published_deployment_is_that_deployment() -> None:
    label: dict[str, Any] = {"system": "gb200", "backend": "trtllm", "backend_version": None, "precision": "fp4"}
    case = _case(**label, isl=8192, concurrency=538, num_gpus=48, tp=48, moe_tp=48)
    assert case.disaggregated
    assert case.version == "1.1.0", "Dynamo 0.5.1 holds TensorRT-LLM 1.1.0"
    assert (case.prefill.strategy.name, case.prefill.num_workers) == ("ep4_tp1", 4)
    assert (case.decode.strategy.name, case.decode.num_workers, case.decode.max_sequences) == ("ep32_tp1", 1, 16)
    assert _case(**label, isl=8192, concurrency=1075, num_gpus=48, tp=48, moe_tp=48).draft_tokens == 2
    assert not _case(**label, isl=8192, concurrency=539, num_gpus=48, tp=48, moe_tp=48).disaggregated
    with pytest.raises(SkippedRow, match="published with and without speculative decoding"):
        _case(**label, concurrency=1075, num_gpus=20, tp=20, moe_tp=20)


@pytest.mark.parametrize(
    ("changes", "field", "read"),
    [
        ({"backend_version": float("nan")}, "backend_version", None),
        ({"backend_version": "nan"}, "backend_version", None),
        ({"backend_version": 0.12}, "backend_version", "0.12"),
        ({"id": 7}, "id", "7"),
        ({"source": None}, "source", ""),
        ({"attention_dp": float("nan")}, "attention_dp", None),
        ({"moe_ep": "nan"}, "moe_ep", None),
        ({"tp": "8"}, "tp", 8),
        ({"precision": "NVFP4"}, "precision", "fp4"),
        ({"precision": ""}, "precision", None),
        ({"mode": None}, "mode", "agg"),
        ({"mode": None, "prefill": {"tp": 8}, "decode": {"tp": 8}}, "mode", "disagg"),
        ({"mode": "Disaggregated"}, "mode", "disagg"),
    ],
)
def test_a_field_without_a_value_is_not_stated_however_a_tool_writes_it(
    changes: dict[str, Any], field: str, read: object
) -> None:
    assert getattr(ServingRow.model_validate(ROW | changes), field) == read


def test_a_latency_that_was_not_measured_leaves_the_other() -> None:
    row = ServingRow.model_validate(ROW | {"measured": {"ttft_ms": float("nan"), "tpot_ms": 7.0}})
    assert (row.measured.ttft_ms, row.measured.tpot_ms) == (None, 7.0)


@pytest.mark.parametrize("degree", [True, 0, -1, 1.5, [8], 1e12])
def test_a_degree_that_is_no_number_of_ranks_is_refused(degree: object) -> None:
    with pytest.raises(ValidationError):
        ServingRow.model_validate(ROW | {"tp": degree})


def test_spellings_of_one_configuration_are_one_case() -> None:
    label = {"system": "H200-SXM", "backend": "dynamo-sglang", "precision": "FP8", "backend_version": "v0.5.9"}
    plain = {"system": "h200_sxm", "backend": "sglang", "precision": "fp8", "backend_version": "0.5.9"}
    assert replace(_case(**label), version="") == replace(_case(**plain), version="")
    published = {"mode": "disagg", "system": "GB200-NVL72", "backend": "Dynamo-TRTLLM", "precision": "fp8_block"}
    assert _published(**published) == _published()


def test_weights_in_four_bit_integers_leave_the_rest_of_a_mixture_wide() -> None:
    dtypes = _case(model="moonshotai/Kimi-K2.5", precision="int4").options.dtypes
    assert (dtypes.experts, dtypes.weights, dtypes.dispatch, dtypes.kv_cache) == ("int4", "bf16", "bf16", "bf16")
    assert _case(model="moonshotai/Kimi-K2.5", precision=None).options.dtypes == dtypes
    dense = {"model": "Qwen/Qwen3-32B-AWQ", "precision": None, "moe_tp": 1}
    assert _case(**dense).options.dtypes.weights == "int4"


def test_a_candidate_of_tensorrt_llm_is_not_read_as_a_release_of_dynamo() -> None:
    apart: dict[str, Any] = {"mode": "disagg", "num_gpus": 12, "backend": "trtllm", "draft_tokens": 0}
    workers = {"prefill": NARROW | {"workers": 1}, "decode": WIDE | {"workers": 1}}
    assert _case(**apart, **workers, backend_version="1.2.0rc6.post2").version == "1.2.0rc6.post2"
    assert _case(**apart, **workers, backend_version="1.0.1").version == "1.3.0"


@pytest.mark.parametrize(
    ("changes", "admission"),
    [
        ({"concurrency": 8}, Admission(poll_steps=10)),
        ({"concurrency": 16}, Admission(poll_steps=30)),
        ({"tp": 4, "moe_tp": 4, "num_gpus": 4}, Admission(poll_steps=10)),
        ({"system": "h200_sxm"}, AT_EVERY_STEP),
        ({"backend": "vllm"}, AT_EVERY_STEP),
        ({"model": "Qwen/Qwen3.5-397B-A17B", "system": "b300_sxm"}, Admission(poll_steps=30)),
        (
            {"model": "Qwen/Qwen3.5-397B-A17B", "system": "b300_sxm", "backend_version": "0.5.10.post1"},
            Admission(poll_steps=10),
        ),
        (
            {"backend": "trtllm", "tp": 1, "attention_dp": 8, "moe_tp": 1, "moe_ep": 8, "backend_version": "1.2.0"},
            Admission(balance_steps=60),
        ),
        ({"backend": "trtllm", "backend_version": "1.2.0rc6.post2", "concurrency": 64}, Admission(batch_wait_steps=40)),
        ({"backend": "trtllm", "backend_version": "1.1.0rc2", "concurrency": 64}, AT_EVERY_STEP),
        (
            {"backend": "trtllm", "model": "meta-llama/Llama-3.3-70B", "tp": 4, "moe_tp": 1, "backend_version": "nan"},
            Admission(batch_wait_steps=20),
        ),
    ],
)
def test_when_prompts_were_taken_up_is_read_where_it_was_published(
    changes: dict[str, Any], admission: Admission
) -> None:
    assert _case(**changes).admission == admission


@pytest.mark.parametrize(
    ("changes", "captured", "one_prompt"),
    [
        ({"backend_version": "1.2.0rc6.post2", "concurrency": 64}, True, False),
        ({"backend_version": "1.2.0rc6.post2", "concurrency": 32}, False, False),
        ({"backend_version": "1.2.0rc6.post3", "concurrency": 4}, False, True),
        ({"backend_version": "1.2.0rc6.post3", "concurrency": 8}, True, True),
        ({"backend_version": "1.2.0rc6.post2", "precision": "fp4", "moe_tp": 1, "moe_ep": 8}, True, False),
        ({"backend_version": "1.2.0rc6.post2", "precision": "fp4"}, False, False),
        ({"backend_version": "1.1.0rc2.post2"}, False, True),
        ({"backend_version": "1.1.0rc2.post2", "model": "openai/gpt-oss-120b"}, False, False),
    ],
)
def test_how_steps_took_prompts_is_read_where_it_was_published(
    changes: dict[str, Any], captured: bool, one_prompt: bool
) -> None:
    case = _case(backend="trtllm", **changes)
    assert (case.captured_prompts, case.one_prompt_a_step) == (captured, one_prompt)


@pytest.mark.parametrize(
    ("changes", "cold_tokens", "poll_steps"),
    [
        ({"backend_version": None}, 32768, 30),
        ({"backend_version": None, "concurrency": 4}, 32768, 10),
        ({"backend_version": None, "precision": "fp4", "tp": 4, "moe_tp": 4, "num_gpus": 4}, 16384, 30),
        ({}, None, 30),
        ({"backend_version": None, "system": "h200_sxm"}, None, 1),
    ],
)
def test_which_runs_were_not_warmed_up_is_read_where_it_was_published(
    changes: dict[str, Any], cold_tokens: int | None, poll_steps: int
) -> None:
    case = _case(**changes)
    assert (case.cold_tokens, case.admission.poll_steps) == (cold_tokens, poll_steps)


@pytest.mark.parametrize(
    ("changes", "tokens", "poll_steps"),
    [
        ({"system": "b300_sxm", "backend_version": "0.5.10.post1", "isl": 8192, "tp": 4, "moe_tp": 4}, 37086, 10),
        ({"system": "b300_sxm", "backend_version": "0.5.10.post1", "isl": 8192, "concurrency": 16}, 37086, 30),
        ({"system": "b300_sxm", "backend_version": "0.5.10.post1", "isl": 1024, "concurrency": 4}, 4638, 10),
        ({"backend_version": "0.5.10.post1", "isl": 8192}, 7373, 30),
        ({"system": "b300_sxm", "backend_version": "0.5.9", "isl": 8192}, 7373, 30),
        (
            {
                "model": "Qwen/Qwen3.5-397B-A17B",
                "system": "b300_sxm",
                "backend_version": "0.5.10.post1",
                "isl": 8192,
            },
            7373,
            10,
        ),
    ],
)
def test_prompts_that_the_server_made_more_tokens_of_are_as_long_as_it_was_published(
    changes: dict[str, Any], tokens: int, poll_steps: int
) -> None:
    case = _case(**({"osl": 1024} | changes))
    assert (case.input_tokens, case.admission.poll_steps) == (tokens, poll_steps)


@pytest.mark.parametrize(
    ("changes", "mixes"),
    [
        ({"backend_version": "0.5.6.post2"}, True),
        ({"backend_version": "0.5.8.post1"}, True),
        ({"backend_version": "0.5.1.post1"}, False),
        ({"backend_version": "0.5.6.post2", "model": "deepseek-ai/DeepSeek-R1"}, False),
        ({"backend_version": "0.5.6.post2", "backend": "vllm"}, False),
    ],
)
def test_whether_an_engine_was_told_to_mix_prompts_into_decoding_is_read_where_it_was_published(
    changes: dict[str, Any], mixes: bool
) -> None:
    degrees = {"tp": 4, "moe_tp": 1, "num_gpus": 4}
    case = _case(**({"model": "Qwen/Qwen3-32B", "system": "h100_sxm", "precision": None} | degrees | changes))
    assert case.mixes_prefill == mixes
    scheduling = ServingPredictor().pool(case, case.decode).scheduling
    assert scheduling.mixes_prefill == (mixes or case.engine != "sglang")


def test_a_cache_that_was_not_told_a_format_has_that_of_the_activations() -> None:
    assert _case(system="h200_sxm").options.dtypes.kv_cache == "bf16"
    assert _case().options.dtypes.kv_cache == "fp8"


@pytest.mark.parametrize(("backend", "cache"), [("vllm", "bf16"), ("sglang", "bf16"), ("trtllm", "fp8")])
def test_runs_of_others_have_the_cache_that_their_engine_makes_by_itself(backend: str, cache: str) -> None:
    assert _case(backend=backend, isl=4000, osl=500).options.dtypes.kv_cache == cache
    assert _case(backend=backend, isl=4000, osl=500, precision="bf16").options.dtypes.kv_cache == "bf16"


def test_lengths_that_runs_drew_below_their_label_are_the_mean_ones() -> None:
    assert (_case(osl=8192).input_tokens, _case(osl=8192).output_tokens) == (922, 7373)
    assert (_case(osl=512).input_tokens, _case(osl=512).output_tokens) == (1024, 512)
    assert _case(exact_lengths=True).input_tokens == 1024, "offline runs have all tokens that they state"
    of_others = _case(model="Qwen/Qwen3-32B", moe_tp=1)
    assert (of_others.input_tokens, of_others.shortest_share) == (1024, 1.0)
    assert [_case(osl=osl).shortest_share for osl in (1024, 8192, 512)] == [0.8, 0.8, 1.0]


def test_prompts_of_drawn_lengths_come_in_waves_that_spread() -> None:
    drawn = [
        sum(1 / (2 / 9 * wave**0.5) for wave in range(1, 10)) / 9,  # lengths from .8 to 1, ten requests a place
        1.0,
    ]
    cases = [_case(exact_lengths=each) for each in (False, True)]
    pools = [ServingPredictor().pool(case, case.decode) for case in cases]
    assert [pool.arrival_density for pool in pools] == pytest.approx(drawn)
    assert [replace(pools[0], waves=waves).arrival_density for waves in (None, 1)] == [1.0, 1.0], "no later wave counts"


def test_an_aggregated_release_that_always_guessed_is_read_so() -> None:
    changes = {"backend": "trtllm", "concurrency": 4, "precision": "fp8"}
    assert _case(backend_version="1.2.0rc6.post3", **changes).draft_tokens == 3
    assert _case(backend_version="1.2.0rc6.post2", **changes).draft_tokens == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"concurrency": 257}, "no published deployment has these labels"),
        ({"system": "gb300", "concurrency": 24, "prefill": {"tp": 4}, "decode": {"tp": 8}}, "with and without"),
        (
            {"system": "b200_sxm", "isl": 8192, "concurrency": 128, "decode": {"tp": 8}},
            "published with several numbers of them",
        ),
    ],
)
def test_an_incomplete_label_has_a_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SkippedRow, match=reason):
        _published(**changes)


@pytest.mark.parametrize(
    ("precision", "model", "formats"),
    [
        ("fp4", "deepseek-ai/DeepSeek-R1-0528", ("fp8", "fp4", "fp8")),
        ("fp4", "MiniMaxAI/MiniMax-M2.5", ("bf16", "fp4", "fp8")),
        ("fp4", "meta-llama/Llama-3.3-70B-Instruct", ("fp4", "fp4", "fp8")),
        ("fp8", "openai/gpt-oss-120b", ("bf16", "mxfp4", "fp8")),
        (None, "nvidia/Llama-3.1-8B-Instruct-FP8", ("fp8", "fp8", "fp8")),
        (None, "Qwen/Qwen3-32B", ("bf16", "bf16", "bf16")),
    ],
)
def test_a_precision_stands_for_formats(precision: str | None, model: str, formats: tuple[str, ...]) -> None:
    dtypes = _case(precision=precision, model=model, tp=8, moe_tp=1, moe_ep=8).options.dtypes
    assert (dtypes.weights, dtypes.experts, dtypes.kv_cache) == formats


@pytest.mark.parametrize(
    ("precision", "model", "in_blocks"),
    [
        ("fp8", "deepseek-ai/DeepSeek-R1-0528", True),
        ("fp4", "deepseek-ai/DeepSeek-R1-0528", True),
        ("fp8", "MiniMaxAI/MiniMax-M2.5", True),
        ("fp4", "MiniMaxAI/MiniMax-M2.5", False),
        ("fp8", "Qwen/Qwen3.5-397B-A17B", True),
        ("bf16", "Qwen/Qwen3.5-397B-A17B", False),
        ("fp8", "zai-org/GLM-5", True),
        ("fp4", "zai-org/GLM-5", False),
        ("fp8", "Qwen/Qwen3-235B-A22B-FP8", True),
        ("fp8", "Qwen/Qwen3-32B", False),
        ("fp8", "nvidia/Llama-3.1-8B-Instruct-FP8", False),
    ],
)
def test_checkpoints_with_a_scale_a_block_are_known(precision: str, model: str, in_blocks: bool) -> None:
    dtypes = _case(precision=precision, model=model, tp=8, moe_tp=1, moe_ep=8).options.dtypes
    assert dtypes.block_scales is in_blocks


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "acme/unheard-of"}, "model 'acme/unheard-of' is not in the catalogue"),
        ({"system": "abacus"}, "system 'abacus' is not in the catalogue"),
        ({"backend": "lmdeploy"}, "backend 'lmdeploy' is not known"),
        ({"concurrency": None}, "concurrency is not stated"),
        ({"tp": 3, "moe_tp": 2}, "are different GPUs"),
        ({"num_gpus": 4}, "num_gpus = 4 is no whole number of workers of 8 GPUs"),
        ({"num_gpus": 12}, "num_gpus = 12 is no whole number of workers of 8 GPUs"),
        ({"num_gpus": 1, "tp": 1, "moe_tp": 2}, "num_gpus = 1 is no whole number of workers of 2 GPUs"),
        ({"num_gpus": 12, "tp": 64, "moe_tp": 8, "moe_ep": 8}, "num_gpus = 12 is no whole number of workers of 8"),
        (
            {"mode": "disagg", "prefill": NARROW | {"workers": 1}, "decode": WIDE | {"workers": 2}, "draft_tokens": 0},
            "num_gpus = 8, and its workers have 20",
        ),
        ({"mode": "disagg"}, "prefill or decode workers are not stated"),
        ({"mode": "disagg", "prefill": {"tp": 1}, "decode": {"tp": 8, "moe_tp": 8}}, "how many workers there were"),
    ],
)
def test_what_cannot_be_read_has_a_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SkippedRow, match=reason):
        _case(**changes)


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.82),
        ({"tp": 4, "num_gpus": 4, "moe_tp": 4}, 0.95),
        ({"precision": "fp4"}, 0.85),
        ({"backend": "trtllm", "backend_version": "1.2.0rc6.post2"}, 0.8),
        ({"backend": "trtllm", "tp": 4, "num_gpus": 4, "moe_tp": 4, "isl": 8192}, 0.75),
        ({"backend": "vllm"}, None),
        ({"system": "gb200"}, None),
        ({"exact_lengths": True}, None),
        ({"model": "Qwen/Qwen3-32B", "system": "h100_sxm", "backend": "trtllm", "moe_tp": None}, 0.8),
    ],
)
def test_the_share_of_memory_is_what_published_scripts_set(changes: dict[str, Any], share: float | None) -> None:
    assert _case(**changes).memory_share == share
