"""Steps of decoding in the arena: nothing is allocated, and the bits are those of steps without it."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed import TCPStore
from torch.profiler import ProfilerActivity, profile

from moiety.cost.arena import plan_arena
from moiety.cost.workspaces import Workspaces
from moiety.graph.graph import build_graph
from moiety.plan import Schedule
from moiety.runtime.arena.tape import Tape
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.comm.network import Network
from moiety.runtime.engine import Engine
from moiety.runtime.model.batch import Segment, packed
from moiety.runtime.model.load import load_model
from moiety.runtime.overlap import Turns
from moiety.runtime.seat import seat_of
from moiety.runtime.steady import decode_allocations
from tests.runtime.checkpoints import CONFIGS, save_checkpoint
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from moiety.dtypes import Dtype
    from moiety.runtime.model.rank_model import RankModel

    Load = Callable[..., tuple[RankModel, Network]]

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9, 8, 7], [100, 50, 3, 2]]
SEQUENCES = (1, 4, 8, 32)
"""Of which the fewer have products of few rows, whose room is a large part of their step's."""
CAPACITY = 40
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 384}
NARROW_EXPERTS: dict[str, Any] = {**WIDE, "moe_intermediate_size": 192}
PLANNED: list[tuple[str, Dtype, dict[str, Any]]] = [
    ("mixtral", "fp32", WIDE),
    ("mixtral", "fp32", {**WIDE, "vocab_size": 8192}),
    ("mixtral", "bf16", WIDE),
    ("qwen3_moe", "fp32", NARROW_EXPERTS),
    ("qwen3_moe", "fp32", {**WIDE, "moe_intermediate_size": 64, "num_experts_per_tok": 6}),
    ("qwen2_moe", "fp32", {**WIDE, "moe_intermediate_size": 48}),
    ("deepseek_v3", "fp32", NARROW_EXPERTS),
    ("deepseek_v3", "fp32", {**NARROW_EXPERTS, "intermediate_size": 4096}),
    ("deepseek_v3", "bf16", NARROW_EXPERTS),
    ("gpt_oss", "fp32", WIDE),
    ("gpt_oss", "bf16", WIDE),
    ("glm4_moe", "fp32", NARROW_EXPERTS),
]
"""Where something else needs most: experts, their sums, a dense layer, the head, a router in FP32, attention."""


