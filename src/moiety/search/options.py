"""The options a plan starts from: what the model's checkpoint and the device ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.plan import DtypePolicy, Options

if TYPE_CHECKING:
    from moiety.dtypes import Dtype
    from moiety.projection.scenario import Scenario


def default_options(scenario: Scenario, redundant_experts: int = 0) -> Options:
    """Return every option on that has no price for this workload, in the formats of the checkpoint.

    FP8 checkpoints dispatch in FP8 where the device computes in it. Training keeps weights in BF16 (those of a float32
    checkpoint in float32) and shards the dense parameters, whose gradients and optimizer state would not fit otherwise.
    Where routing is known, experts are placed by it.
    """
    return Options(
        placement="joint" if scenario.expert_shares is not None else "linear",
        redundant_experts=redundant_experts,
        dense_parameter_sharding=scenario.workload.kind == "training",
        dtypes=default_dtypes(scenario),
    )


def default_dtypes(scenario: Scenario) -> DtypePolicy:
    """Return the formats of weights, activations, cache and wire.

    A float32 checkpoint computes, caches and sends float32 where the device computes in it.
    """
    model, device = scenario.model, scenario.cluster.device
    half = device.compute_dtype("bf16")
    whole = model.weight_dtype == "fp32" and device.compute_dtype("fp32") == "fp32"
    computed: Dtype = "fp32" if whole else half
    if scenario.workload.kind == "training":
        kept: Dtype = "fp32" if whole else "bf16"
        return DtypePolicy(weights=kept, experts=kept, activations=computed, kv_cache=kept, dispatch=kept, combine=kept)
    quantized = "fp8" in {model.weight_dtype, model.expert_dtype} and device.compute_dtype("fp8") == "fp8"
    return DtypePolicy(
        weights=model.weight_dtype,
        block_scales=model.block_scales,
        experts=model.expert_dtype,
        activations=computed,
        kv_cache="fp32" if whole else "bf16",
        dispatch="fp8" if quantized else computed,
        combine="fp32" if whole else "bf16",
    )


OPTIMISATIONS: dict[str, tuple[object, object]] = {
    "all_to_all": ("flat", "hierarchical"),
    "two_batch_overlap": (False, True),
    "priority_scheduling": (False, True),
    "activation_checkpointing": (False, True),
    "dense_parameter_sharding": (False, True),
    "arena": (False, True),
    "flash_attention": (False, True),
    "fused_kernels": (False, True),
}
"""What each option is set to when it is off and when it is on. Where routing is known, so is placement: linear when it
is off."""


def baseline_options(options: Options) -> Options:
    """Return the same formats and copies of experts with every optimisation off.

    Experts are in order, stages whole, and instances have copies of their own.
    """
    off = {name: off for name, (off, _) in OPTIMISATIONS.items()}
    return options.model_copy(update={**off, "placement": "linear", "virtual_stages": 1, "fully_sharded": False})


def original_options(options: Options) -> Options:
    """Return the options of the specification's original strategy: overlap, flash attention, flat exchange, no more."""
    return baseline_options(options).model_copy(update={"two_batch_overlap": True, "flash_attention": True})


def enhanced_options(options: Options) -> Options:
    """Return the same formats and placement with every optimisation on that the specification's best strategy has.

    Parameter sharding stays as it is: it buys memory for time, which is for the plan to weigh.
    """
    on = {name: on for name, (_, on) in OPTIMISATIONS.items() if name != "dense_parameter_sharding"}
    return options.model_copy(update=on)
