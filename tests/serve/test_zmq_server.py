"""The ZeroMQ protocol over a real socket, spoken by hand as an existing client speaks it."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hostile
import msgpack
import numpy as np
import pytest
import zmq
from puppet import Served, at_once, observation, serving, wait_until

from gr00t_trt.errors import ServiceError
from gr00t_trt.serve.service import UNAUTHORISED
from gr00t_trt.serve.zmq_server import ZmqServer

PING = bytes.fromhex("81a8656e64706f696e74a470696e67")


@contextmanager
def requester(port: int, kind: int = zmq.REQ) -> Iterator[zmq.Socket]:
    with zmq.Context() as context, context.socket(kind) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.RCVTIMEO, 5000)
        client.connect(f"tcp://127.0.0.1:{port}")
        yield client


def npy(array: np.ndarray) -> dict[str, Any]:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": stream.getvalue()}


def by_hand(value: float, text: str = "go", **further: Any) -> bytes:
    """A request made with msgpack and numpy alone."""
    data = {
        "video.webcam": npy(np.zeros((1, 8, 8, 3), np.uint8)),
        "state.arm": npy(np.full((1, 5), value)),
        "annotation.task": [text],
    }
    return msgpack.packb({"endpoint": "get_action", "data": data, **further})


def asked(client: zmq.Socket, request: bytes) -> Any:
    client.send(request)
    return msgpack.unpackb(client.recv())


def array_of(marked: dict[str, Any]) -> np.ndarray:
    return np.load(io.BytesIO(marked["as_npy"]), allow_pickle=False)


def test_ping_byte_for_byte(served: Served) -> None:
    with requester(served.port) as client:
        client.send(PING)
        reply = client.recv()
    expected = "82 a6 737461747573 a2 6f6b a7 6d657373616765 b1"
    assert reply == bytes.fromhex(expected) + b"Server is running"


def test_an_action_as_an_existing_client_reads_it(served: Served) -> None:
    with requester(served.port) as client:
        reply = asked(client, by_hand(2.5))
    assert list(reply) == ["action.arm"]
    assert list(reply["action.arm"]) == ["__ndarray_class__", "as_npy"]
    np.testing.assert_array_equal(array_of(reply["action.arm"]), np.full((16, 5), 2.5, np.float32))


def test_a_missing_endpoint_means_get_action_and_use_position_ids_is_dropped(served: Served) -> None:
    request = msgpack.unpackb(by_hand(1.0))
    del request["endpoint"]
    request["data"]["use_position_ids"] = True
    with requester(served.port) as client:
        assert list(asked(client, msgpack.packb(request))) == ["action.arm"]
    assert set(served.puppet.calls[-1]) == {"video.webcam", "state.arm", "annotation.task"}


def test_timings_come_when_asked_for(served: Served) -> None:
    with requester(served.port) as client:
        timings = asked(client, by_hand(1.0, timings=True))["timings"]
    assert list(timings) == ["queue", "think", "between stages", "total"]


def test_modality_config_and_status(served: Served) -> None:
    with requester(served.port) as client:
        config = asked(client, msgpack.packb({"endpoint": "get_modality_config"}))
        assert config["state"] == {
            "__ModalityConfig_class__": True,
            "as_json": '{"delta_indices":[0],"modality_keys":["state.arm"]}',
        }
        status = asked(client, msgpack.packb({"endpoint": "status"}))
    assert status["submodules"] == {"dit_model": "eager fp32"}
    assert status["requests"]["get_modality_config"]["ok"] >= 1
    assert {"uptime_s", "queue_length", "in_flight", "timings_ms", "observation"} <= set(status)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"endpoint": "fly"}, "Unknown endpoint: fly"),
        ({"endpoint": ["fly"]}, "Unknown endpoint: ['fly']"),
        ([1, 2], "the request is a list, not a map"),
        ({1: 2}, "not a message: ValueError: int is not allowed for map key when strict_map_key=True"),
        ({"endpoint": "get_action"}, "told|state.arm"),
        ({"data": 3}, "the observation is a int, not a map"),
    ],
)
def test_every_failure_is_a_map_with_the_error_alone(served: Served, request_: Any, text: str) -> None:
    with requester(served.port) as client:
        reply = asked(client, msgpack.packb(request_))
        assert list(reply) == ["error"]
        assert any(part in reply["error"] for part in text.split("|"))
        assert asked(client, PING)["status"] == "ok"


def test_a_failing_policy_is_told_and_survived(served: Served) -> None:
    with requester(served.port) as client:
        assert asked(client, by_hand(1.0, "fail")) == {"error": "told to fail"}
        assert list(asked(client, by_hand(1.0))) == ["action.arm"]


def test_eight_clients_at_once_each_get_their_own_answer(served: Served) -> None:
    wrong: list[Any] = []

    def drive(number: int) -> None:
        with requester(served.port) as client:
            for step in range(25):
                value = number * 1000.0 + step
                reply = asked(client, by_hand(value))
                if "error" in reply or not (array_of(reply["action.arm"]) == value).all():
                    wrong.append((value, reply))

    at_once(drive, 8)
    assert not wrong


def test_no_message_is_forgotten_that_comes_while_an_answer_leaves(served: Served) -> None:
    # Sending takes note of messages that came, and so might keep the listening thread from ever hearing of them.
    with requester(served.port, zmq.DEALER) as client:
        for number in range(300):
            client.send_multipart([b"", by_hand(float(number))])
            client.send_multipart([b"", PING])
            replies = [client.recv_multipart()[1] for _ in range(2)]
            assert sum(b"Server is running" in reply for reply in replies) == 1


def test_a_token_is_checked_before_anything_else() -> None:
    with serving(api_token="sesame") as served, requester(served.port) as client:
        for wrong in ({}, {"api_token": "Sesame"}, {"api_token": 7}, {"api_token": None}, {"api_token": "sesame\0"}):
            assert asked(client, msgpack.packb({"endpoint": "fly", **wrong})) == {"error": UNAUTHORISED}
        assert asked(client, msgpack.packb({"endpoint": "ping", "api_token": "sesame"}))["status"] == "ok"


def test_kill_replies_nil_and_ends_the_server() -> None:
    with serving() as served, requester(served.port) as client:
        client.send(msgpack.packb({"endpoint": "kill"}))
        assert client.recv() == b"\xc0"
        wait_until(lambda: served.worker._stopping)


def test_kill_is_refused_to_strangers() -> None:
    with serving(may_kill=False) as served, requester(served.port) as client:
        assert "kill is refused" in asked(client, msgpack.packb({"endpoint": "kill"}))["error"]
        assert list(asked(client, by_hand(1.0))) == ["action.arm"]


def test_a_message_over_the_limit_ends_its_connection_alone(served: Served) -> None:
    with requester(served.port) as other, requester(served.port) as client:
        assert asked(other, PING)["status"] == "ok"
        client.setsockopt(zmq.RCVTIMEO, 300)
        client.send(by_hand(1.0, padding=b"x" * 2**21))
        with pytest.raises(zmq.Again):
            client.recv()
        assert asked(other, PING)["status"] == "ok"


def test_frames_without_an_envelope_and_too_many_frames(served: Served) -> None:
    with requester(served.port, zmq.DEALER) as client:
        client.send(PING)  # from no REQ socket: there is nobody to reply to
        client.send_multipart([b"", PING, PING])
        envelope, reply = client.recv_multipart()
        assert envelope == b""
        assert "2 frames" in msgpack.unpackb(reply)["error"]
        client.send_multipart([b"id", b"", PING])  # as a REQ socket with correlation sends it
        assert client.recv_multipart()[:2] == [b"id", b""]


def test_half_open_connections_do_no_harm(served: Served) -> None:
    greeting = b"\xff" + b"\x00" * 8 + b"\x7f\x03"
    sockets = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(30)]
    try:
        for number, each in enumerate(sockets):
            each.sendall((b"", greeting, b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100)[number % 4])
        with requester(served.port) as client:
            assert list(asked(client, by_hand(1.0))) == ["action.arm"]
    finally:
        for each in sockets:
            each.close()


def test_a_flood_delays_others_by_its_turn_only() -> None:
    with serving(max_queue=8) as served, requester(served.port, zmq.DEALER) as flood, requester(served.port) as client:
        served.puppet.go.clear()
        for number in range(50):
            flood.send_multipart([b"", by_hand(float(number))])
        refused = [msgpack.unpackb(flood.recv_multipart()[1]) for _ in range(40)]
        assert all("wait already" in reply["error"] for reply in refused)
        client.send(by_hand(-1.0))
        wait_until(lambda: len(served.worker._queue._waiting) == 2)
        served.puppet.go.set()
        assert (array_of(msgpack.unpackb(client.recv())["action.arm"]) == -1.0).all()
        # The flood's running request, one of its waiting ones, then this one.
        states = [float(call["state.arm"][0, 0]) for call in served.puppet.calls]
        assert states.index(-1.0) <= 2


def test_hostile_messages_never_reach_a_good_client(served: Served) -> None:
    with requester(served.port, zmq.DEALER) as enemy, requester(served.port) as client:
        for number, (kind, raw) in enumerate(hostile.messages(130, observation(), seed=3)):
            enemy.send_multipart([b"", raw])
            reply = msgpack.unpackb(enemy.recv_multipart()[1])
            assert list(reply) == ["error"] or kind not in hostile.REFUSED, (kind, reply)
            if number % 10 == 0:
                assert (array_of(asked(client, by_hand(float(number)))["action.arm"]) == number).all()


def test_an_address_in_use_is_told(served: Served) -> None:
    with pytest.raises(ServiceError, match=f"cannot listen on 127.0.0.1:{served.port}: Address already in use"):
        ZmqServer(served.service, "127.0.0.1", served.port, max_request_bytes=1000)
