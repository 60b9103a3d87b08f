"""What publishers call models, systems, engines, formats and releases that the catalogue calls otherwise."""

from __future__ import annotations

import pytest

from moiety.calibration.serving import release_number
from moiety.validation.published_names import device_name, engine_name, model_name, weight_format
from moiety.validation.skipped import SkippedRow


@pytest.mark.parametrize(
    ("stated", "known"),
    [
        ("Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", "qwen3-235b-a22b"),
        ("Qwen/Qwen3-32B-AWQ", "qwen3-32b"),
        ("Qwen/Qwen3-30B-A3B-GPTQ-Int4", "qwen3-30b-a3b"),
        ("Qwen3_32B", "qwen3-32b"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", "llama-3.1-8b"),
        ("neuralmagic/Meta-Llama-3.1-70B-Instruct-quantized.w8a8", "llama-3.1-70b"),
        ("LLAMA3.1_405B", "llama-3.1-405b"),
        ("meta-llama/Llama-2-70b-chat-hf", "llama-2-70b"),
        ("nvidia/DeepSeek-R1-0528-NVFP4-v2", "deepseek-r1"),
        ("amd/DeepSeek-R1-0528-MXFP4-Preview", "deepseek-r1"),
        ("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek-v3.2"),
        ("deepseek-ai/DeepSeek-V3.1-Terminus", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "llama-3.1-70b"),
        ("moonshotai/Kimi-K2-Instruct-0905", "kimi-k2"),
        ("nvidia/Kimi-K2.5-NVFP4", "kimi-k2-thinking"),
        ("zai-org/GLM-4.6-FP8", "glm-4.5"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "nemotron-3-nano-30b-a3b"),
        ("MiniMaxAI/MiniMax-M2.1", "minimax-m2"),
    ],
)
def test_a_model_goes_by_many_names(stated: str, known: str) -> None:
    assert model_name(stated) == known


@pytest.mark.parametrize("stated", ["google/gemma-3-27b-it", "deepseek-v9", "qwen3", "", "nan", "-fp8", "gpt-oss"])
def test_a_model_of_another_shape_is_not_taken_for_one_that_is_named_alike(stated: str) -> None:
    with pytest.raises(SkippedRow, match="is not in the catalogue"):
        model_name(stated)


@pytest.mark.parametrize(
    ("stated", "known"),
    [
        ("h100_sxm", "h100"),
        ("H200-SXM-141GB", "h200"),
        ("h100_pcie", "h100-pcie"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("DGX-GB200", "gb200"),
        ("GB200 NVL72 (900 GB/s)", "gb200"),
        ("A100-80G", "a100"),
        ("A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("RTXPRO6000", "rtx-pro-6000"),
        ("AMD Instinct MI355X", "mi355x"),
        ("H20", "h20"),
        ("SM90", "h100"),
        ("a100_pcie", None),
        ("NVIDIA H200-NVL-141GB", None),
        ("gb200_nvl4", None),
        ("tpu-v6e", None),
        ("", None),
    ],
)
def test_a_device_goes_by_many_names_and_a_variant_is_not_taken_for_it(stated: str, known: str | None) -> None:
    assert device_name(stated) == known


@pytest.mark.parametrize(
    ("stated", "known"),
    [
        ("vLLM", "vllm"),
        ("dynamo-vllm", "vllm"),
        ("dynamo_sglang", "sglang"),
        ("dynamo-trt", "tensorrt-llm"),
        ("tensorrt_llm", "tensorrt-llm"),
        ("TRT-LLM", "tensorrt-llm"),
    ],
)
def test_an_engine_goes_by_many_names(stated: str, known: str) -> None:
    assert engine_name(stated) == known


def test_an_engine_of_another_kind_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(SkippedRow, match="'lmdeploy' is not known; known: sglang, tensorrt-llm, vllm"):
        engine_name("lmdeploy")


@pytest.mark.parametrize(
    ("stated", "known"),
    [
        ("FP8", "fp8"),
        ("fp8_e4m3", "fp8"),
        ("W8A8-FP8", "fp8"),
        ("NVFP4", "fp4"),
        ("w4a16_mxfp4", "fp4"),
        ("int4_wo", "int4"),
        ("Qwen/Qwen3-32B-AWQ", "int4"),
        ("bfloat16", "bf16"),
        ("w8a8", "int8"),
        ("Qwen/Qwen3-32B", None),
        ("fp6", None),
    ],
)
def test_a_format_goes_by_many_names(stated: str, known: str | None) -> None:
    assert weight_format(stated) == known


@pytest.mark.parametrize(
    ("stated", "known"),
    [
        ("0.6.6.post1", (0, 6, 6)),
        ("v0.12.0", (0, 12, 0)),
        ("0.12", (0, 12, 0)),
        ("lmsysorg/sglang:v0.5.9-cu130", (0, 5, 9)),
        ("1.2.0rc6.post3", (1, 2, 0)),
        ("nightly-dev-20260402-d7256eb6", None),
        ("latest", None),
    ],
)
def test_a_release_is_read_with_and_without_what_stands_around_it(stated: str, known: tuple[int, ...] | None) -> None:
    assert release_number(stated) == known
