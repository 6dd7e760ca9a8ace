"""Notices that a model's weights are no longer what they were, at a cost that a request does not feel.

In every request each weight is asked for its identity, its address and its version: before the request is computed, or,
where it is replayed as a graph, while the device works. That shows a replaced module or parameter,
``load_state_dict(assign=True)``, a cast, a move, ``weight.data = ...`` and every write in place, but not a write in
place through ``weight.data``, which leaves all three as they were. So values are looked at after each request, before
its result is given out: `SAMPLES` places of every weight each time, which shows whatever touches most of a weight, such
as a merged adapter; and the checksum of one part after the other, which shows the rest, a single row or number, once
every part has had its turn (`WeightWatch.turns` requests).
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 32
"""Places of a weight, equally far apart, that are read in every request."""

TURNS = 512
"""Into so many equal parts the values are divided, one of which is summed in each request: a small model's requests are
short, a large one's long."""

PIECE_BYTES = (1 << 16, 1 << 21)
"""Least and most that is summed at a time."""

_VERSION = operator.attrgetter("_version")


class ModuleTree:
    """Which modules and parameters a module has; what the parameters are is another matter."""

    def __init__(self, module: nn.Module):
        parts = list(module.modules())
        children = [(part._modules, name, child) for part in parts for name, child in part._modules.items()]
        self._homes, self._child_names, self._children = _columns(children)
        slots = [(own, name) for part in parts for own in (part._parameters, part._buffers) for name in own]
        self._slots, self._names = _columns([slot for slot in slots if slot[0][slot[1]] is not None])[:2]

    def modules_intact(self) -> bool:
        """Whether every module is still the one that it was."""
        try:
            return all(map(operator.is_, map(operator.getitem, self._homes, self._child_names), self._children))
        except KeyError:
            return False

    def tensors(self) -> list[Tensor] | None:
        """All parameters and buffers; None where one is gone, as after ``register_parametrization``."""
        try:
            return list(map(operator.getitem, self._slots, self._names))
        except KeyError:
            return None


class WeightWatch:
    """The weights of a module as they were when this was made.

    Args:
        module: Whose modules, parameters and buffers are to stay the same objects at the same addresses.
        values: Those of its tensors whose values are to stay the same; all by default. A watched tensor is kept alive
            until the next look.
    """

    def __init__(self, module: nn.Module, values: Iterable[Tensor] | None = None):
        self.tree = ModuleTree(module)
        self._tensors = self.tree.tensors() or []
        chosen = self._tensors if values is None else tuple(values)
        self._counted = tuple(t for t in chosen if not t.is_inference())
        self._addresses, self._versions = self._where(), self._written()
        readable = list({id(t): t for t in chosen if t.numel() and t.device.type != "meta"}.values())
        devices = dict.fromkeys(t.device for t in readable)
        self._values = [_Values([t for t in readable if t.device == device]) for device in devices]

    @property
    def turns(self) -> int:
        """After so many requests every value has been looked at."""
        return max((len(values.groups) for values in self._values), default=0)

    def tensors_intact(self) -> bool:
        """Whether every tensor is the same object at the same address, and none was written in the open."""
        now = self.tree.tensors()
        same = now is not None and all(map(operator.is_, now, self._tensors))
        return same and self._where() == self._addresses and self._written() == self._versions

    def mark(self) -> None:
        """Called before a request: `values_intact` waits for what the device was given until here, and no more."""
        for values in self._values:
            values.mark()

    def values_intact(self) -> bool:
        """Whether the samples are the same, and the pieces whose turn it is."""
        return all(values.intact() for values in self._values)

    def equals(self, earlier: WeightWatch) -> bool:
        """Whether all values are those that another watch saw, wherever they lie now."""
        return [v.checksums for v in self._values] == [v.checksums for v in earlier._values]

    def _where(self) -> tuple[int, ...]:
        return tuple(map(Tensor.data_ptr, self._tensors))

    def _written(self) -> tuple[int, ...]:
        return tuple(map(_VERSION, self._counted))


def _columns(rows: Sequence[tuple[Any, ...]]) -> Any:
    return tuple(zip(*rows, strict=True)) or ((), (), ())


