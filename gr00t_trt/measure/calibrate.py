"""A calibration of a measuring run's own requests, for forms of the model in 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import __version__
from ..common.progress import Steps
from ..data import LeRobotDataset
from ..plans.schema import ARCHITECTURE
from ..policy.policy import ModelPolicy
from ..policy.source import Source
from ..quantize.calibration import Calibration, Frame, Provenance, dataset_id
from ..quantize.observe import Asked, observe
from .reference import exact
from .workloads import Requests

REQUESTS = {"cuda": 7, "cpu": 2}
"""How many are enough for a time and a first accuracy; `gr00t-trt calibrate` takes as many as it is told."""


@torch.no_grad()
def take_calibration(
    policy: ModelPolicy,
    requests: Requests,
    source: Source,
    dataset: LeRobotDataset,
    frames: Sequence[Frame],
    steps: Steps,
) -> Calibration:
    """Ranges of every layer's input in eager fp32, over the rows that are not measured; over the only one where it is.

    Args:
        policy: In fp32, or as it was loaded; nothing compiled, nothing cast.
        frames: What the requests' observations are, in their order; the first is measured.
    """
    plain = policy.model
    model = plain.architecture.restructured(plain, tuple(ARCHITECTURE.optimizations))
    own = list(frames)[1 : 1 + REQUESTS[plain.device.type]] or list(frames)
    steps.step(f"calibrating on {len(own)} requests, eager fp32")
    asked: list[Asked] = [(frame, *requests.alone(frames.index(frame))) for frame in own]
    with exact(plain):
        layers = observe(model, asked, hashed=False)
    _, tag = source.data()
    provenance = Provenance(
        str(source.model_path),
        dataset.path.name,
        dataset_id(dataset),
        tuple(own),
        requests.seed,
        policy.denoising_steps,
        str(source.data_config),
        str(tag),
        __version__,
    )
    return Calibration(provenance, layers)
