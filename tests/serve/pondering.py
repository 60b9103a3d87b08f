"""`moiety` whose searches for moves end when a file lies where PONDERING says; another one says that one has begun."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from moiety.cli.main import main
from moiety.serve import searcher

if TYPE_CHECKING:
    from moiety.control.balancing import Search
    from moiety.control.commands import MoveExperts

find = searcher.found
FOLDER = Path(os.environ.get("PONDERING", "."))
BEGAN, MAY_END = "began", "may-end"


def pondered(search: Search) -> MoveExperts:
    """Search when it may."""
    (FOLDER / BEGAN).touch()
    while not (FOLDER / MAY_END).exists():
        time.sleep(0.01)
    return find(search)


if __name__ == "__main__":
    searcher.found = pondered
    main()
