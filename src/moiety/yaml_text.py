"""YAML as people write it: every value with the line it stands on, and one clear message for what cannot be read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import yaml
from pydantic import ValidationError

from moiety.errors import InputError, nearest
from moiety.records import Record, broken_rule
from moiety.units import EXAMPLES, parse_quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from moiety.units import Dimension

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 32
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser where the wheel carries it

_KINDS: dict[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a YAML file: a scalar, a list of nodes or a mapping of nodes, and its line (from 1)."""

    value: str | float | bool | list[Node] | dict[str, Node] | None
    line: int

    @property
    def kind(self) -> str:
        """What the value is, in words."""
        return _KINDS.get(type(self.value), "nothing")

    @property
    def shown(self) -> object:
        """The value as a message shows it: scalars themselves, the rest in words (an alias may repeat them)."""
        return self.kind if isinstance(self.value, (list, dict)) else self.value


def parse_yaml(text: str, *, source: str) -> Node:
    """Return the one document in `text`, aliases shared, numbers as in YAML 1.2, every other plain scalar as text.

    Raises InputError, with the line, for what is not YAML, for duplicate keys, tags, keys that are not text, nesting
    deeper than 32 and files of more than a million characters.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"must be at most {MAX_CHARACTERS:,} characters long; it has {len(text):,}", source=source)
    try:
        parse = cast("Callable[..., Iterator[yaml.Event]]", yaml.parse)  # pyright: ignore[reportUnknownMemberType]
        events = parse(text, Loader=_LOADER)
        return _Composer(source, events).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        remedy = "indent with spaces" if "'\\t'" in str(error.problem) else None
        raise InputError(f"is not YAML: {error.problem or error.context}", source=place, remedy=remedy) from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise InputError(f"is not YAML: {str(error).splitlines()[0]}", source=source) from None


class _Composer:
    """Builds the tree of nodes from the parser's events."""

    def __init__(self, source: str, events: Iterator[yaml.Event]) -> None:
        self.source = source
        self.events = events
        self.anchors: dict[str, Node] = {}

    def document(self) -> Node:
        root: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise self.error(event, "must hold one YAML document; a second one starts here")
                root = self.node(next(self.events), 0)
        if root is None or root.value is None:
            raise InputError("is empty", source=self.source)
        return root

    def error(self, event: yaml.Event, rule: str, remedy: str | None = None) -> InputError:
        return InputError(rule, source=f"{self.source}:{_line(event)}", remedy=remedy)

    def node(self, event: yaml.Event, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.error(event, f"is nested deeper than {MAX_DEPTH}")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise self.error(event, f"alias *{event.anchor} has no anchor before it")
            return Node(self.anchors[event.anchor].value, _line(event))
        if not isinstance(event, (yaml.ScalarEvent, yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            raise self.error(event, "is not a value")
        if event.tag is not None:
            raise self.error(event, f"tag {event.tag!r} is not understood", "leave it out")
        node = Node(self.value(event, depth), _line(event))
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def value(
        self, event: yaml.ScalarEvent | yaml.SequenceStartEvent | yaml.MappingStartEvent, depth: int
    ) -> str | float | bool | list[Node] | dict[str, Node] | None:
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event.value) if event.implicit[0] else event.value
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(inner := next(self.events), yaml.SequenceEndEvent):
                items.append(self.node(inner, depth + 1))
            return items
        entries: dict[str, Node] = {}
        while not isinstance(inner := next(self.events), yaml.MappingEndEvent):
            key = self.node(inner, depth + 1).value
            if not isinstance(key, str):
                raise self.error(inner, "a key must be text", "put it in quotes")
            if key in entries:
                raise self.error(inner, f"key {_short(key)} is given twice; it stood on line {entries[key].line}")
            entries[key] = self.node(next(self.events), depth + 1)
        return entries


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None, "the parser marks every event"
    return event.start_mark.line + 1


def _short(key: str) -> str:
    return key if key.isidentifier() and len(key) <= 40 else repr(key[:40])  # noqa: PLR2004 - room for a name


_INFINITY = float("inf")
_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((f"{sign}.{word}" for sign in ("", "+") for word in ("inf", "Inf", "INF")), _INFINITY),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -_INFINITY),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]{0,99}")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][-+]?[0-9]{1,9})?")


