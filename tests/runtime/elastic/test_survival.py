"""Survival: real ranks are killed, stopped, hung and joined anew in the middle of steps; no token changes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

from moiety.errors import InputError
from moiety.placement.migration.order import Move
from moiety.runtime.elastic.crew import Crew
from moiety.runtime.elastic.events import Declared, Joined, Lost, Ready, Switched
from moiety.runtime.elastic.limits import Limits
from moiety.runtime.job import Job
from moiety.runtime.rank_process import RankProcess
from tests.runtime.checkpoints import greedy_continuation, reference_model, save_checkpoint
from tests.runtime.elastic.serving import ENTRY, Journal
from tests.runtime.fp8_checkpoints import save_dequantised, save_fp8
from tests.runtime.launched import is_gone
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.runtime.comm.transport import Transport
    from moiety.runtime.elastic.events import Event

ROOT = Path(__file__).parents[3]
PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7], [100, 50, 3, 2, 1, 77], [130], [5, 6, 7], [44, 2, 8, 1]]
NEW = 30
LIMITS = Limits(silent_s=2.0, stuck_s=5.0)
GENEROUS_S = 20.0
"""Ten times what recovery takes at most on a machine that does nothing else; no test is about time."""
SPREAD: dict[str, Any] = {"num_nodes": 2, "per_node": 2}


@pytest.fixture(scope="module", autouse=True)
def _ranks_find_the_tests() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("mixtral", tmp_path_factory.mktemp("elastic") / "mixtral")


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path) -> list[list[int]]:
    model = reference_model(checkpoint)
    return [greedy_continuation(model, prompt, NEW) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def shared_crew(checkpoint: Path, undisturbed: list[list[int]]) -> Iterator[Crew]:  # noqa: ARG001 - known before
    """Yield four ranks, each with requests and experts of its own, that all tests share as far as they are left.

    What is expected of them takes long to compute, and ranks end themselves when nobody polls for that long.
    """
    job = Job(plan=plan_of(checkpoint, "tp1_dp4_ep4", **SPREAD), checkpoint=str(checkpoint), entry=ENTRY)
    with Crew(job, limits=LIMITS) as crew:
        crew.wait_ready()
        yield crew


@pytest.fixture
def journal() -> Journal:
    return Journal(PROMPTS, NEW)


@pytest.fixture
def crew(shared_crew: Crew, journal: Journal) -> Crew:
    """Return the shared crew at its full strength, with the journal's sequences dealt."""
    while shared_crew.rejoin() is not None:
        pass
    events: list[Event] = []
    deadline_s = time.monotonic() + 60
    while len(shared_crew.ranks()) < 4 or not all(each.is_ready for each in shared_crew.ranks()):
        assert time.monotonic() < deadline_s, shared_crew.ranks()
        events += shared_crew.poll(0.05)
        assert not [each for each in events if isinstance(each, Lost)]
    journal.deal(shared_crew)
    return shared_crew


def after(journal: Journal, num_tokens: int, crew: Crew) -> None:
    """Go on until each sequence has so many new tokens."""
    journal.run(crew, lambda: min(len(each) for each in journal.new_tokens) >= num_tokens)


def lost(journal: Journal, crew: Crew, count: int = 1) -> list[Lost]:
    """Go on until so many ranks are lost and the others are ready again; return the losses."""
    before = time.monotonic()
    journal.run(crew, lambda: len(journal.of(Lost)) >= count)
    generation = max(each.generation for each in journal.of(Declared))
    journal.run(crew, lambda: any(each.generation >= generation for each in journal.of(Ready)))
    assert time.monotonic() - before < GENEROUS_S
    return list(journal.of(Lost))


def fail_at(crew: Crew, rank: int, op: str, layer: int, what: str = "kill") -> None:
    crew.send(rank, {"fault": {"op": op, "layer": layer, "what": what}})


