"""Calibrations from JSON, as `moiety run --bench` writes them."""

from __future__ import annotations

from pydantic import ValidationError

from moiety.calibration.calibration import Calibration
from moiety.errors import InputError
from moiety.json_object import read_json_object

_REMEDY = "`moiety run --bench` writes calibrations"


def read_calibration(text: str, *, source: str) -> Calibration:
    """Return the calibration in a JSON text; raise InputError with file, field and value of the first wrong one."""
    document = read_json_object(text, source=source, remedy=_REMEDY)
    try:
        return Calibration.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False)
    except (RecursionError, OverflowError):
        raise InputError("holds a number or a nesting that no calibration has", source=source, remedy=_REMEDY) from None
    first = found[0]
    field = ".".join(str(part) for part in first["loc"] if part != "[key]")
    value = first["input"] if isinstance(first["input"], (str, int, float, bool)) else None
    others = f"{len(found) - 1} more fields are wrong; " if len(found) > 1 else ""
    rule = first["msg"].removeprefix("Value error, ")
    raise InputError(rule, source=source, field=field or None, value=value, remedy=others + _REMEDY)
