"""Calibrations from JSON, as `moiety run --bench` writes them."""

from __future__ import annotations

from pydantic import ValidationError

from moiety.calibration.calibration import Calibration
from moiety.errors import InputError
from moiety.json_object import read_json_object
from moiety.records import broken_rule

_REMEDY = "`moiety run --bench` writes calibrations"


def read_calibration(text: str, *, source: str) -> Calibration:
    """Return the calibration in a JSON text; raise InputError with file, field and value of the first wrong one."""
    document = read_json_object(text, source=source, remedy=_REMEDY)
    try:
        return Calibration.model_validate(document)
    except ValidationError as error:
        first = broken_rule(error)
    except (RecursionError, OverflowError):
        raise InputError("holds a number or a nesting that no calibration has", source=source, remedy=_REMEDY) from None
    field = None if first.field is None else first.field.removesuffix(".[key]")
    others = f"{first.num_others} more fields are wrong; " if first.num_others else ""
    raise InputError(first.rule, source=source, field=field, value=first.value, remedy=others + _REMEDY)
