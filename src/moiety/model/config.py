"""Config: a Hugging Face `config.json` read with checks, so that a value taken from it is a legal one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

LARGEST_COUNT = 2**24
"""Largest width, count or rank that is believed of a model: far above any vocabulary published."""
MAX_LAYERS = 10_000
MAX_EXPERTS = 65_536
MAX_POSITIONS = 2**40


@dataclass(frozen=True, slots=True)
class Config:
    """One JSON object of a `config.json`.

    `path` is its place inside the file (`text_config`, or empty for the whole file). A null counts as an absent key
    except where a method says otherwise. Every method raises InputError for a value that is not of its kind.
    """

    values: Mapping[str, object]
    source: str
    path: str = ""

    def with_defaults(self, **defaults: object) -> Config:
        """Return the same object with what its architecture takes for keys that the file does not have."""
        return replace(self, values={**defaults, **self.values})

    def has(self, *keys: str) -> bool:
        """Say whether one of `keys` holds anything but null."""
        return any(self.values.get(key) is not None for key in keys)

    def first_key(self, *keys: str) -> str:
        """Return the first of `keys` that holds anything but null, or the first one if none does."""
        return next((key for key in keys if self.has(key)), keys[0])

    def error(self, rule: str, key: str, *, remedy: str | None = None) -> InputError:
        """Return the error that says which rule the value of `key` breaks."""
        value = self.values.get(key)
        if isinstance(value, int) and abs(value) >= 10**40:
            value = f"an integer of {value.bit_length()} bits"
        return InputError(rule, source=self.source, field=self.field(key), value=value, remedy=remedy)

    def field(self, key: str) -> str:
        """Return the path of `key` inside the file."""
        shown = key if key.isprintable() else repr(key)
        return f"{self.path}.{shown}" if self.path else shown

    def integer(self, *keys: str, minimum: int = 1, maximum: int = LARGEST_COUNT, default: int | None = None) -> int:
        """Return the whole number under the first of `keys` that is there, else `default`, else raise InputError."""
        key = self.first_key(*keys)
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise self._missing(keys)
            return default
        return self._whole(key, value, minimum, maximum)

    def optional_integer(
        self, *keys: str, minimum: int = 1, maximum: int = LARGEST_COUNT, default: int | None = None
    ) -> int | None:
        """Return the whole number under one of `keys`: None where the file says null, `default` where it is silent."""
        if not self.has(*keys):
            return None if any(key in self.values for key in keys) else default
        return self.integer(*keys, minimum=minimum, maximum=maximum)

    def flag(self, *keys: str, default: bool) -> bool:
        """Return the boolean under the first of `keys` that is there, else `default`."""
        key = self.first_key(*keys)
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error("must be true or false", key)
        return value

    def text(self, *keys: str) -> str | None:
        """Return the printable text under the first of `keys` that is there, else None."""
        key = self.first_key(*keys)
        value = self.values.get(key)
        if value is None or (isinstance(value, str) and value.isprintable()):
            return value
        raise self.error("must be printable text", key)

    def section(self, key: str) -> Config | None:
        """Return the object under `key`, else None."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error("must be an object", key)
        return Config(values=cast("dict[str, object]", value), source=self.source, path=self.field(key))

    def part(self, key: str) -> Config:
        """Return the object under `key`, one without keys where there is none."""
        return self.section(key) or Config(values={}, source=self.source, path=self.field(key))

    def names(self, key: str, *, allowed: Collection[str] | None = None, length: int | None = None) -> tuple[str, ...]:
        """Return the list of strings under `key`, empty where it is absent; `length` is what a list must have."""
        items = self._list(key, length)
        for item in items:
            if not isinstance(item, str) or (allowed is not None and item not in allowed):
                known = f" of {', '.join(sorted(allowed))}" if allowed is not None else ""
                raise self.error(f"must be a list of strings{known}", key)
        return cast("tuple[str, ...]", items)

    def integers(self, key: str, *, below: int, length: int | None = None) -> tuple[int, ...]:
        """Return the list of whole numbers from 0 to `below` - 1 under `key`, empty where it is absent."""
        items = self._list(key, length)
        for item in items:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < below:
                raise self.error(f"must be a list of whole numbers from 0 to {below - 1}", key)
        return cast("tuple[int, ...]", items)

    def _list(self, key: str, length: int | None) -> tuple[object, ...]:
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, (list, tuple)):
            raise self.error("must be a list", key)
        items: tuple[object, ...] = tuple(cast("list[object]", value))
        if items and length is not None and len(items) != length:
            raise self.error(f"must have one entry for each of the {length} layers, but has {len(items)}", key)
        return items

    def _whole(self, key: str, value: object, minimum: int, maximum: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            rule = f"must be a whole number from {minimum} to {maximum:,}"
            remedy = "write it without quotes and without a decimal point" if isinstance(value, (str, float)) else None
            raise self.error(rule, key, remedy=remedy)
        return value

    def _missing(self, keys: tuple[str, ...]) -> InputError:
        first, *others = keys
        return InputError(
            f"is missing, and so are {', '.join(others)}" if others else "is missing",
            source=self.source,
            field=self.field(first),
            remedy="add it as a whole number, as in the config.json of the model's Hugging Face repository",
        )


def num_layers(config: Config) -> int:
    """Return the number of layers."""
    return config.integer("num_hidden_layers", "n_layers", maximum=MAX_LAYERS)
