"""Deployments whose operators published how they were set up, to complete rows that leave part of that out."""

from __future__ import annotations

from functools import cache

from moiety.package_data import catalog_text
from moiety.validation.published_names import device_name, engine_name
from moiety.validation.serving_row import Degrees, Deployment, Deployments, ServingRow, Workers
from moiety.validation.skipped import SkippedRow

PUBLISHED = ("inferencex-2025-10", "inferencex-2026-04")
TWINS = {"deepseek-v3": "deepseek-r1"}
"""Models that rows name in each other's place: one set of layers, runs of one listed under both."""


def completed(row: ServingRow, model: str) -> ServingRow:
    """Return a row with what it leaves out as it was published: workers, their limits, routers, speculation.

    Deployments of the row's release count before others, and where it states none, those that were published with none.
    A row that no published deployment matches comes back as it is. Of several that match a row that states its workers,
    the one without speculation counts: not stated, there is none. Where an aggregated row states no release, its
    degrees are published ones: the scripts of that time divided the GPUs by the load, or computed prompts apart, and
    labels have the number of GPUs only. Raise SkippedRow where workers are not known.
    """
    if row.draft_tokens is not None:
        return row
    found = [each for each in published() if _ran_as(each, row, TWINS.get(model, model))]
    found = [each for each in found if each.version == row.backend_version] or found
    drafts = {each.draft_tokens for each in found}
    counts_all = bool(found) and row.mode == "agg" and all(each.prefill is not None for each in found)
    if not counts_all and (row.prefill is None or row.decode is None):
        if len(drafts) != 1:
            return row
        update: dict[str, int | None] = {"draft_tokens": drafts.pop()}
        if row.backend_version is None:
            update |= found[0].decode.model_dump(include=set(Degrees.model_fields))
        return row.model_copy(update=update)
    if row.gpus_apart is not None and len(drafts) != 1:
        found, drafts = [each for each in found if each.draft_tokens == 0], {0}
        if len({(each.prefill, each.decode, each.frontends) for each in found}) != 1:
            return row
    setups = {(each.prefill, each.decode, each.frontends) for each in found}
    if not setups:
        raise SkippedRow("how many workers there were is not stated, and no published deployment has these labels")
    if len({bool(each) for each in drafts}) > 1:
        raise SkippedRow("workers not stated; published with and without speculative decoding")
    if len(setups) > 1:
        raise SkippedRow("workers not stated; published with several numbers of them")
    prefill, decode, frontends = setups.pop()
    known = {"mode": "disagg", "prefill": prefill, "decode": decode, "frontends": frontends}
    known |= {"draft_tokens": max(drafts), "backend_version": row.backend_version or found[0].release}
    return row.model_copy(update=known)


def _ran_as(published: Deployment, row: ServingRow, model: str) -> bool:
    """Return whether a row may be a run of a deployment: nothing that both state differs."""
    if published.model != model or row.concurrency not in published.concurrency:
        return False
    stated = (device_name(row.system), engine_name(row.backend), row.precision, row.isl, row.osl)
    same = (published.system, engine_name(published.backend), published.precision, published.isl, published.osl)
    if stated != same:
        return False
    if published.prefill is None or row.prefill is None or row.decode is None:
        told = published.prefill is row.prefill or (row.mode == "agg" and row.backend_version is None)
        return told and row.backend_version == published.version and row.worker_gpus == published.num_gpus
    return row.backend_version in {None, published.version} and (
        (_same(row.prefill, published.prefill) and _same(row.decode, published.decode))
        or _counts_all(row, published.num_gpus)
    )


def _same(stated: Workers, known: Workers) -> bool:
    """Return whether the workers' GPUs agree, and all that is said of them where their number is stated."""
    if stated.workers is not None:
        return stated == known.model_copy(update={"max_sequences": None, "pp": stated.pp})
    return stated.worker_gpus == known.worker_gpus


def _counts_all(row: ServingRow, num_gpus: int) -> bool:
    """Return whether the label states the GPUs of the whole deployment, twice, as its only degree."""
    label = row.prefill
    return label is not None and label == row.decode and label.workers is None and label.worker_gpus == num_gpus


@cache
def published() -> tuple[Deployment, ...]:
    """Return the catalogue's deployments; each of its files says where they were published."""
    files = (Deployments.model_validate_json(catalog_text("deployments", name, ".json")) for name in PUBLISHED)
    return tuple(each for file in files for each in file.deployments)
