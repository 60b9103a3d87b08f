"""The base of every record that crosses a boundary: frozen, strict about its fields, JSON in and out."""

from pydantic import BaseModel, ConfigDict


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
        use_attribute_docstrings=True,
    )
