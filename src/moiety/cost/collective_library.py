"""Time of a collective of NCCL's kind inside one domain of links: the fastest of its protocols."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.calibration.calibration import CollectiveConstants, CollectiveProtocols, LibraryCollective


def protocols_of(
    constants: CollectiveConstants, collective: LibraryCollective, architecture: str
) -> CollectiveProtocols | None:
    """Return what was measured of a collective on devices of an architecture; None where nothing was."""
    named = (each for each in constants.protocols if collective in each.collectives)
    return next((each for each in named if architecture in each.architectures), None)


def library_times(
    known: CollectiveProtocols,
    collective: LibraryCollective,
    payload_bytes: float,
    gpus: int,
    bandwidth_bytes_per_s: float,
) -> tuple[float, float]:
    """Return (start-up, wire) seconds of the fastest protocol for a payload, the full tensor of each of `gpus`."""
    measured = min(gpus, known.largest_group)
    steps = library_steps(collective, measured)
    moved = wire_bytes(collective, payload_bytes, gpus)
    reach = (measured / known.largest_group) ** known.share_exponent * bandwidth_bytes_per_s
    times = [
        (each.start_s + each.step_s * steps, moved / min(each.share * reach, bandwidth_bytes_per_s))
        for each in known.protocols
        if each.most_peer_bytes is None or payload_bytes / gpus <= each.most_peer_bytes
    ]
    return min(times, key=sum)


def library_steps(collective: LibraryCollective, gpus: int) -> float:
    """Return the rounds of a collective: of a ring, twice for an all-reduce; an all-to-all has all peers at once."""
    if collective == "all_to_all":
        return math.log2(gpus)
    return (2.0 if collective == "all_reduce" else 1.0) * (gpus - 1)


def wire_bytes(collective: LibraryCollective, payload_bytes: float, gpus: int) -> float:
    """Return the bytes that each GPU sends: (n - 1) / n of the payload, twice for an all-reduce."""
    return (2.0 if collective == "all_reduce" else 1.0) * (gpus - 1) / gpus * payload_bytes
