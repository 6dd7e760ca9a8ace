"""A client of the HTTP service. It needs numpy and msgpack beside Python's own library, and never torch."""

from __future__ import annotations

import http.client
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig, Observation
from ..errors import ServiceError
from .client import frame_sizes
from .json_wire import decode_json, encode_json
from .resize import fit_frames


class HttpInferenceClient:
    """A policy that is asked over HTTP, with the methods of a local one; for one thread.

    The connection is kept between requests, and made anew when the server has closed it.

    Args:
        host: Where the server runs.
        port: Its port.
        timeout_ms: Longest wait for any part of an answer.
        api_token: What the server wants to be shown; empty for nothing.
        resize, timings: As for `client.RobotInferenceClient`.

    Attributes:
        last_timings_ms: Stage -> milliseconds; empty before the first answer.
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
    ):
        self.host, self.port, self.timeout_ms = host, port, timeout_ms
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout_ms / 1e3)
        self._headers = {"Content-Type": "application/json"}
        if api_token:
            self._headers["Authorization"] = f"Bearer {api_token}"
        self._resize, self._timings = resize, timings
        self._sizes: dict[str, tuple[int, int]] | None = None
        self.last_timings_ms: dict[str, float] = {}

    def ping(self) -> bool:
        """Whether a server answers."""
        try:
            self._ask("GET", "/health")
        except ServiceError:
            return False
        return True

    def get_action(self, observation: Observation) -> dict[str, np.ndarray]:
        """The policy's action chunk for an observation, as `Gr00tPolicy.get_action`.

        Raises: ServiceError when there is no answer in time, or the answer is an error.
        """
        if self._resize:
            if self._sizes is None:
                self._sizes = frame_sizes(self.status())
            observation = fit_frames(observation, self._sizes)
        request: dict[str, Any] = {"observation": dict(observation)}
        if self._timings:
            request["timings"] = True
        action = self._ask("POST", "/act", encode_json(request))
        self.last_timings_ms = action.pop("timings", {}) if self._timings else {}
        return action

    def get_modality_config(self) -> dict[str, ModalityConfig]:
        """As `RobotInferenceClient.get_modality_config`; needs a server of this package."""
        return {name: ModalityConfig(**each) for name, each in self.status()["modality_config"].items()}

    def status(self) -> dict[str, Any]:
        """As `RobotInferenceClient.status`."""
        return self._ask("GET", "/status")

    def close(self) -> None:
        """Give up the connection; the next call would make a new one."""
        self._connection.close()

    def __enter__(self) -> HttpInferenceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        status, raw = self._exchange(method, path, body)
        value = decode_json(raw)
        if status != 200:
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
