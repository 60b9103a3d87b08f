"""The `moiety` command: its verbs, and what becomes of errors."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from moiety.cli.catalog import catalog
from moiety.cli.control import control
from moiety.cli.output import complain
from moiety.cli.place import place
from moiety.cli.plan import plan
from moiety.cli.routing import routing
from moiety.cli.run import run
from moiety.cli.serve import serve
from moiety.cli.simulate import simulate
from moiety.cli.train import train
from moiety.cli.validate import validate
from moiety.cli.verify import verify
from moiety.cli.version import installed_version
from moiety.errors import MoietyError

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130
"""Exit code after an interrupt from the keyboard, as shells count it."""
_ALLOCATIONS_PER_COLLECTION = 50_000
"""Records form no circles, so the collector has little to find; looking seldom saves a tenth of the time."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

app = typer.Typer(
    name="moiety",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(plan)
app.command()(simulate)
app.command()(place)
app.command()(verify)
app.command()(validate)
app.command()(run)
app.command()(train)
app.command()(serve)
app.add_typer(control, name="control")
app.command()(routing)
app.command()(catalog)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moiety {installed_version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def moiety(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback has done the work
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Plan, verify and draw deployments of mixture-of-experts language models on GPU clusters."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; leave with 0 (done), 1 (a check found errors) or 2 (the input is wrong)."""
    gc.set_threshold(_ALLOCATIONS_PER_COLLECTION)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII only
    try:
        code = _run(arguments)
    except BrokenPipeError:
        code = _without_reader()
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        try:
            left: object = app(
                args=None if arguments is None else list(arguments), prog_name="moiety", standalone_mode=False
            )
        finally:
            sys.stdout.flush()
        return left if isinstance(left, int) else 0
    except MoietyError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _discard_output()
        complain(f"standard output: cannot be written: {error.strerror}")
        return MoietyError.exit_code
    except Exception as error:
        message = _usage_message(error)
        if message is None:
            raise
        complain(message)
        return MoietyError.exit_code


def _usage_message(error: Exception) -> str | None:
    """Return what an unknown option or an impossible value is told, on one line; None for any other error.

    The class of such errors is typer's own or click's, by version; both know how to word themselves.
    """
    wording = getattr(error, "format_message", None)
    if wording is None:
        return None
    context = getattr(error, "ctx", None)
    message = " ".join(str(wording()).split()).rstrip(".")
    return f"{message}; see `{context.command_path} --help`" if context is not None else message


def _without_reader() -> int:
    """Return the exit code for a reader (`| head`) that has gone; what is left to print goes nowhere, in silence."""
    _discard_output()
    return 1


def _discard_output() -> None:
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)
