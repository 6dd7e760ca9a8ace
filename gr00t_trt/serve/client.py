"""Clients of the ZeroMQ service, this package's or Isaac-GR00T's. They need numpy, msgpack and pyzmq, and never torch.

with RobotInferenceClient("192.168.0.7", timeout_ms=2000, resize=True) as policy:
    observation = {
        "video.ego_view": camera.read()[None],  # uint8 [1, H, W, 3], of any size with resize=True
        "state.left_arm": joints[None],  # float [1, 7]
        "annotation.human.task_description": ["put the pear on the plate"],
    }
    action = policy.get_action(observation)  # {"action.left_arm": float32 [16, 7], ...}
"""

from __future__ import annotations

import math
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig, Observation
from ..errors import ServiceError
from .resize import fit_frames
from .wire import Message, decode, encode

try:
    import zmq
    from zmq.utils.monitor import recv_monitor_message
except ImportError as error:
    raise ServiceError("the client needs pyzmq", fix="pip install pyzmq msgpack numpy") from error

_RECONNECT_MS = (50, 500)
"""Pause between attempts to reach a server that is away: the first, and the longest."""


class BaseInferenceClient:
    """One connection to a server, for one thread. It survives a server that restarts, and lost replies.

    With every request goes how much longer an answer is waited for, and who asks: a server of this package computes
    nothing for a client that has given up, and takes one that tries again for the same one. Others ignore it.

    Args:
        timeout_ms: Longest wait for an answer, the time to connect included.
        api_token: What the server wants to be shown; empty for nothing.
    """

    def __init__(
        self, host: str = "localhost", port: int = 5555, timeout_ms: int = 15000, api_token: str | None = None
    ):
        self.host, self.port, self.timeout_ms, self.api_token = host, port, timeout_ms, api_token
        self.client_id = new_client_id()
        self._context = zmq.Context()
        self._socket: Any = None
        self._monitor: Any = None
        self._connected = False

    def ping(self) -> bool:
        """Whether a server answers, and accepts the token."""
        try:
            self.call_endpoint("ping", requires_input=False)
        except ServiceError:
            return False
        return True

    def kill_server(self) -> None:
        """End the server. Raises: ServiceError when it does not answer, or refuses."""
        self._call({"endpoint": "kill"}, again=False)

    def call_endpoint(
        self, endpoint: str, data: Mapping[str, Any] | None = None, requires_input: bool = True
    ) -> Message:
        """Ask an endpoint, with data if it `requires_input`, and return its reply.

        Raises: ServiceError when there is no answer within `timeout_ms`, or the answer is an error:
            ``Server error: <text>``.
        """
        request: Message = {"endpoint": endpoint}
        if requires_input:
            request["data"] = dict(data or {})
        return self._call(request)

    def close(self) -> None:
        """Give up the connection; the next call would make a new one."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        if self._socket is not None:
            self._socket.close(linger=0)
        self._socket = self._monitor = None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, request: Message, *, again: bool = True) -> Any:
        if self.api_token:
            request["api_token"] = self.api_token
        reply = decode(self._exchange({**request, "client_id": self.client_id}, again))
        if isinstance(reply, Mapping) and "error" in reply:
            raise ServiceError(f"Server error: {reply['error']}")
        return reply

    def _exchange(self, request: Message, again: bool) -> bytes:
        """Send a request and wait for its reply; once more `again` when the connection breaks meanwhile."""
        deadline = time.monotonic() + self.timeout_ms / 1e3
        while True:
            answered = False
            try:
                self._connect()
                left_ms = max((deadline - time.monotonic()) * 1e3, 1.0)
                self._socket.send(encode({**request, "timeout_ms": left_ms}))
                answered = self._wait(deadline)
                if answered:
                    return bytes(self._socket.recv())
            except zmq.ZMQError as error:
                raise ServiceError(f"{self.host}:{self.port} cannot be reached: {error.strerror}") from error
            finally:
                if not answered:  # a REQ socket without its reply takes no further request, and must be made anew
                    self.close()
            if time.monotonic() >= deadline:
                what = f"no answer from {self.host}:{self.port} within {self.timeout_ms} ms"
                raise ServiceError(what, fix="see that the server runs and is ready, or wait longer with timeout_ms")
            if not again:
                what = f"{self.host}:{self.port} closed the connection instead of answering"
                known = "a server that ended or restarted, or one that the request is too large for"
                raise ServiceError(what, known=known)
            again = False

    def _wait(self, deadline: float) -> bool:
        """Whether a reply came; False when the connection broke first, or the time was over."""
        while True:
            ready = dict(self._poller.poll(max(0, math.ceil((deadline - time.monotonic()) * 1e3))))
            if self._socket in ready or not ready:
                return bool(ready)
            if self._broke():
                return False

    def _broke(self) -> bool:
        """Whether the connection has broken since the last look, which takes a request with it.

        Not so before both sides have greeted each other: ZeroMQ tries again by itself, and keeps the request.
        """
        broke = False
        while self._monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            event = recv_monitor_message(self._monitor)["event"]
            broke |= self._connected and event == zmq.EVENT_DISCONNECTED
            self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        return broke

    def _connect(self) -> None:
        if self._socket is None:
            self._socket = self._context.socket(zmq.REQ)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS[0])
            self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS[1])
            self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
            self._connected = False
            self._poller = zmq.Poller()
            for each in (self._socket, self._monitor):
                self._poller.register(each, zmq.POLLIN)
            self._socket.connect(f"tcp://{self.host}:{self.port}")
        self._broke()  # between calls that takes nothing with it


class RemotePolicy(ABC):
    """What a client of either protocol does for a policy that is asked over the network.

    Args:
        resize: Bring camera frames of another size to the one that the server's policy was trained with, before they
            are sent. Needs a server of this package, which tells the size.
        timings: Ask with every observation where its time goes, and keep the last reply's in `last_timings_ms`.
            Needs a server of this package.
        served_by: Ask with every observation what answers it, and keep that in `last_served_by`. Likewise.
        embodiment_tag: Of the robot that asks, where a server drives several kinds; None for its first.

    Attributes:
        last_timings_ms: Stage -> milliseconds; empty before the first answer.
        last_served_by: ``submodules``: name -> backend and precision; ``commit``. Empty before the first answer.
    """

    def __init__(self, *, resize: bool, timings: bool, served_by: bool, embodiment_tag: str | None):
        self._resize, self._tag = resize, embodiment_tag
        self._more: Message = {name: True for name, on in (("timings", timings), ("served_by", served_by)) if on}
        if embodiment_tag is not None:
            self._more["embodiment_tag"] = embodiment_tag
        self._sizes: dict[str, tuple[int, int]] | None = None
        self.last_timings_ms: dict[str, float] = {}
        self.last_served_by: Message = {}

    def get_action(
        self, observation: Observation, *, seed: int | None = None, noise: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The policy's action chunk for an observation, as `Gr00tPolicy.get_action`.

        Args:
            seed: Of the starting noise, 0 to 2^63 - 1: with the same one a server of this package gives an observation
                the same action every time. It is drawn afresh when None.
            noise: [T, action_dim], or [B, T, action_dim] for a batch: the starting noise itself, likewise.
        Raises: ServiceError when there is no answer in time, or the answer is an error: ``Server error: <text>``.
        """
        if self._resize:
            if self._sizes is None:
                self._sizes = frame_sizes(robot_of(self.status(), self._tag))
            observation = fit_frames(observation, self._sizes)
        chosen = {name: value for name, value in (("seed", seed), ("noise", noise)) if value is not None}
        action = self._act(dict(observation), {**self._more, **chosen})
        self.last_timings_ms = action.pop("timings", {}) if "timings" in self._more else {}
        self.last_served_by = action.pop("served_by", {}) if "served_by" in self._more else {}
        return action

    @abstractmethod
    def status(self) -> Message:
        """What a server of this package says of itself: what runs each submodule, versions, counts, timings."""

    @abstractmethod
    def reload(self, checkpoint: str) -> Message:
        """Begin to change the weights of a server of this package to those of a checkpoint, a folder on its machine.

        Returns: At once, the ``number`` of this change among them; ``status()["reload"]`` tells what becomes of it.
        Raises: ServiceError where the server does not allow that.
        """

    @abstractmethod
    def _act(self, observation: Message, more: Message) -> Message:
        """Send an observation, with `more` beside it in the request."""


