"""The endpoints of the server, independent of the protocol: authentication, actions, status, metrics."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from ..common.interface import ModalityConfig
from ..errors import ServiceError
from .metrics import Metrics
from .refusal import Refusal
from .worker import Answer, PolicyWorker, Request

UNAUTHORISED = "Unauthorized: Invalid API token"
"""Word for word what existing clients are shown."""


def cannot_listen(host: str, port: int, why: str | None) -> ServiceError:
    """What a transport raises for an address that it cannot have."""
    fix = "choose another --port, or a --host of this machine"
    return ServiceError(f"cannot listen on {host}:{port}: {why}", fix=fix)


class Service:
    """A policy in service, behind one or more transports.

    Args:
        description: What a status page says besides the counts: model, versions, what runs each submodule under
            ``submodules``, and under ``observation`` the dtype and shape of every key.
        modality_config: Keys that the policy reads and gives.
        api_token: What every request must carry; None for no such thing.
        may_kill: Whether a request may end the server. One with a token may always.
    """

    def __init__(
        self,
        worker: PolicyWorker,
        metrics: Metrics,
        description: Mapping[str, Any],
        modality_config: Mapping[str, ModalityConfig],
        *,
        api_token: str | None = None,
        may_kill: bool = False,
    ):
        self._worker, self.metrics = worker, metrics
        self._description = dict(description)
        self._token = None if api_token is None else api_token.encode()
        self._may_kill = may_kill or api_token is not None
        self.immediate: Mapping[str, Callable[[], Any]] = {
            "ping": lambda: {"status": "ok", "message": "Server is running"},
            "kill": self._kill,
            "get_modality_config": lambda: dict(modality_config),
            "status": self.status,
        }

    def check_token(self, token: object) -> None:
        """Raises: Refusal when a token is asked for and this is not it, in a time that tells nothing of how wrong."""
        if self._token is None:
            return
        given = token.encode("utf-8", "replace") if isinstance(token, str) else b""
        if not hmac.compare_digest(given, self._token):
            raise Refusal(UNAUTHORISED, http_status=401)

    def act(self, observation: object, client: Hashable, finish: Callable[[Answer], None]) -> None:
        """Have the policy answer an observation; `finish` is called once with the answer, on any thread.

        The key ``use_position_ids``, which another implementation wants, is removed: nothing here depends on it.
        Raises: Refusal for what is no map.
        """
        if not isinstance(observation, Mapping):
            raise Refusal(f"the observation is a {type(observation).__name__}, not a map", http_status=400)
        wanted = {key: value for key, value in observation.items() if key != "use_position_ids"}

        def counted(answer: Answer) -> None:
            self.count("get_action", answer.error)
            finish(answer)

        self._worker.submit(Request(client, wanted, counted))

    def count(self, endpoint: str, error: Exception | None = None) -> None:
        """Count a request among those answered."""
        known = endpoint if endpoint == "get_action" or endpoint in self.immediate else "unknown"
        self.metrics.request(known, "ok" if error is None else type(error).__name__)

    def health(self) -> dict[str, Any]:
        """Whether it works, in the words that existing clients compare, and what runs each submodule."""
        return {"status": "healthy", "model": "GR00T", "submodules": self._description["submodules"]}

    def status(self) -> dict[str, Any]:
        """All there is to know about the server."""
        return {"status": "ready", **self._description, **self.metrics.snapshot()}

    def metrics_page(self) -> str:
        """As `Metrics.prometheus`."""
        return self.metrics.prometheus(self._description["submodules"])

    def _kill(self) -> None:
        if not self._may_kill:
            text = "kill is refused: the server listens to other machines and asks for no token (--api_token)"
            raise Refusal(text, http_status=401)
        self._worker.stop()
