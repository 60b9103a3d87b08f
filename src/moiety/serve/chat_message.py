"""Messages of a chat: who says what, in text; what is no text is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """Something of a request: nothing is converted, and nothing is there that is not known."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class ContentPart(Strict):
    """A part of a message."""

    type: str
    text: str


def _parts(value: object) -> object:
    """Return a content as parts, a text as the only one; refuse parts that are not text."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is not None and not isinstance(value, list):
        raise PydanticCustomError("content_type", "must be a text or a list of parts")
    for part in cast("list[object]", value or []):
        kind = cast("dict[object, object]", part).get("type") if isinstance(part, dict) else None
        if kind is not None and kind != "text":
            shown = {"kind": str(kind)[:80]}
            raise PydanticCustomError("part", "parts of type {kind} are not supported by this server", shown)
    return cast("object", value)


class Message(Strict):
    """A message of a chat."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: Annotated[list[ContentPart] | None, BeforeValidator(_parts)] = None
    name: str | None = None

    refusal: Any = None
    """From here on: what is not done. Answers that a client sends back have these, empty."""
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    audio: Any = None
    annotations: Any = None

    def for_template(self) -> dict[str, str]:
        """Return it as chat templates read it."""
        text = "".join(part.text for part in self.content or ())
        said = {"role": self.role, "content": text}
        return said if self.name is None else {**said, "name": self.name}


NOT_DONE: dict[str, tuple[object, ...]] = {
    "refusal": (),
    "tool_calls": ([],),
    "tool_call_id": (),
    "function_call": (),
    "audio": (),
    "annotations": ([],),
}
"""What messages are not read for, and the values that say nothing."""
