"""What a token and a GPU need, by formulas over the model's shape alone: no graph, no cost model, no simulation.

The checks compare the planner's sums over operators with these.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT, CACHE_BYTES_PER_ELEMENT, ROW_BYTES_PER_ELEMENT
from moiety.model.attention import GroupedQueryAttention, MultiHeadLatentAttention
from moiety.model.feed_forward import MoeFeedForward

if TYPE_CHECKING:
    from moiety.model.attention import Attention
    from moiety.model.model import Block
    from moiety.plan import DtypePolicy, Plan, Pool


def score_flops(attention: Attention, context_tokens: float) -> float:
    """Return the FLOPs of one token's scores and weighted sum over `context_tokens`: 2 h (d_qk + d_v) n."""
    if isinstance(attention, GroupedQueryAttention):
        seen = min(context_tokens, attention.sliding_window or math.inf)
        return 2 * attention.num_heads * 2 * attention.head_dim * seen
    if isinstance(attention, MultiHeadLatentAttention):
        width = attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
        index = attention.indexer
        if index is None:
            return 2 * attention.num_heads * width * context_tokens
        scored = 2 * index.num_heads * (index.head_dim + 1) * context_tokens
        return 2 * attention.num_heads * width * min(context_tokens, index.top_k) + scored
    products = {"gated_delta": 3, "lightning": 2, "mamba2": 2}[attention.variant]
    return 2 * products * attention.num_value_heads * attention.key_head_dim * attention.value_head_dim


def layer_flops(block: Block, hidden_size: int, context_tokens: float) -> float:
    """Return the FLOPs of one token in one layer, forward: 2 per parameter that it meets, and its scores."""
    part, scores = block.feed_forward, 0.0
    met = block.num_norms * hidden_size
    if block.attention is not None:
        met += block.attention.num_parameters(hidden_size)
        scores = score_flops(block.attention, context_tokens)
    if isinstance(part, MoeFeedForward):
        met += part.top_k * part.expert_parameters(hidden_size) + part.shared_parameters(hidden_size)
    elif part is not None:
        met += part.num_parameters(hidden_size)
    return 2 * met + scores


def highest_peak(plan: Plan) -> float:
    """Return the FLOP/s that a GPU could do at most in the formats that a plan computes in."""
    dtypes, device = plan.options.dtypes, plan.cluster.device
    dense = max(device.peak(dtypes.weights), device.peak(dtypes.activations))
    return dense if plan.model.moe is None else max(dense, device.peak(dtypes.experts))


def pool_flops_per_token(plan: Plan, pool: Pool) -> float:
    """Return the model's FLOPs for each token that a pool computes, forward, or forward and backward (x 3)."""
    schedule, model = pool.schedule, plan.model
    tokens = schedule.prefill_tokens + schedule.decode_sequences
    # a prompt's token sees half of the prompt on average, a decoded one its whole context
    seen = (
        schedule.prefill_tokens * (schedule.prompt_tokens + 1) / 2 + schedule.decode_sequences * schedule.context_tokens
    )
    context = seen / tokens
    layers = sum(layer_flops(model.blocks[kind], model.hidden_size, context) for kind in model.layer_blocks)
    training = pool.role == "training"
    finished = schedule.prefill_tokens / schedule.prompt_tokens if schedule.prompt_tokens else 0.0
    emitted = tokens if training else schedule.decode_sequences + finished
    head = 2 * model.hidden_size * model.vocab_size * emitted / tokens
    return (layers + head) * (3 if training else 1)


def attention_weights(attention: Attention, hidden_size: int, tp: int) -> float:
    """Return the attention weights on each of `tp` GPUs; KV heads and latents that cannot be split are whole."""
    if isinstance(attention, GroupedQueryAttention):
        queries = attention.num_heads * attention.head_dim / tp
        keys = max(attention.num_kv_heads / tp, 1) * attention.head_dim
        asked, rank = queries * (2 if attention.output_gate else 1), attention.q_lora_rank
        projected = hidden_size * asked if rank is None else (hidden_size + asked) * rank
        return projected + hidden_size * (queries + 2 * keys)
    if isinstance(attention, MultiHeadLatentAttention):
        width = attention.qk_nope_head_dim + attention.qk_rope_head_dim
        latent = hidden_size * (attention.kv_lora_rank + attention.qk_rope_head_dim)
        if attention.q_lora_rank is None:
            queries = hidden_size * attention.num_heads * width / tp
        else:
            queries = hidden_size * attention.q_lora_rank + attention.q_lora_rank * attention.num_heads * width / tp
        up = attention.kv_lora_rank * attention.num_heads * (attention.qk_nope_head_dim + attention.v_head_dim) / tp
        whole = latent + _index_weights(attention, hidden_size)
        return whole + queries + up + attention.num_heads * attention.v_head_dim * hidden_size / tp
    keys = max(attention.num_key_heads / tp, 1) * attention.key_head_dim
    values = attention.num_value_heads * attention.value_head_dim / tp
    scalars = {"gated_delta": 2, "lightning": 0, "mamba2": 1}[attention.variant] * attention.num_value_heads / tp
    return hidden_size * (2 * keys + 3 * values + scalars)


