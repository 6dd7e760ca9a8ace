"""The bytes of a ZeroMQ connection, against frames made by hand and by libzmq's own rules."""

from __future__ import annotations

import random
import struct

import pytest

from gr00t_trt.serve.zmtp import GREETING, READY, Receiver, Violation, frames_of

LIMIT = 1000
REQ = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03REQ\x08Identity\x00\x00\x00\x00"
HANDSHAKE = GREETING + bytes((4, len(REQ))) + REQ


def fed(
    data: bytes, *, step: int = 2**16, receiver: Receiver | None = None
) -> tuple[list[list[bytes]], bytes, Receiver]:
    """The messages and replies that come of bytes, `step` of them at a time."""
    receiver = receiver or Receiver(LIMIT)
    messages, replies = [], b""
    while data:
        into = receiver.buffer()
        part, data = data[: min(step, len(into))], data[min(step, len(into)) :]
        into[: len(part)] = part
        came, reply = receiver.received(len(part))
        messages += [[bytes(frame) for frame in message] for message in came]
        replies += reply
    return messages, replies, receiver


@pytest.mark.parametrize("step", [1, 2, 7, 64, 2**16])
def test_messages_come_out_however_their_bytes_arrive(step: int) -> None:
    sent = [[b"", b"ping"], [b"", b"x" * 255], [b"", b"y" * 256], [b"", b""], [b"id", b"", b"z" * 900], [b"alone"]]
    messages, replies, receiver = fed(HANDSHAKE + b"".join(map(frames_of, sent)), step=step)
    assert messages == sent
    assert replies == READY
    assert (receiver.ready, receiver.begun, receiver.held) == (True, False, 0)


def test_frames_have_the_published_form() -> None:
    assert frames_of([b"", b"ab"]) == b"\x01\x00" + b"\x00\x02ab"
    assert frames_of([b"x" * 256]) == b"\x02" + struct.pack(">Q", 256) + b"x" * 256
    assert len(GREETING) == 64
    assert READY[:8] == b"\x04\x1c\x05READY"


def test_a_ping_gets_its_context_back() -> None:
    _, replies, _ = fed(HANDSHAKE + b"\x04\x0b\x04PING\x00\x0aabcd"[: 2 + 11])
    assert replies == READY + b"\x04\x09\x04PONGabcd"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\xff" + bytes(9),
        GREETING[:10] + b"\x01",  # ZMTP 2
        GREETING[:12] + b"CURVE" + bytes(47),
        GREETING + b"\x00\x04ping",  # before the handshake
        GREETING + b"\x04\x05\x04PING",
        GREETING + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB",
        GREETING + b"\x04\x08\x05READY\xff\xff",
        GREETING + b"\x06" + struct.pack(">Q", 2**20),
        HANDSHAKE + b"\x05\x00",  # a command that has more to come
        HANDSHAKE + b"\x08\x00",
        HANDSHAKE + b"\x02" + struct.pack(">Q", 2**62),
        HANDSHAKE + b"\x02" + struct.pack(">Q", LIMIT + 1),
        HANDSHAKE + frames_of([b"x" * 600, b"y" * 600]),
        HANDSHAKE + b"\x01\x00" * 100,
    ],
)
def test_what_is_not_zmtp_or_too_large_ends_the_connection(data: bytes) -> None:
    for step in (1, 2**16):
        with pytest.raises(Violation):
            fed(data, step=step)


def test_a_message_is_counted_while_it_arrives() -> None:
    _, _, receiver = fed(HANDSHAKE + b"\x01\x64" + b"x" * 100 + b"\x01\x64" + b"y" * 40)
    assert (receiver.held, receiver.begun) == (140, True)
    assert fed(b"y" * 60 + b"\x00\x00", receiver=receiver)[0] == [[b"x" * 100, b"y" * 100, b""]]
    assert receiver.held == 0


def test_no_bytes_do_anything_but_end_the_connection() -> None:
    source = random.Random(0)
    good = HANDSHAKE + frames_of([b"", b"x" * 300]) + b"\x04\x07\x04PING\x00\x0a" + frames_of([b"", b""])
    for _ in range(2000):
        raw = bytearray(good)
        for _ in range(source.choice((1, 2, 10))):
            raw[source.randrange(len(raw))] = source.randrange(256)
        try:
            messages, _, receiver = fed(bytes(raw), step=source.choice((1, 50, 2**16)))
        except Violation:
            continue
        assert receiver.held <= LIMIT
        assert all(sum(map(len, message)) <= LIMIT for message in messages)
