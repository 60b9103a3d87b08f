"""Training rows: what they are read as, what a step is made of, and constants fitted to steps that are known."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from moiety.calibration.catalog import calibration_for
from moiety.calibration.training import TrainingConstants, load_training
from moiety.graph.op import Collective
from moiety.model.attention import LinearAttention
from moiety.projection.training_casts import Cast, Memory
from moiety.projection.training_formats import layer_prices
from moiety.projection.training_predictions import prediction_blocks
from moiety.projection.training_run import TrainingRun, priced_graphs, training_parts
from moiety.projection.training_work import layer_work
from moiety.validation.fit_training import MeasuredRun, fit_training
from moiety.validation.skipped import SkippedRow
from moiety.validation.system_row import SystemRow
from moiety.validation.training_case import predict_training, training_run
from tests.scenarios import GQA, hybrid_model, small_model

if TYPE_CHECKING:
    from moiety.dtypes import Dtype

ROW: dict[str, Any] = {
    "id": "t",
    "kind": "e2e",
    "hardware": "DGX-H100",
    "n_gpus": 16,
    "model": "Qwen3_30B_a3B (tokendrop)",
    "precision": "BF16",
    "parallel": {"tp": 1.0, "pp": 2.0, "cp": 1.0, "vp": 12.0, "ep": 8.0, "fsdp": 0},
    "phase": "training",
    "isl": 4096,
    "batch": "GBS 512 MBS 2",
    "metrics": {"tok_s_per_gpu": 1.0},
}

BRIDGE = "NVIDIA-NeMo/Megatron-Bridge:docs/performance-summary.md"
FOLDING = "MoE Parallel Folding (arXiv 2504.14960) Table 4"
GB200: dict[str, Any] = {
    "hardware": "DGX-GB200",
    "n_gpus": 8,
    "precision": "MXFP8",
    "parallel": {"tp": 1.0, "pp": 1.0, "cp": 1.0, "vp": None, "ep": 8.0, "fsdp": 0},
    "batch": "GBS 512 MBS 4",
}


def _run(**changes: object) -> TrainingRun:
    return training_run(SystemRow.model_validate(ROW | changes))


def _step_s(run: TrainingRun) -> float:
    return training_parts(run, calibration_for(run.cluster.device.architecture)).step_s(load_training())


def _degrees(**changes: object) -> dict[str, object]:
    return {**ROW["parallel"], **changes}


@pytest.mark.parametrize(
    ("changes", "strategy", "microbatches"),
    [
        ({}, "ep8_tp1_pp2", 32),
        ({"n_gpus": 32}, "ep8_tp1_pp2_x2", 16),
        ({"parallel": _degrees(tp=2)}, "tp2_dp4_ep8_pp2", 64),
        ({"parallel": _degrees(tp=2, ep=4, method="MCore")}, "ep4_tp2_pp2", 64),
        ({"parallel": _degrees(tp=2, ep=4, etp=1, method="Folding")}, "tp2_dp2_ep4_pp2_x2", 64),
        ({"batch": "GBS 512"}, "ep8_tp1_pp2", 64),
        ({"batch": "2M tokens"}, "ep8_tp1_pp2", 64),
        ({"parallel": _degrees(cp=2)}, "ep8_tp1_cp2_pp2", 64),
        ({"parallel": _degrees(cp=4, tp=4), "n_gpus": 64}, "tp4_dp2_ep8_cp4_pp2_x4", 128),
        ({"model": "LLAMA3_8B", "parallel": _degrees(cp=2, ep=None)}, "tp1_cp2_pp2_x4", 64),
    ],
)
def test_degrees_and_batch_become_a_run(changes: dict[str, Any], strategy: str, microbatches: int) -> None:
    run = _run(**changes)
    assert (run.strategy.name, run.num_microbatches) == (strategy, microbatches)
    assert run.tokens_per_step == 512 * 4096


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parallel": _degrees(cp=16)}, "degrees do not divide|context parallelism"),
        ({"parallel": {"same_as": "Table 3"}}, "by reference"),
        ({"parallel": _degrees(ep=3)}, "divide"),
        ({"batch": "every document once"}, "global batch"),
        ({"parallel": {"tp": 1, "pp": 2, "ep": 8}}, "how many parts each pipeline stage has"),
        ({"source": FOLDING, "parallel": {"method": "Unheard-of", "same_as": "Table 3"}}, "by reference"),
        ({"batch": "GBS 7 MBS 2"}, "global batch does not divide"),
        ({"precision": "int3"}, "int3"),
        ({"model": "unheard-of"}, "catalogue"),
        ({"hardware": "DGX-Z1"}, "catalogue"),
        ({"isl": None}, "not stated"),
    ],
)
def test_what_cannot_be_predicted_is_skipped_by_name(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SkippedRow, match=reason):
        _run(**changes)


@pytest.mark.parametrize(
    ("model", "method", "strategy", "parts"),
    [
        ("Mixtral-8x22B", "Folding", "tp2_dp4_ep8_pp8_x2", 7),
        ("Mixtral-8x22B", "MCore", "ep4_tp2_pp8_x2", 7),
        ("Mixtral-8x22B", "TP+EP+DP", "ep8_tp4_x4", 1),
        ("Qwen2-57B-A14B", "FSDP+EP", "ep8_tp1_x16", 1),
    ],
)
def test_degrees_stated_by_reference_are_those_of_the_table(model: str, method: str, strategy: str, parts: int) -> None:
    changes = {"source": FOLDING, "model": model, "parallel": {"method": method, "same_as": "Table 3"}}
    run = _run(**changes, n_gpus=128, batch="GBS 1024 (four times as many)")
    assert (run.strategy.name, run.virtual_stages) == (strategy, parts)
    assert run.options.fully_sharded == ("FSDP" in method)


def test_a_job_of_whole_racks_uses_64_gpus_of_each() -> None:
    run = _run(hardware="DGX-GB200", n_gpus=256, parallel=_degrees(ep=64), batch="GBS 4096 MBS 1")
    assert [tier.num_gpus for tier in run.cluster.tiers] == [64, 256]


@pytest.mark.parametrize("parts", [2, 4])
def test_virtual_stages_shorten_the_bubble_of_a_short_step(parts: int) -> None:
    run = replace(_run(), virtual_stages=1, num_microbatches=4)
    assert _step_s(replace(run, virtual_stages=parts)) < _step_s(run)


def test_a_graph_of_the_whole_step_leaves_no_launch() -> None:
    parts = training_parts(replace(_run(), captured=frozenset({"full"})), calibration_for("hopper"))
    bare = training_parts(replace(_run(), captured=frozenset()), calibration_for("hopper"))
    some = training_parts(replace(_run(), captured=frozenset({"attn", "moe_router"})), calibration_for("hopper"))
    assert parts.work.launches < some.work.launches < bare.work.launches
    assert replace(parts.work, launches=0.0) == replace(bare.work, launches=0.0)


def test_graphs_of_mamba_layers_hold_those_and_no_attention() -> None:
    run = replace(_run(), model=hybrid_model())
    launches = {
        captured: training_parts(replace(run, captured=frozenset(captured)), calibration_for("hopper")).work.launches
        for captured in ((), ("mamba",), ("attn",), ("mamba", "attn"))
    }
    saved = {captured: launches[()] - left for captured, left in launches.items()}
    # three Mamba-2 layers and one of attention, whose ops and kernels are as many
    assert saved["mamba",] == pytest.approx(3 * saved["attn",])
    assert saved["mamba", "attn"] == pytest.approx(saved["mamba",] + saved["attn",])
    assert saved["attn",] > 0


def test_every_token_beyond_the_next_takes_as_much_again() -> None:
    run = replace(_run(), predictions=0)
    works = [
        training_parts(replace(run, predictions=number), calibration_for("hopper")).work.products_s
        for number in range(3)
    ]
    assert works[0] < works[1]
    assert works[2] - works[1] == pytest.approx(works[1] - works[0])
    flops = [replace(run, predictions=number).flops_per_token for number in range(3)]
    assert flops[2] - flops[1] == pytest.approx(flops[1] - flops[0])
    # by hand: a layer of the 48, the head and the product of two rows, at half of 4,096 tokens and forward and backward
    model, hidden = run.model, run.model.hidden_size
    layer = (flops[0] - 6 * hidden * model.vocab_size) / model.num_layers
    assert flops[1] - flops[0] == pytest.approx(layer + 6 * hidden * (model.vocab_size + 2 * hidden), rel=1e-3)


def test_a_hybrid_predicts_with_attention_and_experts() -> None:
    model = hybrid_model()
    attention, experts = (model.blocks[kind] for kind in prediction_blocks(model))
    assert (attention.attention, experts.moe) == (GQA, model.moe)
    assert prediction_blocks(small_model(dense_layers=2)) == (0,)


@pytest.mark.parametrize(
    ("model", "predictions"), [("Nemotron_3_Super", 2), ("Nemotron_3_Nano", 0), ("DeepSeekV3", 1), ("Qwen3_30B_a3B", 0)]
)
def test_how_many_tokens_a_run_predicted_is_read_in_its_recipe(model: str, predictions: int) -> None:
    ep = 64 if model == "Nemotron_3_Super" else 8
    parallel = {"tp": 1.0, "pp": 1.0, "cp": 1.0, "vp": None, "ep": float(ep), "fsdp": 0}
    row = ROW | GB200 | {"model": model, "n_gpus": 64, "source": f"{BRIDGE} [26.06 NeMo Container]"}
    assert training_run(SystemRow.model_validate(row | {"parallel": parallel})).predictions == predictions


def test_a_row_may_say_that_no_token_beyond_the_next_was_predicted() -> None:
    row = ROW | GB200 | {"n_gpus": 256, "source": f"{BRIDGE} [25.11 NeMo Container]"}
    row |= {"parallel": {"tp": 1, "pp": 4, "vp": 4, "ep": 64}, "batch": "GBS 2048 MBS 1"}
    for model, predictions in (("DeepSeekV3", 1), ("DeepSeekV3 (w/o MTP)", 0)):
        assert training_run(SystemRow.model_validate(row | {"model": model})).predictions == predictions


def test_parts_in_another_format_are_those_that_a_recipe_names() -> None:
    row = ROW | GB200 | {"model": "Nemotron_3_Super", "n_gpus": 64, "source": f"{BRIDGE} [26.08 NeMo Container]"}
    row |= {"parallel": {"tp": 1, "pp": 1, "ep": 64}, "precision": "NVFP4", "batch": "GBS 512 MBS 1"}
    run = training_run(SystemRow.model_validate(row))
    assert (run.formats["attention"], run.formats["mamba_out"], run.wide_layers) == ("bf16", "fp8", 14)


def test_every_part_that_leaves_a_narrow_format_takes_longer_until_all_is_wide() -> None:
    run = replace(_run(precision="NVFP4", hardware="DGX-B200"), model=hybrid_model(), predictions=1)
    wide = run.options.dtypes.model_copy(update={"weights": "bf16", "experts": "bf16"})
    all_wide = replace(run, options=run.options.model_copy(update={"dtypes": wide}))
    parts = {"attention": "bf16", "mamba_out": "bf16", "predictions": "bf16"}
    runs = [replace(run, formats=dict(list(parts.items())[:count])) for count in range(len(parts) + 1)]
    runs += [replace(runs[-1], wide_layers=count) for count in (1, run.model.num_layers)]
    works = [training_parts(each, calibration_for("blackwell")).work for each in (*runs, all_wide)]
    products = [work.products_s for work in works]
    assert products == sorted(products)
    assert len(set(products)) == len(runs)
    assert works[-2].products_s == pytest.approx(works[-1].products_s)
    assert works[-2].passes_s == pytest.approx(works[-1].passes_s)


def test_a_scan_goes_through_memory_and_is_made_again_on_the_way_back() -> None:
    run = replace(_run(), model=hybrid_model())
    (scan,) = [block for block in run.model.blocks if isinstance(block.attention, LinearAttention)]
    graphs = priced_graphs(run, calibration_for("hopper"))
    passes = layer_prices(graphs, run.model.blocks.index(scan), {}, "bf16")
    forward, backward = (
        layer_work([p for p in prices if p.op.name.startswith("attention")], scan, run.strategy, (), Memory(1e12))
        for prices in passes
    )
    assert forward.products_s == backward.products_s == 0
    assert 2 * forward.passes_s < backward.passes_s


def test_an_exchange_beside_computation_costs_a_part_of_itself() -> None:
    run = _run(parallel=_degrees(vp=1))
    beside = replace(run, overlaps_exchange=True)
    assert _step_s(replace(run, virtual_stages=2)) != _step_s(run)
    bare, hidden = (training_parts(each, calibration_for("hopper")).work for each in (run, beside))
    assert hidden.background_s == bare.background_s + bare.exchange_s
    assert hidden.exchange_s == 0 < bare.exchange_s


def test_two_micro_batches_in_turns_are_launched_at_more_cost_unless_a_graph_holds_them() -> None:
    run = _run(parallel=_degrees(vp=1))
    in_turns = replace(run, overlaps_exchange=True)
    bare, paired = (training_parts(each, calibration_for("hopper")) for each in (run, in_turns))
    assert (paired.work.launches, paired.work.paired_launches) == (0, bare.work.launches)
    free = load_training().model_copy(update={"launch_s": 0.0})
    assert paired.step_s(free) < bare.step_s(free)
    dearer = load_training().model_copy(update={"paired_launches": 2 * load_training().paired_launches})
    assert paired.step_s(dearer) > paired.step_s(load_training())
    assert bare.step_s(dearer) == bare.step_s(load_training())
    graphed = [replace(each, captured=frozenset({"full"})) for each in (run, in_turns)]
    assert 0.5 < _step_s(graphed[1]) / _step_s(graphed[0]) < 1


def test_a_device_with_more_power_is_no_slower() -> None:
    run = _run()
    device = run.cluster.device.model_copy(update={"max_power_w": 2 * run.cluster.device.max_power_w})
    fed = replace(run, cluster=run.cluster.model_copy(update={"device": device}))
    starved = replace(
        run, cluster=run.cluster.model_copy(update={"device": device.model_copy(update={"max_power_w": 300.0})})
    )
    assert _step_s(fed) <= _step_s(run) < _step_s(starved)


@pytest.mark.parametrize(
    ("changes", "captured", "overlaps", "method"),
    [
        ({}, set(), False, "flat"),  # of nobody whose recipes are known
        ({"source": f"{BRIDGE} [26.06 NeMo Container]", **GB200}, {"full"}, True, "hierarchical"),
        (
            {"source": f"{BRIDGE} [26.04 NeMo Container]", **GB200},
            {"moe_router", "moe_preprocess"},
            False,
            "hierarchical",
        ),
        ({"source": f"{BRIDGE} [25.09 NeMo Container]", "precision": "FP8-CS"}, set(), False, "flat"),
        ({"source": f"{BRIDGE} [31.01 NeMo Container]", **GB200}, {"full"}, True, "hierarchical"),
    ],
)
def test_what_a_row_leaves_out_is_as_it_was_published(
    changes: dict[str, Any], captured: set[str], overlaps: bool, method: str
) -> None:
    run = _run(**changes)
    assert (run.captured, run.overlaps_exchange, run.options.all_to_all) == (captured, overlaps, method)


@pytest.mark.parametrize(("parts", "overlaps"), [(4.0, True), (None, False)])
def test_parts_of_stages_tell_one_release_s_recipe_from_another_s(parts: float | None, overlaps: bool) -> None:
    # container 26.02 trained this in four parts, beside which tokens were exchanged; 26.02.01 in one
    parallel = {"tp": 1.0, "pp": 8.0, "cp": 1.0, "vp": parts, "ep": 8.0, "fsdp": 0}
    row = ROW | {"model": "Qwen3_235B_a22B", "hardware": "DGX-B300", "n_gpus": 256, "precision": "MXFP8"}
    row |= {"source": f"{BRIDGE} [26.02.01 NeMo Container]", "parallel": parallel, "batch": "GBS 8192 MBS 1"}
    assert training_run(SystemRow.model_validate(row)).overlaps_exchange == overlaps


def test_ranks_that_share_experts_get_each_row_once_and_gather() -> None:
    folded, shared = (_run(parallel=_degrees(tp=2, ep=4, etp=etp, method="Folding")) for etp in (1, 2))
    assert shared.options.all_to_all == "flat"
    methods = {
        run.strategy.etp: {
            price.op.work.method
            for graph in priced_graphs(run, calibration_for("hopper")).values()
            for prices in (*graph.layers, *graph.backward)
            for price in prices
            if price.op.name.startswith(("dispatch", "combine")) and isinstance(price.op.work, Collective)
        }
        for run in (folded, shared)
    }
    assert methods == {1: {"flat"}, 2: {"gathered"}}
    exchanged = [training_parts(run, calibration_for("hopper")).work.exchange_s for run in (folded, shared)]
    assert exchanged[0] < exchanged[1]


def test_attention_with_sinks_takes_the_time_of_one_that_writes_its_scores() -> None:
    sinks = _run(model="GPT OSS 120B", parallel=_degrees(pp=1, vp=1), n_gpus=64)
    assert not sinks.options.flash_attention
    assert _run().options.flash_attention


def test_parts_of_sequences_take_as_long_as_whole_ones_but_for_their_keys() -> None:
    whole = _run(model="LLAMA3_8B", parallel=_degrees(ep=None, pp=1, vp=1), n_gpus=8, isl=65536, batch="GBS 8")
    parts = _run(model="LLAMA3_8B", parallel=_degrees(ep=None, pp=1, vp=1, cp=8), n_gpus=8, isl=65536, batch="GBS 8")
    assert parts.tokens_per_step == whole.tokens_per_step
    works = [training_parts(run, calibration_for("hopper")).work for run in (whole, parts)]
    assert works[1].products_s == pytest.approx(works[0].products_s, rel=0.05)
    assert works[0].background_s == 0 < works[1].background_s
    assert 1 < _step_s(parts) / _step_s(whole) < 1.3


def test_sharded_weights_are_gathered_in_every_microbatch() -> None:
    whole = _run(model="LLAMA3_70B", parallel={"tp": 1, "pp": 1}, n_gpus=64, batch="GBS 256 MBS 1")
    sharded = _run(model="LLAMA3_70B", parallel={"tp": 1, "pp": 1, "fsdp": 64}, n_gpus=64, batch="GBS 256 MBS 1")
    more = _run(model="LLAMA3_70B", parallel={"tp": 1, "pp": 1, "fsdp": 64}, n_gpus=64, batch="GBS 512 MBS 1")
    parts = [training_parts(run, calibration_for("hopper")) for run in (whole, sharded, more)]
    assert parts[0].work.sharding_s == 0
    assert parts[2].work.sharding_s == pytest.approx(2 * parts[1].work.sharding_s, rel=0.01)
    assert parts[1].work.gradients_s == 0 < parts[0].work.gradients_s
    assert _step_s(sharded) >= parts[1].work.sharding_s
    hidden = load_training().model_copy(update={"exposed_sharding_share": 0.0})
    assert parts[1].step_s(hidden) < parts[1].step_s(load_training())
    assert parts[0].step_s(hidden) == parts[0].step_s(load_training())


def test_recomputation_costs_a_forward_pass() -> None:
    run = _run()
    experts, layers = (replace(run, recomputed=each) for each in ("moe", "layers"))
    assert _step_s(run) < _step_s(experts) < _step_s(layers)
    assert 1.2 < _step_s(layers) / _step_s(run) < 1.4


def test_narrow_formats_pay_for_their_casts() -> None:
    wide, narrow = (replace(_run(precision=each), captured=frozenset({"full"})) for each in ("BF16", "FP8-MX"))
    assert _step_s(narrow) < _step_s(wide)
    assert _step_s(narrow) > _step_s(wide) / 2


@pytest.mark.parametrize(
    ("hardware", "precision", "release", "dtype", "cast"),
    [
        ("DGX-H100", "FP8", "26.04", "fp8", Cast(reads=2, copies=2)),
        ("DGX-GB200", "FP8-CS", "25.11", "fp8", Cast(reads=2, copies=1)),
        ("DGX-GB200", "MXFP8", "26.04", "fp8", Cast(reads=1, copies=2)),
        ("DGX-GB200", "NVFP4", "26.02.01", "fp4", Cast(reads=3, copies=2)),
        ("DGX-GB200", "NVFP4", "26.04", "fp4", Cast(reads=2, copies=2)),
    ],
)
def test_a_scale_of_a_whole_tensor_takes_another_pass(
    hardware: str, precision: str, release: str, dtype: Dtype, cast: Cast
) -> None:
    source = f"{BRIDGE} [{release} NeMo Container]"
    run = _run(hardware=hardware, precision=precision, source=source)
    assert run.memory.cast(dtype) == cast
    blocks = training_parts(replace(run, casts={}), calibration_for("hopper")).work
    found = training_parts(run, calibration_for("hopper")).work
    # by hand: a cast row's bytes are 2 wide and 1 or 1/2 narrow an element
    narrow = 0.5 if dtype == "fp4" else 1.0
    assert cast.bytes(1, 2, narrow) == 2 * cast.reads + narrow * cast.copies
    assert (found.passes_s > blocks.passes_s) == (cast != Cast())
    assert replace(found, passes_s=0) == replace(blocks, passes_s=0)


def test_predicted_figures_are_one_figure_in_several_units() -> None:
    row = SystemRow.model_validate(ROW)
    found, run = predict_training(row), _run()
    assert found["tok_s_per_gpu"] * found["step_s"] * 16 == pytest.approx(512 * 4096)
    assert found["model_tflops_per_gpu"] == pytest.approx(found["tok_s_per_gpu"] * run.flops_per_token / 1e12)
    assert found["mfu"] * run.cluster.device.peak("bf16") == pytest.approx(1e12 * found["model_tflops_per_gpu"])


def test_a_fit_finds_the_constants_that_made_the_steps() -> None:
    true = TrainingConstants(
        basis="fitted",
        source="this test",
        watts_per_tflops=0.9,
        pass_slowdown=2.5,
        exposed_share=0.4,
        exposed_sharding_share=0.6,
        launch_s=1.5e-5,
        paired_launches=3.0,
    )
    changes: list[dict[str, Any]] = [
        {},
        {"parallel": _degrees(pp=1), "n_gpus": 64},
        {"model": "LLAMA3_8B", "parallel": {"tp": 2, "pp": 1}, "n_gpus": 64},
        {"model": "LLAMA3_70B", "parallel": {"tp": 8, "pp": 2, "vp": None}, "n_gpus": 64},
        {"model": "Mixtral-8x7B", "n_gpus": 128, "parallel": _degrees(pp=1)},
    ]
    runs = [_run(**each) for each in changes]
    runs.append(replace(runs[0], overlaps_exchange=True))
    runs.append(_run(model="LLAMA3_70B", parallel={"tp": 1, "pp": 1, "fsdp": 64}, n_gpus=64))
    parts = [training_parts(run, calibration_for("hopper")) for run in runs]
    fitted = fit_training([MeasuredRun(r, p, p.step_s(true)) for r, p in zip(runs, parts, strict=True)])
    for name in (
        "watts_per_tflops",
        "pass_slowdown",
        "exposed_share",
        "exposed_sharding_share",
        "launch_s",
        "paired_launches",
    ):
        assert getattr(fitted, name) == pytest.approx(getattr(true, name), rel=0.05), name
