"""JSON files of a checkpoint: one object, read key by key with errors that name file, key and value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..common.files import parse_json
from ..errors import CheckpointError, refetch

_REQUIRED: Any = object()
LARGEST = 65_536
"""What a whole number may be at most, unless its key has a bound of its own; the public model stays far below."""


def read_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises: CheckpointError for a file that is missing, no JSON, nested without end, not an object, or that gives one
        key two values.
    """
    try:
        text = file.read_text(encoding="utf-8")
        data = parse_json(text)
        json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_each_key_once)
    except FileNotFoundError:
        raise CheckpointError(
            f"{file}: no such file", fix="give the folder that holds config.json and the model*.safetensors files"
        ) from None
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{file}: cannot be read as JSON: {e}", fix=refetch(file)) from e
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: holds a {type(data).__name__}, not an object", fix=refetch(file))
    return data


def _each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Python would keep the last value of a repeated key, other readers the first."""
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [key for key, _ in pairs]
        repeated = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"key {repeated!r} has two values")
    return out


class Section:
    """A JSON object and where it stands.

    Args:
        file: File it was read from, for messages.
        data: Its keys and values.
        where: Dotted path of the object inside the file, with a trailing dot; empty for the top level.
    """

    def __init__(self, file: Path, data: Mapping[str, Any], where: str = ""):
        self.file = file
        self._data = data
        self._where = where

    @classmethod
    def read(cls, file: Path) -> Section:
        """The top level of a JSON file. Raises: CheckpointError as `read_object`."""
        return cls(file, read_object(file))

    def section(self, key: str, *, optional: bool = False) -> Section:
        """A nested object; an absent optional one reads as empty."""
        value = self._data.get(key)
        if value is None and optional:
            value = {}
        if not isinstance(value, Mapping):
            self._refuse(key, "is missing" if key not in self._data else f"{value!r} is not an object", "an object")
        return Section(self.file, value, f"{self._where}{key}.")

    def integer(self, key: str, default: int = _REQUIRED, *, minimum: int | None = 1, maximum: int = LARGEST) -> int:
        """A whole number from `minimum` to `maximum`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or (minimum is not None and value < minimum):
            self._refuse(key, f"bad value {value!r}", f"a whole number >= {minimum}")
        if value > maximum:
            self._refuse(key, f"{value} is far beyond any GR00T N1.5", f"a whole number up to {maximum}")
        return value

    def integers(self, keys: str, *, maximum: int = LARGEST) -> dict[str, int]:
        """Positive whole numbers by key; `keys` are separated by spaces, and none has a default."""
        return {key: self.integer(key, maximum=maximum) for key in keys.split()}

    def optional_integer(self, key: str, default: int | None) -> int | None:
        """A positive whole number, or null."""
        return None if self._get(key, default) is None else self.integer(key, default or _REQUIRED)

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            self._refuse(key, f"bad value {value!r}", "a number > 0")
        return float(value)

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """A string that is not empty."""
        value = self._get(key, default)
        if not isinstance(value, str) or not value.strip():
            self._refuse(key, f"bad value {value!r}", "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._refuse(key, f"bad value {value!r}", "true or false")
        return value

    def only(self, key: str, supported: tuple[Any, ...], *, default: Any, why: str | None = None) -> None:
        """Refuse any value of `key` but the supported ones; `default` is what an absent key means."""
        value = self._get(key, default)
        if not any(value == s and isinstance(value, bool) == isinstance(s, bool) for s in supported):
            absent = "" if key in self._data else " (what an absent key means)"
            known = " or ".join(json.dumps(s) for s in supported) + (f", as in {why}" if why else "")
            self._refuse(key, f"unsupported value {json.dumps(value)}{absent}", known)

    def check(self, holds: bool, problem: str) -> None:
        """Refuse the file with `problem`, which names key and value, unless the condition holds."""
        if not holds:
            raise CheckpointError(f"{self.file}: {self._where}{problem}")

    def _get(self, key: str, default: Any) -> Any:
        value = self._data.get(key, default)
        if value is _REQUIRED:
            self._refuse(key, "is missing", "a value; it has no default")
        return value

    def _refuse(self, key: str, problem: str, known: str) -> NoReturn:
        raise CheckpointError(f"{self.file}: {self._where}{key}: {problem[:300]}", known=known)
