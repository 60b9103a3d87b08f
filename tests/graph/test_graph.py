"""Graphs: the work of all GPUs together is the model's, whatever the strategy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from moiety.cost.memory import layer_weight_bytes
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.graph import build_step_graph
from moiety.graph.model_flops import model_flops_per_token
from moiety.graph.op import AttentionCore, Collective, Gemm, Op
from moiety.graph.sharding import is_sharding
from moiety.graph.training import routed_parameters
from moiety.model.attention import SparseIndexer
from moiety.model.catalog import catalog_models, load_catalog_model
from moiety.model.feed_forward import MoeFeedForward
from moiety.plan import DtypePolicy, Options, Phase
from moiety.strategy.strategy import Strategy, parse_strategy
from tests.scenarios import (
    ATTENTIONS,
    GQA,
    LINEAR,
    MAMBA,
    MLA,
    MLA_DIRECT,
    WINDOWED,
    dense_model,
    graph_of,
    hybrid_model,
    moe,
    schedule_of,
    small_model,
)

if TYPE_CHECKING:
    from moiety.dtypes import Dtype
    from moiety.graph.graph import Graph
    from moiety.model.model import Block, Model

STRATEGIES = ["tp1", "ep4_tp1", "ep4_tp2", "tp4_dp1_ep4", "tp4_dp2_ep2", "tp2_dp4_ep1", "tp1_dp4_ep2_pp2"]
PHASES: list[Phase] = ["prefill", "decode", "mixed", "training"]


def strategy_of(name: str) -> Strategy:
    degrees = {"tp1": 1, "ep4_tp1": 4, "tp4_dp1_ep4": 4}
    return parse_strategy(name, degrees.get(name, 8))


def layer_gemm_flops(graph: Graph, *, replicated: tuple[str, ...] = ()) -> float:
    """Return the products' FLOPs of all layers over all GPUs of an instance; `replicated` ones count once a group."""
    strategy = graph.layout.strategy
    total = 0.0
    for index in graph.model.layer_blocks:
        for op in graph.layers[index]:
            if isinstance(op.work, Gemm):
                copies = strategy.attn_dp if op.name in replicated else strategy.gpus_per_stage
                total += op.flops * copies
    return total


def dense_parameters(block: Block, hidden_size: int) -> int:
    """Return the parameters of a layer that every attention group needs: all but the routed experts."""
    return block.num_parameters(hidden_size) - routed_parameters(block, hidden_size)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("attention", [GQA, MLA, MLA_DIRECT], ids=["gqa", "mla", "mla-direct"])
def test_products_of_all_gpus_are_two_flops_a_parameter_and_token(name: str, attention: object) -> None:
    model = small_model(attention, moe(shared=512), dense_layers=2)
    graph = graph_of(model, strategy_of(name))
    found = layer_gemm_flops(graph, replicated=("router", "kv_down_proj", "qkv_down_proj"))
    norms = sum(block.num_norms * model.hidden_size for block in model.layers)
    active = sum(block.num_active_parameters(model.hidden_size) for block in model.layers) - norms
    tokens = graph.layout.tokens * graph.layout.strategy.attn_dp
    # the latent attention's own norms are parameters of no product
    assert found == pytest.approx(2 * active * tokens, rel=2e-3)
    assert found <= 2 * active * tokens * (1 + 1e-12)


@pytest.mark.parametrize("name", STRATEGIES)
def test_products_of_a_hybrid_are_two_flops_a_parameter_and_token(name: str) -> None:
    model = hybrid_model()
    graph = graph_of(model, strategy_of(name))
    found = layer_gemm_flops(graph, replicated=("router", "latent_down", "latent_up"))
    active = sum(block.num_active_parameters(model.hidden_size) for block in model.layers)
    tokens = graph.layout.tokens * graph.layout.strategy.attn_dp
    # norms, short convolutions and decay constants are parameters of no product
    assert found == pytest.approx(2 * active * tokens, rel=3e-3)
    assert found <= 2 * active * tokens * (1 + 1e-12)


