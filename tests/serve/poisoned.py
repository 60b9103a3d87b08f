"""`moiety` with ranks that end, as by a fault in a kernel, when they compute a certain token."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from moiety.cli import serve_preparation
from moiety.cli.main import main
from moiety.runtime.serving import worker

if TYPE_CHECKING:
    from moiety.runtime.model.kv_cache import KvCache
    from moiety.runtime.post import Post, Report
    from moiety.runtime.serving.order import StepOrder

POISON = 99


def serve(post: Post) -> Report:
    """Do a rank's work; what `job.entry` names."""
    take = worker.take_step

    def taken(order: StepOrder, group: int, engine: worker.Engine, cache: KvCache) -> list[int]:
        if any(POISON in row.token_ids for row in order.groups[group]):
            os.kill(os.getpid(), signal.SIGKILL)
        return take(order, group, engine, cache)

    worker.take_step = taken
    return worker.serve(post)


if __name__ == "__main__":
    serve_preparation.SERVING_ENTRY = "tests.serve.poisoned:serve"
    main()
