"""Which part of each parameter a tensor-parallel rank holds: column-row division by the names of the projections."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, TypeAlias

from moiety.errors import InputError

if TYPE_CHECKING:
    from moiety.model.attention import Attention

Cut: TypeAlias = Literal["queries", "keys", "rows", "query_columns", "columns", "vocabulary", "norm", "whole"]
"""Of a parameter [rows, columns] or a vector: the rows of the rank's query heads or key heads, an equal share of the
rows, the columns of its query heads, an equal share of the columns, its part of the vocabulary, a norm over all heads
(its heads' part) or over one (whole), or everything."""

_CUTS: tuple[tuple[str, Cut], ...] = (
    (r"self_attn\.(q_proj|q_b_proj|kv_b_proj)\.(weight|bias)", "queries"),
    (r"self_attn\.(k_proj|v_proj)\.(weight|bias)", "keys"),
    (r"self_attn\.o_proj\.weight", "query_columns"),
    (r"self_attn\.sinks", "queries"),
    (r"self_attn\.(q_norm|k_norm)\.weight", "norm"),
    (r"self_attn\.(q_a_proj|kv_a_proj_with_mqa)\.(weight|bias)", "whole"),
    (r"self_attn\.(q_a_layernorm|kv_a_layernorm)\.weight", "whole"),
    (r"mlp\.(shared_experts?\.)?(gate_proj|up_proj)\.(weight|bias)", "rows"),
    (r"mlp\.(shared_experts?\.)?down_proj\.weight", "columns"),
    (r"(self_attn\.o_proj|mlp\.(shared_experts?\.)?down_proj)\.bias", "whole"),
    (r"mlp\.(gate|router)\.(weight|bias|e_score_correction_bias)", "whole"),
    (r"mlp\.shared_expert_gate\.weight", "whole"),
    (r"(embed_tokens|lm_head)\.weight", "vocabulary"),
    (r"(input_layernorm|post_attention_layernorm|norm)\.weight", "whole"),
)


_OTHERS = re.compile(r"(gate|router|shared_expert_gate)\.weight")
"""Matrices of a layer that a plan counts in the activations' format: they choose experts, or weigh their outputs."""


def is_projection(name: str) -> bool:
    """Return whether the matrix of that name is one of a layer's dense weights, whose format a plan states."""
    return _OTHERS.fullmatch(".".join(name.split(".")[-2:])) is None


def cut_of(name: str) -> Cut | None:
    """Return how the parameter of that name is divided; None for a name of no known projection."""
    local = re.sub(r"^.*?layers\.\d+\.|^model\.", "", name)
    return next((cut for pattern, cut in _CUTS if re.fullmatch(pattern, local)), None)


def parameter_slices(
    name: str, shape: tuple[int, ...], attention: Attention | None, *, tp: int, index: int
) -> tuple[slice, ...]:
    """Return the slices of a parameter that rank `index` of `tp` holds; of nothing where all is held.

    `attention` is that of the parameter's layer. Raises InputError for a parameter that tensor parallelism cannot
    divide because nothing is known of its meaning.
    """
    if tp == 1:
        return ()
    cut = cut_of(name)
    if cut is None:
        rule = (
            "tensor parallelism divides attention and feed-forward parts by the usual projections; this is none of them"
        )
        raise InputError(rule, field=name, remedy="plan with tp 1 (--strategy tp1_dp...)")
    if cut == "whole":
        return ()
    if cut in {"rows", "columns"}:
        dim = 0 if cut == "rows" else 1
        return _along(dim, share(shape[dim], tp, index))
    if cut == "vocabulary":
        return (vocabulary_rows(shape[0], tp, index),)
    assert attention is not None, "only layers have attention"
    return _of_heads(name, cut, shape, attention, tp, index)


def share(size: int, parts: int, index: int) -> slice:
    """Return part `index` of `size` things that `parts` divides."""
    width = size // parts
    return slice(index * width, (index + 1) * width)


def vocabulary_rows(size: int, parts: int, index: int) -> slice:
    """Return the tokens of part `index` of the vocabulary: equal parts but the last."""
    width = -(-size // parts)
    return slice(min(index * width, size), min((index + 1) * width, size))


def key_heads(num_heads: int, tp: int, index: int) -> slice:
    """Return the key/value heads that rank `index` of `tp` holds: its share, or one that several ranks hold."""
    if num_heads % tp == 0:
        return share(num_heads, tp, index)
    held = index * num_heads // tp
    return slice(held, held + 1)


def _of_heads(
    name: str, cut: Cut, shape: tuple[int, ...], attention: Attention, tp: int, index: int
) -> tuple[slice, ...]:
    if attention.kind == "linear":
        raise InputError("linear attention is planned but not executed", field=name)
    queries = attention.num_heads
    keys = queries if attention.kind == "mla" else attention.num_kv_heads
    if cut == "norm":
        width = attention.head_dim if attention.kind == "gqa" else shape[0]
        if shape[0] == width:
            return ()
        cut = "keys" if "k_norm" in name else "queries"
    dim = 1 if cut == "query_columns" else 0
    of_keys = cut == "keys"
    heads = key_heads(keys, tp, index) if of_keys else share(queries, tp, index)
    width = shape[dim] // (keys if of_keys else queries)
    return _along(dim, slice(heads.start * width, heads.stop * width))


def _along(dim: int, part: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * dim, part)
