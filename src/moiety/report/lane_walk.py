"""One pass along a lane, from left to right, that adds its compute boxes and all of its arrows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moiety.graph.op import AttentionCore, Collective
from moiety.report.expert_text import gpu_lines
from moiety.report.operator_text import op_style
from moiety.report.panel import Box

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moiety.report.panel import Panel
    from moiety.report.ports import Ports
    from moiety.report.segments import Segment


@dataclass(slots=True)
class LaneWalk:
    """The state of the pass: what the lane has to offer to the ops that come next."""

    panel: Panel
    number: int
    bars: dict[tuple[str, str], dict[int, tuple[str, str]]]
    ports: Ports
    lines: dict[tuple[str, str], tuple[str, ...]]
    flow: list[str] = field(default_factory=list[str])
    """Boxes whose output the next segment takes in."""
    loose: list[str] = field(default_factory=list[str])
    gpu: str = ""

    def walk(self) -> None:
        """Add the lane."""
        panel, lane = self.panel, self.panel.lanes[self.number]
        facts = (("gpu", lane.ranks), ("folded", "true")) if lane.is_folded else (("gpu", lane.ranks),)
        self.gpu = self._box(
            f"g{lane.ranks.replace('-', '_')}", gpu_lines(panel.pool, panel.graph.stages, lane), "gpu", "gpu", facts
        )
        panel.connect(self._port("receive"), self.gpu, self.number)
        self.flow = [self.gpu]
        active = [segment for segment in panel.segments if set(segment.stages) & set(lane.stages)]
        self._run_all(
            segment for segment in active if segment.key not in {"head", "update"} and not segment.is_backward
        )
        self._give("send")
        self._give("kv_send")
        head = [segment for segment in active if segment.key == "head"]
        self._run_all(head)
        backward = [segment for segment in active if segment.is_backward]
        if backward:
            # the last stage starts from its own head, the others from the gradients that arrive
            self.flow = (self.flow if head else []) + self._port("receive_back")
        self._run_all(backward)
        self._give("send_back")
        self.flow += self.loose
        self._run_all(segment for segment in active if segment.key == "update")

    def _port(self, what: str) -> list[str]:
        lane = self.panel.lanes[self.number]
        key = self.ports.get((what, lane.band))
        if key is None or not self.panel.boxes[key].first_lane <= self.number <= self.panel.boxes[key].last_lane:
            return []
        return [key]

    def _give(self, what: str) -> None:
        for port in self._port(what):
            self.panel.connect(self.flow, port, self.number)

    def _box(
        self, key: str, lines: tuple[str, ...], style: str, column: str, facts: tuple[tuple[str, str], ...]
    ) -> str:
        band = self.panel.lanes[self.number].band
        return self.panel.add(Box(key, lines, style, column, self.number, self.number, facts, band=band))

    def _run_all(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            self._run(segment)

    def _run(self, segment: Segment) -> None:
        """Add a segment's ops and let its results flow on."""
        lane = self.panel.lanes[self.number]
        leaves: dict[str, str] = {}
        for op in segment.ops:
            sources: list[str] = []
            for name in op.inputs or (() if op.prefetch else ("input",)):
                sources += self.flow if name == "input" else [leaves[name]]
            sources = sources or [self.gpu]
            if isinstance(op.work, Collective):
                enters, leaves[op.name] = self.bars[segment.key, op.name][self.number]
            else:
                enters = leaves[op.name] = self._box(
                    f"g{lane.ranks.replace('-', '_')}_{segment.key}_{op.name}",
                    self.lines[segment.key, op.name],
                    op_style(op),
                    f"{segment.key}/{op.name}",
                    (("op", op.name), ("segment", segment.key), ("gpus", lane.ranks)),
                )
            if isinstance(op.work, AttentionCore) and op.work.phase == "decode":
                sources += self._port("kv_receive")
            self.panel.connect(sources, enters, self.number)
        self.flow = [leaves[name] for name in segment.results]
        self.loose += [leaves[name] for name in segment.loose_ends]
