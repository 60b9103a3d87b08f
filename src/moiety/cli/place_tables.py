"""A placement as tables: balance and traffic beside another method's, and what must move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cli.table import listing, pairs, table
from moiety.units import format_duration, format_si

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from moiety.cli.place_result import Moved, Placed
    from moiety.placement.metrics import PlacementMetrics, ServedMetrics

_MOST_WINDOWS = 8
_RULES = {
    "even": "copies taken evenly",
    "local": "copies at home first, then evenly",
    "cover": "copies at home first, then few nodes",
}
_COUNTED = {
    "remote_messages": "one message an expert: remote messages",
    "remote_gpus": "one message a GPU: remote GPUs",
    "remote_nodes": "one message a node: remote nodes",
}


def place_sections(placed: Placed, paths: Sequence[str]) -> Iterator[RenderableType]:
    """Yield everything that `moiety place` shows, in order."""
    yield _summary(placed)
    yield _balance(placed)
    if placed.metrics.traffic is not None:
        yield _traffic(placed)
        yield listing("In short", _in_short(placed))
    else:
        yield listing("Traffic", ["not known: the dump has counts, not the choice of each token (topk)"])
    if placed.moved is not None:
        yield _migration(placed.moved)
    yield pairs("Time", [(name, format_duration(each)) for name, each in placed.seconds.items()])
    if paths:
        yield listing("Files", paths)


def _summary(placed: Placed) -> RenderableType:
    problem, machine = placed.problem, placed.machine
    used = int((problem.counts.sum(axis=0) > 0).sum())
    unused = problem.num_layers * problem.num_experts - used
    experts = f"{problem.num_experts} a layer"
    experts += f" in {problem.num_groups} router groups" if problem.num_groups > 1 else ""
    experts += f"; {unused} of {used + unused} are never used in the dump, and have a slot" if unused else ""
    copies = problem.num_slots - problem.num_experts
    slots = f"{problem.num_slots} a layer, {problem.slots_per_gpu} a GPU; {copies} copies "
    slots += f"({placed.metrics.redundancy:.1%} redundancy)"
    where = f"{problem.num_gpus} in {problem.num_nodes} node{'s' if problem.num_nodes > 1 else ''}"
    where += f" of {machine.cluster.name}" if machine.cluster is not None else ""
    where += f", node distances 1 to {problem.node_distance.max():g}" if problem.node_distance is not None else ""
    where += ", of different speed" if problem.gpu_speed is not None else ""
    rows = [
        ("method", placed.placement.method),
        ("layers", str(problem.num_layers)),
        ("experts", experts),
        ("slots", slots),
        ("GPUs", where),
        ("routing", _routing(placed)),
    ]
    if machine.model is not None:
        rows.insert(1, ("model", machine.model.name))
    if machine.expert_bytes is not None:
        size = machine.expert_bytes * problem.slots_per_gpu * problem.num_layers
        rows.append(
            ("weights", f"{format_si(machine.expert_bytes, 'B')} an expert, {format_si(size, 'B')} on each GPU")
        )
    return pairs(f"Placement of {placed.source}", rows)


def _routing(placed: Placed) -> str:
    problem = placed.problem
    windows = len(problem.counts)
    said = "counts only"
    if problem.topk is not None:
        said = f"{problem.topk.shape[1]:,} tokens, {problem.topk.shape[2]} experts each"
    return said + (f", in {windows} windows" if windows > 1 else "")


def _beside(placed: Placed) -> dict[str, PlacementMetrics]:
    """Return the figures by the name of their column."""
    columns = {placed.placement.method: placed.metrics}
    if placed.moved is not None:
        columns["previous"] = placed.moved.before
    if placed.compared is not None:
        name = placed.compared[0]
        columns[f"{name} (compared)" if name in columns else name] = placed.compared[2]
    return columns


def _balance(placed: Placed) -> RenderableType:
    shown, bound = _beside(placed), placed.metrics.balance_bound
    rows: list[tuple[str, ...]] = [
        ("GPUs, mean", *(f"{m.gpu_balance.mean:.4f}" for m in shown.values()), f"{bound.mean:.4f}"),
        ("GPUs, worst layer", *(f"{m.gpu_balance.worst_layer:.4f}" for m in shown.values()), ""),
        ("nodes, mean", *(f"{m.node_balance.mean:.4f}" for m in shown.values()), ""),
        ("nodes, worst layer", *(f"{m.node_balance.worst_layer:.4f}" for m in shown.values()), ""),
    ]
    windows = len(bound.by_window)
    by_window = [[m.gpu_balance.by_window for m in shown.values()], [bound.by_window]]
    if windows > 1:
        for window in range(min(windows, _MOST_WINDOWS)):
            cells = (f"{each[window]:.4f}" for part in by_window for each in part)
            rows.append((f"GPUs, window {window}", *cells))
        cells = (f"{min(each):.4f}" for part in by_window for each in part)
        rows.append((f"GPUs, worst of {windows} windows", *cells))
    rows.append(("wasted slots", *(f"{m.wasted_slots:,}" for m in shown.values()), ""))
    notes = (
        "mean over max of the load; 1 is perfect; copies of an expert share its tokens evenly; mean over layers",
        "bound: what no placement on these slots can exceed; wasted: a second copy on the same GPU, over all layers",
    )
    return table("Balance", ("", *(f">{name}" for name in shown), ">bound"), rows, notes=notes)


def _traffic(placed: Placed) -> RenderableType:
    shown = _beside(placed)
    found = [m.traffic for m in shown.values()]
    assert all(each is not None for each in found), "all are measured on the same tokens"
    traffics = [each for each in found if each is not None]
    rows: list[tuple[str, ...]] = []
    for rule, how in _RULES.items():
        served: list[ServedMetrics] = [getattr(each, rule) for each in traffics]
        rows.append((how, *("" for _ in served)))
        rows += [(f"  {said}", *(f"{getattr(each, key):.3f}" for each in served)) for key, said in _COUNTED.items()]
        if placed.problem.node_distance is not None:
            rows.append(("  sum of node distances", *(f"{each.remote_distance:.3f}" for each in served)))
        rows.append(("  balance of what the GPUs serve", *(f"{each.balance:.4f}" for each in served)))
    own = traffics[0]
    homes = "every home node" if own.all_homes else "homes in turn"
    notes = [
        f"per token and layer, mean over layers and uniform home nodes; {own.num_tokens:,} tokens a layer, {homes}",
        f"flat dispatch, one copy an expert: {own.flat_messages:.3f} remote messages whatever the placement",
    ]
    return table("Traffic between nodes", ("", *(f">{name}" for name in shown)), rows, notes=notes)


def _in_short(placed: Placed) -> Iterator[str]:
    """Yield each reduction with its baseline, redundancy and balance."""
    metrics, versus = placed.metrics, placed.metrics.versus
    own = metrics.traffic
    assert own is not None
    even, served = metrics.gpu_balance.mean, own.cover.balance
    yield f"{placed.placement.method} reaches {own.cover.remote_nodes:.3f} remote nodes a token (copies at home first)"
    yield f"at {metrics.redundancy:.1%} redundancy, balance {even:.4f}, {served:.4f} as served"
    if versus is not None and placed.compared is not None:
        other = placed.compared[2]
        assert other.traffic is not None
        for share, served, how in (
            (versus.remote_nodes_below_even, other.traffic.even, "copies taken evenly"),
            (versus.remote_nodes_below_local, other.traffic.local, "copies at home first, then evenly"),
            (versus.remote_nodes_below_cover, other.traffic.cover, "this serving rule"),
        ):
            if share is not None:
                beside = f"same slots, balance {other.gpu_balance.mean:.4f}, {served.balance:.4f} as served"
                yield f"{_below(share)} {versus.name} with one message a node, {how} ({beside})"
        if versus.remote_nodes_below_flat is not None:
            yield f"{_below(versus.remote_nodes_below_flat)} flat dispatch with one copy an expert"
    if own.affinity_remote_nodes is not None:
        said = f"what if a sequence's first 32 tokens chose its home: {own.affinity_remote_nodes:.3f} remote nodes"
        if own.affinity_reduction is not None:
            said += f", {_below(own.affinity_reduction)} the same tokens with uniform homes"
        yield said


def _below(share: float) -> str:
    return f"{share:.1%} below" if share >= 0 else f"{-share:.1%} above"


def _migration(moved: Moved) -> RenderableType:
    per_layer = moved.moves_per_layer
    limit = "no limit" if moved.max_moves is None else f"at most {moved.max_moves}"
    rows = [
        ("slots that change", f"{sum(per_layer):,}, {max(per_layer)} in a layer at the most ({limit})"),
        ("copied between GPUs", f"{moved.num_copies:,} experts"),
    ]
    if moved.size_bytes is not None and moved.network_bytes is not None:
        said = f"{format_si(moved.size_bytes, 'B')}, {format_si(moved.network_bytes, 'B')} of it between nodes"
        rows.append(("bytes", said))
    else:
        rows.append(("bytes", "not known without --model or --expert-bytes"))
    if moved.time_s is not None:
        rows.append(("time on the links", f"{format_duration(moved.time_s)} at least, on the busiest port"))
    else:
        rows.append(("time on the links", "not known without --cluster and the size of an expert"))
    return pairs("From the previous placement", rows)
