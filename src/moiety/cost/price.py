"""Prices: hardware turns a graph's work into time, here and nowhere else."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from moiety.cost.expert_exchange import exchange_transfer
from moiety.cost.measured import slowdown, table_seconds, table_transfer
from moiety.cost.measured_exchange import table_exchange
from moiety.cost.op_times import OpTimes
from moiety.graph.op import Collective
from moiety.strategy.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.calibration.calibration import Calibration
    from moiety.cluster.cluster import Cluster
    from moiety.cost.collective import Transfer
    from moiety.graph.graph import Graph
    from moiety.graph.op import AttentionCore, Gemm, MemoryPass, Op
    from moiety.model.feed_forward import MoeFeedForward
    from moiety.placement.serving.routed_traffic import RoutedTraffic
    from moiety.strategy.strategy import Axis

_MAX_GROUPS_COMPARED = 64

Origin = Literal["table", "scaled", "law"]
"""Where a price comes from: a measured time, one that the law scales to a slower machine, or the law."""


@dataclass(frozen=True, slots=True)
class OpPrice:
    """What an op costs: seconds on the compute stream, or a transfer over links."""

    op: Op
    compute_s: float
    transfer: Transfer | None
    origin: Origin = "law"

    @property
    def seconds(self) -> float:
        """Seconds from start to end when nothing is in the way."""
        return self.transfer.seconds if self.transfer else self.compute_s


@dataclass(frozen=True, slots=True)
class PricedGraph:
    """A graph with the price of every op, for ranks whose experts get `load` times the mean."""

    graph: Graph
    load: float
    embedding: tuple[OpPrice, ...]
    layers: tuple[tuple[OpPrice, ...], ...]
    backward: tuple[tuple[OpPrice, ...], ...]
    head: tuple[OpPrice, ...]
    boundary: tuple[OpPrice, ...]
    update: tuple[OpPrice, ...]


class Pricer:
    """Prices ops of one pool on one cluster; `times` are what is known of it by the same calibration."""

    def __init__(
        self,
        graph: Graph,
        cluster: Cluster,
        calibration: Calibration,
        first_rank: int = 0,
        traffic: RoutedTraffic | None = None,
        times: OpTimes | None = None,
    ) -> None:
        self._times = times or OpTimes(cluster, calibration)
        self._graph = graph
        self._cluster = cluster
        self._calibration = calibration
        self._first_rank = first_rank
        self._traffic = traffic
        self._groups: dict[Axis, tuple[tuple[int, ...], ...]] = {}
        schedule = graph.layout.schedule
        self._decode = schedule.prefill_tokens == 0
        self._sm_share = self._sms_left()

    def priced_graph(self, load: float = 1.0) -> PricedGraph:
        """Return the graph priced for ranks whose experts get `load` times the mean."""
        graph = self._graph
        return PricedGraph(
            graph=graph,
            load=load,
            embedding=self._prices(graph.embedding, None, load),
            layers=tuple(self._prices(ops, self._moe(i), load) for i, ops in enumerate(graph.layers)),
            backward=tuple(self._prices(ops, self._moe(i), load) for i, ops in enumerate(graph.backward)),
            head=self._prices(graph.head, None, load),
            boundary=self._prices(graph.boundary, None, load),
            update=self._prices(graph.update, None, load),
        )

    def _moe(self, block: int) -> MoeFeedForward | None:
        return self._graph.model.blocks[block].moe

    def _prices(self, ops: Sequence[Op], moe: MoeFeedForward | None, load: float) -> tuple[OpPrice, ...]:
        return tuple(self._price(op, moe, load) for op in ops)

    def _price(self, op: Op, moe: MoeFeedForward | None, load: float) -> OpPrice:
        work = op.work
        if not isinstance(work, Collective):
            seconds, origin = self._compute(work, moe, load)
            return OpPrice(op, seconds, None, origin)
        if work.kind in {"dispatch", "combine"}:
            assert moe is not None, "only MoE layers exchange tokens"
            return self._exchange(op, work, moe, load)
        transfers = (self._transfer(work, group) for group in self._groups_of(work.axis))
        transfer, origin = max(transfers, key=lambda each: each[0].seconds)
        return OpPrice(op, 0.0, transfer, origin)

    def _compute(
        self, work: Gemm | AttentionCore | MemoryPass, moe: MoeFeedForward | None, load: float
    ) -> tuple[float, Origin]:
        device, tables, share = self._cluster.device, self._calibration.tables, self._sm_share
        if tables is not None:
            measured = table_seconds(work, self._graph, moe, tables, load=load)
            if measured is not None:
                longer = slowdown(work, device, self._calibration, tables, load=load, sm_share=share)
                return measured * longer, "table" if longer == 1 else "scaled"
        return self._times.compute_s(work, load=load, sm_share=share), "law"

    def _exchange(self, op: Op, work: Collective, moe: MoeFeedForward, load: float) -> OpPrice:
        graph, cluster, calibration = self._graph, self._cluster, self._calibration
        decode, first, traffic = self._decode, self._first_rank, self._traffic
        found = table_exchange(
            work, moe, graph, cluster, calibration, decode=decode, load=load, first_rank=first, traffic=traffic
        )
        if found is not None:
            return OpPrice(op, 0.0, found[0], "table" if found[1] else "scaled")
        strategy = graph.layout.strategy
        transfer = exchange_transfer(
            work, moe, strategy, cluster, calibration, decode=decode, load=load, first_rank=first, traffic=traffic
        )
        return OpPrice(op, 0.0, transfer)

    def _transfer(self, work: Collective, group: tuple[int, ...]) -> tuple[Transfer, Origin]:
        found = table_transfer(work, group, self._cluster, self._calibration, decode=self._decode)
        if found is not None:
            return found[0], "table" if found[1] else "scaled"
        return self._times.transfer(work, group), "law"

    def _groups_of(self, axis: Axis) -> tuple[tuple[int, ...], ...]:
        """Return groups of the axis that differ in how they lie on the tiers; the slowest of them sets the pace."""
        if axis not in self._groups:
            spans = tuple(tier.num_gpus for tier in self._cluster.tiers)
            self._groups[axis] = distinct_groups(self._graph.layout.strategy, axis, self._first_rank, spans)
        return self._groups[axis]

    def _sms_left(self) -> float:
        """Return the share of the SMs that computation keeps while the other micro-batch's transfers run beside it."""
        layout = self._graph.layout
        overlaps = layout.options.two_batch_overlap and layout.schedule.num_microbatches > 1
        if not overlaps or layout.strategy.gpus_per_stage == 1:
            return 1.0
        constants = self._calibration.expert_exchange
        taken = constants.decode_communication_sms if self._decode else constants.communication_sms
        return max(1 - taken / self._cluster.device.num_sms, 0.1)