CONVERTED: dict[str, tuple[Dtype, Dtype, int, Dtype]] = {
    "deepseek_v3": ("fp16", "fp8", 0, "fp8"),
    "mixtral-window": ("fp16", "fp16", 0, "fp16"),
    "gpt_oss": ("fp32", "bf16", 0, "fp32"),
    "qwen3_moe": ("fp32", "fp32", 4, "fp8"),
}
"""Formats of activations, cache and weights, and copies of experts, where something has to be converted or chosen.
Other architectures are tried in FP32 throughout."""


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Yield what loads a model of that name, with those formats, on one rank."""
    networks: list[Network] = []

    def loaded(
        name: str,
        dtype: Dtype = "fp32",
        kv_cache: Dtype = "fp32",
        redundant: int = 0,
        weights: Dtype | None = None,
        **changes: object,
    ) -> tuple[RankModel, Network]:
        folder = save_checkpoint(name, tmp_path / name, **changes)
        plan = plan_of(folder, "tp1", dtype=dtype, kv_cache=kv_cache, redundant=redundant, weights=weights)
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        network = Network(rank=0, world_size=1, store=store, tiers=plan.cluster.tiers)
        networks.append(network)
        return load_model(seat_of(plan, 0), Checkpoint.open(str(folder)), network), network

    yield loaded
    for each in networks:
        each.close()


@torch.inference_mode()
def decoded(model: RankModel, network: Network, batches: list[int]) -> list[torch.Tensor]:
    """Return the logits of steps of so many sequences each, after prompts of different lengths."""
    engine, most = Engine(model, network, Turns()), max(batches)
    cache = engine.new_cache(most, CAPACITY)
    found: list[torch.Tensor] = []
    prompts = [Segment(slot, 0, tuple(range(1, 4 + slot)), emits=True) for slot in range(most)]
    model.hidden(packed(prompts), cache, None)
    for number, size in enumerate(batches):
        batch = packed([Segment(slot, 3 + slot + number, (7 + slot + number,), emits=True) for slot in range(size)])
        found.append(model.logits(model.hidden(batch, cache, None), batch).clone())
    return found


@functools.cache
def freed(tape: Tape) -> dict[int, list[slice]]:
    """Return which bytes of the arena have not to be kept any more, by the call that comes next."""
    found: dict[int, list[slice]] = {}
    for each in tape.buffers:
        place = slice(each.offset_bytes, each.offset_bytes + each.size_bytes)
        found.setdefault(each.last_op + 1, []).append(place)
    return found


def played_poisoned(tape: Tape, passage: int) -> Any:  # noqa: ANN401 - as Tape.play
    """Play a passage, with not-a-number before every call wherever nothing has to be kept."""
    assert tape.arena is not None
    before = sum(len(calls) + 1 for calls, _ in tape.bound[:passage])
    calls, result = tape.bound[passage]
    if passage == 0:
        tape.arena[: tape.size_bytes].fill_(255)
    for index, call in enumerate([lambda: None, *calls], before - 1):
        for place in freed(tape).get(index, ()):
            tape.arena[place].fill_(255)
        call()
    return result


@pytest.mark.parametrize(
    ("name", "dtype", "kv_cache", "redundant", "weights"),
    [
        *((name, "fp32", "fp32", 0, "fp32") for name in sorted(CONFIGS.keys() - CONVERTED.keys())),
        *((name, *formats) for name, formats in CONVERTED.items()),
    ],
)
def test_a_step_of_decoding_allocates_nothing_and_has_the_same_bits(
    name: str,
    dtype: Dtype,
    kv_cache: Dtype,
    redundant: int,
    weights: Dtype,
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, network = load(name, dtype, kv_cache, redundant, weights)
    plain = replace(model, decoding=None)
    growing = [1, 1, 1, 3, 3, 3, 2, 1, 4, 4, 4, 3]
    expected = decoded(plain, network, growing)
    assert all(map(torch.equal, decoded(model, network, growing), expected))
    assert model.decoding is not None
    arena = model.decoding.document()
    assert 0 < arena["live_bytes"] <= arena["packed_bytes"] <= 1.05 * arena["live_bytes"]  # type: ignore[operator]
    engine = Engine(model, network, Turns())
    assert decode_allocations(engine, model, 3) == 0
    assert decode_allocations(Engine(plain, network, Turns()), plain, 3) > 100, "what is counted is there to be counted"
    tokens = Engine(plain, network, Turns()).generate(PROMPTS, max_new_tokens=8)
    assert engine.generate(PROMPTS, max_new_tokens=8) == tokens
    monkeypatch.setattr(Tape, "play", played_poisoned)
    steady = [4] * 8
    assert all(map(torch.equal, decoded(model, network, steady), decoded(plain, network, steady)))


@pytest.mark.parametrize(("name", "dtype", "sizes"), PLANNED)
def test_the_arena_of_a_step_is_the_planned_one(name: str, dtype: Dtype, sizes: dict[str, Any], load: Load) -> None:
    model, network = load(name, dtype, dtype, **sizes)
    plan = model.seat.plan
    for number in SEQUENCES:
        decoded(model, network, [number] * 3)
        assert model.decoding is not None
        schedule = Schedule(
            num_microbatches=1, prefill_tokens=0, prompt_tokens=0, decode_sequences=number, context_tokens=CAPACITY
        )
        pool = plan.pools[0].model_copy(update={"role": "decode", "schedule": schedule})
        graph = build_graph(plan.model, pool, plan.options)
        planned = plan_arena(graph, Workspaces.on(plan.cluster.device, graph))
        measured = model.decoding.document()["packed_bytes"]  # of the largest step, which is the last
        assert planned.peak_bytes == pytest.approx(measured, rel=0.05), number


def test_what_a_back_end_does_not_fix_is_called_as_a_whole(load: Load) -> None:
    model, network = load("olmoe")
    for layer in model.expert_layers.values():
        layer.held = replace(layer.held, backend=replace(layer.held.backend, most_fixed=3))
    steady = [1, 1, 1, 1, 3, 3, 3, 3]
    expected = decoded(replace(model, decoding=None), network, steady)
    assert all(map(torch.equal, decoded(model, network, steady), expected))
    assert model.decoding is not None
    assert model.decoding.document()["decode_steps_in_arena"] == 4


def test_in_bf16_only_the_library_of_products_allocates(load: Load) -> None:
    model, network = load("deepseek_v3", "bf16", "bf16")
    engine = Engine(model, network, Turns())
    cache = engine.new_cache(3, 6)

    def step(cached: int) -> None:
        segments = [Segment(slot, cached, (slot,), emits=True) for slot in range(3)]
        engine.timed_step([packed(segments)], cache, overlapped=False)

    for cached in range(1, 5):
        step(cached)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step(5)
    kineto: Any = profiled.profiler.kineto_results  # type: ignore[union-attr]
    events = kineto.events()
    products = [each for each in events if each.name() in {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}]
    taken = [each for each in events if each.name() == "[memory]" and each.nbytes() > 0]
    assert taken, "oneDNN takes its scratchpads from PyTorch"
    for each in taken:
        assert any(product.start_ns() <= each.start_ns() <= product.end_ns() for product in products)
