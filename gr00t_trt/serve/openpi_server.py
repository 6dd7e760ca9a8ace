"""The WebSocket side, as openpi's clients speak it; see `openpi_wire` for the bytes of a message.

On connecting, a client is sent what there is to know about the policy. Then each binary message is an observation, and
each answer a binary message with the action, or a text message that says what is wrong; the connection stays.

    observation   its keys as everywhere else, of a single step also without the time axis, and beside them those of
                  `options`; openpi's ``prompt`` stands for the key of the instruction
    action        its keys as everywhere else; ``actions`` float [T, D], all of them side by side in the order of
                  ``modality_keys``; ``server_timing``: milliseconds

A token is shown as ``Authorization: Api-Key TOKEN``, before anything is sent. ``GET /healthz`` needs none.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig
from ..errors import ServiceError
from .awaited import answered, token_in
from .connections import Connections, Guarded
from .limits import AXES
from .openpi_wire import decode_openpi, encode_openpi
from .options import KEYS, options_of
from .refusal import Refusal, told
from .request_log import LOGGER
from .service import Peer, Service, listening_socket
from .waiting import QUEUE, TOTAL
from .wire import Message

try:
    from websockets.asyncio.server import Request, Response, Server, ServerConnection, serve
    from websockets.exceptions import ConnectionClosed
    from websockets.frames import Frame, Opcode
except ImportError as error:
    raise ServiceError("openpi's protocol needs websockets", fix="pip install 'gr00t_trt[serve]'") from error

PROMPT, ACTIONS = "prompt", "actions"

_START_S = 10.0
_HANDSHAKE_S = 5.0
"""A connection that has not said what it wants by then is closed."""
_LAST_WORDS_S = 0.5
"""How long answers may take to leave when the server ends."""
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


class OpenpiServer:
    """Answers openpi's clients on a thread of its own, from `start` to `close`.

    Args:
        host, port, max_request_bytes, request_timeout_s: As for `ZmqServer`.
    Raises: ServiceError when the address cannot be used.
    """

    def __init__(self, service: Service, host: str, port: int, *, max_request_bytes: int, request_timeout_s: float):
        self._service, self._limit, self._timeout_s = service, max_request_bytes, request_timeout_s
        self._socket, address = listening_socket(host, port)
        self.endpoint = f"ws://{address}"
        self._connections: Connections[_Connection] = Connections(max_request_bytes)
        self._greeting = encode_openpi(service.metadata())
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="openpi", daemon=True)

    def start(self) -> None:
        """Take connections. Raises: ServiceError when that does not come about."""
        self._thread.start()
        if not self._started.wait(_START_S):
            raise ServiceError("the WebSocket server does not start")

    def close(self) -> None:
        """Send the remaining replies and stop. The worker must have stopped before."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        async with serve(
            self._client,
            sock=self._socket,
            process_request=self._admit,
            create_connection=partial(_Connection, self._connections, self._timeout_s),  # type: ignore[arg-type]
            open_timeout=_HANDSHAKE_S,
            close_timeout=_LAST_WORDS_S,
            max_size=self._limit,
            max_queue=1,
            compression=None,  # frames of a camera take longer to compress than to send
            logger=_silent(),
        ) as server:
            self._started.set()
            await self._ending.wait()
            await self._last_words(server)

    async def _last_words(self, server: Server) -> None:
        deadline = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < deadline and any(each.answering for each in self._connections):
            await asyncio.sleep(0.005)
        server.close()
        await asyncio.wait({asyncio.ensure_future(server.wait_closed())}, timeout=_LAST_WORDS_S)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        try:
            self._service.check_token(token_in(request.headers, "api-key", "bearer"))
        except Refusal as error:
            self._service.count("get_action", error, client=_name(connection))
            return connection.respond(HTTPStatus(error.http_status), f"{error}\n")
        return None

    async def _client(self, connection: ServerConnection) -> None:
        assert isinstance(connection, _Connection)
        try:
            await connection.send(self._greeting)
            connection.greeted = True
            while True:
                message = await connection.next()
                with self._connections.answering(connection.client) as refuse:
                    answer = await self._answer(connection, message)
                    if isinstance(answer, str):
                        refuse()
                    await connection.send(answer)
        except ConnectionClosed:
            pass

    async def _answer(self, connection: _Connection, raw: str | bytes) -> str | bytes:
        """An action as bytes, or what is wrong as text."""
        peer = Peer(_name(connection), lambda: connection.transport.is_closing())
        try:
            observation, message = self._request(raw)
        except Exception as error:  # whatever a message sets off, the next one finds the server alive
            self._service.count("get_action", error, client=peer.name)
            return told(error)
        reply = await answered(self._service, observation, message, peer)
        if isinstance(reply, Exception):
            return told(reply)
        try:
            return encode_openpi(self._action(reply, self._keys(message), kept=message["asked"]))
        except (ServiceError, ValueError) as error:
            return told(error)

    def _request(self, raw: str | bytes) -> tuple[Message, Message]:
        """The observation of a message, and its options; `asked`: whether its times are to come with the answer."""
        if isinstance(raw, str):
            raise ServiceError("a text message", known="binary messages: MessagePack, as openpi-client sends them")
        found = decode_openpi(raw)
        if not isinstance(found, Mapping):
            raise ServiceError(f"the observation is a {type(found).__name__}, not a map")
        options = {key: found[key] for key in KEYS if key in found}
        observation = {key: value for key, value in found.items() if key not in KEYS}
        keys = self._keys(options)
        if PROMPT in observation:
            self._rename_prompt(observation, keys)
        self._add_time(observation, keys)
        return observation, {**options, "timings": True, "asked": options.get("timings") is True}

    def _keys(self, options: Message) -> Mapping[str, ModalityConfig]:
        """What the robot that asks reads and is given. Raises: Refusal."""
        return self._service.robots.of(options_of(options).embodiment_tag).modality_config

    def _rename_prompt(self, observation: Message, keys: Mapping[str, ModalityConfig]) -> None:
        """Raises: Refusal where the instruction has another key already, or the policy takes none."""
        language = keys.get("language")
        own = language.modality_keys[0] if language and language.modality_keys else None
        if own is None or own in observation:
            known = "this policy takes no instruction" if own is None else f"{own} says the instruction already"
            raise Refusal(f"{PROMPT}: {known}: leave {PROMPT} out", http_status=400)
        observation[own] = observation.pop(PROMPT)

    def _add_time(self, observation: Message, keys: Mapping[str, ModalityConfig]) -> None:
        """Give a time axis to frames and states that come without: openpi's programs send a single step."""
        for modality, axes in AXES.items():
            named = keys.get(modality)
            for key in named.modality_keys if named and len(named.delta_indices) == 1 else ():
                value = observation.get(key)
                if isinstance(value, np.ndarray) and value.ndim == axes - 1:
                    observation[key] = value[None]

    def _action(self, reply: Message, keys: Mapping[str, ModalityConfig], *, kept: bool) -> Message:
        """A reply with what openpi's programs look for."""
        timings = reply["timings"] if kept else reply.pop("timings")
        reply["server_timing"] = {
            "infer_ms": timings.get(TOTAL, 0.0) - timings.get(QUEUE, 0.0),
            "queue_ms": timings.get(QUEUE, 0.0),
        }
        named = keys.get("action")
        parts = [reply[key] for key in (named.modality_keys if named else ()) if key in reply]
        if parts:
            reply[ACTIONS] = np.concatenate(parts, axis=-1)
        return reply