class RobotInferenceClient(RemotePolicy, BaseInferenceClient):
    """A policy that is asked over ZeroMQ, with the methods of a local one."""

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
        BaseInferenceClient.__init__(self, host, port, timeout_ms, api_token)
        RemotePolicy.__init__(self, resize=resize, timings=timings, served_by=served_by, embodiment_tag=embodiment_tag)

    def get_modality_config(self) -> dict[str, ModalityConfig]:
        """Which keys an observation needs and an action has, by modality: video, state, action, language."""
        if self._tag is not None and "modality_config" in (about := robot_of(self.status(), self._tag)):
            return modalities_of(about)
        return self.call_endpoint("get_modality_config", requires_input=False)

    def status(self) -> Message:
        return self.call_endpoint("status", requires_input=False)

    def reload(self, checkpoint: str) -> Message:
        return self.call_endpoint("reload", {"checkpoint": checkpoint})

    def _act(self, observation: Message, more: Message) -> Message:
        return self._call({"endpoint": "get_action", "data": observation, **more})


def new_client_id() -> str:
    """What a client calls itself: nobody else can guess it, and so take its place in the queue."""
    return secrets.token_hex(16)


def robot_of(status: Message, tag: str | None) -> Message:
    """What a server's status says of one kind of robot. Raises: ServiceError for a kind that it does not serve."""
    kinds = status.get("robots", {})
    if tag is None or (tag == status.get("embodiment_tag") and tag not in kinds):
        return status
    if tag not in kinds:
        known = ", ".join(kinds) or str(status.get("embodiment_tag"))
        raise ServiceError(f"embodiment_tag {tag!r} is not served there", known=known, fix="start it with --also")
    return kinds[tag]


def modalities_of(about: Message) -> dict[str, ModalityConfig]:
    """Modality -> keys, from what a status says of a robot."""
    return {name: ModalityConfig(**each) for name, each in about["modality_config"].items()}


def frame_sizes(about: Message) -> dict[str, tuple[int, int]]:
    """Video key -> (height, width) of the frames that a server's policy takes, from its status."""
    observation = about["observation"]
    return {key: tuple(each["shape"][1:3]) for key, each in observation.items() if key.startswith("video.")}
