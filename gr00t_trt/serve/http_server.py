"""The HTTP side: FastAPI on uvicorn; see `json_wire` for the bodies.

    POST /act       {"observation": {...}}, or {"encoded": "<the same as a JSON string>"}: {"action.<part>": array, ...}
                    beside the observation may stand the keys of `options`
    GET  /          one line and the addresses; needs no token
    GET  /health    {"status": "healthy", "model": "GR00T", "submodules": {...}}; needs no token
    GET  /status    all there is to know about the server
    GET  /metrics   the counts and times, for Prometheus
    POST /reload    {"checkpoint": "<folder>"}: other weights, see `reload`; /status tells what becomes of it

A token is shown as ``Authorization: Bearer TOKEN`` or ``X-API-Token: TOKEN``: it is looked at before the body is read.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from functools import partial

from ..common.install import install_extra
from ..errors import ObservationError, ServiceError, ShapeError
from .awaited import answered, token_in
from .connections import Address
from .json_wire import decode_json, encode_json
from .pace import AT_ONCE
from .refusal import Refusal
from .service import Peer, Service, listening_socket
from .wire import Message

try:
    import uvicorn
    from fastapi import FastAPI, Request, Response

    from .http_guard import Guard, GuardedProtocol
except ImportError as error:
    raise ServiceError("the HTTP server needs fastapi and uvicorn", fix=install_extra("serve")) from error

_START_S = 10.0
_LAST_WORDS_S = 0.5
"""How long requests may take to end when the server does."""


def application(service: Service, guard: Guard) -> FastAPI:
    """The routes.

    Status 400 for a request that cannot be answered as it is (the message says why), 401 for a wrong token, 408 for a
    body that does not come, 413 for one that is too large, 422 for one that is no JSON object, 503 when too many
    requests wait, 500 for an error of the server. The body of an error is ``{"detail": "<what is wrong>"}``.

    Args:
        guard: Of the connections that they are asked by; it says how large a body may be, and how long it may take.
    """
    app = FastAPI(title="GR00T N1.5", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Exception) -> Response:
        return _refused(error)

    @app.post("/act")
    async def act(request: Request) -> Response:
        return await _act(service, guard, request)

    @app.get("/")
    async def root() -> Response:
        addresses = ", ".join(service.addresses)
        text = f"GR00T N1.5 answers robots here: POST /act; GET /health, /status, /metrics. Addresses: {addresses}\n"
        return Response(text, media_type="text/plain; charset=utf-8")

    @app.get("/health")
    async def health() -> Response:
        return _json(service.health())

    @app.get("/status")
    async def status(request: Request) -> Response:
        service.check_token(token_in(request.headers, "bearer"))
        service.count("status")
        modalities = {name: asdict(own) for name, own in service.immediate["get_modality_config"]().items()}
        return _json({**service.status(), "modality_config": modalities})

    @app.post("/reload")
    async def reload(request: Request) -> Response:
        return await _reload(service, guard, request)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        service.check_token(token_in(request.headers, "bearer"))
        return Response(service.metrics_page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


async def _act(service: Service, guard: Guard, request: Request) -> Response:
    client = _client(request)
    peer = Peer(f"{client[0]}:{client[1]}" if client else "-", lambda: guard.gone(client))
    handed_over = False
    try:
        raw = await _admitted(service, guard, request)
        with guard.answering(client) as refuse:
            # Beside the loop where it takes long: a health check is to be answered meanwhile.
            body = _unwrapped(raw) if len(raw) <= AT_ONCE else await asyncio.to_thread(_unwrapped, raw)
            if "observation" not in body:
                raise Refusal("Missing 'observation' field in payload", http_status=400)
            handed_over = True  # and counted there
            reply = await answered(service, body["observation"], body, peer)
            if isinstance(reply, Exception):  # not raised: it would keep this frame, and the frame keeps it
                refuse()
                return _refused(reply)
        return _json(reply)
    except Exception as error:  # whatever a request sets off is told to its sender
        if not handed_over:
            service.count("get_action", error, client=peer.name)
        return _refused(error)


async def _reload(service: Service, guard: Guard, request: Request) -> Response:
    try:
        reply = _json(service.reload(_object(await _admitted(service, guard, request))), 202)
    except Exception as error:  # whatever a request sets off is told to its sender
        service.count("reload", error)
        return _refused(error)
    service.count("reload")
    return reply


def _client(request: Request) -> Address | None:
    return (request.client.host, request.client.port) if request.client else None


async def _admitted(service: Service, guard: Guard, request: Request) -> bytes:
    """The body of a request, which is not read without its token. Raises: Refusal."""
    service.check_token(token_in(request.headers, "bearer"))
    with suppress(asyncio.TimeoutError):
        return await asyncio.wait_for(_body(request, guard), guard.request_timeout_s)
    raise Refusal(f"the body did not arrive within {guard.request_timeout_s:g} s", http_status=408)


async def _body(request: Request, guard: Guard) -> bytes:
    """The body, as long as it is within the limit: more is not read."""
    client, limit = _client(request), guard.max_request_bytes
    chunks: list[bytes] = []
    size, announced = 0, request.headers.get("content-length", "")
    expected = int(announced) if announced.isdecimal() else 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if max(size, expected) > limit:
                raise Refusal(f"the body is larger than the {limit} bytes allowed (--max_request_mb)", http_status=413)
            chunks.append(chunk)
            guard.hold(client, size, expected)
            turn = asyncio.Event()
            if guard.rests(client, turn.set):
                await turn.wait()
        return b"".join(chunks)
    finally:
        chunks.clear()  # an error knows its frame, and stays until Python looks for such circles


def _unwrapped(raw: bytes) -> Message:
    body = _object(raw)
    if "encoded" not in body:
        return body
    if len(body) != 1 or not isinstance(body["encoded"], str):
        raise Refusal("'encoded' must be a JSON string and the only field of the payload", http_status=400)
    return _object(body["encoded"])


def _object(raw: bytes | str) -> Message:
    try:
        body = decode_json(raw)
    except ServiceError as error:
        raise Refusal(str(error), http_status=422) from error
    if not isinstance(body, dict):
        raise Refusal("the payload is not a JSON object", http_status=422)
    return body


def _refused(error: Exception) -> Response:
    status, detail = 500, f"Internal server error: {error}"
    if isinstance(error, Refusal):
        status, detail = error.http_status, str(error)
    elif isinstance(error, ObservationError | ShapeError):
        status, detail = 400, str(error)
    # Where the body has not been read to its end, the rest of it must not be read either.
    headers = {"Connection": "close"} if status in (408, 413) else None
    return _json({"detail": detail}, status, headers)


def _json(value: Message, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode_json(value), status, headers, media_type="application/json")


class HttpServer:
    """Answers HTTP clients on a thread of its own, from `start` to `close`.

    Args:
        host, port, max_request_bytes, request_timeout_s: As for `ZmqServer`.
    Raises: ServiceError when the address cannot be used.
    """

    def __init__(self, service: Service, host: str, port: int, *, max_request_bytes: int, request_timeout_s: float):
        self._socket, address = listening_socket(host, port)
        self.endpoint = f"http://{address}"
        guard = Guard(max_request_bytes=max_request_bytes, request_timeout_s=request_timeout_s)
        app = application(service, guard)
        # Its logging is left alone: a host process has its own.
        config = uvicorn.Config(app, log_config=None, log_level="error", access_log=False, lifespan="off", ws="none")
        config.http = partial(GuardedProtocol, guard)  # type: ignore[assignment]
        config.timeout_graceful_shutdown = _LAST_WORDS_S  # type: ignore[assignment]  # waits for fractions, too
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="http", daemon=True)

    def start(self) -> None:
        """Listen. Raises: ServiceError when that does not come about."""
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise ServiceError("the HTTP server does not start")
            time.sleep(0.01)

    def close(self) -> None:
        """Send the remaining replies and stop. The worker must have stopped before."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
