"""`python -m moiety.validation.fit WHAT ROWS...`: constants of the catalogue made anew from rows of measurements."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from moiety.calibration.reader import read_calibration
from moiety.calibration.serving import ServingConstants
from moiety.errors import InputError, MoietyError
from moiety.files import checked_target, naming, read_text, write_all
from moiety.records import broken_rule
from moiety.validation.fit_apart import APART_FIT
from moiety.validation.fit_collectives import COLLECTIVES_FIT
from moiety.validation.fit_kernels import KERNELS_FIT
from moiety.validation.fit_power import POWER_FIT
from moiety.validation.fit_serving import SERVING_FIT
from moiety.validation.fit_training import TRAINING_FIT
from moiety.validation.fitting import fitted_lines
from moiety.validation.rows import read_rows, refuse_empty

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.validation.fitting import Fitting

FITTINGS: dict[str, Fitting[Any, Any]] = {
    each.name: each for each in (SERVING_FIT, APART_FIT, COLLECTIVES_FIT, KERNELS_FIT, POWER_FIT, TRAINING_FIT)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit constants on the rows of the files named, print the errors, and write the constants where asked to."""
    parser = argparse.ArgumentParser(prog="python -m moiety.validation.fit", description=main.__doc__)
    parser.add_argument("what", choices=sorted(FITTINGS), help="which constants")
    parser.add_argument("rows", nargs="+", type=Path, help="files of measured rows, JSON Lines")
    parser.add_argument(
        "--into", metavar="FILE", help="the file of constants that is written, or in which they are replaced"
    )
    parser.add_argument("--cross-validate", action="store_true", help="also fit without some rows, and test on those")
    given = parser.parse_args(arguments)
    try:
        into = checked_target("--into", given.into) if given.into is not None else None
        _fit(FITTINGS[given.what], given.rows, into, cross_validate=given.cross_validate)
    except MoietyError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _fit(fitting: Fitting[Any, Any], paths: Sequence[Path], into: Path | None, *, cross_validate: bool) -> None:
    read = [read_rows(path) for path in paths]
    refuse_empty(read)
    for found in read:
        for each in found.malformed:
            sys.stderr.write(f"{found.source}:{each.line}: {each.reason}\n")
    before = _before(fitting.name, into) if into is not None else ""
    samples = fitting.samples([each.row for found in read for each in found.rows])
    if not samples:
        rule = f"no row tells of what {fitting.name} is fitted on"
        remedy = f"`moiety validate {' '.join(map(str, paths))}` says what each row is and lacks"
        raise InputError(rule, source=", ".join(map(str, paths)), remedy=remedy)
    constants = fitting.fit(samples)
    for line in fitted_lines(fitting, samples, constants, cross_validate=cross_validate):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    if into is not None:
        text = fitting.rewritten(before, constants, samples)
        with naming("--into"):
            write_all(into.parent, {into.name: text})


def _before(name: str, into: Path) -> str:
    """Return what the file of constants holds, empty where it is new; raise InputError where it holds others."""
    text, source = read_text(into) if into.exists() else "", str(into)
    if name in {COLLECTIVES_FIT.name, KERNELS_FIT.name, POWER_FIT.name}:
        read_calibration(text, source=source)
    elif name == APART_FIT.name or (name == SERVING_FIT.name and text):
        try:
            ServingConstants.model_validate_json(text)
        except ValidationError as error:
            first = broken_rule(error)
            remedy = "begin with a copy of the catalogue's constants of engines"
            raise InputError(first.rule, source=source, field=first.field, remedy=remedy) from None
    return text


if __name__ == "__main__":
    sys.exit(main())