def already_gathered(prices: tuple[OpPrice, ...]) -> tuple[OpPrice, ...]:
    """Return the ops of a layer whose sharded parameters are there already: all but the gathering."""
    gathers = {price.op.name for price in prices if price.op.prefetch}
    if not gathers:
        return prices
    return tuple(
        replace(price, op=replace(price.op, inputs=tuple(each for each in price.op.inputs if each not in gathers)))
        for price in prices
        if price.op.name not in gathers
    )


def distinct_groups(
    strategy: Strategy, axis: Axis, first_rank: int, tier_spans: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    """Return one group for each way in which groups of an axis lie on the tiers of links (of the first 64 groups)."""
    degrees = (strategy.tp, strategy.pp, strategy.attn_dp, strategy.ep, strategy.etp, strategy.instances, strategy.cp)
    return _distinct_groups(degrees, axis, first_rank, tier_spans)


@lru_cache(maxsize=4096)
def _distinct_groups(
    degrees: tuple[int, int, int, int, int, int, int], axis: Axis, first_rank: int, tier_spans: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    tp, pp, attn_dp, ep, etp, instances, cp = degrees
    strategy = Strategy(tp=tp, pp=pp, attn_dp=attn_dp, ep=ep, etp=etp, instances=instances, cp=cp)
    if axis == "pp" and strategy.pp > 1:
        # neighbours along the pipeline exchange, not the whole group
        stage = strategy.gpus_per_stage
        groups = [(first_rank + s * stage, first_rank + (s + 1) * stage) for s in range(strategy.pp - 1)]
    else:
        groups = list(strategy.groups(axis, first_rank)[:_MAX_GROUPS_COMPARED])
    seen: dict[tuple[object, ...], tuple[int, ...]] = {}
    begun: set[tuple[int | None, ...]] = set()
    for group in groups:
        # groups of an axis differ by a shift: those that begin alike in the domains that they reach beyond lie alike
        begins = tuple(None if group[0] // span == group[-1] // span else group[0] % span for span in tier_spans)
        if begins in begun:
            continue
        begun.add(begins)
        lies = tuple(tuple(sorted(Counter(member // span for member in group).values())) for span in tier_spans)
        seen.setdefault(lies, group)
    return tuple(seen.values())
