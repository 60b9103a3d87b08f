"""The command, called in this process or in one of its own."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Done:
    """How a call ended, and what it printed."""

    code: int
    out: str
    err: str


def moiety(*arguments: str | Path) -> Done:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(each) for each in arguments])
        except SystemExit as left:
            code = left.code
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())


def moiety_process(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    limits: Callable[[], None] | None = None,
) -> Done:
    """Run the command in a process of its own; `limits` runs in it first."""
    done = subprocess.run(
        [sys.executable, "-m", "moiety", *(str(each) for each in arguments)],
        cwd=cwd,
        env=None if env is None else dict(env),
        preexec_fn=limits,
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def refused(done: Done) -> str:
    """Return the one message of a call that refused its input."""
    assert done.code == 2, done
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("moiety: error: ")
    assert "Traceback" not in done.err
    return lines[0].removeprefix("moiety: error: ")
