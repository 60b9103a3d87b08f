"""What autograd keeps of one micro-batch's forward pass on one GPU for the backward pass, tensor by tensor.

It is what transformers' modules keep as the run time puts them together: each norm its input in FP32, what it is
scaled by, and its output; products their inputs; the gate of a feed-forward part its two halves, what they become and
their product. Collectives keep nothing. Parameters, and views of them, do not count.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.feed_forward import expert_rows
from moiety.model.attention import GroupedQueryAttention, MultiHeadLatentAttention
from moiety.model.feed_forward import DenseFeedForward

if TYPE_CHECKING:
    from moiety.graph.layout import Layout
    from moiety.model.attention import Attention
    from moiety.model.feed_forward import MoeFeedForward
    from moiety.model.model import Block, Model

_FP32, _INDEX, _FLAG = 4.0, 8.0, 1.0
"""Bytes of an element, of an index, of a truth value."""
FP32_ROUTERS = frozenset(
    {
        "axk1",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "dots1",
        "ernie4_5_moe",
        "exaone_moe",
        "glm4_moe",
        "glm4_moe_lite",
        "glm4v_moe_text",
        "glm_moe_dsa",
        "hunyuan_v1_moe",
        "hy_v3",
        "kimi_k2",
        "longcat_flash",
        "nemotron_h",
        "solar_open",
    }
)
"""Architectures whose routers transformers computes in FP32 (`hidden_states.type(torch.float32)` in their modules)."""
FP32_NORMS = frozenset(
    {"afmoe", "flex_olmo", "gpt_oss", "nemotron_h", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"}
)
"""Architectures whose norms are rounded after their weight, not before it (`(self.weight * hidden_states).to(...)`)."""
CLAMPED_GATES = frozenset({"gpt_oss"})
"""Architectures whose experts clamp their gate (`_apply_gate` of transformers' GptOssExperts): two steps more."""


class Saved(NamedTuple):
    """A tensor that is kept, as one GPU holds it."""

    name: str
    shape: tuple[float, ...]
    element_bytes: float

    @property
    def size_bytes(self) -> float:
        """Bytes in memory; rows of experts are an equal share, so they need not be whole."""
        return math.prod(self.shape) * self.element_bytes


def saved_bytes(tensors: list[Saved]) -> int:
    """Return the bytes of tensors together."""
    return math.ceil(math.fsum(each.size_bytes for each in tensors))


def layer_saved(model: Model, block: Block, layout: Layout, load: float = 1.0) -> list[Saved]:
    """Return what a layer keeps; the first tensor is its input in FP32.

    `load` is what the GPU's experts get of the tokens' rows, relative to an equal share.
    """
    hidden, part = model.hidden_size, block.feed_forward
    found: list[Saved] = []
    if block.attention is not None:
        found += _norm("input_norm", hidden, model, layout)
        found += _attention_saved(block.attention, model, layout)
    if "attention" in block.norms_behind:
        found += _norm("attn_out_norm", hidden, model, layout, used_by_product=False)
    if part is not None:
        found += _norm("post_norm", hidden, model, layout)
    if isinstance(part, DenseFeedForward):
        found += _network("dense", layout.tokens, layout.share(part.intermediate_size), layout, gated=part.gated)
    elif part is not None:
        found += _moe_saved(part, model, layout, load)
    if "feed_forward" in block.norms_behind:
        found += _norm("ffn_out_norm", hidden, model, layout, used_by_product=False)
    return found


def embedding_saved(layout: Layout) -> list[Saved]:
    """Return what the embedding keeps: token ids, and which of them the rank has rows for."""
    found = [Saved("token_ids", (layout.tokens,), _INDEX)]
    return [*found, Saved("held_tokens", (layout.tokens,), _FLAG)] if layout.strategy.tp > 1 else found


def head_saved(model: Model, layout: Layout) -> list[Saved]:
    """Return what the final norm, the head and the loss keep: every token but the last of a row predicts its next.

    Logarithms of probabilities are kept for the whole vocabulary on every rank, whichever part of it the rank computed.
    """
    rows = layout.tokens - layout.prompt_tokens // max(layout.schedule.prompt_tokens, 1)
    return [
        *_norm("final_norm", model.hidden_size, model, layout, rows=rows),
        Saved("log_probabilities", (rows, model.vocab_size), _FP32),
        Saved("next_tokens", (rows,), _INDEX),
    ]


def _norm(
    name: str,
    width: float,
    model: Model,
    layout: Layout,
    *,
    vectors: int = 1,
    rows: int | None = None,
    used_by_product: bool = True,
) -> list[Saved]:
    """Return what an RMS norm over `vectors` of `width` of each row keeps, its output where a product takes it."""
    act = _activation_bytes(layout)
    shape = (layout.tokens if rows is None else rows, vectors, width)
    found = [
        Saved(f"{name}.input", shape, _FP32),
        Saved(f"{name}.scale", (*shape[:2], 1), _FP32),
        Saved(f"{name}.normalized", shape, _FP32 if model.architecture in FP32_NORMS else act),
    ]
    return [*found, Saved(f"{name}.output", shape, act)] if used_by_product else found


def _attention_saved(attention: Attention, model: Model, layout: Layout) -> list[Saved]:
    if isinstance(attention, GroupedQueryAttention):
        return _grouped_query(attention, model, layout)
    if isinstance(attention, MultiHeadLatentAttention):
        return _latent(attention, model, layout)
    # queries, keys, values and the gate as they are projected, the state's output, and its gated norm
    keys = layout.share(attention.num_key_heads) * attention.key_head_dim
    values = layout.share(attention.num_value_heads) * attention.value_head_dim
    return [Saved("qkvz", (layout.tokens, 2 * keys + 4 * values), _activation_bytes(layout))]


def _grouped_query(attention: GroupedQueryAttention, model: Model, layout: Layout) -> list[Saved]:
    act, tokens, width = _activation_bytes(layout), layout.tokens, attention.head_dim
    heads, kv_heads = layout.share(attention.num_heads), layout.share(attention.num_kv_heads)
    rank = attention.q_lora_rank
    found = [] if rank is None else _norm("q_a_norm", rank, model, layout)
    if attention.qk_norm != "none":
        for name, count in (("q_norm", heads), ("k_norm", kv_heads)):
            vectors = count if attention.qk_norm == "head" else 1
            found += _norm(name, count * width / vectors, model, layout, vectors=vectors, used_by_product=False)
    if attention.output_gate:
        found += [Saved(name, (tokens, heads * width), act) for name in ("output_gate", "gated_context")]
    window = attention.sliding_window
    mask = (layout.schedule.prompt_tokens,) * 2 if window and window < layout.schedule.prompt_tokens else ()
    if attention.sinks:
        return found + _scores_saved(heads, width, layout)
    found += _flash_saved(heads, kv_heads, width, layout)
    return [*found, Saved("mask", mask, act)] if mask else found


def _flash_saved(heads: int, kv_heads: int, width: int, layout: Layout) -> list[Saved]:
    """Return what FlashAttention keeps: its inputs, its output, and the logarithm of each row's sum (Dao 2023)."""
    act, tokens = _activation_bytes(layout), layout.tokens
    sizes = {"query": heads, "key": kv_heads, "value": kv_heads, "context": heads}
    found = [Saved(name, (tokens, count * width), act) for name, count in sizes.items()]
    return [*found, Saved("log_sum", (tokens, heads), _FP32)]


def _scores_saved(heads: int, width: int, layout: Layout) -> list[Saved]:
    """Return what attention with sinks keeps, which no fused kernel computes: the probabilities of all pairs too."""
    act, tokens, row = _activation_bytes(layout), layout.tokens, layout.schedule.prompt_tokens
    found = [Saved(name, (tokens, heads * width), act) for name in ("query", "key", "value", "context")]
    return [
        *found,
        Saved("probabilities", (tokens, heads, row + 1), act),
        Saved("largest", (tokens, heads), _INDEX),
        Saved("mask", (row, row), _FLAG),
    ]


def _latent(attention: MultiHeadLatentAttention, model: Model, layout: Layout) -> list[Saved]:
    """Return what latent attention keeps: norms of the compressed vectors, keys and values of every head.

    Values are filled up to the width of the keys, as FlashAttention knows one width; the output projection takes what
    is left without that.
    """
    heads = layout.share(attention.num_heads)
    width, out = attention.qk_nope_head_dim + attention.qk_rope_head_dim, heads * attention.v_head_dim
    act = _activation_bytes(layout)
    # an FP32 norm keeps no copy but what was projected, of which its input is a part
    beside = attention.qk_rope_head_dim if act == _FP32 else 0
    found = [] if attention.q_lora_rank is None else _norm("q_a_norm", attention.q_lora_rank, model, layout)
    found += _norm("kv_a_norm", attention.kv_lora_rank, model, layout)
    found.append(Saved("rope_part", (layout.tokens, beside), act))
    found += _flash_saved(heads, heads, width, layout)
    return [*found, Saved("attn_out", (layout.tokens, out), act)] if attention.v_head_dim < width else found


def _moe_saved(part: MoeFeedForward, model: Model, layout: Layout, load: float) -> list[Saved]:
    act, tokens = _activation_bytes(layout), layout.tokens
    found = _router_saved(part, model, layout)
    if part.shared_intermediate_size:
        found += _network("shared", tokens, layout.share(part.shared_intermediate_size), layout, gated=part.gated)
    if part.latent_size is not None:
        found.append(Saved("routed_sum", (tokens, part.latent_size), act))
    if part.shared_gate:
        found += [Saved("shared_gate", (tokens, 1), act), Saved("shared_out", (tokens, model.hidden_size), act)]
    if layout.routes_tokens:
        found.append(Saved("sent_tokens", (tokens / layout.strategy.tp, min(part.top_k, layout.strategy.ep)), _INDEX))
    return found + experts_saved(part, model, layout, load)


def _router_saved(part: MoeFeedForward, model: Model, layout: Layout) -> list[Saved]:
    tokens, experts = layout.tokens, part.num_experts
    found = [
        Saved("router.scores", (tokens, experts), _FP32),
        Saved("router.chosen", (tokens, part.top_k), _INDEX),
        Saved("router.weights", (tokens, part.top_k + 1), _FP32),  # and their sum
    ]
    if model.architecture in FP32_ROUTERS and _activation_bytes(layout) != _FP32:
        found.append(Saved("router.input", (tokens, model.hidden_size), _FP32))
        if not part.router_in_fp32:  # else it is FP32 itself
            found.append(Saved("router.weight", (experts, model.hidden_size), _FP32))
    if part.num_groups > 1:
        found.append(Saved("router.groups", (tokens, 2 * part.num_groups + part.top_k_groups), _INDEX))
        found.append(Saved("router.group_mask", (tokens, experts), _FLAG))
    return found


def experts_saved(part: MoeFeedForward, model: Model, layout: Layout, load: float) -> list[Saved]:
    """Return what the routed experts keep of their share of the tokens' rows: places, products, weighted outputs."""
    rows = load * expert_rows(part, layout)
    width, row = part.expert_intermediate_size // layout.strategy.etp, part.row_size(model.hidden_size)
    clamped = model.architecture in CLAMPED_GATES
    return [
        Saved("expert_places", (rows, 3 if part.expert_bias else 2), _INDEX),
        Saved("expert_in", (rows, row), _activation_bytes(layout)),
        *_network("expert", rows, width, layout, gated=part.gated, clamped=clamped),
        Saved("expert_out", (rows, row), _FP32),
        Saved("expert_weights", (rows, 1), _FP32),
    ]


def _network(
    prefix: str, rows: float, width: int, layout: Layout, *, gated: bool, clamped: bool = False
) -> list[Saved]:
    """Return what a network keeps between its products: gate and up, the activated gate, what they make.

    A clamped gate (gpt-oss) keeps its clamped halves and its sigmoid beside them; a squared ReLU without a gate keeps
    the ReLU and its square.
    """
    names = ("gate", "up", "activated", "product") if gated else ("activated", "product")
    names = (*names, *(("clamped_gate", "clamped_up", "sigmoid") if clamped else ()))
    return [Saved(f"{prefix}_{name}", (rows, width), _activation_bytes(layout)) for name in names]


def _activation_bytes(layout: Layout) -> float:
    return BYTES_PER_ELEMENT[layout.options.dtypes.activations]
