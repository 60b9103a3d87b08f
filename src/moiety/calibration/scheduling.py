"""How serving engines schedule and cache where nobody tells them otherwise: facts, not fitted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scheduling:
    """How an engine takes up prompts, and what it caches."""

    mixes_prefill: bool = True
    """Chunks of prompts run in the steps that decode; in SGLang in steps of their own, while decoding waits."""
    takes_whole_prompts: bool = False
    """A prompt that a step has no room for waits for the next one; otherwise it is cut into chunks.

    TensorRT-LLM: its `enable_chunked_prefill` is false by default.
    """
    keeps_all_tokens: bool = False
    """Layers with a sliding window have all tokens of a sequence in their cache, not the window's only.

    TensorRT-LLM: its KvCacheConfig.max_attention_window is the longest sequence for all layers where it is not set.
    """
    keeps_whole: bool = False
    """A sequence starts only where the cache holds it to its last token; otherwise some are thrown out of it.

    TensorRT-LLM's default (CapacitySchedulerPolicy.GUARANTEED_NO_EVICT); vLLM and SGLang throw the youngest out.
    """
    foresees_growth: bool = True
    """Prompts are held back for what running sequences will still grow by; vLLM takes up a prompt that fits now.

    SGLang (`new_token_ratio`) and TensorRT-LLM count answers to come.
    """


_SCHEDULING = {
    "vllm": Scheduling(foresees_growth=False),
    "sglang": Scheduling(mixes_prefill=False),
    "tensorrt-llm": Scheduling(takes_whole_prompts=True, keeps_all_tokens=True, keeps_whole=True),
}


def scheduling(engine: str) -> Scheduling:
    """Return how an engine schedules by default."""
    return _SCHEDULING.get(engine, Scheduling())


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
