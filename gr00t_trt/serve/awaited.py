"""A request of a transport that runs on asyncio: its token, and its way to the policy's thread and back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from .service import Peer, Service
from .wire import Message


def token_in(headers: Mapping[str, str], *schemes: str) -> str | None:
    """What the headers of a request show as its token: by a scheme of ``Authorization``, or as ``X-API-Token``."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() in schemes else headers.get("x-api-token")


async def answered(service: Service, observation: object, message: Message, peer: Peer) -> Message | Exception:
    """What `Service.act` says to an observation: a reply, or what is wrong. It has been counted then."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Message | Exception] = loop.create_future()

    def deliver(reply: Message | Exception) -> None:
        if not done.done():
            done.set_result(reply)

    def finish(reply: Message | Exception) -> None:
        with suppress(RuntimeError):  # the loop has ended, and its clients with it
            loop.call_soon_threadsafe(deliver, reply)

    try:
        service.act(observation, message, peer, finish)
    except Exception as error:  # whatever a request sets off is told to its sender
        service.count("get_action", error, client=peer.name)
        return error
    return await done
