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


def glm_moe_dsa(config: Config) -> list[Block]:
    """Return the layers of a `glm_moe_dsa` model (GLM-5): as DeepSeek-V3, but an indexer picks what is seen."""
    mixture = MoeFeedForward(
        **routed_experts(
            config,
            num_groups=config.integer("n_group", maximum=MAX_EXPERTS, default=1),
            top_k_groups=config.integer("topk_group", maximum=MAX_EXPERTS, default=1),
        ),
        shared_intermediate_size=shared_width(config, default=1),
    )
    indexer = SparseIndexer(
        num_heads=config.integer("index_n_heads", default=32),
        head_dim=config.integer("index_head_dim", default=128),
        top_k=config.integer("index_topk", default=2048),
    )
    attention = MultiHeadLatentAttention(
        num_heads=config.integer("num_attention_heads"),
        q_lora_rank=config.integer("q_lora_rank", default=2048),
        kv_lora_rank=config.integer("kv_lora_rank", default=512),
        qk_nope_head_dim=config.integer("qk_nope_head_dim", default=192),
        qk_rope_head_dim=config.integer("qk_rope_head_dim", default=64),
        v_head_dim=config.integer("v_head_dim", default=256),
        projection_bias=config.flag("attention_bias", default=False),
        indexer=indexer,
    )
    parts = feed_forwards(config, late_layers(config, default_dense=3), mixture)
    return [Block(attention=attention, feed_forward=part) for part in parts]


def latent_attention(config: Config) -> MultiHeadLatentAttention:
    """Return the multi-head latent attention of one layer; a null `q_lora_rank` means queries are not compressed."""
    return MultiHeadLatentAttention(
        num_heads=config.integer("num_attention_heads"),
        q_lora_rank=config.optional_integer("q_lora_rank", default=1536),
        kv_lora_rank=config.integer("kv_lora_rank", default=512),
        qk_nope_head_dim=config.integer("qk_nope_head_dim", default=128),
        qk_rope_head_dim=config.integer("qk_rope_head_dim", default=64),
        v_head_dim=config.integer("v_head_dim", default=128),
        projection_bias=config.flag("attention_bias", default=False),
    )


def _blocks(config: Config, mixture: MoeFeedForward, *, default_dense: int, dense_bias: bool = False) -> list[Block]:
    attention = latent_attention(config)
    sparse = late_layers(config, default_dense=default_dense)
    parts = feed_forwards(config, sparse, mixture, dense_bias=dense_bias)
    return [Block(attention=attention, feed_forward=part) for part in parts]
