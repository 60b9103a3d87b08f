"""PeerLost: a transfer that cannot end, because the rank at the other end is gone, silent, or told to stop."""

from __future__ import annotations

from moiety.errors import MoietyError


class PeerLost(MoietyError):  # noqa: N818  # what happened, as one says it
    """A peer died, was silent past the deadline, or the launcher said stop.

    `rank` is the one whose connection failed or that was waited for, None when the whole network was stopped.
    """

    exit_code = 3

    def __init__(self, reason: str, *, label: str, waited_s: float, rank: int | None = None) -> None:
        self.reason = reason
        self.label = label
        self.waited_s = waited_s
        self.rank = rank
        who = "" if rank is None else f"rank {rank} "
        super().__init__(f"group {label!r}: {who}{reason} (after {waited_s:.1f} s of waiting)")
