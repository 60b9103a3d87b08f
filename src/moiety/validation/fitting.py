"""The shape of every fit: samples out of rows, constants out of samples, and their errors on rows left out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from moiety.records import Record
from moiety.validation.score import error_percents, score_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from moiety.validation.serving_row import ServingRow
    from moiety.validation.system_row import SystemRow

Sample = TypeVar("Sample")
Constants = TypeVar("Constants")
AnyRecord = TypeVar("AnyRecord", bound=Record)
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Split(Generic[Sample]):
    """A way to leave samples out: each of `folds` says which are left out together; all of them are tested."""

    name: str
    folds: tuple[Callable[[Sample], bool], ...]


@dataclass(frozen=True, slots=True)
class Fitting(Generic[Sample, Constants]):
    """How some of the catalogue's constants are made of measured rows."""

    name: str
    samples: Callable[[Sequence[ServingRow | SystemRow]], list[Sample]]
    fit: Callable[[Sequence[Sample]], Constants]
    errors: Callable[[Constants, Sequence[Sample]], Mapping[str, Sequence[float]]]
    """Relative errors of the samples, {name of the metric: errors}."""
    splits: Callable[[Sequence[Sample]], Sequence[Split[Sample]]]
    rewritten: Callable[[str, Constants, Sequence[Sample]], str]
    """The text of the constants' file, from what it was before ("" where there is none)."""


def fitted_lines(
    fitting: Fitting[Sample, Constants], samples: Sequence[Sample], constants: Constants, *, cross_validate: bool
) -> Iterator[str]:
    """Yield a line of errors for each way to leave samples out, and one for the samples fitted on."""
    for split in fitting.splits(samples) if cross_validate else ():
        found: dict[str, list[float]] = {}
        for left_out in split.folds:
            tested = [each for each in samples if left_out(each)]
            if tested:
                kept = fitting.fit([each for each in samples if not left_out(each)])
                for metric, errors in fitting.errors(kept, tested).items():
                    found.setdefault(metric, []).extend(errors)
        yield f"{fitting.name}, {split.name}: {_errors_line(found)}"
    yield f"{fitting.name}, fitted on: {_errors_line(fitting.errors(constants, samples))}"


def fold_of(key: str, folds: int = FOLDS) -> int:
    """Return which of `folds` parts a sample belongs to, the same in every run."""
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % folds


def every_fold(key: Callable[[Sample], str]) -> tuple[Callable[[Sample], bool], ...]:
    """Return the folds that leave out a fifth of the samples at a time, those of one key together."""
    return tuple(lambda each, number=number: fold_of(key(each)) == number for number in range(FOLDS))


def each_value(key: Callable[[Sample], str], samples: Sequence[Sample]) -> dict[str, Callable[[Sample], bool]]:
    """Return {value: the fold that leaves out the samples whose key it is}, sorted."""
    values = sorted({key(each) for each in samples})
    return {value: lambda each, value=value: key(each) == value for value in values}


def rounded_fields(record: AnyRecord) -> AnyRecord:
    """Return a record whose numbers, at any depth, have the four digits that a fit can tell.

    Only what leaves a fit is rounded: inside, the derivatives would be lost.
    """
    return type(record).model_validate(_rounded(record.model_dump()))


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in cast("dict[str, object]", value).items()}
    if isinstance(value, tuple):
        return tuple(_rounded(each) for each in cast("tuple[object, ...]", value))
    return value


def _errors_line(found: Mapping[str, Sequence[float]]) -> str:
    """Return errors for people; a metric may be missing in some rows, so each counts its own."""
    return "; ".join(
        "{} {} rows, MAPE {}, median {}, bias {}".format(metric, len(errors), *error_percents(score_of(errors)))
        for metric, errors in found.items()
        if errors
    )