def test_a_layer_of_one_part_begins_with_a_norm_and_ends_with_the_sum() -> None:
    for ops in graph_of(hybrid_model(), strategy_of("ep4_tp1")).layers:
        norms = [op for op in ops if op.name in {"input_norm", "post_norm"}]
        assert [op.inputs for op in norms] == [("input",)]
        assert ops[0] is norms[0]
        assert ops[-1].name == "residual_add"
        assert "input" in ops[-1].inputs


def test_experts_in_a_latent_exchange_rows_of_its_width() -> None:
    latent = next(part for block in hybrid_model().blocks if (part := block.moe) is not None)
    rows: dict[int | None, list[float]] = {}
    for size in (256, 512, None):
        part = latent.model_copy(update={"latent_size": size})
        ops = graph_of(small_model(GQA, part), strategy_of("ep4_tp2")).layers[0]
        exchanges = [op for op in ops if op.name in {"dispatch", "combine"}]
        rows[size] = [op.work.payload_bytes for op in exchanges if isinstance(op.work, Collective)]
        before = "post_norm" if size is None else "latent_down"
        assert before in exchanges[0].inputs
    assert len(rows[None]) == 2
    assert [2 * each for each in rows[256]] == rows[512]
    assert [2 * each for each in rows[512]] == rows[None]


def test_a_prompt_s_scan_moves_the_states_of_its_chunks() -> None:
    def moved(chunk: int) -> float:
        model = small_model(MAMBA.model_copy(update={"chunk_tokens": chunk}))
        core = next(op for op in graph_of(model, strategy_of("tp1")).layers[0] if isinstance(op.work, AttentionCore))
        return core.memory_bytes

    state = MAMBA.num_value_heads * MAMBA.key_head_dim * MAMBA.value_head_dim * 4
    tokens = graph_of(small_model(MAMBA), strategy_of("tp1")).layout.tokens
    assert moved(128) - moved(0) == 4 * tokens / 128 * state
    assert moved(128) - moved(0) == 2 * (moved(256) - moved(0))


def test_a_state_is_moved_in_its_own_format_and_written_after_every_guess() -> None:
    def moved(state: Dtype, guesses: int = 0) -> float:
        schedule = schedule_of("decode").model_copy(update={"draft_tokens": guesses})
        options = Options(dtypes=DtypePolicy(state=state))
        graph = build_step_graph(small_model(LINEAR), Strategy(), schedule, options, training=False)
        return next(op.memory_bytes for op in graph.layers[0] if op.name == "attention")

    state = 16 * 64 * 64
    last, mixed = 3 * (16 + 2 * 8) * 64, (16 + 2 * 8) * 64
    assert moved("fp32") - moved("bf16") == 2 * 512 * state * 2
    # of each guess: what is convolved and what is normed, read and written, the states after it, what goes in and out
    each = 2 * mixed + 3 * 16 * 64 + last + state + mixed + 16 * 64
    assert moved("bf16", 3) - moved("bf16") == 3 * 512 * each * 2


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("attention", [GQA, WINDOWED, MLA], ids=["gqa", "windowed", "mla"])
def test_scores_are_the_model_s(phase: Phase, attention: object) -> None:
    model = small_model(attention)
    one, many = (graph_of(model, strategy_of(name), phase) for name in ("tp1", "tp4_dp2_ep2"))

    def scores(graph: Graph) -> float:
        cores = [op for ops in graph.layers for op in ops if isinstance(op.work, AttentionCore)]
        return sum(op.flops for op in cores) * graph.layout.strategy.tp / graph.layout.tokens

    assert scores(many) == pytest.approx(scores(one))
    if attention is not MLA or phase == "prefill":
        schedule = one.layout.schedule
        context = (schedule.prompt_tokens + 1) / 2 if phase == "prefill" else schedule.context_tokens
        whole = model_flops_per_token(model, context_tokens=context, emitted_share=0)
        rest = model_flops_per_token(model, context_tokens=0, emitted_share=0)
        expected = (whole - rest) / model.num_layers
        if attention is WINDOWED and phase == "prefill":
            # exactly: the first 128 tokens see 1 .. 128, the rest 128 each
            expected *= (128 * 129 / 2 + 128 * 128) / 256 / 128
        assert scores(one) == pytest.approx(expected)


