"""How near the joint placement comes to a hypergraph partitioner, Mt-KaHyPar, without copies and at the same slack.

    python benchmarks/placement_reference.py [--trace trace.npz] [--layers 4]

Remote nodes per token, one GPU a node, as many slots as experts, mean over evenly spaced layers; a node's load may be
5 % above the mean for the partitioner, and above the best balance for ours. Without a trace it is
synthetic. It needs `mtkahypar` (of the extra `dev`).
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from trace_option import add_trace_option, trace_of

sys.path.insert(0, str(Path(__file__).parents[1]))

from moiety.placement.methods.joint import joint
from moiety.placement.metrics import measure
from moiety.placement.problem import placement_problem
from moiety.workload.synthetic_routing import RoutingSize, RoutingTargets, synthesize_from
from tests.placement.reference import partition_cost, reference_partition, remote_nodes

SLACK = 0.05
MOST_TOKENS = 40_000

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The joint placement beside a hypergraph partitioner.")
    add_trace_option(parser)
    parser.add_argument("--layers", type=int, default=4, metavar="N")
    options = parser.parse_args()
    size = RoutingSize(num_layers=4, num_experts=32, top_k=4, num_tokens=20_000, num_sequences=200)
    trace = trace_of(parser, options.trace, "topk") or synthesize_from(RoutingTargets(), size, seed=0)
    assert trace.topk is not None, "the trace has tokens"
    some = np.arange(options.layers) * trace.num_layers // options.layers
    topk = trace.topk[some][:, :: -(-trace.topk.shape[1] // MOST_TOKENS)]
    for nodes in (2, 4, 8):
        routing = replace(trace, counts=trace.counts[:, some], topk=topk, sequence=None)
        problem = placement_problem(routing, num_gpus=nodes, num_nodes=nodes)
        start = time.perf_counter()
        found = measure(problem, joint(problem, slack=SLACK))
        ours = time.perf_counter()
        known: list[float] = []
        for layer in topk:
            node = reference_partition(layer, num_experts=trace.num_experts, num_nodes=nodes, slack=SLACK)
            known.append(remote_nodes(partition_cost(layer, node, nodes), len(layer), nodes))
        reference = time.perf_counter()
        assert found.traffic is not None, "tokens are known"
        print(
            f"{nodes} nodes: joint {found.traffic.cover.remote_nodes:.3f} (balance {found.gpu_balance.mean:.3f}, "
            f"{ours - start:.1f} s), Mt-KaHyPar {np.mean(known):.3f} ({reference - ours:.1f} s)"
        )
