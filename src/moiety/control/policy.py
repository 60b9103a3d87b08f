"""What the control plane is told: the machine and the plan that it looks after, and the bounds that it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moiety.errors import InputError
from moiety.health import Patience
from moiety.placement.migration.cost import CopyLinks

_PATIENCE = Patience(silent_s=3.0)
Phase = Literal["prefill", "decode", "mixed", "training"]


@dataclass(frozen=True, slots=True)
class ClockPoint:
    """What a step takes at one SM clock."""

    clock_hz: float
    step_s: float
    power_w: float
    """Of one GPU."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The plan at work: `num_ranks` ranks that share the experts, consecutive ones in nodes of `ranks_per_node`."""

    num_ranks: int
    ranks_per_node: int
    num_experts: int
    num_layers: int
    """Layers with experts that are looked after; 0: who works is all that is decided."""
    most_slots: int
    """Slots of a layer that a rank's memory can hold."""
    links: CopyLinks
    layer_step_s: float
    """Seconds by which a layer's step grows when its fullest rank gets a mean load more."""
    step_s: float
    phase: Phase
    gpus_per_rank: int = 1
    """GPUs that share a rank's experts (expert tensor parallelism); they fail, heat and move as one."""
    group_ranks: int = 1
    """Consecutive ranks that stop together (tensor parallelism)."""
    has_checkpoint: bool = True
    tokens_per_s_per_node: float | None = None
    """What a node can do within the SLO; None: the number of nodes is left alone."""
    tpot_s: float | None = None
    """Time per output token when it does; None where that is not known, or none are put out."""
    tpot_limit_s: float | None = None
    clock_points: tuple[ClockPoint, ...] = ()
    """By clock, highest first; none: clocks are left alone."""

    def __post_init__(self) -> None:
        for name in ("ranks_per_node", "group_ranks"):
            value = getattr(self, name)
            if value < 1 or self.num_ranks % value:
                raise InputError(f"must divide {self.num_ranks} ranks", field=name, value=value)

    @property
    def num_nodes(self) -> int:
        """Nodes, working or not."""
        return self.num_ranks // self.ranks_per_node


def members_alone(num_ranks: int) -> Deployment:
    """Return ranks of which nothing is decided but who works: of plans whose experts are not looked after."""
    nothing = CopyLinks(1.0, 1.0, 1.0)
    return Deployment(
        num_ranks=num_ranks,
        ranks_per_node=num_ranks,
        num_experts=1,  # in no layer
        num_layers=0,
        most_slots=0,
        links=nothing,
        layer_step_s=0.0,
        step_s=1.0,
        phase="mixed",
    )


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds and patience, in the units of their names; the defaults suit a serving deployment."""

    # Faults
    patience: Patience = _PATIENCE
    """With ranks that may be at fault; beats cross a network."""
    needs_majority: bool = True
    """Whether ranks that are not heard may go on elsewhere. Not under a controller that they end with."""
    slower: float = 1.25
    """Times the median step from which a rank counts as slow, beyond what scatters ..."""
    far_slower: float = 3.0
    """... and from which it is fenced."""
    slow_windows: int = 5
    """Windows of steps over which a rank's pace is taken, as their median ..."""
    slow_windows_of_few: int = 10
    """... and where too few others compute the same layers: it stands beside its own past alone."""
    backoff_s: float = 60.0
    """Before a fenced rank is taken back; doubles with each time that it was fenced (`backoff.py`) ..."""
    most_backoff_s: float = 3600.0
    """... up to this ..."""
    backoff_half_life: float = 10.0
    """... and halves with each so many times `backoff_s` that it serves well."""
    move_timeout_s: float = 30.0
    """After which moves that nobody has reported are asked for again."""
    # Balance
    balance: bool = True
    """Whether experts move for the sake of load; they are brought back when ranks are lost in any case."""
    window_s: float = 60.0
    max_move_share: float = 0.04
    """Of a layer's slots, moved at once for balance ..."""
    max_settling_share: float = 0.25
    """... and when ranks have gone or come."""
    mean_move_share: float = 0.035
    """Of all slots, moved in a window because loads drift, in the mean over time ..."""
    saved_windows: float = 8.0
    """... of which so many windows without moves leave theirs to those that follow."""
    horizon_windows: float = 8.0
    """For which loads are expected to last."""
    # Heat
    hot_c: float = 85.0
    cool_c: float = 78.0
    relief: float = 0.15
    """Of its load that a hot GPU loses at each reading."""
    least_speed: float = 0.4
    cool_readings: int = 10
    """After which a cool GPU gets a part of its load back."""
    # Nodes
    scale_up_at: float = 0.85
    """Share of what the nodes can do that more nodes are asked for at ..."""
    scale_down_to: float = 0.7
    """... and that must not be exceeded on fewer."""
    start_timeout_s: float = 900.0
    """After which nodes that were asked for and have not come are no longer waited for."""
    least_nodes: int = 1
    """That stay, however little is asked for."""
    scale_patience: int = 10
    """Reports of requests over which the demand must stay that low."""
    drain_s: float = 60.0
    """In which what waits for room is to be done, beside what comes meanwhile."""
    # Clocks
    most_slowdown: float = 0.035
    """Of the step, for the sake of power."""

    def __post_init__(self) -> None:
        for name in ("backoff_s", "backoff_half_life"):
            value = getattr(self, name)
            if not value > 0:
                raise InputError("must be above 0", field=name, value=value)