def _index_weights(attention: MultiHeadLatentAttention, hidden_size: int) -> float:
    """Return the weights of what picks the tokens that attention sees, which every GPU has whole."""
    index = attention.indexer
    if index is None:
        return 0.0
    queries = index.num_heads * index.head_dim * (attention.q_lora_rank or hidden_size)
    return queries + hidden_size * (index.head_dim + index.num_heads)


def dense_weights(block: Block, hidden_size: int, tp: int) -> float:
    """Return a layer's weights on each GPU without the routed experts and their router."""
    part = block.feed_forward
    held = 0.0 if block.attention is None else attention_weights(block.attention, hidden_size, tp)
    if part is None:
        return held
    matrices = 3 if part.gated else 2
    if isinstance(part, MoeFeedForward):
        # every GPU projects its tokens' rows to the latent and back
        latent = 2 * hidden_size * (part.latent_size or 0)
        return held + matrices * hidden_size * part.shared_intermediate_size / tp + latent
    return held + matrices * hidden_size * part.intermediate_size / tp


def largest_projection(block: Block, hidden_size: int, tp: int) -> float:
    """Return the weights of the largest of a layer's dense matrices that every kind of it has, on each GPU."""
    attention, part = block.attention, block.feed_forward
    width = context = 0
    if part is not None:
        width = part.shared_intermediate_size if isinstance(part, MoeFeedForward) else part.intermediate_size
    if isinstance(attention, GroupedQueryAttention):
        context = attention.num_heads * attention.head_dim * (2 if attention.output_gate else 1)
    elif isinstance(attention, MultiHeadLatentAttention):
        context = attention.num_heads * attention.v_head_dim
    return max(width, context) / tp * hidden_size


def largest_expert_matrix(block: Block, hidden_size: int, etp: int) -> float:
    """Return the weights that go into the width of one routed expert, gate and up as one matrix, on each GPU."""
    moe = block.moe
    if moe is None:
        return 0.0
    return (2 if moe.gated else 1) * moe.expert_intermediate_size / etp * moe.row_size(hidden_size)


def router_weights(block: Block, hidden_size: int) -> int:
    """Return the weights of a layer's router, which every GPU holds whole."""
    part = block.feed_forward
    return hidden_size * part.num_experts if isinstance(part, MoeFeedForward) else 0


def expert_weights(block: Block, hidden_size: int, slots: float, etp: int) -> float:
    """Return the routed experts' weights of a layer on each GPU: `slots` experts, each divided by `etp`."""
    part = block.feed_forward
    if not isinstance(part, MoeFeedForward):
        return 0.0
    matrices = 3 if part.gated else 2
    return slots * matrices * (part.latent_size or hidden_size) * part.expert_intermediate_size / etp


def cache_bytes(
    block: Block, tp: int, tokens: int, sequences: int, dtypes: DtypePolicy, *, keeps_all: bool = False
) -> float:
    """Return a layer's KV cache on each GPU: 2 kv d b a token, MLA's latent and indexer, a state if linear.

    A window caps a sequence's share, unless the engine keeps all tokens.
    """
    attention, element = block.attention, CACHE_BYTES_PER_ELEMENT[dtypes.kv_cache]
    if isinstance(attention, GroupedQueryAttention):
        kept = tokens if keeps_all else min(tokens, sequences * (attention.sliding_window or tokens))
        return 2 * max(attention.num_kv_heads / tp, 1) * attention.head_dim * element * kept
    if isinstance(attention, MultiHeadLatentAttention):
        index = attention.indexer.head_dim if attention.indexer else 0
        latent = (attention.kv_lora_rank + attention.qk_rope_head_dim) * element
        return (latent + index * ROW_BYTES_PER_ELEMENT["fp8"]) * tokens
    if attention is None:
        return 0.0
    mixed = 2 * attention.num_key_heads * attention.key_head_dim + attention.num_value_heads * attention.value_head_dim
    last_tokens = mixed * max(attention.conv_kernel_size - 1, 0) * BYTES_PER_ELEMENT[dtypes.activations]
    states = attention.num_value_heads * attention.key_head_dim * attention.value_head_dim
    return (states * BYTES_PER_ELEMENT[dtypes.state] + last_tokens) / tp * sequences


def read_cache_bytes(block: Block, tp: int, tokens: int, sequences: int, dtypes: DtypePolicy) -> float:
    """Return what a step that decodes must read of a layer's cache: of latents only those that an indexer picks."""
    attention, held = block.attention, cache_bytes(block, tp, tokens, sequences, dtypes)
    if not isinstance(attention, MultiHeadLatentAttention) or attention.indexer is None:
        return held
    latent = (attention.kv_lora_rank + attention.qk_rope_head_dim) * CACHE_BYTES_PER_ELEMENT[dtypes.kv_cache]
    return held - latent * max(tokens - sequences * attention.indexer.top_k, 0)


def distinct_shares(num_experts: int, top_k: int, shares: int) -> float:
    """Return how many of `shares` equal shares of the experts a token's top-k reaches, if all choices are alike.

    N (1 - C(E - E/N, k) / C(E, k)): linearity of expectation over the shares.
    """
    each = num_experts // shares
    missed = math.comb(num_experts - each, top_k) / math.comb(num_experts, top_k)
    return shares * (1 - missed)
