"""A small cache of what was computed from weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class WeightCache(Generic[T]):
    """The values used last, all forgotten as soon as one of the weights behind them changes.

    A change is seen by a weight's address and its version counter, which every in-place operation raises,
    `load_state_dict` included. Writing through `weight.data` raises nothing; start with a new cache then.

    Args:
        limit: Values kept; the one unused for longest goes first.
        weights: The parameters that the values are computed from.
    """

    def __init__(self, limit: int, weights: Iterable[Tensor]):
        self._limit = limit
        self._weights = tuple(weights)
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._seen: tuple[object, ...] = ()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, made if it is not there."""
        state = tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in self._weights)
        if state != self._seen:
            self._values.clear()
            self._seen = state
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        if len(self._values) > self._limit:
            self._values.popitem(last=False)
        return value
