"""`moiety catalog`: what the package knows, as lists and as files to copy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from moiety.cli.output import JsonSwitch, Output, QuietSwitch
from moiety.errors import InputError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = ("models", "clusters", "workloads", "claims")
_USAGE = "write moiety catalog [models|clusters|workloads|claims], moiety catalog show NAME, or moiety catalog schema"


def catalog(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[models|clusters|workloads|claims] [show NAME] [schema]",
            help="A kind to list; `show NAME` prints the file of an entry to copy; `schema` the JSON Schema of plans.",
            show_default=False,
        ),
    ] = None,
    *,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> None:
    """List the built-in models, clusters, workloads and claims, or print one of them to copy."""
    output = Output(json, quiet)
    words = what or []
    kinds = KINDS
    if words and words[0] in KINDS:
        kinds, words = (words[0],), words[1:]
    match words:
        case []:
            _list(kinds, output)
        case ["show", name]:
            _show(name, kinds, output)
        case ["schema"] if kinds == KINDS:
            from moiety.cli.plan_schema import plan_schema_json

            sys.stdout.write(plan_schema_json())
        case ["show"]:
            raise InputError("what should be shown?", field="catalog show", remedy="give its NAME")
        case _:
            known = (*KINDS, "show", "schema")
            near = nearest(words[0], known) if words[0] not in known else _USAGE
            raise InputError("is not understood", field="catalog", value=" ".join(words), remedy=near)


def _list(kinds: tuple[str, ...], output: Output) -> None:
    from moiety.cli.catalog_tables import LISTS
    from moiety.cli.json_text import json_text
    from moiety.cli.table import table

    lists = {kind: LISTS[kind] for kind in kinds}
    output.document(lambda: json_text({kind: entries.records() for kind, entries in lists.items()}))
    if output.shows_tables:
        output.tables(table(each.title, each.columns, each.rows()) for each in lists.values())


def _show(name: str, kinds: tuple[str, ...], output: Output) -> None:
    """Print the file of an entry; a name that several kinds have is looked for in their order."""
    from moiety.cli.json_text import json_text
    from moiety.cluster.catalog import catalog_clusters, cluster_text
    from moiety.model.catalog import catalog_model_text, catalog_models
    from moiety.package_data import catalog_text
    from moiety.verify.claims import catalog_claims
    from moiety.workload.catalog import catalog_workloads, workload_text

    known = {
        "models": catalog_models(),
        "clusters": catalog_clusters(),
        "workloads": catalog_workloads(),
        "claims": catalog_claims(),
    }
    texts: dict[str, Callable[[str], str]] = {
        "models": catalog_model_text,
        "clusters": cluster_text,
        "workloads": workload_text,
        "claims": lambda each: catalog_text("claims", each),
    }
    lower = name.lower().replace("_", "-")
    for kind in kinds:
        if lower in known[kind]:
            found = kind, texts[kind](lower)
            break
    else:
        base, times, size = lower.rpartition("x")
        if "clusters" not in kinds or (len(kinds) > 1 and not (times and base and size.isdigit())):
            everything = {each for kind in kinds for each in known[kind]}
            rule = "no such entry in the catalogue"
            raise InputError(rule, field="catalog show", value=name, remedy=nearest(lower, everything))
        found = "clusters", cluster_text(name)
    kind, text = found
    if output.json:
        output.document(lambda: json_text({"kind": kind, "name": lower, "text": text}))
    else:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
