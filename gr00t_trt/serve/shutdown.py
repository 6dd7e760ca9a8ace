"""SIGTERM and Ctrl-C end a server in words and in time, whatever the policy is doing. Never imports torch.

Python runs a signal's handler on the main thread, and only between two of its own instructions: a policy that computes
there for a minute in one call of a library would keep it waiting. So a thread reads the signals from a pipe.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..common.progress import handling_signals
from .waiting import Worker

GRACE_S = 1.2
"""How long the request that runs may take to finish."""
LAST_S = 2.6
"""How long all of it may take before the process ends as it is."""
INTERRUPTED = 130
"""Exit status of a server that ended in the middle of a request."""


@contextmanager
def ended_by_signals(worker: Worker, close: Callable[[], None], say: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, a signal has the worker refuse what waits and end; a second one ends the process.

    A request that still runs after `GRACE_S` is refused, and the process ends with `INTERRUPTED`. Signals come to the
    main thread alone: elsewhere nothing is done.

    Args:
        close: Has the transports send what they have; called on another thread when the main one is busy for too long.
        say: Told why a process ends early.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watcher = _Watcher(worker, close, say)
    before = signal.set_wakeup_fd(watcher.bell.fileno(), warn_on_full_buffer=False)
    try:
        with handling_signals(lambda *_: None):
            watcher.start()
            yield
    finally:
        signal.set_wakeup_fd(before)
        watcher.done()


class _Watcher(threading.Thread):
    def __init__(self, worker: Worker, close: Callable[[], None], say: Callable[[str], None]):
        super().__init__(name="signals", daemon=True)
        self._worker, self._close, self._say = worker, close, say
        self.bell, self._listener = socket.socketpair()
        self.bell.setblocking(False)

    def done(self) -> None:
        """The block has ended by itself."""
        self.bell.close()
        if self.is_alive():
            self.join(1.0)
        self._listener.close()

    def run(self) -> None:
        if not self._signalled(None):
            return
        self._worker.refuse_waiting()
        if self._signalled(GRACE_S) is False:
            return
        self._worker.refuse_running()
        closing = threading.Thread(target=self._close, daemon=True)
        closing.start()
        closing.join(LAST_S - GRACE_S)
        self._say("ended in the middle of a request, which was refused")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)

    def _signalled(self, timeout_s: float | None) -> bool | None:
        """Whether SIGINT or SIGTERM came; False when the block has ended, None when it is later than `timeout_s`."""
        self._listener.settimeout(timeout_s)
        while True:
            try:
                came = self._listener.recv(1)
            except TimeoutError:
                return None
            if not came:
                return False
            if came[0] in (signal.SIGINT, signal.SIGTERM):
                return True
