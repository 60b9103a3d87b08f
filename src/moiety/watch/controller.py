"""The rounds with their files: look, decide, save what is known, and make the files say what it says.

What is known is saved first, whole, and all else is made from it: whenever the process is killed, the next round
finishes what was left, and nothing is decided twice.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moiety.errors import InputError
from moiety.files import held_alone, read_bytes, remove_leftovers, write_all
from moiety.placement.engine_map import MAP_KEY, ascend_expert_map, expert_location
from moiety.watch.dumps import nothing_read, read_dumps
from moiety.watch.endpoint import scrape_all
from moiety.watch.known import Seen
from moiety.watch.snapshot import read_watch, watch_bytes
from moiety.watch.watching import next_round, started

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from moiety.placement.problem import SlotMap
    from moiety.watch.dumps import Dumps
    from moiety.watch.known import Round, Watch
    from moiety.watch.site import Site

STATE, PLACEMENT, PREVIOUS, ADVICE = "state.npz", "placement.json", "placement.previous.json", "advice.jsonl"
_LOCK = ".lock"


@dataclass(slots=True)
class Controller:
    """One site's watch, and the folder it keeps it in."""

    site: Site
    folder: Path
    dumps: Path | None
    timeout_s: float
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        path = self.folder / STATE
        self.watch = read_watch(read_bytes(path), self.site, str(path)) if path.exists() else started(self.site)

    def round(self) -> Round:
        """Look once, decide, and write; raise OutputError where the folder cannot be written.

        Then the next round goes on from what was decided, and writes that too.
        """
        readings = scrape_all(self.site.endpoints, self.timeout_s)
        dumps = nothing_read() if self.dumps is None else self._look(self.dumps)
        self.watch, done = next_round(self.watch, self.site, Seen(time.time(), readings, dumps))
        write_all(self.folder, {STATE: watch_bytes(self.watch, self.site)})
        self._bring_up_to_date()
        return done

    def _look(self, folder: Path) -> Dumps:
        watch, of = self.watch, self.site.deployment
        return read_dumps(
            folder,
            watch.dumps_done,
            self.site.model,
            of.num_experts,
            num_ranks=of.num_ranks * of.gpus_per_rank,
            doubtful=watch.dumps_doubtful,
        )

    def _bring_up_to_date(self) -> None:
        """Write the files that do not say what is known."""
        wanted = {PLACEMENT: placement_text(self.watch.placement, self.site), ADVICE: _advice_text(self.watch)}
        if self.watch.previous is not None:
            wanted[PREVIOUS] = placement_text(self.watch.previous, self.site)
        stale = {name: text for name, text in wanted.items() if _held(self.folder / name) != text.encode()}
        if stale:
            write_all(self.folder, stale)


def placement_text(slot_map: SlotMap, site: Site) -> str:
    """Return a slot map [MoE layers, slots] as the file that the engine loads."""
    deployment = site.deployment
    document: dict[str, object]
    match site.target:
        case "sglang":
            document = expert_location(slot_map, site.model)
        case "vllm-ascend":
            document = ascend_expert_map(slot_map, deployment.num_ranks)
        case "moiety":
            document = {
                MAP_KEY: slot_map.tolist(),
                "num_gpus": deployment.num_ranks,
                "num_nodes": deployment.num_nodes,
                "num_logical_experts": deployment.num_experts,
            }
    return f"{json.dumps(document)}\n"


@contextmanager
def sole_controller(folder: Path) -> Generator[None]:
    """Hold the folder while the block runs, for one process at a time; the system lets go of it when that dies.

    Raises InputError where another controller has it, OutputError where the folder cannot be made or written.
    """
    rule, remedy = "another controller works in this folder", "end it, or name another --out"
    with held_alone(folder / _LOCK, InputError(rule, source=str(folder), remedy=remedy)):
        remove_leftovers(folder)
        yield


def _advice_text(watch: Watch) -> str:
    return "".join(f"{json.dumps(each.document())}\n" for each in watch.advice)


def _held(path: Path) -> bytes | None:
    """Return what a file holds; None for one that is not there or cannot be read, which is written anew."""
    try:
        return read_bytes(path)
    except InputError:
        return None
