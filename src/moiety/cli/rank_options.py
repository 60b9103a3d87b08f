"""The options of every verb that starts ranks."""

from __future__ import annotations

from typing import Annotated

import typer

_MOST_RANKS = 1024

CheckpointOption = Annotated[
    str,
    typer.Option(metavar="DIR", help="Folder with the model's config.json and safetensors.", show_default=False),
]
DispatchOption = Annotated[
    str | None,
    typer.Option(
        metavar="flat|dedup|hierarchical",
        help="How tokens travel to their experts, instead of the plan's way.",
        show_default=False,
    ),
]
TransportOption = Annotated[
    str,
    typer.Option(
        metavar="sockets|gloo|deep_ep",
        help="What carries tensors between CPU ranks; with deep_ep GPU ranks exchange tokens by DeepEP.",
    ),
]
FoldOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=_MOST_RANKS,
        metavar="RANKS",
        help="Rehearse the plan on so many ranks, its degrees shrunk; a smaller copy of its model will do. On one "
        "machine a plan of more than 16 ranks is folded onto 4.",
        show_default=False,
    ),
]
RankOutputOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="Keep what each rank writes on its standard error, as rank-N.log.", show_default=False
    ),
]
