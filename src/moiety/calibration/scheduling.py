"""How serving engines schedule and cache where nobody tells them otherwise: facts, not fitted."""

from __future__ import annotations


def mixes_prefill(engine: str) -> bool:
    """Return whether an engine decodes in the steps that hold prompts: SGLang by default does not."""
    return engine != "sglang"


def takes_whole_prompts(engine: str) -> bool:
    """Return whether a prompt that a step has no room for waits for the next one: TensorRT-LLM, unless it is told else.

    Its `enable_chunked_prefill` is false by default; vLLM and SGLang cut prompts into chunks.
    """
    return engine == "tensorrt-llm"


def keeps_all_tokens(engine: str) -> bool:
    """Return whether an engine caches what lies outside of a sliding window: TensorRT-LLM, unless it is told windows.

    Its KvCacheConfig.max_attention_window is the longest sequence for all layers where it is not set.
    """
    return engine == "tensorrt-llm"


def keeps_whole(engine: str) -> bool:
    """Return whether an engine starts a sequence only where the cache holds it to its last token.

    TensorRT-LLM's default (CapacitySchedulerPolicy.GUARANTEED_NO_EVICT); vLLM and SGLang throw the youngest out.
    """
    return engine == "tensorrt-llm"


def foresees_growth(engine: str) -> bool:
    """Return whether an engine holds back prompts for what running sequences will still grow by.

    vLLM takes up a prompt that fits now; SGLang (`new_token_ratio`) and TensorRT-LLM count answers to come.
    """
    return engine != "vllm"


def hides_shared_experts(engine: str) -> bool:
    """Return whether an engine computes shared experts while tokens are on their way to the routed ones.

    SGLang computes them before (`forward_deepep` and `forward_normal` of its MoE layers); TensorRT-LLM on a stream of
    their own (`maybe_execute_in_parallel`), vLLM while an exchange runs (`FusedMoEModularKernel`).
    """
    return engine != "sglang"


def quantizes_cache(engine: str) -> bool:
    """Return whether an engine's cache has the format of quantized weights: TensorRT-LLM's, as checkpoints tell it.

    vLLM and SGLang cache in the format of the activations (`--kv-cache-dtype auto`).
    """
    return engine == "tensorrt-llm"


def agrees_first(engine: str) -> bool:
    """Return whether workers that compute prompts and those that decode agree on a prompt before it is computed.

    SGLang's do: the decoding worker first keeps room for its cache, and each of them hears of it when its scheduler
    looks, once a step (python/sglang/srt/disaggregation: `pop_preallocated`, `pop_bootstrapped`). TensorRT-LLM and vLLM
    tell the decoding worker of a prompt that was computed.
    """
    return engine == "sglang"
