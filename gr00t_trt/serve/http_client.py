"""A client of the HTTP service. It needs numpy and msgpack beside Python's own library, and never torch."""

from __future__ import annotations

import http.client
import re

from ..common.interface import ModalityConfig
from ..errors import ServiceError
from .client import RemotePolicy, modalities_of, new_client_id, robot_of
from .json_wire import decode_json, encode_json
from .wire import Message


class HttpInferenceClient(RemotePolicy):
    """A policy that is asked over HTTP, with the methods of a local one; for one thread.

    The connection is kept between requests, and made anew when the server has closed it. As with
    `client.BaseInferenceClient`, a request says how long its answer is waited for, and who asks.

    Args:
        timeout_ms: Longest wait for any part of an answer.
        api_token: What the server wants to be shown; empty for nothing.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 5555,
        timeout_ms: int = 15000,
        api_token: str | None = None,
        *,
        resize: bool = False,
        timings: bool = False,
        served_by: bool = False,
        embodiment_tag: str | None = None,
    ):
        super().__init__(resize=resize, timings=timings, served_by=served_by, embodiment_tag=embodiment_tag)
        if api_token and not re.fullmatch("[!-~]+", api_token):
            what = "the API token cannot stand in a header"
            raise ServiceError(what, known="one word of printable ASCII", fix="choose another one")
        self.client_id = new_client_id()
        self.host, self.port, self.timeout_ms = host, port, timeout_ms
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout_ms / 1e3)
        self._headers = {"Content-Type": "application/json"}
        if api_token:
            self._headers["Authorization"] = f"Bearer {api_token}"

    def ping(self) -> bool:
        """Whether a server answers."""
        try:
            self._ask("GET", "/health")
        except ServiceError:
            return False
        return True

    def get_modality_config(self) -> dict[str, ModalityConfig]:
        """As `RobotInferenceClient.get_modality_config`; needs a server of this package."""
        return modalities_of(robot_of(self.status(), self._tag))

    def status(self) -> Message:
        return self._ask("GET", "/status")

    def reload(self, checkpoint: str) -> Message:
        return self._ask("POST", "/reload", encode_json({"checkpoint": checkpoint}))

    def _act(self, observation: Message, more: Message) -> Message:
        own = {"timeout_ms": self.timeout_ms, "client_id": self.client_id}
        return self._ask("POST", "/act", encode_json({"observation": observation, **own, **more}))

    def close(self) -> None:
        """Give up the connection; the next call would make a new one."""
        self._connection.close()

    def __enter__(self) -> HttpInferenceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Message:
        status, raw = self._exchange(method, path, body)
        value = decode_json(raw)
        if status not in (200, 202):
            raise ServiceError(f"Server error: {value.get('detail', value) if isinstance(value, dict) else value}")
        return value

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        kept = self._connection.sock is not None
        try:
            self._connection.request(method, path, body, self._headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except TimeoutError as error:
            self.close()
            raise ServiceError(f"no answer from {self.host}:{self.port} within {self.timeout_ms} ms") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if kept:  # most often the server has closed a connection that was idle for long, or has restarted
                return self._exchange(method, path, body)
            raise ServiceError(
                f"no answer from {self.host}:{self.port}: {error}", fix="see that the server runs and is ready"
            ) from error