def test_absorbed_decode_reads_the_latent_cache_and_not_the_heads() -> None:
    graph = graph_of(small_model(MLA), strategy_of("tp1"), "decode")
    core = next(op for op in graph.layers[0] if isinstance(op.work, AttentionCore))
    assert isinstance(core.work, AttentionCore)
    tokens, context = 512, 256
    latent = MLA.kv_lora_rank + MLA.qk_rope_head_dim
    assert core.flops == 2 * tokens * context * MLA.num_heads * (latent + MLA.kv_lora_rank)
    cache = tokens * context * latent * 2
    assert core.work.bytes == cache + tokens * MLA.num_heads * (latent + MLA.kv_lora_rank) * 2


def indexed_ops(top_k: int, phase: Phase, options: Options | None = None) -> dict[str, Op]:
    """Return the ops of a layer with an indexer of 4 heads of 128, by name."""
    model = small_model(MLA.model_copy(update={"indexer": SparseIndexer(num_heads=4, head_dim=128, top_k=top_k)}))
    return {op.name: op for op in graph_of(model, Strategy(), phase, options).layers[0]}


def test_an_indexer_s_keys_are_fp8_with_a_scale_each_whatever_the_cache_is() -> None:
    tokens, context, heads, dim, row = 512, 256, 4, 128, 128 + 4
    for kv_cache in ("bf16", "fp8"):
        ops = indexed_ops(64, "decode", Options(dtypes=DtypePolicy(kv_cache=kv_cache)))
        scores, picked, written = (ops[name] for name in ("index_scores", "index_top_k", "index_k_quantize"))
        assert isinstance(scores.work, AttentionCore)
        assert scores.work.dtype == "fp8"
        read = tokens * context * row + tokens * heads * (row + 4)
        assert scores.memory_bytes == read + tokens * context * 4
        assert picked.memory_bytes == tokens * context * 4 + tokens * 64 * 4
        assert written.memory_bytes == tokens * (2 * dim + row)


def test_prompts_that_are_seen_whole_leave_keys_and_are_not_scored() -> None:
    seen, picked = (indexed_ops(top_k, "prefill") for top_k in (256, 255))
    assert {name for name in seen if name.startswith("index")} == {"index_k_proj", "index_k_norm", "index_k_quantize"}
    assert layer_weight_bytes(tuple(seen.values())) == layer_weight_bytes(tuple(picked.values()))
    pairs = 512 * (256 + 1) / 2
    assert picked["index_scores"].flops == 2 * pairs * 4 * (128 + 1)
    for phase in ("mixed", "decode"):
        of_short, of_long = (indexed_ops(top_k, phase) for top_k in (256, 64))
        assert of_short.keys() == of_long.keys() | ({"kv_up_proj"} if phase == "mixed" else set())


def test_prompts_whose_tokens_are_picked_are_absorbed_into_the_latent() -> None:
    whole, picked, trained = indexed_ops(256, "prefill"), indexed_ops(64, "prefill"), indexed_ops(64, "training")
    assert "kv_up_proj" in whole
    assert "kv_absorb" not in whole
    assert "kv_up_proj" in trained
    assert "index_scores" in trained
    absorbed = picked["kv_absorb"]
    assert isinstance(absorbed.work, Gemm)
    assert absorbed.work.m == 512
    assert "kv_up_proj" not in picked
    latent, rank = MLA.kv_lora_rank + MLA.qk_rope_head_dim, MLA.kv_lora_rank
    mean = (64 * 65 / 2 + 192 * 64) / 256
    assert picked["attention"].flops == pytest.approx(2 * 512 * mean * MLA.num_heads * (latent + rank))
    # queries, what comes out, and the cache
    assert picked["attention"].memory_bytes == 512 * MLA.num_heads * (latent + rank) * 2 + 512 * latent * 2


