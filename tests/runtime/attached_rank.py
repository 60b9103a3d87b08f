"""One rank of a job that others start, as `moiety run` is one: `python -m tests.runtime.attached_rank ENTRY NOTES`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from moiety.cli.output import complain
from moiety.runtime.attached import Attached, check_size
from moiety.runtime.world import world_of
from tests.runtime.launched import job

if TYPE_CHECKING:
    from moiety.runtime.job import Job

if __name__ == "__main__":
    world = world_of(os.environ)
    assert world is not None
    attached = Attached(world)

    def prepared() -> Job:
        made = job(sys.argv[1], Path(sys.argv[2]), seed=1)
        check_size(world, made.num_ranks)
        return made

    try:
        reports = attached.run(attached.shared(prepared))
    except Exception as error:  # noqa: BLE001 - as the command does
        attached.complain(error, complain)
        sys.exit(2)
    if attached.speaks:
        sys.stdout.write(json.dumps(reports))
