"""What a rank does whose module says something when it is imported, and where told so leaves a thread behind."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np

from tests.runtime import entries

if TYPE_CHECKING:
    from moiety.runtime.post import Post, Report

THREAD_VARIABLE = "MOIETY_TEST_THREAD_AT_IMPORT"
IMPORTED_BY = os.getpid()
PRODUCT = np.ones((300, 300)) @ np.ones((300, 300))
"""For which BLAS has started threads, where it is let to."""

sys.stderr.write("an import warns\n")
if THREAD_VARIABLE in os.environ:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def meet(post: Post) -> Report:
    """Meet the others; report who has imported this, whose child the rank is, and whether it leads a session."""
    report = entries.meet(post)
    leads = os.getsid(0) == os.getpid()
    return {**report, "rank": {"pid": os.getpid(), "by": IMPORTED_BY, "parent": os.getppid(), "leads": leads}}
