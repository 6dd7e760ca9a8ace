"""A small cache of what was computed from weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class WeightCache(Generic[T]):
    """The values used last. Whoever keeps one starts with a new one when the weights behind it change.

    Args:
        limit: Values kept; the one unused for longest goes first.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, made if it is not there."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        if len(self._values) > self._limit:
            self._values.popitem(last=False)
        return value
