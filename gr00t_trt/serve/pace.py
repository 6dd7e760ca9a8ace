"""A rate limit for bytes that lead to no accepted request. Never imports torch.

Large messages that are refused, or never end, take the processor and the interpreter from everybody else's requests for
as long as they are read as fast as they come. Read slowly they cost little: TCP makes their sender wait.
"""

from __future__ import annotations

import threading
import time

BYTES_PER_S = 4 * 2**20
"""Of messages that are refused or do not end, all senders together."""
AT_ONCE = 2**20
"""Bytes: a message that is no larger, by its own word and so far, is always read at once."""


class Pace:
    """A token bucket over the bytes that have been read for nothing; used from any thread.

    Args:
        credit: Bytes that are read before anybody has to wait: enough for any message that may become a request.
    """

    def __init__(self, credit: int):
        self._credit = credit
        self._spent = 0.0
        self._seen = time.monotonic()
        self._lock = threading.Lock()

    def spend(self, size: int) -> None:
        """So many bytes have come, and are no request yet; or, negative, have become one."""
        with self._lock:
            now = time.monotonic()
            self._spent = max(0.0, self._spent - (now - self._seen) * BYTES_PER_S) + size
            self._spent, self._seen = max(0.0, self._spent), now

    def wait_s(self) -> float:
        """How long whoever sends for nothing has to wait; 0 while there is credit."""
        with self._lock:
            spent = self._spent - (time.monotonic() - self._seen) * BYTES_PER_S
            return max(0.0, (spent - self._credit) / BYTES_PER_S)


def rests_until(size: int) -> float:
    """Until when the sender of a message of so many bytes is not read that was refused, by `time.monotonic`."""
    return time.monotonic() + size / BYTES_PER_S
