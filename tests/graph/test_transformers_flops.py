"""The FLOPs of a layer's products equal those that torch counts in the modules of `transformers`."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from moiety.graph.op import Gemm
from moiety.model.attention import SparseIndexer
from moiety.strategy.strategy import Strategy
from tests.scenarios import LINEAR, MLA, graph_of, small_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
FlopCounterMode = importlib.import_module("torch.utils.flop_counter").FlopCounterMode


def of_transformers(architecture: str, name: str) -> Any:  # noqa: ANN401 - classes and functions of all kinds
    """Return what a module of `transformers` calls `name`."""
    return getattr(importlib.import_module(f"transformers.models.{architecture}.modeling_{architecture}"), name)


@pytest.mark.parametrize(
    ("architecture", "prefix"), [("glm_moe_dsa", "GlmMoeDsa"), ("deepseek_v32", "DeepseekV32")], ids=["glm", "deepseek"]
)
def test_an_indexer_s_products_are_those_of_transformers(architecture: str, prefix: str) -> None:
    index, tokens, hidden = SparseIndexer(num_heads=4, head_dim=128, top_k=64), 256, 1024
    configuration = importlib.import_module(f"transformers.models.{architecture}.configuration_{architecture}")
    config = getattr(configuration, f"{prefix}Config")(
        hidden_size=hidden,
        index_n_heads=index.num_heads,
        index_head_dim=index.head_dim,
        index_topk=index.top_k,
        q_lora_rank=MLA.q_lora_rank,
        qk_rope_head_dim=MLA.qk_rope_head_dim,
    )
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        rows = (torch.empty(1, tokens, width) for width in (hidden, MLA.q_lora_rank))
        turns = tuple(torch.empty(1, tokens, MLA.qk_rope_head_dim) for _ in range(2))
        mask = torch.ones(1, tokens, tokens, dtype=torch.bool)
        of_transformers(architecture, f"{prefix}Indexer")(config, 0)(*rows, turns, mask, None)
    graph = graph_of(small_model(MLA.model_copy(update={"indexer": index})), Strategy())
    ops = {op.name: op for op in graph.layers[0] if op.name.startswith("index_")}
    projected = sum(op.flops for op in ops.values() if isinstance(op.work, Gemm)) / graph.layout.tokens
    # of its whole square of scores the graph has the causal half
    each = ops["index_scores"].flops / graph.layout.tokens / ((tokens + 1) / 2)
    assert counted.get_total_flops() == tokens * (projected + tokens * each)


def test_a_prompt_s_gated_delta_rule_is_that_of_transformers() -> None:
    graph = graph_of(small_model(LINEAR), Strategy())
    tokens, heads, width, chunk = graph.layout.tokens, LINEAR.num_value_heads, LINEAR.key_head_dim, LINEAR.chunk_tokens
    rule = of_transformers("qwen3_5_moe", "torch_chunk_gated_delta_rule")
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        vectors = [torch.empty(1, tokens, heads, width) for _ in range(3)]
        rule(*vectors, *(torch.empty(1, tokens, heads) for _ in range(2)), chunk_size=chunk)
    core = next(op for op in graph.layers[0] if op.name == "attention")
    channels = 2 * LINEAR.num_key_heads * width + heads * width
    convolved = 2 * LINEAR.conv_kernel_size * tokens * channels
    # its triangular solver, which torch does not count, makes what kernels multiply by the solution
    solved = 2 * tokens * chunk * heads * (width + LINEAR.value_head_dim)
    assert core.flops == counted.get_total_flops() + solved + convolved
