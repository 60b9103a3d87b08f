"""`moiety` that is killed once its ranks were told to move experts; the file STRUCK says when, and whom it leaves."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from moiety.cli.main import main
from moiety.runtime.elastic.crew import Crew

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.placement.migration.order import Move

migrate = Crew.migrate


def struck(crew: Crew, moves: Sequence[Move]) -> None:
    """Begin a migration, and be killed: nobody has heard of its end then, however fast it is."""
    migrate(crew, moves)
    assert crew.is_moving, "moves were asked for that change nothing"
    Path(os.environ["STRUCK"]).write_text(
        json.dumps({"time_s": time.monotonic(), "pids": [each.pid for each in crew.ranks()]})
    )
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    Crew.migrate = struck
    main()
