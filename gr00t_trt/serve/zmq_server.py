"""The ZeroMQ side: many clients at once, one message per frame; see `wire` for the bytes of a message.

Existing clients use REQ sockets and expect a REP socket, which serves one of them at a time. Here each has a connection
of its own and their requests wait side by side. The connections are plain TCP, spoken as `zmtp` says: so a message can
be counted while it arrives, a client that has gone is noticed, and an answer takes no detour by way of other threads.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ..errors import ServiceError
from .pace import AT_ONCE, Pace
from .refusal import Refusal
from .request_log import LOGGER
from .service import Service, listening_socket
from .wire import Message, decode, encode
from .zmq_connection import Connection, error_message
from .zmtp import GREETING, Receiver, Spare, Violation, frames_of

_HANDSHAKE_S = 5.0
"""A connection that has not said what it speaks by then is closed."""
_LAST_WORDS_S = 0.5
"""How long replies may take to leave when the server ends."""
_SWEEP_S = 0.5
_CONNECTIONS = 512
_OF_AN_ADDRESS = 256
"""Connections at once, and from one address. Beyond, one that has nothing under way makes room."""
_MESSAGES_AT_ONCE = 8
"""Messages of one client that are read before it is the others' turn."""
_BYTES_AT_ONCE = 2**20
_UNFINISHED = 4
"""Bytes of all unfinished messages together, in largest messages."""