class _Connection(ServerConnection, Guarded):
    """A connection as `connections.Guarded`; `greeted`: it speaks the protocol, and has shown its token."""

    def __init__(self, all: Connections[_Connection], timeout_s: float, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self._all, self._timeout_s = all, timeout_s
        self.client = None
        self.since = time.monotonic()
        self.greeted = False
        self._begun: float | None = None
        self._resting = False
        self._unread = self._unframed = 0  # bytes of frames that nobody has taken, and of one that is not complete

    @property
    def settled(self) -> bool:
        return self.greeted and self._begun is None

    def overdue(self, now: float) -> bool:
        """A connection may be idle for as long as its robot is; a message that has begun must come to its end."""
        return self._begun is not None and now - self._begun > self._timeout_s

    def drop(self) -> None:
        self.held = 0
        self.transport.abort()

    async def next(self) -> str | bytes:
        """The next message. Raises: ConnectionClosed."""
        message = await self.recv()
        self._unread -= len(message.encode() if isinstance(message, str) else message)
        return message

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        address = transport.get_extra_info("peername")
        self.client = address[:2] if address else None
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._all.remove(self)

    def data_received(self, data: bytes) -> None:
        self._unframed += len(data)
        super().data_received(data)
        if self._unframed and self._begun is None:
            self._begun = self.since = time.monotonic()
        self._all.hold(self.client, self._unread + self._unframed)
        if not self._resting and self._all.rests(self.client, self._rested):
            self._resting = True
            self.transport.pause_reading()

    def _rested(self) -> None:
        self._resting = False
        if not (self.recv_messages.paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def process_event(self, event: Any) -> None:
        super().process_event(event)
        self._unframed = 0
        if isinstance(event, Frame) and event.opcode in _DATA:
            self._unread += len(event.data)
            unfinished = time.monotonic() if self._begun is None else self._begun
            self._begun = None if event.fin else unfinished
        elif not isinstance(event, Frame):  # the handshake has its own deadline
            self._begun = None


def _name(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if address else "-"


def _silent() -> logging.Logger:
    """The library's log: a line with a traceback for every stranger's bytes is of no use to an operator."""
    logger = LOGGER.getChild("websockets")
    logger.setLevel(logging.CRITICAL + 1)
    return logger
