"""What ops take by the laws on one cluster, each worked out once: strategies share most of their products and sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cost.collective import collective_transfer
from moiety.cost.roofline import compute_seconds

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.cluster.cluster import Cluster
    from moiety.cost.collective import Transfer
    from moiety.graph.op import AttentionCore, Collective, CollectiveKind, Gemm, MemoryPass


class OpTimes:
    """Seconds of computation and transfers on one cluster with one calibration."""

    def __init__(self, cluster: Cluster, calibration: Calibration) -> None:
        self.cluster = cluster
        self.calibration = calibration
        self._computed: dict[tuple[Gemm | AttentionCore | MemoryPass, float, float], float] = {}
        self._moved: dict[tuple[CollectiveKind, float, tuple[int, ...]], Transfer] = {}

    def compute_s(self, work: Gemm | AttentionCore | MemoryPass, *, load: float, sm_share: float) -> float:
        """Return `compute_seconds`."""
        key = work, load, sm_share
        found = self._computed.get(key)
        if found is None:
            found = compute_seconds(work, self.cluster.device, self.calibration, load=load, sm_share=sm_share)
            self._computed[key] = found
        return found

    def transfer(self, work: Collective, ranks: tuple[int, ...]) -> Transfer:
        """Return `collective_transfer` over `ranks`."""
        key = work.kind, work.payload_bytes, ranks
        found = self._moved.get(key)
        if found is None:
            found = collective_transfer(work.kind, work.payload_bytes, ranks, self.cluster, self.calibration)
            self._moved[key] = found
        return found