class ZmqServer:
    """Answers ZeroMQ clients on a thread of its own, from `start` to `close`.

    Args:
        host: Address or name to listen on; ``*`` and ``0.0.0.0`` are all interfaces.
        port: 0 for any that is free; `endpoint` tells which.
        max_request_bytes: A message beyond this, all its frames together, ends the connection before it is there.
        request_timeout_s: How long a message may take to arrive.
    Raises: ServiceError when the address cannot be used.
    """

    def __init__(
        self, service: Service, host: str, port: int, *, max_request_bytes: int, request_timeout_s: float = 15.0
    ):
        self._service = service
        self._limit, self._timeout_s = max_request_bytes, request_timeout_s
        self._socket, address = listening_socket(host, port)
        self._socket.setblocking(False)
        self.endpoint = f"tcp://{address}"
        self._bell, self._listener = socket.socketpair()
        for end in (self._bell, self._listener):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._spare = Spare()
        self._pace = Pace(max_request_bytes)
        self._peers: set[Connection] = set()
        self._late: deque[Connection] = deque()  # whose answers did not fit into the network at once
        self._backlog: set[Connection] = set()  # with messages that are there and not read
        self._resting: dict[Connection, None] = {}  # that are not read for a while, the first to be read again first
        self._swept = time.monotonic()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zmq", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Send the remaining replies and stop. The worker must have stopped before."""
        self._closing = True
        self._ring()
        self._thread.join()

    def _run(self) -> None:
        for each in (self._socket, self._listener):
            self._selector.register(each, selectors.EVENT_READ)
        try:
            while not self._closing:
                for key, events in self._selector.select(self._until_next_s()):
                    self._happened(key, events)
                for connection in list(self._backlog):
                    self._read(connection)
                self._let_late_ones_write()
                self._wake()
                if time.monotonic() - self._swept > _SWEEP_S:
                    self._sweep()
            self._last_words()
        finally:
            for connection in list(self._peers):
                self._drop(connection)
            self._selector.close()
            for each in (self._socket, self._bell, self._listener):
                each.close()

    def _until_next_s(self) -> float:
        if self._backlog:
            return 0
        return min([_SWEEP_S, *map(self._wait_s, self._resting)])

    def _wait_s(self, connection: Connection) -> float:
        """How long a connection is not to be read: it sends too much that comes to nothing."""
        if not (connection.refused or connection.receiver.expected > AT_ONCE):
            return 0
        return max(self._pace.wait_s(), connection.rests_until - time.monotonic(), 0.0)

    def _happened(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fileobj is self._socket:
            self._accept()
        elif key.fileobj is self._listener:
            with suppress(BlockingIOError):
                self._listener.recv(4096)
        elif key.data in self._peers:
            if events & selectors.EVENT_WRITE:
                self._flush(key.data)
            if events & selectors.EVENT_READ and key.data not in self._backlog:
                self._read(key.data)

    def _accept(self) -> None:
        try:
            accepted, address = self._socket.accept()
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError:  # it has gone again, or there are no descriptors left
            self._make_room(None)
            return
        self._make_room(address[0])
        connection = Connection(accepted, address, Receiver(self._limit, self._spare), self._is_late)
        self._peers.add(connection)
        self._selector.register(accepted, selectors.EVENT_READ, connection)
        connection.send(GREETING)

    def _make_room(self, address: str | None) -> None:
        """Have the idlest connection go where there are too many, all in all or from one address."""
        own = [each for each in self._peers if each.address == address]
        crowd = own if len(own) >= _OF_AN_ADDRESS else list(self._peers) if len(self._peers) >= _CONNECTIONS else []
        idle = [each for each in crowd or (self._peers if address is None else ()) if not each.asked]
        if idle:
            self._drop(min(idle, key=lambda each: (each.receiver.ready, not each.receiver.begun, each.since)))

    def _read(self, connection: Connection) -> None:
        """What has come of a client: some of it, so that the others have their turn."""
        self._backlog.discard(connection)
        if connection.blocked:  # whoever does not read its answers is not read from either
            return
        if self._wait_s(connection):
            self._watch(connection, 0)
            self._resting[connection] = None
            return
        try:
            size = 0
            while not connection.unread and size < _BYTES_AT_ONCE:
                count = connection.socket.recv_into(connection.receiver.buffer())
                if not count:
                    self._drop(connection)
                    return
                size += count
                self._pace.spend(count)
                self._received(connection, count)
        except BlockingIOError:
            pass
        except Exception as error:  # whatever bytes set off, the next client finds the server alive
            if not isinstance(error, OSError | Violation):
                LOGGER.exception("%s sent what the server is not prepared for", connection.peer.name)
            self._drop(connection)
            return
        for _ in range(min(_MESSAGES_AT_ONCE, len(connection.unread))):
            self._receive(connection, connection.unread.popleft())
        if connection.unread and connection in self._peers:
            self._backlog.add(connection)

    def _received(self, connection: Connection, count: int) -> None:
        begun = connection.receiver.begun
        messages, reply = connection.receiver.received(count)
        connection.unread += messages
        if messages or not begun:
            connection.since = time.monotonic()
        if reply:
            connection.send(reply)
        if connection.receiver.held and sum(each.receiver.held for each in self._peers) > _UNFINISHED * self._limit:
            self._drop(max(self._peers, key=lambda each: each.receiver.held))

    def _receive(self, connection: Connection, frames: Sequence[memoryview]) -> None:
        name = connection.peer.name
        start = next((number for number, frame in enumerate(frames) if not len(frame)), None)
        size = sum(map(len, frames))
        connection.refuse(size)
        if start is None:  # from no REQ socket, so nobody waits for a reply
            self._service.count("unknown", ServiceError("no envelope"), client=name)
            return
        envelope, payload = [bytes(frame) for frame in frames[: start + 1]], frames[start + 1 :]
        endpoint: Any = "unknown"
        try:
            if len(payload) != 1:
                raise ServiceError(f"the message has {len(payload)} frames", known="one frame per message")
            request = decode(payload[0])
            self._spare.give(payload[0])  # all of it has been copied
            if not isinstance(request, dict):
                raise ServiceError(f"the request is a {type(request).__name__}, not a map")
            self._service.check_token(request.get("api_token"))
            endpoint = request.get("endpoint", "get_action")
            if endpoint == "get_action":
                self._act(connection, request, envelope, size)
                return
            reply = encode(self._at_once(endpoint, request))
            self._accepted(connection, size)
        except Exception as error:  # whatever a message sets off, the next one finds the server alive
            self._service.count(str(endpoint)[:100], error, client=name)
            reply = error_message(error)
        else:
            self._service.count(endpoint, client=name)
        connection.send(frames_of([*envelope, reply]))

    def _at_once(self, endpoint: object, request: Message) -> Any:
        service = self._service
        if isinstance(endpoint, str) and endpoint in service.immediate:
            return service.immediate[endpoint]()
        if isinstance(endpoint, str) and endpoint in service.told:
            return service.told[endpoint](request.get("data"))
        raise Refusal(f"Unknown endpoint: {str(endpoint)[:100]}", http_status=404)

    def _act(self, connection: Connection, request: Message, envelope: Sequence[bytes], size: int) -> None:
        def finish(reply: Message | Exception) -> None:
            if isinstance(reply, Exception):
                connection.refuse(size)
                self._pace.spend(size)
            connection.answer(envelope, reply)

        connection.expect(1)
        self._accepted(connection, size)
        try:
            self._service.act(request.get("data", {}), request, connection.peer, finish)
        except Exception:
            connection.refuse(size)
            self._pace.spend(size)
            connection.expect(-1)
            raise

    def _accepted(self, connection: Connection, size: int) -> None:
        connection.refused = False
        self._pace.spend(-size)

    def _wake(self) -> None:
        """Read from those again that had to wait, one after the other, until they have sent too much anew."""
        for connection in list(self._resting):
            if self._wait_s(connection):
                continue
            self._resting.pop(connection, None)
            if connection in self._peers and not connection.blocked:
                self._watch(connection, selectors.EVENT_READ)
                self._read(connection)

    def _watch(self, connection: Connection, events: int) -> None:
        """Be told of these events of a connection, and of no others."""
        known = connection.socket in self._selector.get_map()
        if events and known:
            self._selector.modify(connection.socket, events, connection)
        elif events:
            self._selector.register(connection.socket, events, connection)
        elif known:
            self._selector.unregister(connection.socket)

    def _is_late(self, connection: Connection) -> None:
        self._late.append(connection)
        self._ring()

    def _ring(self) -> None:
        with suppress(OSError):  # it has been ringing for a while already, or nobody listens any more
            self._bell.send(b"!")

    def _let_late_ones_write(self) -> None:
        while self._late:
            connection = self._late.popleft()
            if connection in self._peers:
                self._watch(connection, selectors.EVENT_WRITE)

    def _flush(self, connection: Connection) -> None:
        if connection.flush():
            self._watch(connection, selectors.EVENT_READ)
            self._backlog.add(connection)
        if connection.gone:
            self._drop(connection)

    def _sweep(self) -> None:
        """Close what takes too long to greet, to send a message, or to read an answer."""
        now = self._swept = time.monotonic()
        for connection in list(self._peers):
            allowed = self._timeout_s if connection.receiver.ready else _HANDSHAKE_S
            late = connection.receiver.begun and now - connection.since > allowed
            deaf = connection.blocked is not None and now - connection.blocked > self._timeout_s
            if connection.gone or late or deaf:
                self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        if connection in self._peers:
            self._peers.discard(connection)
            self._backlog.discard(connection)
            self._resting.pop(connection, None)
            self._watch(connection, 0)
            connection.close()
            # It knows itself, so that it stays until Python looks for such; what it held must not.
            connection.receiver.forget()
            connection.unread.clear()

    def _last_words(self) -> None:
        deadline = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < deadline and any(not each.flush() for each in self._peers):
            time.sleep(0.01)
