"""Recipes that published training runs were started from: what their table leaves out, such as CUDA graphs."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from moiety.dtypes import Dtype
from moiety.package_data import catalog_text
from moiety.projection.training_formats import Part
from moiety.projection.training_work import Captured, Recomputed
from moiety.records import Record
from moiety.validation.skipped import SkippedRow

if TYPE_CHECKING:
    from moiety.validation.system_row import SystemRow

PUBLISHED = ("megatron-bridge-2026-08", "megatron-moe-modelzoo-2026-08", "moe-parallel-folding-2025-04")
_RELEASE = re.compile(r"\[(\d\d\.\d\d(?:\.\d\d)?) ")
_GLOBAL, _MICRO = re.compile(r"GBS (\d+)"), re.compile(r"MBS (\d+)")
Degree = Annotated[int, Field(gt=0, le=1_048_576)]
Format = Literal["bf16", "fp8", "mxfp8", "nvfp4"]


class TrainingRecipe(Record):
    """How a framework's releases trained a model on a kind of GPU, as far as it decides how fast."""

    releases: tuple[str, ...] = ()
    """Containers that carry it, e.g. 26.04; none where the publisher names none."""
    model: str
    system: str
    format: Format
    num_gpus: Degree
    global_batch: Degree
    micro_batch: Degree
    tp: Degree = 1
    pp: Degree = 1
    cp: Degree = 1
    vp: Degree = 1
    ep: Degree = 1
    etp: Degree | None = None
    """Ranks that share an expert; None: as the method divides them."""
    method: str | None = None
    """The publisher's name of the division, by which its other tables refer to it."""
    captured: tuple[Captured, ...] = ()
    """What CUDA graphs hold."""
    overlapped_exchange: bool = False
    """Dispatch and combine run beside another micro-batch's computation."""
    dispatcher: Literal["alltoall", "deepep", "hybridep"] = "alltoall"
    """alltoall: NCCL's, one row for each token and expert; the others send one to each node."""
    recomputed: Recomputed = "nothing"
    predictions: Annotated[int, Field(ge=0, le=16)] = 0
    """Tokens beyond the next that the run was trained to predict."""
    formats: dict[Part, Dtype] = Field(default_factory=dict["Part", "Dtype"])
    """Parts whose products are in another format than `format`."""
    wide_layers: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Layers at the end whose products are in BF16."""


class TrainingRecipes(Record):
    """A catalogue of recipes."""

    publisher: str
    """How the sources of its rows begin."""
    source: str
    recipes: tuple[TrainingRecipe, ...]


@cache
def published_recipes() -> tuple[TrainingRecipes, ...]:
    """Return the catalogue's recipes, by publisher."""
    return tuple(TrainingRecipes.model_validate_json(catalog_text("deployments", name, ".json")) for name in PUBLISHED)


def recipe_of(row: SystemRow, model: str, device: str) -> TrainingRecipe | None:
    """Return the recipe that a row was most likely run from; None where none is published for its model and device.

    One with the row's method and degrees, parts of pipeline stages where it states them among those, counts before all
    others, of the release nearest to the row's; of those the one that agrees best in batch and number of GPUs.
    """
    labels = (model, device, recipe_format(row.precision or ""))
    known = [
        each
        for published in published_recipes()
        if row.source.startswith(published.publisher)
        for each in published.recipes
        if (each.model, each.system, each.format) == labels
    ]
    return min(known, key=lambda each: _distance(each, row), default=None)


def stated_release(row: SystemRow) -> str:
    """Return the container that a row's source names, such as 26.04; "" where it names none."""
    stated = _RELEASE.search(row.source)
    return stated[1] if stated else ""


def referred_degrees(row: SystemRow, model: str) -> dict[str, int | str]:
    """Return the degrees of a row that refers to a table for them; raise SkippedRow where that has none of it."""
    method = row.parallel.get("method")
    for published in published_recipes():
        for each in published.recipes:
            if row.source.startswith(published.publisher) and (each.model, each.method) == (model, method):
                degrees = each.model_dump(include={"method", "tp", "pp", "cp", "ep", "etp"})
                return {name: value for name, value in degrees.items() if value is not None}
    raise SkippedRow("the degrees are stated by reference to another row only")


def _distance(recipe: TrainingRecipe, row: SystemRow) -> tuple[int, ...]:
    stated = {name: row.degree(name) or 1 for name in ("tp", "pp", "cp", "ep")}
    if (parts := row.degree("vp")) is not None:
        stated["vp"] = parts
    others = sum(getattr(recipe, name) != degree for name, degree in stated.items())
    sequences, micro = _GLOBAL.search(row.batch or ""), _MICRO.search(row.batch or "")
    return (
        int(recipe.method not in {None, row.parallel.get("method")}),
        int(others > 0),
        _releases_apart(recipe, row),
        others,
        int(micro is not None and recipe.micro_batch != int(micro[1])),
        int(recipe.vp != stated.get("vp", 1)),
        int(recipe.num_gpus != row.n_gpus),
        abs(recipe.global_batch - int(sequences[1])) if sequences else 0,
    )


@cache
def _releases_with(release: str) -> list[str]:
    """Return all releases that carry a recipe, and one more, in order."""
    every = {each for published in published_recipes() for known in published.recipes for each in known.releases}
    return sorted({*every, release})


def _releases_apart(recipe: TrainingRecipe, row: SystemRow) -> int:
    stated = stated_release(row)
    if not stated or not recipe.releases:
        return 0
    order = _releases_with(stated)
    return min(abs(order.index(each) - order.index(stated)) for each in recipe.releases)


def recipe_format(precision: str) -> Format:
    """Return the recipe's name of a format: fp8 has one scale a tensor, mxfp8 one for 32 elements."""
    stated = precision.upper()
    if "NVFP4" in stated:
        return "nvfp4"
    if "FP8" in stated:
        return "mxfp8" if "MX" in stated and "CS" not in stated else "fp8"
    return "bf16"
