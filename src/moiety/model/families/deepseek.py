"""DeepSeek's latent attention and fine-grained experts: DeepSeek-V2, DeepSeek-V3/R1, Kimi-K2, GLM-5."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import MultiHeadLatentAttention, SparseIndexer
from moiety.model.config import MAX_EXPERTS
from moiety.model.families.experts import feed_forwards, late_layers, routed_experts, shared_width
from moiety.model.feed_forward import MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config


def deepseek_v2(config: Config) -> list[Block]:
    """Return the layers of a `deepseek_v2` model; groups of experts count only where `topk_method` uses them."""
    bias = config.flag("mlp_bias", default=False)
    grouped = (config.text("topk_method") or "greedy") != "greedy"
    mixture = MoeFeedForward(
        **routed_experts(
            config,
            num_groups=config.integer("n_group", maximum=MAX_EXPERTS, default=1) if grouped else 1,
            top_k_groups=config.integer("topk_group", maximum=MAX_EXPERTS, default=1) if grouped else 1,
        ),
        shared_intermediate_size=shared_width(config, default=2),
        shared_bias=bias,
    )
    return _blocks(config, mixture, default_dense=0, dense_bias=bias)


def deepseek_v3(config: Config) -> list[Block]:
    """Return the layers of a `deepseek_v3` or `kimi_k2` model."""
    mixture = MoeFeedForward(
        **routed_experts(
            config,
            num_groups=config.optional_integer("n_group", maximum=MAX_EXPERTS, default=8) or 1,
            top_k_groups=config.optional_integer("topk_group", maximum=MAX_EXPERTS, default=4) or 1,
        ),
        shared_intermediate_size=shared_width(config, default=1),
    )
    return _blocks(config, mixture, default_dense=3)


def deepseek_v32(config: Config) -> list[Block]:
    """Return the layers of a `deepseek_v32` model: as DeepSeek-V3, but an indexer picks what is seen."""
    return deepseek_v3(config.with_defaults(index_n_heads=64, index_head_dim=128, index_topk=2048))


def glm_moe_dsa(config: Config) -> list[Block]:
    """Return the layers of a `glm_moe_dsa` model (GLM-5): as DeepSeek-V3.2, of another shape."""
    shape = {"q_lora_rank": 2048, "kv_lora_rank": 512, "qk_nope_head_dim": 192, "v_head_dim": 256}
    index = {"index_n_heads": 32, "index_head_dim": 128, "index_topk": 2048}
    return deepseek_v3(config.with_defaults(n_group=1, topk_group=1, **shape, **index))


def latent_attention(config: Config) -> MultiHeadLatentAttention:
    """Return the multi-head latent attention of one layer, with an indexer where the file has one.

    A null `q_lora_rank` means that queries are not compressed.
    """
    return MultiHeadLatentAttention(
        num_heads=config.integer("num_attention_heads"),
        q_lora_rank=config.optional_integer("q_lora_rank", default=1536),
        kv_lora_rank=config.integer("kv_lora_rank", default=512),
        qk_nope_head_dim=config.integer("qk_nope_head_dim", default=128),
        qk_rope_head_dim=config.integer("qk_rope_head_dim", default=64),
        v_head_dim=config.integer("v_head_dim", default=128),
        projection_bias=config.flag("attention_bias", default=False),
        indexer=_indexer(config),
    )


def _indexer(config: Config) -> SparseIndexer | None:
    if not config.has("index_topk"):
        return None
    return SparseIndexer(
        num_heads=config.integer("index_n_heads"),
        head_dim=config.integer("index_head_dim"),
        top_k=config.integer("index_topk"),
    )


def _blocks(config: Config, mixture: MoeFeedForward, *, default_dense: int, dense_bias: bool = False) -> list[Block]:
    attention = latent_attention(config)
    sparse = late_layers(config, default_dense=default_dense)
    parts = feed_forwards(config, sparse, mixture, dense_bias=dense_bias)
    return [Block(attention=attention, feed_forward=part) for part in parts]
