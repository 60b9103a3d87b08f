"""What is watched: instances of one deployment, each behind one or more addresses of an engine's metrics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import numpy as np

from moiety.control.apply import apply
from moiety.control.commands import Park
from moiety.control.events import Issued
from moiety.control.policy import Deployment, Policy
from moiety.control.scrape import GENERATED, PROMPT
from moiety.control.state import State, initial_state
from moiety.errors import InputError
from moiety.health import Patience

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.model.model import Model
    from moiety.placement.problem import SlotMap

Target = Literal["sglang", "vllm-ascend", "moiety"]
_MISSED_ROUNDS = 2.5
"""An instance that has not answered in three rounds is taken to be gone."""
_ROOM_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """What does not change while it is watched."""

    plan: str
    model: Model
    deployment: Deployment
    """One instance, as the plan has it."""
    slot_map: SlotMap
    """What the engine was started with, [MoE layers, slots]."""
    instances: tuple[tuple[str, ...], ...]
    """Addresses of each instance's metrics; an instance answers when all of its addresses do."""
    target: Target
    interval_s: float

    @property
    def endpoints(self) -> tuple[str, ...]:
        """All addresses, those of an instance together."""
        return tuple(url for instance in self.instances for url in instance)

    @property
    def counted(self) -> tuple[str, ...]:
        """The counters that are the demand: prompt tokens where the pool prefills, else generated ones."""
        return PROMPT if self.deployment.phase == "prefill" else GENERATED

    @property
    def policy(self) -> Policy:
        """The bounds of the core, with this site's window."""
        beat_s = _MISSED_ROUNDS * self.interval_s
        return Policy(window_s=self.interval_s, patience=Patience(silent_s=beat_s), backoff_s=self.interval_s)

    def starting_experts(self) -> State:
        """Return the state that balance is decided on: the ranks of an instance.

        Nobody tells of single ranks beside an engine, so none is ever taken for failed, and what concerns whole
        instances is decided by the fleet.
        """
        bare = replace(self.deployment, tokens_per_s_per_node=None, tpot_limit_s=None, clock_points=())
        return initial_state(bare, replace(self.policy, patience=Patience(silent_s=float("inf"))), self.slot_map)

    def starting_fleet(self, answering: Sequence[bool], time_s: float) -> State:
        """Return the state that health, number and clocks are decided on: its ranks are the instances.

        An instance holds the whole model, the one thing there is to hold. Those that do not answer when they are first
        asked have not been started.
        """
        one = self.deployment
        rate = one.tokens_per_s_per_node
        fleet = replace(
            one,
            num_ranks=len(self.instances),
            ranks_per_node=1,
            num_experts=1,
            num_layers=1,
            most_slots=1,
            layer_step_s=0.0,
            group_ranks=1,
            tokens_per_s_per_node=None if rate is None else rate * one.num_nodes,
        )
        state = initial_state(fleet, self.policy, np.zeros((1, fleet.num_ranks), dtype=np.int64), time_s=time_s)
        absent = tuple(at for at, there in enumerate(answering) if not there)
        return apply(Issued(time_s, Park(state.epoch + 1, absent)), state) if absent else state


def instances_of(arguments: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the addresses of each instance: one an argument, several of one instance with commas between.

    An address without a path gets `/metrics`. Raises InputError for what is no http address, or is named twice.
    """
    found = tuple(tuple(_address(each.strip()) for each in argument.split(",")) for argument in arguments)
    every = [url for instance in found for url in instance]
    twice = next((url for url in every if every.count(url) > 1), None)
    if twice is not None:
        raise InputError("is named twice", field="--endpoint", value=twice, remedy="name each address once")
    return found


def _address(text: str) -> str:
    remedy = "write it as http://HOST:PORT"
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good, parts = False, urlsplit("")
    if not good or not text.isprintable() or " " in text or not text.isascii():
        raise InputError("is no http address", field="--endpoint", value=text, remedy=remedy)
    if parts.username is not None or parts.fragment:
        raise InputError("must hold no user and no fragment", field="--endpoint", value=text, remedy=remedy)
    return text if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/metrics"
