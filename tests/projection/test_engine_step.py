"""A plan's step under an engine is the step that `moiety validate` is held to."""

from __future__ import annotations

import pytest

from moiety.calibration.engine_memory import EngineMemory
from moiety.calibration.engines import engine_calibration
from moiety.calibration.scheduling import scheduling
from moiety.calibration.serving_catalog import load_serving
from moiety.cluster.catalog import load_cluster
from moiety.cost.price import Pricer
from moiety.graph.feed_forward import moves_tokens, of_shared_experts
from moiety.model.catalog import load_catalog_model
from moiety.plan import Options, Schedule
from moiety.projection.engine_step import engine_step_s
from moiety.projection.load import LoadClass
from moiety.projection.phase import PoolCase, phase_outcome
from moiety.projection.scenario import Scenario
from moiety.projection.schedule import schedules
from moiety.projection.serving import aggregated_latency
from moiety.projection.serving_pool import ServingPool
from moiety.projection.step import StepOutcome, time_step
from moiety.strategy.strategy import Strategy
from moiety.workload.workload import Workload

CLUSTER, MODEL = load_cluster("h200x8"), load_catalog_model("qwen3-235b-a22b")
STRATEGY, OPTIONS = Strategy(attn_dp=8, ep=8), Options(two_batch_overlap=False)
LOAD = Workload(name="measured", kind="decode", input_tokens=1024, output_tokens=512, concurrency=256)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
def test_planning_and_validating_time_a_decode_step_alike(engine: str) -> None:
    calibration = engine_calibration(engine, "hopper", CLUSTER.device.memory_bytes)
    schedule = Schedule(
        num_microbatches=1,
        prefill_tokens=0,
        prompt_tokens=0,
        decode_sequences=32,
        context_tokens=LOAD.decode_context_tokens,
    )
    scenario = Scenario(MODEL, CLUSTER, LOAD, engine, calibration)
    planned = phase_outcome(PoolCase(scenario, STRATEGY, OPTIONS, None), "decode", schedule, timing="estimated")
    release = load_serving().family("hopper").newest_release(engine)
    validated = ServingPool(scenario, STRATEGY, OPTIONS, release, scheduling(engine))
    assert planned.tpot_s == pytest.approx(validated.step_s(0, 32, LOAD.decode_context_tokens), rel=1e-9)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
@pytest.mark.parametrize("shortest", [0.8, 1.0])
@pytest.mark.parametrize(("prompt", "answer", "concurrency"), [(1024, 512, 256), (512, 8192, 512), (16_384, 64, 128)])
def test_planning_and_validating_time_requests_alike(
    engine: str, shortest: float, prompt: int, answer: int, concurrency: int
) -> None:
    lengths = {"input_tokens": prompt, "output_tokens": answer, "shortest_share": shortest}
    load = Workload(name="chat", kind="mixed", concurrency=concurrency, **lengths)
    calibration = engine_calibration(engine, "hopper", CLUSTER.device.memory_bytes)
    (schedule,) = schedules(load, "mixed", STRATEGY, OPTIONS)
    scenario = Scenario(MODEL, CLUSTER, load, engine, calibration)
    planned = phase_outcome(PoolCase(scenario, STRATEGY, OPTIONS, None), "mixed", schedule, timing="estimated")
    release = load_serving().family("hopper").newest_release(engine)
    pool = ServingPool(scenario, STRATEGY, OPTIONS, release, scheduling(engine), memory=EngineMemory(1e3, 0.0))
    validated = aggregated_latency(pool, concurrency)
    assert planned.tpot_s == pytest.approx(validated.tpot_s, rel=1e-9)
    assert planned.ttft_s == pytest.approx(validated.ttft_s, rel=1e-9)


def test_sglang_computes_shared_experts_before_tokens_leave_and_others_meanwhile() -> None:
    model = load_catalog_model("deepseek-v3")
    calibration = engine_calibration("sglang", "hopper", CLUSTER.device.memory_bytes)
    calibration = engine_calibration("vllm", "hopper", CLUSTER.device.memory_bytes, calibration)
    schedule = Schedule(
        num_microbatches=1, prefill_tokens=4096, prompt_tokens=4096, decode_sequences=0, context_tokens=0
    )
    classes = [LoadClass("all", 8, (1.0,) * model.num_layers)]
    took = dict[str, StepOutcome]()
    for engine in ("sglang", "vllm"):
        scenario = Scenario(model, CLUSTER, LOAD, engine, calibration)
        took[engine] = time_step(scenario, STRATEGY, schedule, OPTIONS, None, timing="estimated", classes=classes)
    graph, hidden = took["vllm"].graph, 0.0
    priced = Pricer(graph, CLUSTER, calibration).priced_graph(1.0)
    for block in model.layer_blocks:
        moving, shared = (
            sum(each.seconds for each in priced.layers[block] if belongs(each.op))
            for belongs in (moves_tokens, of_shared_experts)
        )
        hidden += min(moving, shared)
    assert hidden > 0.01 * took["vllm"].step_s
    assert took["sglang"].step_s - took["vllm"].step_s == pytest.approx(hidden, rel=1e-6)


def test_every_overhead_is_added_where_it_arises() -> None:
    calibration = engine_calibration("vllm", "hopper", CLUSTER.device.memory_bytes)
    case = PoolCase(Scenario(MODEL, CLUSTER, LOAD, "vllm", calibration), STRATEGY, OPTIONS, None)
    decode = Schedule(num_microbatches=1, prefill_tokens=0, prompt_tokens=0, decode_sequences=1, context_tokens=9)
    prompts = decode.model_copy(update={"prefill_tokens": 1024, "prompt_tokens": 1024, "decode_sequences": 0})
    engine = calibration.engines["vllm"].model_copy(update={"op_gap_s": 1e-6, "eager_gap_s": 1e-4})
    graphs = [case.graph(each, training=False) for each in (decode, prompts)]
    of_decode, of_prompts = (engine_step_s(engine, graph, 1.0, 0) for graph in graphs)
    assert engine_step_s(engine, graphs[0], 3.0, 0) - of_decode == pytest.approx(2 * engine.kernel_slowdown)
    assert engine_step_s(engine, graphs[0], 1.0, 10) - of_decode == pytest.approx(10 * engine.sequence_overhead_s)
    assert of_decode > engine.kernel_slowdown + engine.step_overhead_s + MODEL.num_layers * engine.moe_layer_gap_s
    assert of_prompts > of_decode, "kernels of prompts are launched one by one"
