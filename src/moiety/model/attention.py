"""The kinds of attention a layer can have, with their parameters and the cache each token leaves behind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moiety.records import Record

Count = Annotated[int, Field(gt=0, le=2**40)]


class GroupedQueryAttention(Record):
    """Softmax attention whose key/value heads are shared by groups of query heads (Ainslie et al. 2023).

    Multi-head attention is the case `num_kv_heads == num_heads`.
    """

    kind: Literal["gqa"] = "gqa"
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    sliding_window: Count | None = None
    """Tokens a query sees at most (sliding window or chunk); None: all of them."""
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    """RMS norm weights on queries and keys: none, one vector of `head_dim` each, or one over all heads each."""
    output_gate: bool = False
    """The query projection also emits a gate of its own size for the attention output (Qwen3-Next)."""
    sinks: bool = False
    """One learned sink logit per head (gpt-oss)."""
    q_lora_rank: Count | None = Field(default=None, exclude_if=lambda value: value is None)
    """Rank of the query's down-projection, with a norm behind it (Step-3's multi-matrix factorization attention, arXiv
    2507.19427); None: queries are projected directly."""

    def num_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters of this attention, its input norm excluded."""
        queries = self.num_heads * self.head_dim
        keys = self.num_kv_heads * self.head_dim
        emitted = queries * (2 if self.output_gate else 1)
        count = hidden_size * 2 * keys + queries * hidden_size
        rank = self.q_lora_rank
        count += hidden_size * emitted if rank is None else (hidden_size + 1 + emitted) * rank
        count += (emitted + 2 * keys) if self.qkv_bias else 0
        count += hidden_size if self.output_bias else 0
        count += {"none": 0, "head": 2 * self.head_dim, "full": queries + keys}[self.qk_norm]
        return count + (self.num_heads if self.sinks else 0)

    def cache_elements_per_token(self) -> int:
        """Return how many elements each token adds to the KV cache of one layer."""
        return 2 * self.num_kv_heads * self.head_dim


class SparseIndexer(Record):
    """The small attention that picks the tokens a query sees (DeepSeek sparse attention); whole on every rank."""

    num_heads: Count
    head_dim: Count
    top_k: Count
    """Tokens that a query attends to at the most."""

    def num_parameters(self, hidden_size: int, q_rank: int) -> int:
        """Return the parameters of its projections of queries, keys and head weights, and of the norm of the keys."""
        return (
            self.num_heads * self.head_dim * q_rank + hidden_size * (self.head_dim + self.num_heads) + 2 * self.head_dim
        )


class MultiHeadLatentAttention(Record):
    """DeepSeek's multi-head latent attention: keys and values are read from one compressed vector per token."""

    kind: Literal["mla"] = "mla"
    num_heads: Count
    q_lora_rank: Count | None
    """Rank of the query's down-projection; None: queries are projected directly."""
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    projection_bias: bool = False
    """Bias on the two down-projections and the output projection (`attention_bias`)."""
    indexer: SparseIndexer | None = Field(default=None, exclude_if=lambda value: value is None)
    """What picks the tokens that a query sees; None: it sees all of them."""

    def num_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters of this attention, its input norm excluded."""
        qk_head_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        queries = self.num_heads * qk_head_dim
        bias = int(self.projection_bias)
        if self.q_lora_rank is None:
            count = hidden_size * queries
        else:
            count = (hidden_size + bias) * self.q_lora_rank + self.q_lora_rank + self.q_lora_rank * queries
        compressed = self.kv_lora_rank + self.qk_rope_head_dim
        count += (hidden_size + bias) * compressed + self.kv_lora_rank
        count += self.kv_lora_rank * self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        if self.indexer is not None:
            count += self.indexer.num_parameters(hidden_size, self.q_lora_rank or hidden_size)
        return count + self.num_heads * self.v_head_dim * hidden_size + bias * hidden_size

    def cache_elements_per_token(self) -> int:
        """Return how many elements each token adds to a layer's cache: the latent and its rope part.

        The key of an indexer lies beside them, in a format of its own (`index_elements_per_token`).
        """
        return self.kv_lora_rank + self.qk_rope_head_dim

    def index_elements_per_token(self) -> int:
        """Return how many elements the key has that each token leaves for the indexer: 0 where there is none."""
        return self.indexer.head_dim if self.indexer else 0


class LinearAttention(Record):
    """Attention with a state of fixed size instead of a growing cache (gated delta net, lightning attention, Mamba-2).

    Mamba-2 is one by the duality of Dao and Gu 2024 (arXiv 2405.21060): its groups' C and B are queries and keys of the
    state's size, its heads' inputs are the values.
    """

    kind: Literal["linear"] = "linear"
    variant: Literal["gated_delta", "lightning", "mamba2"]
    num_key_heads: Count
    num_value_heads: Count
    key_head_dim: Count
    value_head_dim: Count
    conv_kernel_size: int = Field(default=0, ge=0)
    conv_bias: bool = False
    """The convolution has a bias (Mamba-2's `use_conv_bias`)."""
    projection_bias: bool = False
    """Input and output projections have a bias (Mamba-2's `use_bias`)."""
    chunk_tokens: int = Field(default=0, ge=0, le=2**40)
    """Tokens after which the kernels of a prompt put the state into memory (Mamba-2's `chunk_size`; 64 in those of the
    gated delta rule); 0: they do not."""

    @property
    def head_scalars(self) -> int:
        """What the input projection emits for each value head beside its vectors: decay and step, or Mamba-2's step."""
        return {"gated_delta": 2, "lightning": 0, "mamba2": 1}[self.variant]

    def num_parameters(self, hidden_size: int) -> int:
        """Return the number of parameters of this attention, its input norm excluded."""
        keys = self.num_key_heads * self.key_head_dim
        values = self.num_value_heads * self.value_head_dim
        if self.variant == "lightning":
            # qkv, output gate and output projections, and a norm over the values
            return hidden_size * (2 * keys + values) + 2 * hidden_size * values + values
        # the projection of queries, keys, values, gate and scalars, depthwise convolution over all but the gate, output
        emitted = 2 * keys + 2 * values + self.head_scalars * self.num_value_heads
        count = hidden_size * (emitted + values)
        count += (2 * keys + values) * (self.conv_kernel_size + int(self.conv_bias))
        count += (emitted + hidden_size) * int(self.projection_bias)
        # dt_bias and A_log of each value head and a gated norm over one; Mamba-2: D too, and a norm over all
        if self.variant == "mamba2":
            return count + 3 * self.num_value_heads + values
        return count + 2 * self.num_value_heads + self.value_head_dim

    def cache_elements_per_token(self) -> int:
        """Return 0: the state does not grow with the tokens."""
        return 0

    def state_elements(self) -> int:
        """Return the elements of state that each sequence keeps in one layer, without those of the convolution."""
        return self.num_value_heads * self.key_head_dim * self.value_head_dim

    def convolution_elements(self) -> int:
        """Return the elements of the last tokens that each sequence keeps for a layer's convolution."""
        keys = self.num_key_heads * self.key_head_dim
        values = self.num_value_heads * self.value_head_dim
        return (2 * keys + values) * max(self.conv_kernel_size - 1, 0)


Attention = Annotated[GroupedQueryAttention | MultiHeadLatentAttention | LinearAttention, Field(discriminator="kind")]
