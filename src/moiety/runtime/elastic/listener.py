"""Listener: what the ranks of a crew say and what becomes of their processes, and what follows from it by itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from moiety.runtime.elastic.beacon import Beat
from moiety.runtime.elastic.events import Joined, Lost, Parted, Said, Slow
from moiety.runtime.failure import Cause, RankFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.runtime.channel import Message
    from moiety.runtime.elastic.events import Reason
    from moiety.runtime.elastic.hand import Hand
    from moiety.runtime.elastic.limits import Limits
    from moiety.runtime.elastic.roster import Roster
    from moiety.runtime.elastic.succession import Succession
    from moiety.runtime.elastic.watchman import Watchman

_LAST_WORDS_S = 5.0
"""How long a process whose channel has ended may take to end."""


class Listener:
    """Reads the processes of a roster into the events of a succession; with a `watchman` it leads the crew too.

    It declares the generation of the number `first` when all processes have shown a sign of life.
    """

    def __init__(
        self, roster: Roster, succession: Succession, limits: Limits, watchman: Watchman | None, first: int
    ) -> None:
        self._roster, self._succession, self._limits = roster, succession, limits
        self._watchman, self._first = watchman, first

    def hear(self, ready: Sequence[Hand]) -> None:
        """Take in what those say that are `ready` to be read, and whose time is up."""
        for hand in ready:
            self._read(hand, time.monotonic())
        self._roster.push()
        now_s, limits = time.monotonic(), self._limits
        for hand in self._roster.here():
            if hand.heard_s is None and now_s - hand.started_s > limits.start_s:
                self.lose(hand, "frozen", f"{hand} has shown no sign of life for {limits.start_s:.0f} s")
            if hand.dismissed_s is not None and now_s - hand.dismissed_s > limits.leave_s:
                self._roster.give_up(hand)
        if self._watchman is not None:
            self._lead(self._watchman)
        if not self._succession.generation and all(each.heard_s is not None for each in self._roster.hands):
            self._succession.declare(self._first, self._succession.alive())

    def lose(self, hand: Hand, reason: Reason, message: str) -> None:
        """Give a process up."""
        if hand.is_gone:
            return
        self._roster.give_up(hand)
        if hand.dismissed_s is not None:
            return
        now = self._succession
        if not now.was_ready:
            raise RankFailedError(message)
        rank = now.ranks.index(hand) if hand in now.ranks else None
        now.events.append(Lost(now.generation, rank, hand.home, hand.number, hand.process.pid, reason, message))
        if rank is not None:
            now.mark_end()
        if self._watchman is not None:
            self._watchman.lost(hand, now.generation)
            if rank is not None:
                self._watchman.soon(time.monotonic())

    def _read(self, hand: Hand, now_s: float) -> None:
        if hand.is_gone:
            return
        is_open = hand.process.read()
        hand.heard_s = now_s
        messages, hand.process.others = hand.process.others, []
        for message in messages:
            self._take(hand, message, now_s)
        failure = hand.process.failure
        if failure is not None and failure.cause is Cause.INPUT and hand.is_in:
            raise RankFailedError(failure.message)
        if hand.dismissed_s is not None:
            if not is_open:
                self._roster.give_up(hand)
        elif not is_open or failure is not None:
            hand.process.wait(_LAST_WORDS_S)
            hand.process.notice_end()
            failure = hand.process.failure
            self.lose(hand, "dead", failure.message if failure else f"{hand} has ended its work")

    def _take(self, hand: Hand, message: Message, now_s: float) -> None:
        """Take in what a rank says; what belongs to an older generation is refused."""
        if "beat" in message:
            hand.take(Beat.model_validate(message["beat"]), now_s)
            return
        kind, said = next((kind, cast("dict[str, object]", said)) for kind, said in message.items())
        now = self._succession
        if kind == "prepared":
            hand.is_in = True
            now.events.append(Joined(hand.home, hand.number, hand.process.pid))
            if self._watchman is not None:
                self._watchman.soon(now_s, must_meet=False)
        elif said["generation"] != now.generation or hand not in now.ranks:
            return
        elif kind == "say":
            now.events.append(Said(now.generation, now.ranks.index(hand), said["payload"]))
        elif kind == "ready":
            hand.ready, hand.kept_cache = now.generation, bool(said["kept"])
            now.begin_if_ready(now_s)
        elif kind == "switched":
            hand.switched = cast("int", said["batch"])
            now.switch_if_all()
        elif kind == "lost":
            self._parted(hand, cast("int | None", said["rank"]), now_s)

    def _parted(self, hand: Hand, peer: int | None, now_s: float) -> None:
        now = self._succession
        now.events.append(Parted(now.generation, now.ranks.index(hand), peer))
        if self._watchman is not None:
            self._watchman.parted(hand, None if peer is None else now.ranks[peer], now.generation, now_s)

    def _lead(self, watchman: Watchman) -> None:
        """Fence whom the watchman finds lost, and declare the next generation where it is due."""
        now, here = self._succession, self._roster.here
        for lost in watchman.judge(here(), now.ranks, now.generation, time.monotonic()):
            self.lose(*lost)
        now.events += [Slow(now.generation, rank, ratio) for rank, ratio in watchman.slow(now.ranks).items()]
        if not watchman.is_due(time.monotonic()):
            return
        gone = watchman.cut_off(here(), time.monotonic())
        if gone is not None:
            self.lose(*gone)
        alive = now.alive()
        must_meet = watchman.must_meet
        watchman.begun()
        if must_meet or not now.is_of(alive):  # who has joined may stand by
            now.mark_end()
            now.declare(now.generation + 1, alive)
