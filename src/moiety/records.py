"""The base of every record that crosses a boundary: frozen, strict about its fields, JSON in and out."""

import json
from typing import NamedTuple, Self, cast

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import to_jsonable_python


class Record(BaseModel):
    """A frozen record; a record that exists is legal.

    Unknown fields, NaN and infinities are refused, so that a file that loads is a file that means what it says.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        ser_json_inf_nan="null",
        validate_default=True,
    )


class DerivedRecord(Record):
    """A record that writes figures derived from its fields into its JSON.

    Reading it back recomputes them, and refuses a file that carries others.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _agrees_with_derived(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        fields = dict(cast("dict[object, object]", data))
        stored = {key: fields.pop(key) for key in cls.model_computed_fields if key in fields}
        record = handler(fields)
        for key, value in stored.items():
            derived = getattr(record, key)
            if _as_json(value) != _as_json(derived):
                found, right = _as_json(value)[:60], _as_json(derived)[:60]
                msg = f"{key} is stored as {found}, but the other fields give {right}; remove it or restore the file"
                raise ValueError(msg)
        return record


_NO_OBJECT = frozenset({"model_type", "model_attributes_type", "dict_type"})


class BrokenRule(NamedTuple):
    """The first rule that an input breaks."""

    rule: str
    field: str | None
    """Its path, with dots; None where the rule is about the whole."""
    given: object
    """What stands there."""
    num_others: int
    """Rules that are broken beside it."""

    @property
    def value(self) -> str | float | None:
        """What stands there, where it is short enough to be shown."""
        return self.given if isinstance(self.given, str | int | float) else None


def broken_rule(error: ValidationError) -> BrokenRule:
    """Return the first rule that a record found broken, in the words of a message."""
    first, *others = error.errors(include_url=False)
    field = ".".join(str(part) for part in first["loc"]) or None
    rule = "must be an object" if first["type"] in _NO_OBJECT else first["msg"].removeprefix("Value error, ")
    return BrokenRule(rule, field, first["input"], len(others))


def _as_json(value: object) -> str:
    return json.dumps(to_jsonable_python(value, fallback=repr), sort_keys=True)