def test_ranks_are_killed_at_every_phase_until_one_is_left(
    crew: Crew, journal: Journal, undisturbed: list[list[int]]
) -> None:
    first = {each.member: each.pid for each in crew.ranks()}
    faults = [(2, "dispatch", 1), (0, "expert_down", 0), (1, "final_norm", -1)]
    for number, (rank, op, layer) in enumerate(faults, start=1):
        after(journal, 3 * number, crew)
        fail_at(crew, rank, op, layer)
        found = lost(journal, crew, number)[-1]
        assert (found.reason, found.rank) == ("dead", rank), found.message
        assert "killed by SIGKILL" in found.message
        left = crew.ranks()
        assert len(left) == 4 - number
        assert {each.member: each.pid for each in left}.items() <= first.items(), "nobody was started anew"
    journal.run(crew)
    assert journal.new_tokens == undisturbed


def test_a_stopped_rank_is_fenced(crew: Crew, journal: Journal, undisturbed: list[list[int]]) -> None:
    after(journal, 3, crew)
    pid = crew.ranks()[3].pid
    fail_at(crew, 3, "combine", 2, "stop")
    (found,) = lost(journal, crew)
    assert (found.reason, found.pid) == ("frozen", pid)
    journal.run(crew)
    assert journal.new_tokens == undisturbed
    deadline_s = time.monotonic() + GENEROUS_S
    while not is_gone(pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_zombie_that_nobody_could_kill_says_nothing_and_leaves(
    crew: Crew, journal: Journal, undisturbed: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    after(journal, 3, crew)
    pid, member = crew.ranks()[0].pid, crew.ranks()[0].member
    with monkeypatch.context() as patch:  # as on another machine, whose signals are not ours
        patch.setattr(RankProcess, "send", lambda _process, _number: None)
        os.kill(pid, signal.SIGSTOP)
        (found,) = lost(journal, crew)
        assert (found.reason, found.member) == ("frozen", member)
        assert not is_gone(pid)
        os.kill(pid, signal.SIGCONT)
        journal.run(crew)
    assert journal.new_tokens == undisturbed
    assert len(journal.of(Lost)) == 1, "it disturbs nobody"
    deadline_s = time.monotonic() + GENEROUS_S
    while not is_gone(pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_second_rank_is_killed_while_the_others_regroup(
    crew: Crew, journal: Journal, undisturbed: list[list[int]]
) -> None:
    after(journal, 3, crew)
    os.kill(crew.ranks()[1].pid, signal.SIGKILL)
    journal.run(crew, lambda: len(journal.of(Declared)) >= 1)
    assert not journal.of(Ready)
    os.kill(crew.ranks()[0].pid, signal.SIGKILL)
    lost(journal, crew, 2)
    assert len(crew.ranks()) == 2
    journal.run(crew)
    assert journal.new_tokens == undisturbed


def test_a_rank_that_gets_nowhere_is_lost_and_one_with_an_error_says_it(
    crew: Crew, journal: Journal, undisturbed: list[list[int]]
) -> None:
    after(journal, 3, crew)
    fail_at(crew, 1, "dispatch", 1, "spin")
    (found,) = lost(journal, crew)
    assert (found.reason, found.rank) == ("hung", 1)
    assert "gets no further than dispatch of layer 1" in found.message
    fail_at(crew, 2, "dispatch", 1, "raise")
    found = lost(journal, crew, 2)[-1]
    assert "ZeroDivisionError: as it was told" in found.message
    journal.run(crew)
    assert journal.new_tokens == undisturbed


def test_a_rank_joins_while_the_others_go_on(crew: Crew, journal: Journal, undisturbed: list[list[int]]) -> None:
    before = crew.plan
    after(journal, 2, crew)
    gone = crew.ranks()[2]
    os.kill(gone.pid, signal.SIGKILL)
    lost(journal, crew)
    kept = {each.member: each.pid for each in crew.ranks()}
    member = crew.rejoin()
    journal.run(crew, lambda: len(journal.of(Joined)) == 1 and len(crew.ranks()) == 4)
    journal.run(crew, lambda: len(journal.of(Ready)) == 2)
    ranks = crew.ranks()
    assert (ranks[2].member, ranks[2].home) == (member, gone.home)
    assert {each.member: each.pid for each in ranks if each.member != member} == kept
    assert crew.plan.pools[0].strategy == before.pools[0].strategy
    assert crew.plan.cluster == before.cluster
    journal.run(crew)
    assert journal.new_tokens == undisturbed


def swapped(crew: Crew) -> list[Move]:
    """Return moves that turn every layer's slots around the ranks, in steps of two that swap."""
    placement = crew.plan.pools[0].placement
    assert placement is not None
    moves: list[Move] = []
    for layer, row in enumerate(placement.physical_to_logical_map):
        for slot in range(len(row) // 2):
            other = len(row) - 1 - slot
            step = layer * len(row) + slot
            moves += [Move(layer, slot, row[other], other, step), Move(layer, other, row[slot], slot, step)]
    return moves


def test_experts_move_while_steps_go_on(crew: Crew, journal: Journal, undisturbed: list[list[int]]) -> None:
    placement = crew.plan.pools[0].placement
    assert placement is not None
    after(journal, 2, crew)
    last = swapped(crew)[-1]
    for wrong, words in ((last._replace(expert=99), "expert = 99"), (last._replace(slot=99), "slot = 99")):
        with pytest.raises(InputError, match=words):
            crew.migrate([*swapped(crew)[:-1], wrong])
    assert not crew.is_moving
    crew.migrate(swapped(crew), most_at_once=4)
    journal.run(crew, lambda: bool(journal.of(Switched)))
    assert any(len(each) < NEW for each in journal.new_tokens), "they move while tokens come"
    journal.run(crew, lambda: any(each.left == 0 for each in journal.of(Switched)))
    assert len(journal.of(Switched)) == 6
    moved = crew.plan.pools[0].placement
    assert moved is not None
    assert moved.physical_to_logical_map == tuple(row[::-1] for row in placement.physical_to_logical_map)
    journal.run(crew)
    assert journal.new_tokens == undisturbed
    assert not journal.of(Lost)


def test_a_rank_is_killed_while_experts_move(crew: Crew, journal: Journal, undisturbed: list[list[int]]) -> None:
    after(journal, 2, crew)
    crew.migrate(swapped(crew), most_at_once=2)
    journal.run(crew, lambda: len(journal.of(Switched)) >= 2)
    os.kill(crew.ranks()[3].pid, signal.SIGKILL)
    lost(journal, crew)
    journal.run(crew)
    assert journal.new_tokens == undisturbed


@pytest.mark.parametrize(
    ("name", "division", "transport", "left"),
    [
        ("deepseek_v3", {"strategy": "tp2_dp2_ep4", **SPREAD, "redundant": 4, "weights": "fp8"}, "sockets", 2),
        ("gpt_oss", {"strategy": "tp1_dp3_ep3", "per_node": 3, "redundant": 1}, "gloo", 2),
    ],
)
def test_what_is_left_keeps_its_cache_and_whole_groups(
    name: str,
    division: dict[str, Any],
    transport: Transport,
    left: int,
    tmp_path: Path,
) -> None:
    folder = save_checkpoint(name, tmp_path / name)
    model = reference_model(folder)
    if division.get("weights") == "fp8":
        model = reference_model(save_dequantised(folder, tmp_path / "dequantised"))
        folder = save_fp8(folder, tmp_path / "fp8")
    job = Job(plan=plan_of(folder, **division), checkpoint=str(folder), entry=ENTRY, transport=transport)
    journal = Journal(PROMPTS[:4], NEW)
    with Crew(job, limits=LIMITS) as crew:
        for event in crew.wait_ready():
            journal.take(crew, event)
        after(journal, 8, crew)
        fail_at(crew, 0, "dispatch", 1)
        lost(journal, crew)
        assert len(crew.ranks()) == left
        journal.run(crew, lambda: len(journal.computed) > 0)
        known = [len(each) for each in journal.tokens]
        journal.run(crew)
        assert sum(journal.computed) < sum(known) + 4 * NEW, "who has survived has not computed its prompts again"
    assert journal.new_tokens == [greedy_continuation(model, prompt, NEW) for prompt in PROMPTS[:4]]
