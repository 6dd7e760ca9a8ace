"""ZMTP 3, the bytes of a ZeroMQ connection over TCP, as far as a server of REQ and DEALER sockets needs them.

libzmq keeps all frames of a message until the last one has come, and limits each of them but not their sum or number:
anybody could fill the memory of a server with one message that never ends. Here a message is counted as it arrives.

    greeting    64 bytes from each side: signature, version 3, the mechanism NULL
    handshake   a command READY from each side, which names the kind of socket
    traffic     frames: flags (1: more to come, 2: long, 4: command), size in 1 or 8 bytes, body; PING wants a PONG

No torch.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ServiceError

_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING_BYTES = 64

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\x00") + bytes(32)

_EMPTY = memoryview(bytearray())
_STAGE_BYTES = 2**16
"""How much is read at a time while no large frame is expected."""
_WORTH_KEEPING = (2**15, 2**23)
"""Bytes of frames whose memory is kept."""
_COMMAND_BYTES = 2**12
_FRAMES = 8
"""Most frames of a message. A request has two, an empty one and its body, and one more for each proxy on its way."""
_KINDS = (b"REQ", b"DEALER", b"ROUTER")
"""Sockets that may talk to a ROUTER."""


class Violation(ServiceError):
    """Bytes that are not ZMTP, or a message beyond the limit: the connection must be closed."""


def frames_of(message: Sequence[bytes]) -> bytes:
    """A message as the bytes of its frames."""
    out = []
    for number, body in enumerate(message):
        more = _MORE if number + 1 < len(message) else 0
        out += [_head(more, len(body)), body]
    return b"".join(out)


def _head(flags: int, size: int) -> bytes:
    return bytes((flags, size)) if size < 256 else struct.pack(">BQ", flags | _LONG, size)


def _command(name: bytes, body: bytes) -> bytes:
    data = bytes((len(name),)) + name + body
    return _head(_COMMAND, len(data)) + data


READY = _command(b"READY", b"\x0bSocket-Type" + struct.pack(">I", 6) + b"ROUTER")


class Spare:
    """The buffer of a message that has been read, kept for the next one: allocating it takes longer than filling it.

    Used on one thread.
    """

    def __init__(self) -> None:
        self._kept: np.ndarray | None = None

    def take(self, size: int) -> memoryview:
        """Room for a frame. What is claimed and not sent takes no memory from the machine: numpy does not touch it."""
        kept = self._kept
        if kept is None or not _WORTH_KEEPING[0] <= size <= len(kept):
            return np.empty(size, np.uint8).data
        self._kept = None
        return kept[:size].data

    def give(self, frame: memoryview) -> None:
        """Take a frame back that nobody reads any more."""
        found: Any = frame.obj
        while isinstance(found, np.ndarray) and isinstance(found.base, np.ndarray):
            found = found.base
        if isinstance(found, np.ndarray) and _WORTH_KEEPING[0] <= len(found) <= _WORTH_KEEPING[1]:
            self._kept = found


class Receiver:
    """Makes messages of the bytes of one connection: fill `buffer`, then say how many there were.

    Args:
        limit: Bytes of a message, all its frames together.
        spare: Where memory for large frames comes from.

    Attributes:
        ready: Whether the handshake is over.
        held: Bytes of the message that has begun and not ended.
    """

    def __init__(self, limit: int, spare: Spare | None = None):
        self._limit, self._spare = limit, spare or Spare()
        self._stage = memoryview(bytearray(_STAGE_BYTES))
        self._rest = b""
        self._greeted = self.ready = False
        self._frames: list[memoryview] = []
        self._flags, self._body, self._filled = 0, _EMPTY, 0
        self._in_body = False
        self._complete = 0
        self._size = 0

    @property
    def held(self) -> int:
        return self._complete + (self._filled if self._in_body else 0)

    @property
    def expected(self) -> int:
        """Bytes of that message, as far as its frames have said how long they are."""
        return self._size

    @property
    def begun(self) -> bool:
        """Whether a message has begun and not ended, or the handshake has not."""
        return not self.ready or self._in_body or bool(self._frames or self._rest)

    def forget(self) -> None:
        """Let go of a message that will never be complete, and of the memory that the next would be read into."""
        self._frames, self._body, self._in_body, self._stage = [], _EMPTY, False, _EMPTY

    def buffer(self) -> memoryview:
        """Where the next bytes belong."""
        return self._body[self._filled :] if self._in_body else self._stage

    def received(self, count: int) -> tuple[list[list[memoryview]], bytes]:
        """Take note of `count` bytes in `buffer`.

        Returns: The messages that are complete now, as their frames; and bytes to send to the other side.
        Raises: Violation.
        """
        self._messages: list[list[memoryview]] = []
        self._replies: list[bytes] = []
        if self._in_body:
            self._filled += count
            if self._filled == len(self._body):
                self._end_frame()
        else:
            self._parse(memoryview(self._rest + self._stage[:count]) if self._rest else self._stage[:count])
        return self._messages, b"".join(self._replies)

    def _parse(self, view: memoryview) -> None:
        self._rest = b""
        if not self._greeted:
            if not _begins_like_greeting(bytes(view[:_GREETING_BYTES])):
                raise Violation("no greeting of ZMTP 3 with the mechanism NULL")
            if len(view) < _GREETING_BYTES:
                self._rest = bytes(view)
                return
            self._greeted, view = True, view[_GREETING_BYTES:]
            self._replies.append(READY)
        while len(view):
            if not self._in_body:
                start = 9 if view[0] & _LONG else 2
                if len(view) < start:
                    self._rest = bytes(view)
                    return
                self._begin_frame(view[0], int.from_bytes(view[1:start], "big"))
                view = view[start:]
            part = min(len(view), len(self._body) - self._filled)
            self._body[self._filled : self._filled + part] = view[:part]
            self._filled += part
            view = view[part:]
            if self._filled == len(self._body):
                self._end_frame()

    def _begin_frame(self, flags: int, size: int) -> None:
        command = flags & _COMMAND
        if flags & ~(_MORE | _LONG | _COMMAND) or (command and flags & _MORE) or not (command or self.ready):
            raise Violation(f"a frame with the flags {flags:#x}")
        if command and size > _COMMAND_BYTES:
            raise Violation(f"a command of {size} bytes")
        if not command and (self._size + size > self._limit or len(self._frames) >= _FRAMES):
            raise Violation(f"a message of more than {self._limit} bytes or {_FRAMES} frames")
        if not command:
            self._size += size
        self._body = self._spare.take(size) if size else _EMPTY
        self._flags, self._filled, self._in_body = flags, 0, True

    def _end_frame(self) -> None:
        body, self._body, self._in_body = self._body, _EMPTY, False
        if self._flags & _COMMAND:
            self._obey(bytes(body))
            return
        self._frames.append(body)
        self._complete += len(body)
        if not self._flags & _MORE:
            self._messages.append(self._frames)
            self._frames, self._complete, self._size = [], 0, 0

    def _obey(self, command: bytes) -> None:
        if not self.ready:
            kind = _properties(command).get(b"socket-type")
            if kind not in _KINDS:
                raise Violation("no REQ or DEALER socket")
            self.ready = True
        elif command.startswith(b"\x04PING"):
            self._replies.append(_command(b"PONG", command[7:]))  # past the name and the time to live


def _begins_like_greeting(data: bytes) -> bool:
    """Whether what has come so far may be a greeting."""
    if data[0] != 0xFF or (len(data) > 9 and not data[9] & 1) or (len(data) > 10 and data[10] < 3):
        return False
    mechanism = data[12:32]
    return mechanism == GREETING[12 : 12 + len(mechanism)]


def _properties(command: bytes) -> dict[bytes, bytes]:
    """Of a READY, their names in lower case. Raises: Violation for anything else."""
    if not command.startswith(b"\x05READY"):
        raise Violation("no READY")
    found, rest = {}, command[6:]
    while rest:
        start = 1 + rest[0]
        size = int.from_bytes(rest[start : start + 4], "big")
        found[rest[1:start].lower()] = rest[start + 4 : start + 4 + size]
        if len(rest) < start + 4 + size:
            raise Violation("a READY that is cut short")
        rest = rest[start + 4 + size :]
    return found
