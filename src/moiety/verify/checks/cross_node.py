"""Bytes between nodes: within what the placement, the exchange and the sharding of the plan can move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT, ROW_BYTES_PER_ELEMENT
from moiety.verify.closed_form import dense_weights, distinct_shares, expert_weights, router_weights
from moiety.verify.findings import Finding, judged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.plan import Plan, Pool
    from moiety.verify.inspection import Inspection


def cross_node_bytes(inspection: Inspection) -> Iterator[Finding]:
    """Check that bytes between nodes lie between one copy per node reached and one row per expert and partner.

    How many are reached is measured where the placement has a trace's traffic, and follows from uniform routing else.
    Rows of training go forward and backward, and once more where layers compute again; weights and gradients may add
    what `_weights_moved` allows.
    """
    plan, moe = inspection.plan, inspection.plan.model.moe
    node = plan.cluster.tiers[0].num_gpus
    for pool in plan.pools:
        strategy, figures = pool.strategy, pool.projection
        stage = strategy.gpus_per_stage
        whole = stage % node == 0 and stage > node and strategy.attn_dp > 1 and strategy.ep > 1
        inside = node % (strategy.tp * strategy.cp) == 0  # what an attention group sends stays in a node
        if moe is None or figures is None or not (whole and inside):
            continue
        traffic = pool.placement.traffic if pool.placement is not None else None
        reach = traffic.outside(node) if traffic is not None else None
        if reach is None and (moe.num_experts % (stage // node) or moe.num_groups > 1):
            continue
        nodes = stage // node
        dtypes = plan.options.dtypes
        sent, back = ROW_BYTES_PER_ELEMENT[dtypes.dispatch], ROW_BYTES_PER_ELEMENT[dtypes.combine]
        row = moe.row_size(plan.model.hidden_size) * (sent + back) * plan.model.num_moe_layers
        remote = (1 - 1 / nodes) * row
        if reach is None:
            least = distinct_shares(moe.num_experts, moe.top_k, nodes) * remote
            most = moe.top_k * max(strategy.etp, 1) * remote
        else:
            least, most = reach.domains * row, reach.messages * max(strategy.etp, 1) * row
        # pipeline stages hand on a row for each token, whole on each tensor-parallel GPU
        handed = (strategy.pp - 1) * plan.model.hidden_size * BYTES_PER_ELEMENT[dtypes.activations] * strategy.tp
        training = pool.role == "training"
        if training:
            again = 1 if pool.memory is not None and pool.memory.checkpointed_layers else 0
            least, most, handed = 2 * least, (2 + again) * most, 2 * handed
        weights = _weights_moved(plan, pool)
        actual = figures.cross_node_bytes_per_token
        exact = {"hierarchical": least, "flat": most}.get(plan.options.all_to_all)
        if reach is not None and len(traffic.domains if traffic else ()) > 1:
            exact = None  # rows on several tiers beyond the node, each with its own measure
        close = exact is None or abs(actual - exact) <= 0.01 * exact or strategy.pp > 1 or training or weights > 0
        yield judged(
            "cross-node-bytes",
            inspection.name_of(pool),
            f"{actual / 1e6:.3f} MB per token{' (measured traffic)' if reach else ''}; "
            f"one copy per distinct node of {nodes}: {least / 1e6:.3f} MB, "
            "one row per expert "
            f"and partner: {most / 1e6:.3f} MB"
            + (f"; weights and gradients: at most {weights / 1e6:.3f} MB" if weights else ""),
            holds=(least * 0.99 <= actual <= (most + handed + weights) * 1.01) and close,
            expected=exact if exact is not None else least,
            actual=actual,
        )


def _weights_moved(plan: Plan, pool: Pool) -> float:
    """Return the most bytes per token that gathers of sharded weights and sums of gradients can move between nodes.

    As if everything that a GPU of the group holds left its node: gathered once for each pass, gradients scattered with
    it; or all-reduced once a step, twice their bytes.
    """
    options, strategy, model = plan.options, pool.strategy, plan.model
    training, dtypes = pool.role == "training", options.dtypes
    sharded = options.dense_parameter_sharding or (training and options.fully_sharded)
    if not (training or sharded):
        return 0.0
    elements = 2.0 * model.vocab_size * model.hidden_size if training else 0.0
    for block in (model.blocks[kind] for kind in model.layer_blocks):
        held = dense_weights(block, model.hidden_size, strategy.tp) + router_weights(block, model.hidden_size)
        elements += (held + block.num_norms * model.hidden_size) * strategy.tp
        if training and block.moe is not None:
            slots = (block.moe.num_experts + options.redundant_experts) / strategy.ep
            elements += expert_weights(block, model.hidden_size, slots, strategy.etp) * strategy.tp
    gathered = (2 if training else 1) * BYTES_PER_ELEMENT[dtypes.weights] if sharded else 0
    summed = BYTES_PER_ELEMENT[dtypes.critical] if training else 0
    if not sharded:
        summed = 2 * BYTES_PER_ELEMENT[dtypes.activations] / pool.schedule.num_microbatches
    return elements * (gathered + summed) * strategy.cp / pool.schedule.tokens_per_microbatch
