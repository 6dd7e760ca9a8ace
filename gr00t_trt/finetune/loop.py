"""Optimizer steps: batches in, weights changed, the loss of each step out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DatasetError, Gr00tError
from . import draws
from .loader import Batch
from .loss import ACTION, ACTION_MASK, NEEDED, FlowMatching, left_padding
from .optimizer import clip, learning_rate, set_learning_rate
from .ranks import Ranks
from .watch import Taken

NAMED = 8
"""Samples that a message names at most."""
HELD_OUT_SEED = -1
"""Of the noise and the times of held-out samples, the same in every run, so that runs can be compared."""


@dataclass(frozen=True)
class How:
    """Hyperparameters of a training.

    Attributes:
        steps: In all; they decide the learning rates.
        peak: Highest learning rate. warmup_ratio: Of `steps`.
        seed: Of every draw.
        bf16: Autocast to it.
        whole_padding: See `FlowMatching.forward`; as the original.
    """

    steps: int
    peak: float
    warmup_ratio: float
    seed: int
    bf16: bool
    whole_padding: bool = False


class Trainer:
    """Takes steps with a model, one process's share of each.

    Args:
        objective: On the process's device.
        trained: Name -> parameter.
    """

    def __init__(
        self,
        objective: FlowMatching,
        trained: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        how: How,
        ranks: Ranks,
    ):
        self.objective, self.trained, self.optimizer, self.how, self.ranks = objective, trained, optimizer, how, ranks
        self._parallel: Any = ranks.parallel(objective)

    def step(self, number: int, micros: Sequence[Batch], *, entries: int, samples: int, began: float) -> Taken:
        """One optimizer step; every process has to take it.

        Args:
            number: From 0.
            micros: This process's batches, whose gradients are added up.
            entries, samples: Of all processes: entries of actions that count, samples.
            began: `time.monotonic` of the end of the step before.
        Raises: Gr00tError for a loss or gradients that are not finite, naming the samples; nothing is changed then.
        """
        if not entries:
            raise self._refused(number, "no action of the batch counts", micros, [])
        rate = learning_rate(number, peak=self.how.peak, steps=self.how.steps, warmup_ratio=self.how.warmup_ratio)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        errors = []
        for place, batch in enumerate(micros):
            with self._exchange(last=place == len(micros) - 1):
                own = self._errors(number, place, batch)
                # The exchange averages over the processes; the loss is the mean over the entries of all of them.
                (own.sum() * (self.ranks.count / entries)).backward()
            errors.append(own.detach())
        norm = clip(self.trained)
        added, norm_before = torch.stack((torch.cat(errors).sum().double(), norm.double())).tolist()
        loss = self.ranks.sum(added)[0] / entries
        if not (math.isfinite(loss) and math.isfinite(norm_before)):
            raise self._refused(number, f"loss {loss:g}, gradient norm {norm_before:g}", micros, errors)
        self.optimizer.step()
        waited, now = sum(batch.wait_s for batch in micros), time.monotonic()
        return Taken(number + 1, loss, norm_before, rate, samples, now - began, waited)

    @torch.no_grad()
    def held_out_loss(self, batches: Iterator[Batch]) -> float:
        """The loss over held-out samples without dropout, at the same noise and time for each in every run."""
        model = self.objective.model
        before = {module: module.training for module in model.modules()}
        model.eval()
        added, entries = 0.0, 0
        for batch in batches:
            errors = self._run(self.objective, batch, HELD_OUT_SEED)
            added += float(errors.sum())
            entries += int(batch.inputs[ACTION_MASK].sum())
        for module, mode in before.items():
            module.training = mode
        total, count = self.ranks.sum(added, entries)
        return total / count

    def _errors(self, number: int, place: int, batch: Batch) -> Tensor:
        # Dropout draws from PyTorch's own generators, on whatever device: their state follows from the step.
        torch.manual_seed(draws.generator(self.how.seed, "dropout", number, place, self.ranks.rank).initial_seed())
        return self._run(self._parallel, batch, self.how.seed)

    def _run(self, objective: Any, batch: Batch, seed: int) -> Tensor:
        arguments = self._arguments(batch, seed)
        padding = () if self.how.whole_padding else left_padding(batch.inputs["eagle_attention_mask"])
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.how.bf16):
            errors: Tensor = objective(*arguments, padding)
        return errors

    def _arguments(self, batch: Batch, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        device = self.ranks.device
        inputs = {key: _single(batch.inputs[key]).to(device, non_blocking=True) for key in NEEDED}
        shape = batch.inputs[ACTION].shape[1:]
        noise = torch.stack([draws.noise(seed, position, shape) for position in batch.positions])
        time_ = torch.tensor([draws.flow_time(seed, position) for position in batch.positions])
        return inputs, noise.to(device, non_blocking=True), time_.to(device, non_blocking=True)

    def _exchange(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged once a step, in the backward pass of its last batch."""
        if last or self.ranks.count == 1:
            return nullcontext()
        alone: AbstractContextManager[Any] = self._parallel.no_sync()
        return alone

    def _refused(self, number: int, what: str, micros: Sequence[Batch], errors: Sequence[Tensor]) -> Gr00tError:
        """The error, the same in every process."""
        found = self.ranks.gather(_suspects(micros, errors))
        values, bad = ([name for own in found for name in own[kind]] for kind in (0, 1))
        if values:
            what = f"step {number + 1}: {what}: the batch holds values that are not finite"
            return DatasetError(what, known=_listed(values), fix="repair these frames, or leave their episodes out")
        whole = bad or [name for batch in micros for name in batch.names]
        fix = "lower --learning_rate, go on from the last checkpoint with --resume, or look at these frames"
        return Gr00tError(f"step {number + 1}: {what}: the training has diverged", known=_listed(whole), fix=fix)


def _suspects(micros: Sequence[Batch], errors: Sequence[Tensor]) -> tuple[list[str], list[str]]:
    """Names of samples that hold a value that is not finite, and of those whose error is not."""
    values, bad = [], []
    for batch in micros:
        for tensor in (batch.inputs[key] for key in NEEDED):
            # Several images belong to a sample, as many to each.
            if tensor.is_floating_point() and tensor.numel() % len(batch.names) == 0:
                finite = tensor.reshape(len(batch.names), -1).isfinite().all(1).tolist()
                values += [name for name, good in zip(batch.names, finite, strict=True) if not good]
    for batch, own in zip(micros, errors, strict=False):
        bad += [name for name, good in zip(batch.names, own.isfinite().tolist(), strict=True) if not good]
    return list(dict.fromkeys(values)), bad


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"samples {', '.join(names[:NAMED])}{more}"


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
