"""From the loss of a rank to the next right token, beside a restart of all ranks in the same run.

Four ranks with attention and experts of their own (tp1_dp4_ep4) continue prompts. One of them is killed (SIGKILL) or
stopped (SIGSTOP), in the middle of a step; it is measured until the launcher knows of it, until the others have their
groups and weights again, and until the next token comes. Then a process joins in its place. In the end all ranks are
ended and started anew, as a launcher does that cannot regroup. Every token is compared with those of an undisturbed
run. Bars: 1 s from SIGKILL to the next token, 2.5 s from SIGSTOP.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from moiety.runtime.elastic.crew import Crew
from moiety.runtime.elastic.events import Lost, Ready
from moiety.runtime.job import Job
from tests.runtime.checkpoints import greedy_continuation, reference_model, save_checkpoint
from tests.runtime.elastic.serving import ENTRY, Journal
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from moiety.runtime.elastic.events import Event

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7], [100, 50, 3, 2, 1, 77], [130]]
NUM_NEW = 60
NUM_RANKS = 4
NUM_BEFORE = 5
"""Tokens of every sequence before a rank is lost."""
BARS_S = {signal.SIGKILL: 1.0, signal.SIGSTOP: 2.5}


class Run:
    """The journal of one run of a crew that is ready, or gets so."""

    def __init__(self, crew: Crew) -> None:
        self.crew, self.journal = crew, Journal(PROMPTS, NUM_NEW)
        crew.wait_ready()
        self.journal.deal(crew)

    def next_s(self, kind: type[Event] | None, since_s: float) -> float:
        """Go on until the next event of a kind (None: until tokens come); return the seconds since `since_s`."""
        journal = self.journal
        seen = len(journal.said_s) if kind is None else len(journal.of(kind))
        journal.run(self.crew, lambda: (len(journal.said_s) if kind is None else len(journal.of(kind))) > seen)
        return time.perf_counter() - since_s


def recover(crew: Crew, number: signal.Signals, rank: int, expected: list[list[int]]) -> tuple[float, float, float]:
    """Return the seconds from a signal to a rank until the loss is known, the others are ready, a token comes."""
    run = Run(crew)
    run.journal.run(crew, lambda: min(len(each) for each in run.journal.new_tokens) >= NUM_BEFORE)
    begin_s = time.perf_counter()
    os.kill(crew.ranks()[rank].pid, number)
    times = run.next_s(Lost, begin_s), run.next_s(Ready, begin_s), run.next_s(None, begin_s)
    run.journal.run(crew)
    assert run.journal.new_tokens == expected, "tokens are those of an undisturbed run"
    return times


def rejoin(crew: Crew) -> float:
    """Return the seconds from the start of a process to the generation that it is a rank of."""
    begin_s = time.perf_counter()
    crew.rejoin()
    while len(crew.ranks()) < NUM_RANKS or not all(each.is_ready for each in crew.ranks()):
        crew.poll(0.05)
    return time.perf_counter() - begin_s


def restart(job: Job) -> float:
    """Return the seconds from the start of all ranks to the first token."""
    begin_s = time.perf_counter()
    with Crew(job) as crew:
        return Run(crew).next_s(None, begin_s)


def measure(crew: Crew, number: signal.Signals, num_runs: int, expected: list[list[int]]) -> tuple[float, list[float]]:
    """Print what the loss of a rank costs; return the median until the next token, and what each joining took."""
    times: list[tuple[float, float, float]] = []
    joins: list[float] = []
    for run in range(num_runs):
        times.append(recover(crew, number, run % NUM_RANKS, expected))
        joins.append(rejoin(crew))
    known, ready, token = (statistics.median(each) for each in zip(*times, strict=True))
    worst = max(each[-1] for each in times)
    print(
        f"{number.name}: known after {known:.2f} s, the others ready after {ready:.2f} s, next token after "
        f"{token:.2f} s (at most {worst:.2f} s; bar {BARS_S[number]} s)"
    )
    return token, joins


def main() -> int:
    """Measure and print; return 1 where a bar is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--slack", type=float, default=1.0, help="the bars times this are allowed, on a busy machine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint("mixtral", Path(folder) / "mixtral")
        model = reference_model(checkpoint)
        expected = [greedy_continuation(model, prompt, NUM_NEW) for prompt in PROMPTS]
        plan = plan_of(checkpoint, "tp1_dp4_ep4", num_nodes=2, per_node=2)
        job = Job(plan=plan, checkpoint=str(checkpoint), entry=ENTRY)
        with Crew(job) as crew:
            crew.wait_ready()
            found = {number: measure(crew, number, options.runs, expected) for number in BARS_S}
        joins = [seconds for _, each in found.values() for seconds in each]
        print(f"a process joins: {statistics.median(joins):.1f} s, while the others go on")
        whole_s = restart(job)
    killed_s = found[signal.SIGKILL][0]
    print(f"all ranks started anew: {whole_s:.1f} s to the next token, {whole_s / killed_s:.0f} times as long")
    return int(any(found[number][0] > bar_s * options.slack for number, bar_s in BARS_S.items()))


if __name__ == "__main__":
    sys.exit(main())
