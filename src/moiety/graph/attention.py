"""Ops of a layer's attention on one GPU."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from moiety.dtypes import BYTES_PER_ELEMENT, CACHE_BYTES_PER_ELEMENT, ROW_BYTES_PER_ELEMENT
from moiety.graph.op import AttentionCore, AttentionShape, Collective, Gemm, MemoryPass, Op, Tensor
from moiety.model.attention import GroupedQueryAttention, LinearAttention, MultiHeadLatentAttention

if TYPE_CHECKING:
    from moiety.graph.layout import Layout
    from moiety.model.attention import Attention, SparseIndexer


def attention_ops(attention: Attention, hidden_size: int, layout: Layout) -> list[Op]:
    """Return the ops from the layer's input to the attention's output, all-reduced over tensor parallelism."""
    act = layout.options.dtypes.activations
    tokens = layout.tokens
    norm_bytes = 2 * tokens * hidden_size * BYTES_PER_ELEMENT[act]
    ops = [Op("input_norm", MemoryPass(norm_bytes), ("input",), Tensor("normed", (tokens, hidden_size), act))]
    if isinstance(attention, GroupedQueryAttention):
        ops += _gqa(attention, hidden_size, layout)
        width = layout.share(attention.num_heads) * attention.head_dim
    elif isinstance(attention, MultiHeadLatentAttention):
        ops += _mla(attention, hidden_size, layout)
        width = layout.share(attention.num_heads) * attention.v_head_dim
    else:
        ops += _linear(attention, hidden_size, layout)
        width = layout.share(attention.num_value_heads) * attention.value_head_dim
    cores = tuple(op.name for op in ops if op.name in {"attention", "attention_decode"})
    ops.append(gemm_op("o_proj", "attn_out", tokens, hidden_size, width, cores, layout))
    if layout.strategy.tp > 1:
        payload = tokens * hidden_size * BYTES_PER_ELEMENT[act]
        output = Tensor("attn_out_reduced", (tokens, hidden_size), act)
        ops.append(Op("attn_all_reduce", Collective("all_reduce", "tp", payload), ("o_proj",), output))
    return ops


def gemm_op(  # noqa: PLR0913, PLR0917 - a product has this many parts
    name: str,
    result: str,
    m: int,
    n: int,
    k: int,
    after: str | tuple[str, ...],
    layout: Layout,
    weight: str | None = None,
    matrices: tuple[int, ...] = (),
) -> Op:
    """Return a dense product [m, k] x [k, n] in the plan's formats; `weight` names a weight that another op shares.

    `matrices` are the parts of n that checkpoints have matrices of their own for.
    """
    dtypes = layout.options.dtypes
    in_blocks = dtypes.block_scales and dtypes.weights == "fp8"
    return Op(
        name,
        Gemm(m, n, k, dtypes.weights, dtypes.activations, block_scales=in_blocks),
        (after,) if isinstance(after, str) else after,
        Tensor(result, (m, n), dtypes.activations),
        (Tensor(f"{weight or name}.weight", (n, k), dtypes.weights, matrices=matrices),),
    )


def _gqa(attention: GroupedQueryAttention, hidden_size: int, layout: Layout) -> list[Op]:
    heads = layout.share(attention.num_heads)
    kv_heads = layout.share(attention.num_kv_heads)
    width = heads * attention.head_dim
    asked, keys = width * (2 if attention.output_gate else 1), kv_heads * attention.head_dim
    of_each, rank, tokens = (asked, keys, keys), attention.q_lora_rank, layout.tokens
    if rank is None:
        ops = [gemm_op("qkv_proj", "qkv", tokens, sum(of_each), hidden_size, "input_norm", layout, matrices=of_each)]
    else:  # every GPU has the down-projection whole
        ops = [
            gemm_op("kv_proj", "kv", tokens, 2 * keys, hidden_size, "input_norm", layout, matrices=of_each[1:]),
            gemm_op("q_down_proj", "q_latent", tokens, rank, hidden_size, "input_norm", layout),
            gemm_op("q_up_proj", "q", tokens, asked, rank, "q_down_proj", layout),
        ]
    context = _visible(attention.sliding_window)
    return ops + _cores(
        layout,
        tuple(op.name for op in ops),
        variant="gqa",
        width=width,
        heads=heads,
        qk_dim=attention.head_dim,
        v_dim=attention.head_dim,
        cache_elements=2 * kv_heads * attention.head_dim,
        visible=context,
        kernel=AttentionShape(
            sequences=0,
            tokens=0,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=attention.head_dim,
            value_dim=attention.head_dim,
            latent_dim=0,
            window=attention.sliding_window or 0,
            cache_dtype=layout.options.dtypes.kv_cache,
        ),
    )


def _mla(attention: MultiHeadLatentAttention, hidden_size: int, layout: Layout) -> list[Op]:
    """Prefill expands the latent to full heads; decode absorbs the expansion into query and output.

    So do prompts of which an indexer picks tokens: every query has others, and no kernel expands those for it (SGLang's
    `set_nsa_prefill_impl`; vLLM's `FlashMLASparseBackend`). Autograd's modules mask the scores of full heads instead.
    """
    heads = layout.share(attention.num_heads)
    qk_dim = attention.qk_nope_head_dim + attention.qk_rope_head_dim
    latent = attention.kv_lora_rank + attention.qk_rope_head_dim
    tokens = layout.tokens
    if attention.q_lora_rank is None:
        ops = [gemm_op("q_proj", "q", tokens, heads * qk_dim, hidden_size, "input_norm", layout)]
        ops.append(gemm_op("kv_down_proj", "kv_latent", tokens, latent, hidden_size, "input_norm", layout))
    else:
        q_rank = attention.q_lora_rank
        down = (q_rank, latent)
        ops = [
            gemm_op("qkv_down_proj", "qkv_latent", tokens, sum(down), hidden_size, "input_norm", layout, matrices=down)
        ]
        ops.append(gemm_op("q_up_proj", "q", tokens, heads * qk_dim, q_rank, "qkv_down_proj", layout))
    up_width, rank = heads * (attention.qk_nope_head_dim + attention.v_head_dim), attention.kv_lora_rank
    prompt, absorbed = layout.prompt_tokens, layout.schedule.decode_tokens
    indexer = attention.indexer
    window = _visible(indexer.top_k if indexer and not layout.training else None)
    picks = layout.schedule.prompt_tokens > window
    if picks:
        prompt, absorbed = 0, absorbed + prompt
    compressed = "kv_down_proj" if attention.q_lora_rank is None else "qkv_down_proj"
    queries = "q_proj" if attention.q_lora_rank is None else "q_up_proj"
    if prompt:
        ops.append(gemm_op("kv_up_proj", "kv", prompt, up_width, rank, compressed, layout))
    if absorbed:
        ops.append(gemm_op("kv_absorb", "q_latent", absorbed, up_width, rank, queries, layout, weight="kv_up_proj"))
    if indexer is not None:
        ops += _index(indexer, attention.q_lora_rank or hidden_size, hidden_size, queries, layout)
    return ops + _cores(
        layout,
        tuple(op.name for op in ops),
        variant="mla",
        width=heads * attention.v_head_dim,
        heads=heads,
        qk_dim=qk_dim,
        v_dim=attention.v_head_dim,
        cache_elements=latent,
        visible=window,
        absorbed_dims=(latent, attention.kv_lora_rank),
        absorbs_prompts=picks,
        kernel=None
        if indexer
        else AttentionShape(
            sequences=0,
            tokens=0,
            heads=heads,
            kv_heads=heads,
            head_dim=qk_dim,
            value_dim=attention.v_head_dim,
            latent_dim=latent,
            window=0,
            cache_dtype=layout.options.dtypes.kv_cache,
        ),
    )


def _index(indexer: SparseIndexer, q_rank: int, hidden_size: int, queries: str, layout: Layout) -> list[Op]:
    """Return what picks the tokens that attention sees: a key of each token, and scores over every key in the cache.

    Keys and queries are FP8 with a scale each, scores FP32 (DeepSeek-V3.2-Exp, `inference/kernel.py`; DeepGEMM's
    `fp8_mqa_logits`). A prompt that is seen whole leaves keys and needs no scores (SGLang: `_forward_cuda_k_only`);
    autograd's modules score all the same.
    """
    schedule, tokens, heads, dim = layout.schedule, layout.tokens, indexer.num_heads, indexer.head_dim
    act = layout.options.dtypes.activations
    element, row, score = BYTES_PER_ELEMENT[act], ROW_BYTES_PER_ELEMENT["fp8"], BYTES_PER_ELEMENT["fp32"]
    prompts = schedule.prefill_tokens and (schedule.prompt_tokens > indexer.top_k or layout.training)
    asking = (layout.prompt_tokens if prompts else 0) + schedule.decode_tokens
    keys = gemm_op("index_k_proj", "index_k", tokens, dim, hidden_size, "input_norm", layout)
    of_queries = gemm_op("index_q_proj", "index_q", asking, heads * dim, q_rank, queries, layout)
    of_weights = gemm_op("index_weights_proj", "index_weights", asking, heads, hidden_size, "input_norm", layout)
    if not asking:  # what is not computed is there all the same
        keys = replace(keys, weights=(*keys.weights, *of_queries.weights, *of_weights.weights))
    cached = Tensor("index_keys", (tokens, dim), "fp8", has_row_scales=True)
    ops = [
        keys,
        Op(
            "index_k_norm",
            MemoryPass(2 * tokens * dim * element),
            ("index_k_proj",),
            Tensor("index_k_normed", (tokens, dim), act),
        ),
        Op("index_k_quantize", MemoryPass(tokens * dim * (element + row)), ("index_k_norm",), cached),
    ]
    if not asking:
        return ops
    pairs = layout.prompt_tokens * _mean_visible(schedule.prompt_tokens, 2**62) if prompts else 0.0
    pairs += schedule.decode_tokens * schedule.context_tokens
    read = (schedule.prefill_tokens if prompts else 0) + schedule.decode_sequences * schedule.context_tokens
    moved = read * dim * row + asking * heads * (dim * row + score) + pairs * score
    # a product of each head, and their weighted sum
    core = AttentionCore("prefill" if prompts else "decode", "gqa", 2.0 * pairs * heads * (dim + 1), moved, "fp8")
    longest = max(schedule.prompt_tokens if prompts else 0, schedule.context_tokens)
    quantized = Tensor("index_queries", (asking, heads * dim), "fp8", has_row_scales=True)
    return [
        *ops,
        of_queries,
        of_weights,
        Op("index_q_quantize", MemoryPass(asking * heads * dim * (element + row)), ("index_q_proj",), quantized),
        Op(
            "index_scores",
            core,
            ("index_q_quantize", "index_weights_proj", "index_k_quantize"),
            Tensor("index_scores", (asking, longest), "fp32"),
        ),
        Op(
            "index_top_k",
            MemoryPass(pairs * score + asking * indexer.top_k * score),
            ("index_scores",),
            Tensor("picked", (asking, indexer.top_k), "fp32"),
        ),
    ]


def _linear(attention: LinearAttention, hidden_size: int, layout: Layout) -> list[Op]:
    """Linear attention: work per token does not grow with the context."""
    if attention.variant == "gated_delta":
        return _gated_delta(attention, hidden_size, layout)
    heads = layout.share(attention.num_value_heads)
    keys = layout.share(attention.num_key_heads) * attention.key_head_dim
    values = heads * attention.value_head_dim
    # queries, keys, values, the output gate, and what each value head takes beside its vectors
    emitted = 2 * keys + 2 * values + attention.head_scalars * heads
    act, state_bytes = layout.options.dtypes.activations, BYTES_PER_ELEMENT[layout.options.dtypes.state]
    tokens = layout.tokens
    state = heads * attention.key_head_dim * attention.value_head_dim
    # each token updates and reads the state: two products of key_dim x value_dim per value head, and the convolution
    flops = 4.0 * tokens * state + 2.0 * attention.conv_kernel_size * tokens * (2 * keys + values)
    moved = _states_moved(layout) * state * state_bytes + 2 * tokens * emitted * BYTES_PER_ELEMENT[act]
    if attention.chunk_tokens:
        # a chunk's own state is written, read to pass on what came before it, written with that, and read
        moved += 4 * layout.prompt_tokens / attention.chunk_tokens * state * BYTES_PER_ELEMENT["fp32"]
    ops = [gemm_op("qkvz_proj", "qkvz", tokens, emitted, hidden_size, "input_norm", layout)]
    if layout.strategy.cp > 1:
        ops.append(_gathered_states(attention, _prompts(layout) * heads, layout))
    core = AttentionCore(_linear_phase(layout), "linear", flops, moved, act)
    return [*ops, Op("attention", core, (ops[-1].name,), Tensor("context", (tokens, values), act))]


def _gated_delta(attention: LinearAttention, hidden_size: int, layout: Layout) -> list[Op]:
    """Return the ops of a gated delta net (Yang et al. 2024, arXiv 2412.06464): convolution, state and norm in one.

    A decoded token reads from the state, corrects it and reads what it asked for: three products of key_dim x
    value_dim a head. A prompt goes in chunks: what tokens of one chunk do to each other is solved for all at once
    (`chunk_gated_delta_rule` of flash-linear-attention, which transformers, vLLM and SGLang call).
    """
    heads, key_dim, value_dim = (
        layout.share(attention.num_value_heads),
        attention.key_head_dim,
        attention.value_head_dim,
    )
    keys, values = layout.share(attention.num_key_heads) * key_dim, heads * value_dim
    act, tokens, schedule = layout.options.dtypes.activations, layout.tokens, layout.schedule
    element, state_element = BYTES_PER_ELEMENT[act], BYTES_PER_ELEMENT[layout.options.dtypes.state]
    mixed, state, states = 2 * keys + values, heads * key_dim * value_dim, _states_moved(layout)
    kernel, chunk, prompt = attention.conv_kernel_size, attention.chunk_tokens, layout.prompt_tokens
    emitted = (mixed, values)
    # the convolution; three products; in a chunk, keys by keys, queries by keys, the solution by keys, by values and
    # by corrections
    flops = 2.0 * kernel * tokens * mixed + 6.0 * tokens * state
    flops += 2.0 * prompt * chunk * heads * (3 * key_dim + 2 * value_dim)
    moved = element * mixed * (2 * tokens + states * max(kernel - 1, 0)) + states * state * state_element
    # what was mixed goes in and the output out, which its norm reads with a gate and writes
    moved += schedule.decode_tokens * (mixed + values) * element + 3 * tokens * values * element
    if prompt and chunk:
        # keys are read four times and queries once; of corrections, and of keys that read the state, one kernel makes
        # what the next reads; so are the chunks' states, and the solution of each, once in FP32
        rows = 5 * keys + 2 * heads * key_dim + 6 * values + 2 * heads * chunk
        moved += prompt * (rows * element + 2 * heads * chunk * BYTES_PER_ELEMENT["fp32"])
        moved += 2 * prompt / chunk * state * element
    ops = [
        gemm_op("qkvz_proj", "qkvz", tokens, sum(emitted), hidden_size, "input_norm", layout, matrices=emitted),
        gemm_op("ba_proj", "ba", tokens, attention.head_scalars * heads, hidden_size, "input_norm", layout),
    ]
    after = tuple(op.name for op in ops)
    if layout.strategy.cp > 1:
        ops.append(_gathered_states(attention, _prompts(layout) * heads, layout))
        after = ("ba_proj", "state_gather")
    core = AttentionCore(_linear_phase(layout), "linear", flops, moved, act)
    return [*ops, Op("attention", core, after, Tensor("context", (tokens, values), act))]


def _linear_phase(layout: Layout) -> Literal["prefill", "decode"]:
    return "prefill" if layout.schedule.prefill_tokens else "decode"


def _prompts(layout: Layout) -> int:
    schedule = layout.schedule
    return math.ceil(schedule.prefill_tokens / schedule.prompt_tokens) if schedule.prefill_tokens else 0


def _states_moved(layout: Layout) -> int:
    """Return how often a sequence's state is read or written: once each, and written after every guess.

    Which guess is the last right one is known only after all of them.
    """
    schedule = layout.schedule
    return 2 * _prompts(layout) + schedule.decode_sequences + schedule.decode_tokens


def _gathered_states(attention: LinearAttention, heads: int, layout: Layout) -> Op:
    """Return what brings each GPU the states that all parts of the sequences make, `heads` of them a part.

    A part starts from those before it (LASP-2, Sun et al. 2025); the delta rule also needs what each of them does to a
    state. Every GPU has two parts of each sequence, as softmax attention deals them out.
    """
    elements = attention.key_head_dim * attention.value_head_dim
    elements += attention.key_head_dim**2 if attention.variant == "gated_delta" else 0
    gathered = Tensor("states", (2 * layout.strategy.cp, heads, elements), "fp32")
    work = Collective("all_gather", "cp", gathered.size_bytes)
    return Op("state_gather", work, ("qkvz_proj",), gathered)


def _visible(sliding_window: int | None) -> int:
    return sliding_window if sliding_window is not None else 2**62


def _cores(  # noqa: PLR0913 - the shape of an attention has this many numbers
    layout: Layout,
    after: str | tuple[str, ...],
    *,
    variant: Literal["gqa", "mla"],
    width: int,
    heads: int,
    qk_dim: int,
    v_dim: int,
    cache_elements: int,
    visible: int,
    absorbed_dims: tuple[int, int] | None = None,
    absorbs_prompts: bool = False,
    kernel: AttentionShape | None = None,
) -> list[Op]:
    """Return the attention proper: causal over the prompt tokens, over the cache for the decoded ones, or both.

    `kernel` has the sizes of the kernel, without sequences and tokens, where one does it. Decoded tokens, and prompts
    where `absorbs_prompts`, have queries and outputs of `absorbed_dims` a head.
    """
    schedule, dtypes = layout.schedule, layout.options.dtypes
    act_bytes, cache_bytes = BYTES_PER_ELEMENT[dtypes.activations], CACHE_BYTES_PER_ELEMENT[dtypes.kv_cache]
    inputs = (after,) if isinstance(after, str) else after
    ops: list[Op] = []
    if layout.strategy.cp > 1:
        ops.append(_gathered_keys(layout, inputs, heads * (qk_dim + v_dim) if variant == "mla" else cache_elements))
        inputs = (ops[-1].name,)
    if schedule.prefill_tokens:
        tokens = layout.prompt_tokens
        seen = _mean_visible(schedule.prompt_tokens, visible)
        dims = absorbed_dims if absorbed_dims and absorbs_prompts else (qk_dim, v_dim)
        flops = 2.0 * tokens * seen * heads * sum(dims)
        # queries and what comes out; and keys and values, where heads have their own
        moved = tokens * heads * sum(dims) * (1 if absorbs_prompts else 2) * act_bytes
        moved += schedule.prefill_tokens * cache_elements * cache_bytes
        if not layout.options.flash_attention:
            # scores and probabilities, [tokens, seen] per head, each written once and read once, in FP32
            moved += 4.0 * tokens * seen * heads * BYTES_PER_ELEMENT[dtypes.critical]
        shape = None
        whole = layout.strategy.cp == 1 and tokens >= schedule.prompt_tokens > 0
        if kernel and layout.options.flash_attention and whole:
            prompts = tokens / schedule.prompt_tokens
            shape = replace(kernel, sequences=prompts, tokens=schedule.prompt_tokens)
        core = AttentionCore("prefill", variant, flops, moved, dtypes.activations, shape)
        ops.append(Op("attention", core, inputs, Tensor("context", (tokens, width), dtypes.activations)))
    if schedule.decode_sequences:
        sequences, tokens = schedule.decode_sequences, schedule.decode_tokens
        seen = min(schedule.context_tokens, visible)
        dims = absorbed_dims or (qk_dim, v_dim)
        flops = 2.0 * tokens * seen * heads * sum(dims)
        # the cache, read once for all tokens of a sequence; the queries and what comes out
        moved = sequences * seen * cache_elements * cache_bytes + tokens * heads * sum(dims) * act_bytes
        shape = None
        if kernel and layout.options.flash_attention and tokens == sequences:
            shape = replace(kernel, sequences=sequences, tokens=schedule.context_tokens)
        core = AttentionCore("decode", variant, flops, moved, dtypes.activations, shape)
        name = "attention_decode" if schedule.prefill_tokens else "attention"
        ops.append(Op(name, core, inputs, Tensor("context", (tokens, width), dtypes.activations)))
    return ops


def _gathered_keys(layout: Layout, after: tuple[str, ...], elements: int) -> Op:
    """Return what brings every part of the sequences' keys and values, of `elements` a token, to each GPU in turn.

    The parts are dealt out so that every GPU has as many pairs of tokens to score (a ring, Liu et al. 2023).
    """
    gathered = Tensor("keys_and_values", (layout.schedule.prefill_tokens, elements), layout.options.dtypes.activations)
    return Op("context_gather", Collective("all_gather", "cp", gathered.size_bytes), after, gathered)


def _mean_visible(prompt_tokens: int, window: int) -> float:
    """Return how many tokens a prompt's token attends to on average: (n + 1) / 2, less under a window."""
    if prompt_tokens <= window:
        return (prompt_tokens + 1) / 2
    inside = window * (window + 1) / 2
    return (inside + (prompt_tokens - window) * window) / prompt_tokens
