"""One object of a JSON configuration, read key by key with errors that name file, key and value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..errors import CheckpointError

_REQUIRED: Any = object()


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
        """The top level of a JSON file. Raises: CheckpointError if the file is missing, not JSON or not an object."""
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{file}: no such file", fix="give the folder that holds config.json and the model*.safetensors files"
            ) from None
        except (OSError, ValueError) as e:
            raise CheckpointError(f"{file}: cannot be read as JSON: {e}", fix="download the file again") from e
        if not isinstance(data, dict):
            raise CheckpointError(f"{file}: holds a {type(data).__name__}, not an object")
        return cls(file, data)

    def section(self, key: str, *, optional: bool = False) -> Section:
        """A nested object; an absent optional one reads as empty."""
        value = self._data.get(key)
        if value is None and optional:
            value = {}
        if not isinstance(value, Mapping):
            self._refuse(key, "is missing" if key not in self._data else f"{value!r} is not an object", "an object")
        return Section(self.file, value, f"{self._where}{key}.")

    def integer(self, key: str, default: int = _REQUIRED, *, minimum: int | None = 1) -> int:
        """A whole number of at least `minimum`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or (minimum is not None and value < minimum):
            self._refuse(key, f"bad value {value!r}", f"a whole number >= {minimum}")
        return value

    def integers(self, keys: str) -> dict[str, int]:
        """Positive whole numbers by key; `keys` are separated by spaces, and none has a default."""
        return {key: self.integer(key) for key in keys.split()}

    def optional_integer(self, key: str, default: int | None) -> int | None:
        """A positive whole number, or null."""
        return None if self._get(key, default) is None else self.integer(key, default or _REQUIRED)

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            self._refuse(key, f"bad value {value!r}", "a number > 0")
        return float(value)

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
        raise CheckpointError(f"{self.file}: {self._where}{key}: {problem}", known=known)
