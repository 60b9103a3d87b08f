"""The JSON Schema of plan files, with what the records' source says of their fields."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from moiety.plan import Plan
from moiety.records import Record

if TYPE_CHECKING:
    from pydantic_core import core_schema


def plan_schema_json() -> str:
    """Return the JSON Schema that every method file obeys."""
    schema = Plan.model_json_schema(mode="serialization", schema_generator=_Described)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


class _Described(GenerateJsonSchema):
    """A generator that reads the strings below fields when a schema is made: records do it whenever they are imported.

    That would cost every command a fifteenth of a second.
    """

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        records = [each for each in schema["cls"].__mro__ if issubclass(each, Record)]
        docs = {name: text for record in reversed(records) for name, text in _field_docs(record).items()}
        for name, field in found["properties"].items():
            if name in docs:
                field["description"] = docs[name]
        return found


def _field_docs(record: type) -> dict[str, str]:
    """Return the strings below the fields in a class's source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(body, ast.ClassDef), "the source of a class is one"
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(body.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
