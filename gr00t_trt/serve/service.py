"""The endpoints of the server, independent of the protocol: authentication, limits, actions, status, metrics."""

from __future__ import annotations

import hmac
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..common.interface import ModalityConfig
from ..errors import ServiceError
from .limits import Limits
from .metrics import Metrics
from .options import Options, options_of
from .refusal import Refusal
from .request_log import RequestLog
from .robots import Robot, Robots
from .waiting import TOTAL, Answer, Request, Worker
from .weights_state import WeightsState
from .wire import Message

UNAUTHORISED = "Unauthorized: Invalid API token"
"""Word for word what existing clients are shown."""

_BACKLOG = 128
"""Connections that wait to be accepted: as many as an address may have."""
_NAMED = 4096
"""Connections whose clients have a name that are remembered."""


def cannot_listen(host: str, port: int, why: str | None) -> ServiceError:
    """What a transport raises for an address that it cannot have."""
    fix = "choose another --port, or a --host of this machine"
    return ServiceError(f"cannot listen on {host}:{port}: {why}", fix=fix)


def listening_socket(host: str, port: int) -> tuple[socket.socket, str]:
    """A TCP socket that listens to an address, and the address in words: ``127.0.0.1:5555``.

    Raises: ServiceError when the address cannot be used.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(("0.0.0.0" if host == "*" else host, port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise cannot_listen(host, port, error.strerror) from error
    address, bound = made.getsockname()[:2]
    return made, f"{f'[{address}]' if ':' in address else address}:{bound}"


@dataclass(frozen=True)
class Peer:
    """The connection that a request came by.

    Attributes:
        name: For the log; different for every connection.
        gone: Whether it is known to be closed.
    """

    name: str
    gone: Callable[[], bool] = lambda: False


class Service:
    """A policy in service, behind one or more transports.

    Args:
        description: What a status page says besides the counts: model, versions, what runs each submodule under
            ``submodules``, and under ``observation`` the dtype and shape of every key.
        modality_config: Keys that the policy reads and gives.
        limits: Of a single request.
        others: Embodiment tag -> the further kinds of robots that are served.
        api_token: What every request must carry; None for no such thing.
        may_kill: Whether a request may end the server. One with a token may always.
        log: Told of every request.
        reloader: Changes the weights when it is asked to; None where no request may.

    Attributes:
        modality_config: As above. robots: All kinds.
        addresses: Where it is listened to, in words, for whoever opens ``/`` in a browser.
        immediate: Endpoint -> what answers it at once. told: Likewise, of those that are given data.
    """

    def __init__(
        self,
        worker: Worker,
        metrics: Metrics,
        description: Mapping[str, Any],
        modality_config: Mapping[str, ModalityConfig],
        *,
        limits: Limits,
        others: Mapping[str, Robot] | None = None,
        api_token: str | None = None,
        may_kill: bool = False,
        log: RequestLog | None = None,
        reloader: WeightsState | None = None,
    ):
        self._worker, self.metrics = worker, metrics
        about = {name: description[name] for name in ("data_config", "observation") if name in description}
        first = Robot(modality_config, limits, about=about)
        self.robots = Robots(first, description.get("embodiment_tag"), others)
        self._description = dict(description)
        self.modality_config = dict(modality_config)
        self._token = None if api_token is None else api_token.encode()
        self._may_kill = may_kill or api_token is not None
        self._log = log or RequestLog()
        self._reloader = reloader
        self._clients = _Clients()
        self.addresses: list[str] = []
        self.immediate: Mapping[str, Callable[[], Any]] = {
            "ping": lambda: {"status": "ok", "message": "Server is running"},
            "kill": self._kill,
            "get_modality_config": lambda: dict(self.modality_config),
            "status": self.status,
        }
        self.told: Mapping[str, Callable[[Any], Any]] = {"reload": self.reload}

    def check_token(self, token: object) -> None:
        """Raises: Refusal when a token is asked for and this is not it, in a time that tells nothing of how wrong."""
        if self._token is None:
            return
        given = token.encode("utf-8", "replace") if isinstance(token, str) else b""
        if not hmac.compare_digest(given, self._token):
            raise Refusal(UNAUTHORISED, http_status=401)

    def act(
        self, observation: object, message: Message, peer: Peer, finish: Callable[[Message | Exception], None]
    ) -> None:
        """Have the policy answer an observation.

        The key ``use_position_ids``, which another implementation wants, is removed: nothing here depends on it.

        Args:
            message: The whole request, for its `options`.
            finish: Called once with the reply or an error, on any thread.
        Raises: Refusal for what is no map, for options that are none, and for more than the limits.
        """
        if not isinstance(observation, Mapping):
            raise Refusal(f"the observation is a {type(observation).__name__}, not a map", http_status=400)
        options = options_of(message)
        wanted = {key: value for key, value in observation.items() if key != "use_position_ids"}
        robot = self.robots.of(options.embodiment_tag)
        limits = robot.limits
        assert limits is not None
        samples = limits.samples(wanted)
        if options.seed is not None and limits.noise_shape is None:
            raise Refusal("seed: this policy takes no noise", http_status=400)
        noise = None if options.noise is None else limits.noise(options.noise, samples)
        client = self._clients.of(peer.name, options.client_id)

        def finished(answer: Answer) -> None:
            if answer.error is not None:
                answer.error.__traceback__ = None  # which keeps the frames, and so the observations, of its way here
            finish(self._reply(answer, options))
            timings_ms, error = answer.timings_ms, answer.error
            took_ms = timings_ms.get(TOTAL, (time.monotonic() - request.arrived) * 1e3)
            self.count("get_action", error, client=peer.name, samples=samples, took_ms=took_ms, timings_ms=timings_ms)

        request = Request(
            client,
            wanted,
            finished,
            samples,
            options.timeout_s,
            gone=peer.gone,
            robot=None if robot is self.robots.first else robot,
            seed=options.seed,
            noise=noise,
        )
        self._worker.submit(request)

    def count(self, endpoint: str, error: Exception | None = None, *, client: str = "-", **about: Any) -> None:
        """Count a request among those answered, and log it; `about`: what else `RequestLog` takes."""
        known = endpoint if endpoint == "get_action" or endpoint in {**self.immediate, **self.told} else "unknown"
        self.metrics.request(known, "ok" if error is None else type(error).__name__)
        self._log(known, error, client=client, **about)

    def health(self) -> Message:
        """Whether it works, in the words that existing clients compare, and what runs each submodule."""
        return {"status": "healthy", "model": "GR00T", "submodules": self._description["submodules"]}

    def status(self) -> Message:
        """All there is to know about the server. ``status`` is ``ready``, or ``stalled`` in an overlong request."""
        running_s = self._worker.running_s
        state = "stalled" if running_s > self._worker.request_timeout_s else "ready"
        weights: Message = {}
        if self._reloader is not None:
            weights = {"checkpoint": asdict(self._reloader.checkpoint), "reload": self._reloader.last.told()}
        about = {**self._description, **self.robots.described(), **weights}
        return {"status": state, "running_s": running_s, **about, **self.metrics.snapshot()}

    def describe(self, changes: Mapping[str, object]) -> None:
        """Change what the status page says; from any thread."""
        self._description = {**self._description, **changes}

    def reload(self, data: object) -> Message:
        """Begin to change to the checkpoint that ``data["checkpoint"]`` names; `status` tells what becomes of it.

        Raises: Refusal where that is not allowed, and as `Reloader.start`.
        """
        if self._reloader is None:
            text = "reload is off: every client could ask for it (start the server with --allow_reload FOLDER)"
            raise Refusal(text, http_status=403)
        self._refuse_strangers("reload")
        return self._reloader.start(data.get("checkpoint") if isinstance(data, Mapping) else None)

    def metadata(self) -> Message:
        """What a client may want to know before its first request: what is served, by what, and the keys of both."""
        named = ("data_config", "embodiment_tag", "denoising_steps", "submodules", "observation")
        about = {name: self._description[name] for name in named if name in self._description}
        keys = {name: own.modality_keys for name, own in self.modality_config.items()}
        return {"model": "GR00T", **about, "modality_keys": keys, **self.robots.described()}

    def metrics_page(self) -> str:
        """As `Metrics.prometheus`."""
        return self.metrics.prometheus(self._description["submodules"])

    def _reply(self, answer: Answer, options: Options) -> Message | Exception:
        if answer.error is not None:
            return answer.error
        reply: Message = dict(answer.action or {})
        if options.timings:
            reply["timings"] = dict(answer.timings_ms)
        if options.served_by:
            about = self._description
            reply["served_by"] = {"submodules": about["submodules"], "commit": about.get("commit")}
        return reply

    def _kill(self) -> None:
        self._refuse_strangers("kill")
        self._worker.stop()

    def _refuse_strangers(self, endpoint: str) -> None:
        if not self._may_kill:
            text = f"{endpoint} is refused: the server listens to other machines and asks for no token (--api_token)"
            raise Refusal(text, http_status=401)


class _Clients:
    """Who is at the other end of a connection: a name that the client chose, and keeps when it connects anew.

    The first name counts for all of a connection: with one for each of its requests, a flood would look like many
    clients and be given the turns of all of them.
    """

    def __init__(self) -> None:
        self._named: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, connection: str, chosen: str | None) -> Hashable:
        """What to tell a client from others by."""
        if chosen is None and connection not in self._named:
            return connection
        with self._lock:
            name = self._named.setdefault(connection, chosen or connection)
            self._named.move_to_end(connection)
            if len(self._named) > _NAMED:
                self._named.popitem(last=False)
        return "named", name
