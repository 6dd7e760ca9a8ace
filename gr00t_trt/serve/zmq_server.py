"""The ZeroMQ side: one socket, many clients at once, one message per frame; see `wire` for the bytes.

Existing clients use REQ sockets and expect a REP socket, which serves one of them at a time. A ROUTER socket speaks
the same protocol to each and lets their requests wait side by side.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from ..errors import ServiceError
from .refusal import Refusal
from .service import Service, cannot_listen
from .wire import Message, decode, encode
from .worker import Answer

try:
    import zmq
except ImportError as error:
    raise ServiceError("the ZeroMQ server needs pyzmq", fix="pip install 'gr00t_trt[serve]'") from error

_WAITING_PER_CLIENT = 2
"""Messages of one client that are taken off the network before they are read; the rest waits on its side."""
_HANDSHAKE_MS = 5000
"""A connection that has not said what it speaks by then is closed."""
_LAST_WORDS_MS = 1000
"""How long replies may take to leave when the server ends."""
_AT_ONCE, _MORE, _READABLE = int(zmq.NOBLOCK), int(zmq.SNDMORE), int(zmq.POLLIN)
"""ZeroMQ's flags as plain numbers: as enumerations they cost more than what they are for."""


class ZmqServer:
    """Answers ZeroMQ clients on a thread of its own, from `start` to `close`.

    Args:
        host: Address or name to listen on; ``*`` and ``0.0.0.0`` are all interfaces.
        port: 0 for any that is free; `endpoint` tells which.
        max_request_bytes: A message beyond this ends the connection before it is read.
    Raises: ServiceError when the address cannot be used.
    """

    def __init__(self, service: Service, host: str, port: int, *, max_request_bytes: int):
        self._service = service
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, _LAST_WORDS_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_request_bytes)
        self._socket.setsockopt(zmq.RCVHWM, _WAITING_PER_CLIENT)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        self._socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        self._socket.setsockopt(zmq.IPV6, ":" in host)
        address = "*" if host == "*" else f"[{host}]" if ":" in host else host
        try:
            self._socket.bind(f"tcp://{address}:{port}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise cannot_listen(host, port, error.strerror) from error
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        # One thread waits for messages, another sends answers; by way of the first they would wait for it to wake up.
        # A ZeroMQ socket may change threads, but serves one at a time.
        self._in_use = threading.Lock()
        self._bell, self._listener = socket.socketpair()
        for end in (self._bell, self._listener):
            end.setblocking(False)
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
        waiting = selectors.DefaultSelector()  # zmq.Poller would use the socket while it waits
        for each in (self._socket, self._listener):
            waiting.register(each.fileno(), selectors.EVENT_READ)
        try:
            while not self._closing:
                frames, more = self._next()
                if frames:
                    self._receive(frames)
                if not more and any(key.fd == self._listener.fileno() for key, _ in waiting.select()):
                    self._listener.recv(4096)
        finally:
            waiting.close()
            self._context.destroy(linger=_LAST_WORDS_MS)
            self._bell.close()
            self._listener.close()

    def _next(self) -> tuple[list[zmq.Frame], bool]:
        """The frames of the next message, none where none has come; and whether there are more messages.

        The socket's descriptor tells of what comes after it was found to have no more, and of nothing else.
        """
        with self._in_use:
            frames = []
            with suppress(zmq.Again):
                frames.append(self._socket.recv(_AT_ONCE, copy=False))
                while frames[-1].more:
                    frames.append(self._socket.recv(copy=False))
            return frames, self._readable()

    def _send(self, envelope: Sequence[bytes], reply: bytes) -> None:
        with self._in_use:
            for frame in envelope:
                self._socket.send(frame, _MORE)
            self._socket.send(reply)  # ZeroMQ drops it where the client has gone
            came = self._readable()
        if came:  # the descriptor tells of it no more, and this may be another thread than the one that listens
            self._ring()

    def _readable(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & _READABLE)

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it has been ringing for a while already
            self._bell.send(b"!")

    def _receive(self, frames: Sequence[zmq.Frame]) -> None:
        start = next((number for number, frame in enumerate(frames) if number and not len(frame)), None)
        if start is None:  # from no REQ socket, so nobody waits for a reply
            self._service.count("unknown", ServiceError("no envelope"))
            return
        envelope, payload = [frame.bytes for frame in frames[: start + 1]], frames[start + 1 :]
        endpoint = "unknown"
        try:
            if len(payload) != 1:
                raise ServiceError(f"the message has {len(payload)} frames", known="one frame per message")
            request = decode(payload[0].buffer)
            if not isinstance(request, Mapping):
                raise ServiceError(f"the request is a {type(request).__name__}, not a map")
            self._service.check_token(request.get("api_token"))
            endpoint = request.get("endpoint", "get_action")
            if endpoint == "get_action":
                self._service.act(
                    request.get("data", {}),
                    envelope[0],
                    lambda answer: self._send(envelope, _reply(answer, request.get("timings") is True)),
                )
                return
            if not isinstance(endpoint, str) or endpoint not in self._service.immediate:
                raise Refusal(f"Unknown endpoint: {str(endpoint)[:100]}", http_status=404)
            reply = encode(self._service.immediate[endpoint]())
        except Exception as error:  # whatever a message sets off, the next one finds the server alive
            self._service.count(str(endpoint)[:100], error)
            reply = _error(error)
        else:
            self._service.count(endpoint)
        self._send(envelope, reply)


def _reply(answer: Answer, with_timings: bool) -> bytes:
    if answer.error is not None:
        return _error(answer.error)
    reply: Message = dict(answer.action or {})
    if with_timings:
        reply["timings"] = dict(answer.timings_ms)
    try:
        return encode(reply)
    except ServiceError as error:
        return _error(error)


def _error(error: Exception) -> bytes:
    return encode({"error": (str(error) or type(error).__name__).encode("utf-8", "replace").decode()})
