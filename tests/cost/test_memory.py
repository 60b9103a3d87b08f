"""Memory plans: parts that add up, and more work that never needs less."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.cluster.catalog import load_device
from moiety.cost.memory import cache_bytes, plan_memory
from moiety.cost.training_memory import activation_bytes
from moiety.graph.graph import build_step_graph
from moiety.model.catalog import catalog_models, load_catalog_model
from moiety.plan import DtypePolicy, MemoryPlan, Options, Phase
from moiety.strategy.strategy import Strategy
from tests.scenarios import (
    ATTENTIONS,
    CALIBRATION,
    GQA,
    LINEAR,
    MAMBA,
    MLA,
    WINDOWED,
    graph_of,
    moe,
    schedule_of,
    small_model,
)

if TYPE_CHECKING:
    from moiety.dtypes import Dtype
    from moiety.model.model import Model

H100 = load_device("h100")
ENGINE = CALIBRATION.engines["moiety"]


def memory_of(
    model: Model,
    strategy: Strategy,
    phase: Phase = "decode",
    options: Options | None = None,
    *,
    tokens: int = 512,
    cached: int = 100_000,
    microbatches: int = 2,
    device_bytes: int | None = None,
) -> MemoryPlan:
    schedule = schedule_of(phase, tokens, microbatches=microbatches)
    graph = build_step_graph(model, strategy, schedule, options or Options(), training=phase == "training")
    device = H100.model_copy(update={"memory_bytes": device_bytes}) if device_bytes else H100
    return plan_memory(graph, cached_tokens=cached, cached_sequences=100, device=device, engine=ENGINE)


@pytest.mark.parametrize("phase", ["prefill", "decode", "mixed", "training"])
@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_parts_add_up_and_are_all_there(attention: str, phase: Phase) -> None:
    memory = memory_of(small_model(ATTENTIONS[attention]), Strategy(tp=2, attn_dp=2, ep=4, pp=2), phase)
    assert memory.total_bytes == sum(memory.bytes_by_kind.values())
    assert all(size >= 0 for size in memory.bytes_by_kind.values())
    assert memory.biggest in memory.bytes_by_kind
    assert memory.fits == (memory.total_bytes <= memory.capacity_bytes)
    assert ("optimizer_state" in memory.bytes_by_kind) is (phase == "training")
    assert (memory.bytes_by_kind["kv_cache"] > 0) is (phase != "training")


@pytest.mark.parametrize("name", catalog_models())
def test_weights_of_one_gpu_are_the_whole_model(name: str) -> None:
    model = load_catalog_model(name)
    memory = memory_of(model, Strategy(), options=Options())
    held = sum(memory.bytes_by_kind[kind] for kind in ("dense_weights", "expert_weights", "embedding_and_head"))
    # norms, biases and short convolutions are left out: under half a percent
    assert 0.995 * 2 * model.num_parameters <= held <= 2 * model.num_parameters


@settings(max_examples=25)
@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from(["prefill", "decode", "mixed", "training"]))
def test_more_tokens_never_need_less(tokens: int, more: int, phase: Phase) -> None:
    small, large = (
        memory_of(small_model(), Strategy(attn_dp=4, ep=4), phase, tokens=4 * each, cached=each * 100)
        for each in (tokens, tokens + more)
    )
    for kind, size in small.bytes_by_kind.items():
        if kind != "activations":  # packed greedily: compared by what lives at once
            assert large.bytes_by_kind[kind] >= size
    assert small.arena is not None
    assert large.arena is not None
    assert large.arena.live_bytes >= small.arena.live_bytes


def test_a_window_caps_the_cache_and_a_state_does_not_grow() -> None:
    layers = range(6)
    kinds = {"full": GQA, "window": WINDOWED, "linear": LINEAR, "mamba": MAMBA, "latent": MLA}
    cached = {
        name: [cache_bytes(graph_of(small_model(attention), Strategy()), layers, n, 10) for n in (1_000, 100_000)]
        for name, attention in kinds.items()
    }
    assert cached["full"] == [6 * n * 2 * 4 * 64 * 2 for n in (1_000, 100_000)]
    assert cached["window"] == [6 * n * 2 * 4 * 64 * 2 for n in (1_000, 10 * 128)]
    assert cached["linear"] == [6 * 10 * (16 * 64 * 64 * 4 + 3 * (16 * 64 + 2 * 8 * 64) * 2)] * 2
    # 16 heads of 128 x 64, and the last three tokens of what the convolution sees: x, and B and C of four groups
    assert cached["mamba"] == [6 * 10 * (16 * 128 * 64 * 4 + 3 * (16 * 64 + 2 * 4 * 128) * 2)] * 2
    assert cached["latent"] == [6 * n * (128 + 32) * 2 for n in (1_000, 100_000)]


def test_tensor_parallelism_divides_heads_but_not_a_latent() -> None:
    for attention, ratio in ((GQA, 4), (MLA, 1)):
        whole, part = (
            cache_bytes(graph_of(small_model(attention), Strategy(tp=tp, etp=tp)), range(6), 1000, 10) for tp in (1, 4)
        )
        assert whole == ratio * part


def test_checkpointing_recomputes_only_what_does_not_fit() -> None:
    model, strategy = small_model(part=moe(), num_layers=8), Strategy(attn_dp=4, ep=4)
    free = memory_of(model, strategy, "training", tokens=8192)
    assert free.checkpointed_layers == ()
    needed = free.total_bytes
    tight = memory_of(model, strategy, "training", tokens=8192, device_bytes=int(needed * 0.9))
    assert 0 < len(tight.checkpointed_layers) < 8
    assert tight.fits
    off = Options(activation_checkpointing=False)
    assert not memory_of(model, strategy, "training", off, tokens=8192, device_bytes=int(needed * 0.9)).fits


@pytest.mark.parametrize("overlap", [False, True])
def test_one_forward_one_backward_keeps_as_many_microbatches_as_there_are_stages_ahead(overlap: bool) -> None:
    model, options = small_model(num_layers=8), Options(two_batch_overlap=overlap)

    def stored(pp: int, microbatches: int, stage: int = 0) -> int:
        schedule = schedule_of("training", microbatches=microbatches)
        graph = build_step_graph(model, Strategy(pp=pp), schedule, options, training=True)
        return activation_bytes(graph, stage, ())

    extra = 1 if overlap else 0
    first, inside, last = (stored(4, 1, stage) for stage in (0, 1, 3))
    assert first + 2 * inside + last == stored(1, 1)
    assert first < inside + 0.01 * inside < last, "the last one has the logits"
    assert stored(4, 16) == (4 + extra) * first
    assert stored(4, 2) == 2 * first
    assert stored(4, 16, 3) == (1 + extra) * last
    assert stored(1, 16) == (1 + extra) * stored(1, 1)


def test_sharding_divides_the_dense_state() -> None:
    model, strategy = small_model(), Strategy(attn_dp=4, ep=4, instances=2)
    plain, sharded = (
        memory_of(model, strategy, "training", Options(dense_parameter_sharding=on)).bytes_by_kind
        for on in (False, True)
    )
    routed = plain["expert_weights"]
    assert plain["expert_weights"] == sharded["expert_weights"]
    assert sharded["optimizer_state"] - 6 * routed == pytest.approx((plain["optimizer_state"] - 6 * routed) / 4, abs=8)
    assert sharded["gradients"] - routed == pytest.approx((plain["gradients"] - routed) / 4, abs=8)


def test_everything_is_divided_over_who_would_hold_a_copy_of_it() -> None:
    strategy = Strategy(attn_dp=4, ep=4, instances=4)
    plain, dense, full = (
        memory_of(small_model(), strategy, "training", options).bytes_by_kind
        for options in (Options(), Options(dense_parameter_sharding=True), Options(fully_sharded=True))
    )
    experts = plain["expert_weights"]  # in BF16, of 6 equal layers; FP32 master and moments are six times that
    assert dense["expert_weights"] == experts
    assert full["expert_weights"] == pytest.approx(experts / 4 + 2 * experts / 6)
    for kind, times in (("gradients", 1), ("optimizer_state", 6)):
        others = plain[kind] - times * experts
        assert dense[kind] == pytest.approx(others / 4 + times * experts, rel=1e-6)
        assert full[kind] == pytest.approx(others / 16 + times * experts / 4, rel=1e-6)


def test_gradients_have_the_format_that_is_trained_in_whatever_weights_are_held_in() -> None:
    def state(*, router: bool = False, **held: Dtype) -> tuple[int, int]:
        model = small_model(part=moe().model_copy(update={"router_in_fp32": router}))
        options = Options(dtypes=DtypePolicy.model_validate(held), dense_parameter_sharding=True)
        found = memory_of(model, Strategy(attn_dp=4, ep=4), "training", options).bytes_by_kind
        return found["gradients"], found["optimizer_state"]

    plain = state()
    assert state(experts="fp32") == state(weights="fp32") == state(weights="fp8", experts="fp8") == plain
    routers = 6 * 16 * small_model().hidden_size // 4
    assert state(router=True) == (plain[0] + 2 * routers, plain[1] - 4 * routers)
    assert state(router=True, activations="fp32") == state(activations="fp32") == (2 * plain[0], plain[1] * 8 // 12)


def test_the_arena_saves_memory() -> None:
    packed, loose = (
        memory_of(small_model(), Strategy(attn_dp=4, ep=4), options=Options(arena=on)) for on in (True, False)
    )
    assert packed.bytes_by_kind["activations"] <= loose.bytes_by_kind["activations"]


def test_an_engine_that_caches_all_tokens_has_no_use_of_windows() -> None:
    model = load_catalog_model("gpt-oss-20b")
    windowed, whole = (
        plan_memory(
            graph_of(model, Strategy()),
            cached_tokens=100_000,
            cached_sequences=10,
            device=load_device("h200"),
            engine=ENGINE,
            engine_name=name,
        ).bytes_by_kind["kv_cache"]
        for name in ("vllm", "tensorrt-llm")
    )
    # every other layer sees 128 tokens of a sequence
    assert whole == pytest.approx(2 * windowed / (1 + 10 * 128 / 100_000), rel=1e-6)


def test_what_an_engine_leaves_free_is_a_share_of_what_weights_leave() -> None:
    engine = ENGINE.model_copy(update={"reserve_bytes": 10, "unused_share": 0.1})
    assert engine.kept_bytes(110, 0) == pytest.approx(20)
    assert engine.kept_bytes(110, 60) == pytest.approx(14)
    assert engine.kept_bytes(110, 200) == 10
