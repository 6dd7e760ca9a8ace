"""A connection of the ZeroMQ side: what is known of one client, and the bytes that go back to it."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ServiceError
from .pace import rests_until
from .refusal import told
from .service import Peer
from .wire import Message, encode
from .zmtp import Receiver, frames_of


class Connection:
    """One client.

    Args:
        late: Called with the connection when what is to be sent does not fit into the network at once.

    Attributes:
        unread: Messages that are there and have not been looked at.
        asked: Requests for actions that are being answered.
        since: When its last message was complete or begun, or the connection was made.
        refused: Whether its last message came to nothing; it is not read before `rests_until` then.
        gone: Whether it is closed.
        blocked: Since when what is to be sent does not fit into the network; None where there is nothing to send.
    """

    def __init__(self, accepted: socket.socket, address: Any, receiver: Receiver, late: Callable[[Connection], None]):
        self.socket, self.receiver, self._late = accepted, receiver, late
        self.address: str = address[0]
        self.peer = Peer(f"{address[0]}:{address[1]}", lambda: self.gone)
        self.unread: deque[list[memoryview]] = deque()
        self.asked = 0
        self.since = time.monotonic()
        self.refused = self.gone = False
        self.rests_until = 0.0
        self.blocked: float | None = None
        self._unsent = bytearray()
        # One thread reads messages, another one sends answers.
        self._sending = threading.Lock()

    def refuse(self, size: int) -> None:
        """Count a message of so many bytes as refused, until it is accepted."""
        self.refused, self.rests_until = True, rests_until(size)

    def expect(self, requests: int) -> None:
        """So many more requests are being answered."""
        with self._sending:
            self.asked += requests

    def answer(self, envelope: Sequence[bytes], reply: Message | Exception) -> None:
        """Send a reply or an error; from any thread."""
        self.expect(-1)
        self.send(frames_of([*envelope, _encoded(reply)]))

    def send(self, data: bytes) -> None:
        """Send bytes, or keep them until they can be sent; from any thread."""
        with self._sending:
            late = bool(self._unsent)
            self._unsent += data
            if late or self.gone or self._send():
                return
        self._late(self)

    def flush(self) -> bool:
        """Send what is left; whether nothing is left."""
        with self._sending:
            return self._send()

    def _send(self) -> bool:
        try:
            while self._unsent and not self.gone:
                del self._unsent[: self.socket.send(self._unsent)]
        except BlockingIOError:
            self.blocked = self.blocked or time.monotonic()
            return False
        except OSError:
            self.gone = True
        self.blocked = None
        return True

    def close(self) -> None:
        with self._sending:
            self.gone = True
            self.socket.close()


def _encoded(reply: Message | Exception) -> bytes:
    try:
        return error_message(reply) if isinstance(reply, Exception) else encode(reply)
    except ServiceError as error:
        return error_message(error)


def error_message(error: Exception) -> bytes:
    """What a client is told of an error."""
    return encode({"error": told(error)})