def test_training_scores_all_tokens_and_masks_those_that_are_not_picked() -> None:
    whole, masked = (indexed_ops(top_k, "training") for top_k in (256, 64))
    assert masked["attention"].work == whole["attention"].work
    assert masked["index_scores"].work == whole["index_scores"].work


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_weights_of_all_gpus_are_the_model_s(name: str, attention: str) -> None:
    strategy = strategy_of(name)
    model = small_model(ATTENTIONS[attention], moe(shared=512), dense_layers=2)
    graph = graph_of(model, strategy, "mixed")
    whole = ("router", "kv_down_proj", "q_down_proj", "qkv_down_proj")
    replicated = {f"{each}.weight": strategy.tp for each in whole}
    total = 0.0
    for index in model.layer_blocks:
        weights = {weight.name: weight for op in graph.layers[index] for weight in op.weights}
        for weight in weights.values():
            copies = strategy.attn_dp * replicated.get(weight.name, 1)
            if weight.name.startswith("experts."):
                copies = 1
            total += math.prod(weight.shape) * strategy.gpus_per_stage / copies
    norms = sum(block.num_norms * model.hidden_size for block in model.layers)
    expected = sum(block.num_parameters(model.hidden_size) for block in model.layers) - norms
    # norms inside the attention, the short convolution and the decay constants are parameters of no product
    assert total == pytest.approx(expected, rel=3e-3)
    assert total <= expected


def test_kv_heads_are_replicated_where_there_are_too_few() -> None:
    narrow, wide = (graph_of(small_model(), Strategy(tp=tp, etp=tp)) for tp in (4, 8))
    shapes = [next(op for op in each.layers[0] if op.name == "qkv_proj").work for each in (narrow, wide)]
    assert [each.n for each in shapes if isinstance(each, Gemm)] == [(4 + 2) * 64, (2 + 2) * 64]


@pytest.mark.parametrize("redundant", [0, 16])
def test_redundant_experts_add_weights_and_no_rows(redundant: int) -> None:
    options = Options(redundant_experts=redundant)
    graph = graph_of(small_model(), Strategy(attn_dp=8, ep=8), options=options)
    up = next(op for op in graph.layers[0] if op.name == "expert_gate_up")
    assert up.weights[0].shape[0] == (16 + redundant) // 8
    assert isinstance(up.work, Gemm)
    assert up.work.m == 512 * 2


def all_lists(graph: Graph) -> list[tuple[Op, ...]]:
    return [graph.embedding, *graph.layers, *graph.backward, graph.head, graph.boundary, graph.update]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", [*catalog_models(), "small dense"])
def test_ops_refer_to_earlier_ops_of_their_list_and_have_names_of_their_own(name: str, phase: Phase) -> None:
    model = dense_model() if name == "small dense" else load_catalog_model(name)
    spread = Strategy(tp=2, attn_dp=2, ep=2, etp=2) if model.moe else Strategy(tp=2, etp=2)
    for strategy in (Strategy(), spread.model_copy(update={"pp": 2, "instances": 2})):
        for options in (Options(dense_parameter_sharding=True), Options(fused_kernels=False, flash_attention=False)):
            for ops in all_lists(graph_of(model, strategy, phase, options)):
                known = {"input"}
                for op in ops:
                    assert set(op.inputs) <= known, op.name
                    assert op.name not in known
                    known.add(op.name)
                    if not isinstance(op.work, Collective):
                        assert op.flops >= 0
                        assert op.memory_bytes > 0


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_every_attention_core_reaches_the_output(attention: str, phase: Phase) -> None:
    ops = graph_of(small_model(ATTENTIONS[attention]), Strategy(), phase).layers[0]
    used = {name for op in ops for name in op.inputs}
    assert all(op.name in used for op in ops[:-1])
    cores = {op.name for op in ops if isinstance(op.work, AttentionCore)}
    assert set(next(op for op in ops if op.name == "o_proj").inputs) == cores
    if phase == "mixed" and ATTENTIONS[attention].kind != "linear":
        assert cores == {"attention", "attention_decode"}


