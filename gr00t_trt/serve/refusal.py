"""Errors with which the server itself refuses a request."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..errors import ServiceError


class Refusal(ServiceError):
    """A request that was refused.

    Args:
        what: The whole message, on one line: existing clients show it, and compare it.
        http_status: What HTTP calls it: 400, 401, 404, 408, 413, 422 or 503.
    """

    def __init__(self, what: str, *, http_status: int):
        super().__init__(what)
        self.http_status = http_status

    def __reduce__(self) -> tuple[Callable[..., Refusal], tuple[str, ...]]:
        return partial(type(self), http_status=self.http_status), self.args


def told(error: Exception) -> str:
    """What a client is told of an error: text that can be encoded, and never none."""
    return (str(error) or type(error).__name__).encode("utf-8", "replace").decode()