class _Values:
    """What the tensors of one device hold.

    Attributes:
        checksums: Of every piece.
        groups: Numbers of the pieces that are summed together.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self._device = tensors[0].device
        flat = [_flat(t) for t in tensors]
        self._samples = [_sampled(t) for t in flat if t.dtype == torch.int16]
        least, most = PIECE_BYTES
        share = sum(t.numel() * t.element_size() for t in flat) // TURNS
        self._pieces = [piece for t in flat for piece in _words(t).split(min(max(share, least), most) // 8)]
        self._weights = torch.arange(1, 2 * max(map(len, self._pieces)), 2, dtype=torch.int64, device=self._device)
        self._beside = Beside(self._device) if self._device.type == "cuda" else None
        self.groups = self._grouped(max(share, least))
        self._lock, self._turn = threading.Lock(), 0
        with torch.no_grad():
            self._seen = torch.cat((torch.empty(0, dtype=torch.int16, device=self._device), *self._samples)).cpu()
            sums = torch.stack([self._sum(i) for i in range(len(self._pieces))]).cpu()
        self.checksums: list[int] = sums.tolist()
        self._sums = [sums[group[0] : group[-1] + 1].view(torch.int16) for group in self.groups]

    def mark(self) -> None:
        if self._beside is not None:
            self._beside.mark()

    @torch.no_grad()
    def intact(self) -> bool:
        with self._lock:
            turn = self._turn
            now = self._look(turn) if self._beside is None else self._beside.read(lambda: self._look(turn))
            if now is None:
                return True
            self._turn = (turn + 1) % len(self.groups)
            return torch.equal(now, torch.cat((self._seen, self._sums[turn])))

    def _look(self, turn: int) -> Tensor:
        sums = torch.stack([self._sum(piece) for piece in self.groups[turn]])
        return torch.cat((*self._samples, sums.view(torch.int16)))

    def _sum(self, number: int) -> Tensor:
        """Modulo 2^64 and by position: odd factors, so that no single change and no exchange of two goes unseen."""
        piece = self._pieces[number]
        return (piece * self._weights[: len(piece)]).sum(dtype=torch.int64)

    def _grouped(self, limit: int) -> list[list[int]]:
        groups: list[list[int]] = [[]]
        size = 0
        for number, piece in enumerate(self._pieces):
            own = piece.numel() * piece.element_size()
            if groups[-1] and size + own > limit:
                groups.append([])
                size = 0
            groups[-1].append(number)
            size += own
        return groups


class Beside:
    """Reads values on a CUDA device while a request still runs there, on a stream of its own.

    The request is waited for by whoever reads its result; this waits only for what came before `mark`.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream, self._before = torch.cuda.Stream(device), torch.cuda.Event()

    def mark(self) -> None:
        """What `read` reads comes after all that the caller's stream was given until here."""
        if not torch.cuda.is_current_stream_capturing():
            self._before.record(torch.cuda.current_stream(self._device))

    def read(self, look: Callable[[], Tensor]) -> Tensor | None:
        """What `look` gives, in host memory; None where the caller captures its stream, which may not wait."""
        if torch.cuda.is_current_stream_capturing():
            return None
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._stream.wait_event(self._before)
            return look().cpu()


def _flat(t: Tensor) -> Tensor:
    """The memory that a tensor spans, in its order, as 16-bit integers, or as bytes where it has an odd number."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    memory = t.detach().as_strided((span,), (1,))
    even = t.element_size() % 2 == 0
    return memory.view(torch.int16 if even else torch.uint8)


def _sampled(flat: Tensor) -> Tensor:
    """Up to `SAMPLES` places of it. An even step meets the low half of a 32-bit number, where small changes show."""
    step = max(len(flat) // SAMPLES // 2 * 2, 1)
    return flat[::step][:SAMPLES]


def _words(flat: Tensor) -> Tensor:
    """As 64-bit integers where it divides into them."""
    bytes_in, per_word = flat.element_size(), 8 // flat.element_size()
    aligned = len(flat) % per_word == 0 and flat.storage_offset() * bytes_in % 8 == 0 and flat.data_ptr() % 8 == 0
    return flat.view(torch.int64) if aligned else flat