def test_a_mixed_step_does_the_work_of_its_parts() -> None:
    model = small_model(MLA)
    mixed = graph_of(model, Strategy(), "mixed").layers[0]
    projected = {op.name: op.work.m for op in mixed if isinstance(op.work, Gemm)}
    assert projected["kv_up_proj"] == 384
    assert projected["kv_absorb"] == 128
    assert projected["o_proj"] == 512


@pytest.mark.parametrize("sharded", [False, True])
def test_backward_does_twice_the_products_and_reduces_all_gradients(sharded: bool) -> None:
    model = small_model()
    strategy = Strategy(tp=2, attn_dp=2, ep=2, etp=2, instances=2)
    options = Options(dense_parameter_sharding=sharded)
    graph = graph_of(model, strategy, "training", options)
    forward, backward = graph.layers[0], graph.backward[0]
    products = [sum(op.flops for op in ops if isinstance(op.work, Gemm)) for ops in (forward, backward)]
    assert products[1] == 2 * products[0]
    sent = {op.name: op.work for op in backward if isinstance(op.work, Collective) and op.work.bulk}
    held = {weight.name: math.prod(weight.shape) for op in forward for weight in op.weights}
    dense = 2 * (sum(size for name, size in held.items() if not name.startswith("experts.")) + 2 * model.hidden_size)
    assert dense == pytest.approx(2 * dense_parameters(model.blocks[0], model.hidden_size) / strategy.tp, rel=0.01)
    tables = 2 * model.vocab_size * model.hidden_size / strategy.tp * 2
    reduced = sent["dense_gradient_reduce"]
    # sharded gradients are scattered in every micro-batch, in FP32, others reduced once a step (of 2 micro-batches)
    assert (reduced.kind, reduced.axis) == ("reduce_scatter" if sharded else "all_reduce", "attn_dp")
    assert reduced.payload_bytes == pytest.approx(2 * dense if sharded else dense / 2)
    ends = {op.name: op.work for op in graph.update if isinstance(op.work, Collective)}
    assert ends["vocabulary_gradient_reduce"].payload_bytes == (2 * tables if sharded else tables)
    assert ends["vocabulary_gradient_all_reduce"].payload_bytes == (tables / 2 if sharded else tables)
    gathered = {op.name: op.work.payload_bytes for op in (*graph.embedding, *forward) if is_sharding(op)}
    assert gathered == ({"vocabulary_gather": tables, "dense_gather": dense} if sharded else {})
    between = sent["dense_gradient_all_reduce"]
    assert between.axis == "instance"
    assert between.payload_bytes == pytest.approx(dense / 2 / (strategy.attn_dp if sharded else 1))
    routed = sent["expert_gradient_all_reduce"]
    part = model.blocks[0].feed_forward
    assert isinstance(part, MoeFeedForward)
    held = part.num_experts * part.expert_parameters(model.hidden_size) / strategy.gpus_per_stage
    assert routed.payload_bytes == pytest.approx(held * 2 / 2)
    order = {op.name: index for index, op in enumerate(backward)}
    assert order["dense_gradient_reduce"] > order["qkv_proj.backward"]
    if sharded:
        assert "dense_gather.backward" in backward[1].inputs