def _scalar(text: str) -> str | float | bool | None:
    """Return what a plain scalar means in the core schema of YAML 1.2 (so `no` and `1:30` are text)."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text.replace("_", ""))
    return float(text) if _FLOAT.fullmatch(text) else text


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping of a YAML file, read field by field; each error names the file, the line, the field and the value."""

    source: str
    path: str
    line: int
    nodes: Mapping[str, Node]

    @classmethod
    def parse(cls, text: str, *, source: str, what: str, known: Sequence[str]) -> Fields:
        """Return the top-level mapping of `text`, which may have the keys `known` alone."""
        root = parse_yaml(text, source=source)
        if not isinstance(root.value, dict):
            rule = f"a {what} file must be a mapping (`name: ...`); it is {root.kind}"
            raise InputError(rule, source=f"{source}:{root.line}")
        return cls(source, "", root.line, root.value).only(known)

    def only(self, known: Sequence[str]) -> Fields:
        """Return these fields; raise InputError where one is not `known`."""
        for key, node in self.nodes.items():
            if key not in known:
                rule = "unknown field"
                raise InputError(
                    rule, source=f"{self.source}:{node.line}", field=self.path_of(key), remedy=nearest(key, known)
                )
        return self

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return key in self.nodes and self.nodes[key].value is not None

    def path_of(self, key: str) -> str:
        """Return the path of the field from the top of the file."""
        return f"{self.path}.{_short(key)}" if self.path else _short(key)

    def error(self, key: str, rule: str, remedy: str | None = None) -> InputError:
        """Return an InputError about the field."""
        node = self.nodes.get(key)
        line, value = (node.line, node.shown) if node else (self.line, None)
        return InputError(rule, source=f"{self.source}:{line}", field=self.path_of(key), value=value, remedy=remedy)

    def node(self, key: str, expected: str) -> Node:
        """Return the field's node; raise InputError where it is missing."""
        if not self.has(key):
            raise self.error(key, f"is missing; it must be {expected}")
        return self.nodes[key]

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text of one to 10,000 characters."""
        if default is not None and not self.has(key):
            return default
        value = self.node(key, "text").value
        if not isinstance(value, str) or not value.strip() or len(value) > 10_000:  # noqa: PLR2004 - see docstring
            raise self.error(key, "must be text", "put it in quotes" if isinstance(value, (int, float)) else None)
        return value

    def choice(self, key: str, options: Sequence[str]) -> str:
        """Return one of `options`."""
        expected = " or ".join(options)
        value = self.node(key, expected).value
        if not isinstance(value, str) or value not in options:
            raise self.error(key, f"must be {expected}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        if not self.has(key):
            return default
        value = self.nodes[key].value
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """Return a number without a unit, `low` to `high`."""
        if default is not None and not self.has(key):
            return default
        value = self.node(key, "a number").value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.error(key, f"must be a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Return a whole number, `low` to `high`."""
        if default is not None and not self.has(key):
            return default
        value = self.node(key, "a whole number").value
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not whole or not low <= value <= high:
            raise self.error(key, f"must be a whole number from {low:,} to {high:,}")
        return int(value)

    def quantity(self, key: str, dimension: Dimension, maximum: float, *, zero: bool = False) -> float:
        """Return a number that carries its unit, in base units, above 0 (or from 0 on) and at most `maximum`."""
        value = self.node(key, f"a number with its unit, for instance {EXAMPLES[dimension]}").shown
        if zero and not isinstance(value, bool) and value == 0:
            return 0.0
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            raise self.error(key, "needs its unit", f"write for instance {EXAMPLES[dimension]}")
        try:
            number = parse_quantity(value, dimension, field=self.path_of(key), zero=zero)
        except InputError as error:
            raise self.error(key, error.rule, error.remedy) from None
        if number > maximum:
            raise self.error(key, "is more than any hardware has or needs", "check the unit")
        return number

    def mapping(self, key: str, known: Sequence[str]) -> Fields:
        """Return a mapping with the keys `known` alone."""
        node = self.node(key, "a mapping")
        if not isinstance(node.value, dict):
            raise self.error(key, f"must be a mapping; it is {node.kind}")
        return Fields(self.source, self.path_of(key), node.line, node.value).only(known)

    def mappings(self, key: str, known: Sequence[str]) -> tuple[Fields, ...]:
        """Return a list of at least one mapping with the keys `known` alone."""
        node = self.node(key, "a list")
        if not isinstance(node.value, list) or not node.value:
            raise self.error(key, "must be a list with at least one entry")
        entries: list[Fields] = []
        for index, item in enumerate(node.value):
            path = f"{self.path_of(key)}[{index}]"
            if not isinstance(item.value, dict):
                rule = f"must be a mapping; it is {item.kind}"
                raise InputError(rule, source=f"{self.source}:{item.line}", field=path)
            entries.append(Fields(self.source, path, item.line, item.value).only(known))
        return tuple(entries)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, empty where the field is missing."""
        if not self.has(key):
            return ()
        value = self.nodes[key].value
        items = value if isinstance(value, list) else [self.nodes[key]]
        found = [item.value for item in items]
        if not all(isinstance(item, str) for item in found):
            raise self.error(key, "must be a list of texts")
        return tuple(item for item in found if isinstance(item, str))

    def build(self, record: type[R], values: Mapping[str, object]) -> R:
        """Return the record of `values`; raise InputError with the first rule that they break."""
        try:
            return record.model_validate(dict(values))
        except ValidationError as error:
            first = broken_rule(error)
            path = ".".join(part for part in (self.path, first.field) if part) or None
            raise InputError(first.rule, source=f"{self.source}:{self.line}", field=path) from None
