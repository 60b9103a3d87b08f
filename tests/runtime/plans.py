"""Plans for the run time's tests: a checkpoint, a strategy, the nodes that the ranks lie in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cluster.cluster import Cluster, LinkTier
from moiety.cluster.device import Device
from moiety.model.reader import read_model
from moiety.placement.linear import place_linear
from moiety.plan import AllToAll, DtypePolicy, Options, Plan, Pool, Provenance, Schedule
from moiety.strategy.strategy import Strategy, parse_strategy
from moiety.workload.workload import Workload

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.dtypes import Dtype
    from moiety.placement.placement import Placement

WORKLOAD = Workload(name="test", kind="prefill", input_tokens=8, tokens_in_flight=64)


CPU = Device(
    name="cpu",
    architecture="cpu",
    memory_bytes=10**9,
    memory_bandwidth_bytes_per_s=1e10,
    peak_flops_per_s={"fp32": 1e11, "bf16": 1e11},
    num_sms=1,
    max_clock_hz=1e9,
    idle_power_w=1,
    max_power_w=5,
)
"""Its speed does not matter to what runs."""


def cluster_of(device: Device, num_nodes: int, per_node: int) -> Cluster:
    """Return nodes of ranks on CPUs or GPUs."""
    spans = [("node", per_node), ("network", num_nodes * per_node)][: 2 if num_nodes > 1 else 1]
    tiers = tuple(
        LinkTier(name=name, num_gpus=span, bandwidth_bytes_per_s=1e9, per="gpu", latency_s=1e-5) for name, span in spans
    )
    return Cluster(name=device.name, device=device, num_nodes=num_nodes, gpus_per_node=per_node, tiers=tiers)


def plan_of(
    folder: Path,
    strategy: str,
    num_nodes: int = 1,
    per_node: int = 1,
    *,
    redundant: int = 0,
    dispatch: AllToAll = "hierarchical",
    overlap: bool = False,
    dtype: Dtype = "fp32",
    kv_cache: Dtype | None = None,
    weights: Dtype | None = None,
    experts: Dtype | None = None,
    device: Device = CPU,
) -> Plan:
    """Return a plan that runs the checkpoint in `folder`, its experts placed in order."""
    model = read_model((folder / "config.json").read_text(), name="test", source=str(folder))
    degrees = parse_strategy(strategy, num_nodes * per_node)
    pool = Pool(
        role="prefill",
        first_rank=0,
        strategy=degrees,
        schedule=Schedule(num_microbatches=1, prefill_tokens=8, prompt_tokens=8, decode_sequences=0, context_tokens=0),
        placement=_placement(folder, degrees, num_nodes, redundant),
    )
    formats = dict.fromkeys(("weights", "experts", "activations", "kv_cache", "dispatch", "combine"), dtype)
    formats |= {"kv_cache": kv_cache or dtype, "weights": weights or dtype, "experts": experts or weights or dtype}
    return Plan(
        name="test",
        model=model,
        cluster=cluster_of(device, num_nodes, per_node),
        workload=WORKLOAD,
        options=Options(
            dtypes=DtypePolicy(**formats),
            two_batch_overlap=overlap,
            all_to_all=dispatch,
            redundant_experts=redundant,
        ),
        pools=(pool,),
        provenance=Provenance(moiety_version="0", calibration="none"),
    )


def _placement(folder: Path, strategy: Strategy, num_nodes: int, redundant: int) -> Placement:
    model = read_model((folder / "config.json").read_text(), name="test", source=str(folder))
    assert model.moe is not None
    nodes = num_nodes if strategy.gpus_per_stage % num_nodes == 0 else 1
    return place_linear(
        layers=[index for index, block in enumerate(model.layers) if block.moe is not None],
        num_experts=model.moe.num_experts,
        redundant_experts=redundant,
        num_gpus=strategy.gpus_per_stage,
        num_nodes=nodes,
        expert_tp=strategy.etp,
    )
