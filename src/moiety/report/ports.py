"""Ports: the bars through which a band gives activations, gradients and caches to other bands, and takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.report.panel import GUTTER, Box, Wire, rank_text
from moiety.report.pipeline import boundary_pairs, sends, takes

if TYPE_CHECKING:
    from moiety.report.lanes import Lane
    from moiety.report.panel import Panel

Ports = dict[tuple[str, int], str]
"""From (what, band) to the bar that takes or gives it there."""


def add_ports(panel: Panel, *, sends_cache: bool, takes_cache: bool) -> Ports:
    """Add the bars through which a band passes activations, gradients and caches on to other bands."""
    ports: Ports = {}
    everywhere = list(range(len(panel.lanes)))
    if sends_cache:
        _add_port(panel, ports, "kv_send", everywhere, ("KV cache: send", "of every prompt"))
    if takes_cache:
        _add_port(panel, ports, "kv_receive", everywhere, ("KV cache: receive", "of every prompt"))
    if not panel.graph.boundary:
        return ports
    hidden = str(panel.graph.boundary[0].output)
    out = [number for number in everywhere if sends(panel.pool, panel.lanes[number])]
    into = [number for number in everywhere if takes(panel.lanes[number])]
    name = panel.graph.boundary[0].name
    _add_port(panel, ports, "send", out, (f"{name}", "to the next stage", hidden))
    _add_port(panel, ports, "receive", into, (f"{name}", "from the stage before", hidden))
    directions = [("send", "receive", False)]
    if panel.graph.backward:
        _add_port(panel, ports, "send_back", into, (f"{name}, gradients", "to the stage before", hidden))
        _add_port(panel, ports, "receive_back", out, (f"{name}, gradients", "from the next stage", hidden))
        directions.append(("send_back", "receive_back", True))
    for tail, head, back in directions:
        for low, high in boundary_pairs(panel.pool, panel.lanes):
            source, target = (high, low) if back else (low, high)
            panel.wires.append(
                Wire(ports[tail, source], ports[head, target], GUTTER + tail, GUTTER + head, source, target)
            )
    return ports


def _add_port(panel: Panel, ports: Ports, what: str, lanes: list[int], lines: tuple[str, ...]) -> None:
    for band in dict.fromkeys(panel.lanes[number].band for number in lanes):
        inside = [number for number in lanes if panel.lanes[number].band == band]
        first, last = panel.lanes[inside[0]], panel.lanes[inside[-1]]
        covered = rank_text([panel.lanes[number] for number in inside])
        ports[what, band] = panel.add(
            Box(
                key=f"{what}_g{first.first_rank}_{last.last_rank}",
                lines=lines,
                style="across" if _crosses(panel, what, first, last) else "inside",
                column=what,
                first_lane=inside[0],
                last_lane=inside[-1],
                facts=(("port", what), ("gpus", covered)),
                is_bar=True,
                band=band,
            )
        )


def _crosses(panel: Panel, what: str, first: Lane, last: Lane) -> bool:
    """Return whether what passes a port leaves or enters the node."""
    node_of, step = panel.plan.cluster.node_of, panel.pool.strategy.gpus_per_stage
    if what.startswith("kv"):
        return panel.plan.cluster.num_nodes > 1
    forward = what in {"send", "receive_back"}
    far = last.last_rank + step if forward else first.first_rank - step
    return node_of(far) != node_of(last.last_rank if forward else first.first_rank)
