"""The client mode of the command line: one example observation sent to a server, and what comes back. No torch."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

import numpy as np

from ..common.interface import Observation
from ..errors import ServiceError
from .client import RobotInferenceClient
from .http_client import HttpInferenceClient
from .wire import KeyForm, Message

GR1: Mapping[str, KeyForm] = {
    "video.ego_view": {"dtype": "uint8", "shape": [1, 256, 256, 3]},
    "state.left_arm": {"dtype": "float64", "shape": [1, 7]},
    "state.right_arm": {"dtype": "float64", "shape": [1, 7]},
    "state.left_hand": {"dtype": "float64", "shape": [1, 6]},
    "state.right_hand": {"dtype": "float64", "shape": [1, 6]},
    "state.waist": {"dtype": "float64", "shape": [1, 3]},
    "annotation.human.action.task_description": {"dtype": "str", "shape": [1]},
}
"""What NVIDIA's client sends; for a server that does not tell what it wants."""

INSTRUCTION = "do your thing!"


def ask(args: argparse.Namespace) -> None:
    """Print the server's keys, then each key of its answer with its shape, and how long the answer took.

    Raises: ServiceError when no server answers, or it refuses.
    """
    with connected(args) as client:
        try:
            wanted: Mapping[str, KeyForm] = client.status()["observation"]
        except ServiceError as error:
            if "Unknown endpoint" not in str(error) and "Not Found" not in str(error):
                raise
            wanted = GR1
        if isinstance(client, RobotInferenceClient):
            for modality, config in client.get_modality_config().items():
                print(f"{modality}: {', '.join(config.modality_keys)}")
        observation = example(wanted)
        began = time.perf_counter()
        action = client.get_action(observation)
        took_ms = (time.perf_counter() - began) * 1e3
    for key, value in action.items():
        print(f"{key}: {np.shape(value)}")
    print(f"round trip: {took_ms:.1f} ms")


def connected(args: argparse.Namespace) -> RobotInferenceClient | HttpInferenceClient:
    """A client of the server that the flags name."""
    kind = HttpInferenceClient if args.http_server else RobotInferenceClient
    return kind(args.host, args.port, api_token=args.api_token)


def example(wanted: Mapping[str, KeyForm]) -> Observation:
    """Random images and states of the given dtypes and shapes, and an instruction."""
    random = np.random.default_rng()
    out: Message = {}
    for key, each in wanted.items():
        if each["dtype"] == "str":
            out[key] = [INSTRUCTION] * each["shape"][0]
        elif each["dtype"] == "uint8":
            out[key] = random.integers(0, 256, each["shape"], dtype=np.uint8)
        else:
            out[key] = random.random(each["shape"]).astype(each["dtype"])
    return out
