"""`moiety serve`: a plan's ranks behind OpenAI's API."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from moiety.cli.control_power import JournalOption  # noqa: TC001 - typer reads it when the program runs
from moiety.cli.output import JsonSwitch, Output, QuietSwitch
from moiety.cli.rank_options import (  # typer reads them when the program runs
    CheckpointOption,  # noqa: TC001
    DispatchOption,  # noqa: TC001
    FoldOption,  # noqa: TC001
    RankOutputOption,  # noqa: TC001
    TransportOption,  # noqa: TC001
)
from moiety.errors import InputError

API_KEY = "MOIETY_API_KEY"
_MOST_SEQUENCES = 4096
_LARGEST_PORT = 65_535


def serve(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="The plan's method JSON, or the folder that holds it.")],
    *,
    checkpoint: CheckpointOption,
    host: Annotated[str, typer.Option(help="Address to listen on. Beyond this machine: give an --api-key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=_LARGEST_PORT, help="0: any free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help=f"What requests must carry as bearer token; better given as {API_KEY}, which other users cannot see.",
            envvar=API_KEY,
            show_default=False,
            show_envvar=False,
        ),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What requests call the model; else its folder's name.", show_default=False),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="TOKENS",
            help="Room of a sequence, prompt and answer together; else the model's positions, at most 4,096.",
            show_default=False,
        ),
    ] = None,
    max_sequences: Annotated[
        int, typer.Option(min=1, max=_MOST_SEQUENCES, help="In flight at a time in each attention group.")
    ] = 16,
    max_waiting: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Sequences that may wait beside them; one more is refused (429).")
    ] = 128,
    prefill_chunk: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Tokens of prompts that a step computes beside decoding.")
    ] = 256,
    max_restarts: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Processes started within 10 minutes in place of lost ranks.")
    ] = 5,
    balance: Annotated[
        bool, typer.Option("--balance/--no-balance", help="Move experts to other ranks, live, where the load drifts.")
    ] = True,
    window: Annotated[
        float, typer.Option(min=0.1, max=86_400, metavar="SECONDS", help="Between two counts of the experts' load.")
    ] = 60.0,
    scale_nodes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MIN",
            help="Give nodes up, MIN at least stay, while fewer hold the demand within the plan's SLO. Default: never.",
            show_default=False,
        ),
    ] = None,
    clocks: Annotated[
        bool,
        typer.Option(
            "--clocks",
            help="Set the clock or power cap that is decided on the GPUs that the ranks take, as root; restored at the "
            "end. Else it is only shown.",
        ),
    ] = False,
    journal: JournalOption = None,
    dispatch: DispatchOption = None,
    transport: TransportOption = "sockets",
    fold: FoldOption = None,
    rank_output: RankOutputOption = None,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> None:
    """Serve a checkpoint under a plan with OpenAI's API, streaming or not.

    A reference engine, for proving plans and the control plane: continuous batching, and streams that go on when a
    rank is lost. It is not tuned for production. Its address is printed when it takes requests; SIGTERM drains it.
    """
    from moiety.runtime.interrupts import Interrupts

    with Interrupts().noted():  # what a signal raises in the midst of an import may be swallowed there
        from moiety.cli.run_checkpoint import check_libraries
        from moiety.cli.serve_preparation import Wish, check_server_libraries, prepare

        check_libraries("serve")
        check_server_libraries()
        from moiety.cli.json_text import json_text
        from moiety.gpus.journal import Journal
        from moiety.runtime.world import world_of
        from moiety.serve.server import Settings
        from moiety.serve.server import serve as serve_until_drained

    output = Output(json, quiet)
    _check_key(api_key)
    if model_name is not None and not model_name.strip():
        rule = "a name has a character that is no space"
        raise InputError(rule, field="--model-name", value=model_name, remedy="give one, or leave the option out")
    if journal is not None and not clocks:
        raise InputError("notes what --clocks sets", field="--journal", value=journal, remedy="add --clocks")
    wish = Wish(
        plan=plan,
        checkpoint=checkpoint,
        fold=fold,
        transport=transport,
        dispatch=dispatch,
        model_name=model_name,
        max_model_len=max_model_len,
        max_sequences=max_sequences,
        max_waiting=max_waiting,
    )
    with Interrupts().noted():
        prepared = prepare(wish, world_of(os.environ))
    for note in prepared.notes:
        output.note(note)
    if api_key is None and not _is_loopback(host):
        output.note(f"{host} can be reached from other machines, and there is no --api-key: anyone may use the server")
    settings = Settings(
        host=host,
        port=port,
        api_key=api_key,
        max_waiting=max_waiting,
        prefill_chunk=prefill_chunk,
        max_restarts=max_restarts,
        balance=balance,
        window_s=window,
        scale_nodes=scale_nodes,
        limits=(Journal() if journal is None else Journal(Path(journal))) if clocks else None,
        rank_output=None if rank_output is None else Path(rank_output),
    )
    name = prepared.served.names[0]

    def ready(address: str) -> None:
        text = json_text({"address": address, "model": name}) if json else f"moiety serves {name} on {address}\n"
        typer.echo(text, nl=False)

    serve_until_drained(prepared.job, prepared.calibration, prepared.served, settings, ready, output.note)


def _check_key(api_key: str | None) -> None:
    """Raise InputError for a key that no request can carry; it is not shown."""
    if api_key is not None and re.fullmatch("[!-~]+", api_key) is None:
        rule = "a key has printable ASCII characters without spaces; this one is empty, or has others (an end of line?)"
        raise InputError(rule, field=f"--api-key or {API_KEY}", remedy="give another key, or none")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