def test_the_optimizer_touches_every_parameter_once() -> None:
    model = small_model(dense_layers=2)
    for strategy in (Strategy(tp=2, etp=2), Strategy(attn_dp=4, ep=4, pp=2)):
        for sharded in (False, True):
            graph = graph_of(model, strategy, "training", Options(dense_parameter_sharding=sharded))
            local = graph.update[-1].memory_bytes / 28
            dense = sum(dense_parameters(block, model.hidden_size) for block in model.layers)
            experts = sum(block.num_parameters(model.hidden_size) for block in model.layers) - dense
            outside = model.num_parameters - dense - experts
            copies = strategy.attn_dp if not sharded else 1
            expected = ((dense + outside) * copies + experts) / strategy.gpus_per_instance
            assert local == pytest.approx(expected)


def test_the_head_serves_the_last_token_of_a_prompt_and_all_tokens_of_training() -> None:
    rows = {
        phase: next(op for op in graph_of(small_model(), Strategy(), phase).head if op.name == "lm_head").work
        for phase in PHASES
    }
    assert {phase: work.m for phase, work in rows.items() if isinstance(work, Gemm)} == {
        "prefill": 2,
        "decode": 512,
        "mixed": 129,
        "training": 512,
    }


def test_training_takes_three_forward_passes_of_model_flops() -> None:
    model = small_model()
    forward = model_flops_per_token(model, context_tokens=100, emitted_share=1)
    assert model_flops_per_token(model, context_tokens=100, emitted_share=1, training=True) == 3 * forward
    assert forward > 2 * model.num_active_parameters


def test_tensors_say_their_size() -> None:
    graph = graph_of(small_model(), Strategy(tp=2, etp=2))
    hidden = graph.embedding[0].output
    assert hidden is not None
    assert str(hidden) == "[512, 1024] bf16"
    assert hidden.size_bytes == 512 * 1024 * BYTES_PER_ELEMENT["bf16"]
    assert schedule_of("mixed").tokens_per_step == 1024


def test_unfused_kernels_and_plain_attention_only_add_traffic() -> None:
    model: Model = small_model(part=moe(shared=512))
    strategy = Strategy(attn_dp=4, ep=4)

    def traffic(options: Options) -> tuple[float, float]:
        ops = graph_of(model, strategy, "prefill", options).layers[0]
        return sum(op.memory_bytes for op in ops), sum(op.flops for op in ops)

    fused, flops = traffic(Options())
    for options in (Options(fused_kernels=False), Options(flash_attention=False)):
        more, same = traffic(options)
        assert more > fused
        assert same == flops


@pytest.mark.parametrize("strategy", ["tp1", "tp2_dp1_ep2", "ep2_tp1"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_norm_behind_a_part_reads_all_that_the_part_made_before_it_is_added(strategy: str, phase: Phase) -> None:
    plain = small_model(GQA, moe(shared=512), dense_layers=1)
    blocks = tuple(
        block.model_copy(update={"num_norms": 4, "norms_behind": ("attention", "feed_forward")})
        for block in plain.blocks
    )
    model = plain.model_copy(update={"blocks": blocks})
    few, many = (
        graph_of(each, parse_strategy(strategy, 2 if strategy != "tp1" else 1), phase) for each in (plain, model)
    )
    rows = many.layout.tokens * model.hidden_size * BYTES_PER_ELEMENT["bf16"]
    for before, after in zip(few.layers, many.layers, strict=True):
        added = {op.name: op for op in after if op not in before}
        assert added.keys() == {"attn_out_norm", "post_norm", "ffn_out_norm", "residual_add"}
        (old,) = (op for op in before if op.name == "residual_add")
        assert added["ffn_out_norm"].inputs == old.inputs[1:], "the sums over ranks are done"
        assert added["ffn_out_norm"].work.bytes == len(old.inputs) * rows
        assert added["residual_add"].inputs == ("input", "ffn_out_norm")
        assert added["attn_out_norm"].inputs == (before[[op.name for op in before].index("post_norm") - 1].name,)
        assert added["post_norm"].inputs == ("input", "attn_out_norm")
    assert (phase == "training") == any(op.name == "ffn_out_norm.backward" for ops in many.backward for op in ops)
