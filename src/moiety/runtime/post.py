"""Post: what a rank has in hand while it works: the job, its number, the store, and its way to the launcher."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage] - torch's own way to export it

    from moiety.runtime.job import Job
    from moiety.runtime.world import World

Report = dict[str, object]
"""What a rank reports when it is done: a JSON object.

Of rank 0 `outputs` are the new tokens, in the order of the prompts; `measured` is what the run came to, `rank` what
this rank came to (bytes, seconds), `trace` its events for a Chrome trace.
"""


def _unheard(_message: Mapping[str, object]) -> None:
    """Take note of a message where no launcher listens."""


@dataclass(frozen=True, slots=True)
class Post:
    """One rank at work."""

    job: Job
    world: World
    progress: Callable[[int, int], None]
    """Tells whoever watches how much is done, of how much."""
    _joined: list[Store] = field(default_factory=list["Store"])
    say: Callable[[Mapping[str, object]], None] = _unheard
    """Sends the launcher a message, from any thread."""

    @property
    def store(self) -> Store:
        """The store where the ranks meet, joined when it is first asked for; NoStoreError where it is not there."""
        if not self._joined:
            self._joined.append(self.world.join())
        return self._joined[0]

    def orders(self) -> Iterator[str]:
        """Yield the launcher's orders, a line of standard input each, until it closes it."""
        yield from sys.stdin


def work(post: Post) -> Report:
    """Return what the job's function reports."""
    module, _, name = post.job.entry.partition(":")
    function = getattr(importlib.import_module(module), name)
    return cast("Callable[[Post], Report]", function)(post)
