"""The option `--trace` of benchmarks: a routing dump, or one message and exit code 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.errors import InputError
from moiety.files import read_bytes
from moiety.workload.routing import read_routing

if TYPE_CHECKING:
    import argparse

    from moiety.workload.routing import Routing

_PARTS = {"topk": "which experts each token chose", "sequence": "which sequence each token is of"}


def add_trace_option(parser: argparse.ArgumentParser) -> None:
    """Have a benchmark take `--trace FILE`."""
    parser.add_argument("--trace", metavar="FILE", help="a routing dump instead of synthetic routing")


def trace_of(parser: argparse.ArgumentParser, path: str | None, *needs: str) -> Routing | None:
    """Return the dump that `--trace` names, None without one; end the process where it is none or lacks a part."""
    if path is None:
        return None
    try:
        trace = read_routing(read_bytes(path), source=path)
    except InputError as error:
        parser.error(f"--trace: {error}")
    for part in needs:
        if getattr(trace, part) is None:
            parser.error(f"--trace: {path}: {part}: is missing: {_PARTS[part]}; name a dump that has it")
    return trace
