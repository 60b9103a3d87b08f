"""`moiety` that is interrupted while it imports torch, which swallows what that raises, as libraries do."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from importlib.abc import MetaPathFinder

from moiety.cli.main import main


class Swallowing(MetaPathFinder):
    """Is asked for a part of torch once, and finds nothing."""

    def find_spec(self, fullname: str, *_where: object) -> None:
        """Interrupt this process."""
        if fullname == "torch.nn":
            sys.meta_path.remove(self)
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.meta_path.insert(0, Swallowing())
    main()
