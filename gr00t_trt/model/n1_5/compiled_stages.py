"""Refuses compiled stages, which may hold copies of the weights, once the model's weights have changed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ...errors import PlanError
from ..targets import Stage
from .weight_watch import WeightWatch


class CompiledStages:
    """Watches a model's weights from the first request on in which a stage is not the model's own module.

    A stage is taken to be made from the weights of its first request. Nothing is watched where every stage is the
    model's own: those read the weights themselves.
    """

    def __init__(self) -> None:
        self._watch: WeightWatch | None = None
        # By identity, and not kept alive: stages come and go while variants are compared, and own engines.
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._stale: dict[int, weakref.ref[Any]] = {}
        self._paused = self._used = False

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledStages:
        """A copied model's stages are seen by it for the first time."""
        return CompiledStages()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stages are only wrapped inside, to see their calls."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def mark(self) -> None:
        """Called before anything of a request is given to the device: `after` waits for nothing that comes later."""
        if self._watch is not None:
            self._watch.mark()

    def before(self, model: nn.Module, stages: Mapping[str, Stage], own: Mapping[str, Stage]) -> None:
        """Called while a request is answered. Raises: PlanError for stages whose weights were changed since."""
        compiled = {name: stage for name, stage in stages.items() if stage is not own.get(name)}
        self._used = bool(compiled) and not self._paused
        if self._paused or not (compiled or self._watch):
            return
        known = all(_among(self._seen, stage) for stage in compiled.values())
        self._renew(model, known)
        self._refuse(compiled)
        if not known:
            self._seen = _alive(self._seen) | {id(stage): weakref.ref(stage) for stage in compiled.values()}

    def after(self, stages: Mapping[str, Stage], own: Mapping[str, Stage]) -> None:
        """Called before a request's result is given out. Raises: as `before`."""
        if self._used and self._watch is not None and not self._watch.values_intact():
            self._changed()
            self._watch = None
            self._refuse({name: stage for name, stage in stages.items() if stage is not own.get(name)})

    def _renew(self, model: nn.Module, known: bool) -> None:
        """A watch of the weights as they are, unless they are as before and every stage is known."""
        watch = self._watch
        if watch is not None and known and watch.tree.modules_intact() and watch.tensors_intact():
            return
        self._watch = WeightWatch(model) if self._used else None
        if watch is not None and (self._watch is None or not self._watch.equals(watch)):
            self._changed()

    def _changed(self) -> None:
        """Whatever was seen until now is of other weights."""
        self._stale, self._seen = _alive(self._stale | self._seen), {}

    def _refuse(self, compiled: Mapping[str, Stage]) -> None:
        stale = [name for name, stage in compiled.items() if _among(self._stale, stage)]
        if stale:
            raise PlanError(
                f"the model's weights were changed after {', '.join(sorted(stale))} had been compiled",
                known="a compiled stage may hold the weights that it was compiled from",
                fix="compile the model again, or call reset_stages() to go on in PyTorch",
            )


def _among(known: Mapping[int, weakref.ref[Any]], stage: object) -> bool:
    return id(stage) in known and known[id(stage)]() is stage


def _alive(known: Mapping[int, weakref.ref[Any]]) -> dict[int, weakref.ref[Any]]:
    return {number: stage for number, stage in known.items() if stage() is not None}
