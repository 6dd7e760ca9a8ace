"""A request of a transport that runs on asyncio, from the event loop to the policy's thread and back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .service import Peer, Service
from .wire import Message


async def answered(
    service: Service, observation: object, message: Mapping[str, Any], peer: Peer
) -> Message | Exception:
    """What `Service.act` says to an observation: a reply, or what is wrong. It has been counted then."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Message | Exception] = loop.create_future()
    try:
        service.act(observation, message, peer, lambda reply: _deliver(loop, done, reply))
    except Exception as error:  # whatever a request sets off is told to its sender
        service.count("get_action", error, client=peer.name)
        return error
    return await done


def _deliver(loop: asyncio.AbstractEventLoop, done: asyncio.Future[Message | Exception], reply: Any) -> None:
    def deliver() -> None:
        if not done.done():
            done.set_result(reply)

    with suppress(RuntimeError):  # the loop has ended, and its clients with it
        loop.call_soon_threadsafe(deliver)
