"""A model that was loaded in half precision, computing with the weights that its checkpoint stores, in fp32.

Half the memory is gained by never holding a model in fp32, and a reference still needs what fp32 makes of a request.
Inside `as_stored` every half-precision weight is replaced, one product at a time, by its stored value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

HALF = (torch.float16, torch.bfloat16)
_aten = torch.ops.aten
_SELECTING = {_aten.embedding.default, _aten.index.Tensor, _aten.index_select.default}
"""They copy values and compute nothing: of a table only the chosen rows have to become fp32."""

Read = Callable[[], Tensor]
"""The stored value of a parameter, of its shape, on the host, in the dtype it is stored in."""

_ROUNDED: WeakKeyDictionary[nn.Module, Mapping[str, Read]] = WeakKeyDictionary()
_SOURCES: WeakKeyDictionary[nn.Module, tuple[Path, ...] | str] = WeakKeyDictionary()


def remember(model: nn.Module, rounded: Mapping[str, Read], source: Iterable[Path] | str = ()) -> None:
    """Keep how to read the stored values of the parameters that `model` holds rounded, by name.

    Args:
        source: All files that its weights come from, or what code makes them from their names and shapes alone.
    """
    _ROUNDED[model] = rounded
    _SOURCES[model] = source if isinstance(source, str) else tuple(sorted(set(source)))


def source_of(model: nn.Module) -> tuple[Path, ...] | str:
    """The files that the weights were loaded from, or what made them; empty for weights from elsewhere."""
    return _SOURCES.get(model, ())


def forget(model: nn.Module) -> None:
    """Let go of them: another model's tensors stay in memory for as long as they can be read here."""
    _ROUNDED.pop(model, None)


@contextmanager
def as_stored(model: nn.Module) -> Iterator[None]:
    """Inside, requests to `model`, or to one that shares its weights, compute in fp32 with the stored weights.

    The weights stay where and as they are; at most one of them is held in fp32 at a time. The results are those of the
    same model loaded in fp32, to the bit. A half-precision weight that no checkpoint is known of counts as it is.
    Nothing inside may keep what it computed from weights for a request outside.
    """
    if all(parameter.dtype not in HALF for parameter in model.parameters()):
        yield
        return
    with _AsStored(model) as mode, _Convolutions(mode.full):
        yield


@dataclass(frozen=True)
class _Segment:
    """A rounded parameter within the memory that it may share with others; offset and size in elements."""

    offset: int
    size: int
    read: Read


class _AsStored(TorchDispatchMode):
    def __init__(self, model: nn.Module):
        super().__init__()
        rounded = _ROUNDED.get(model, {})
        self._segments: dict[int, list[_Segment]] = {}
        for name, parameter in model.named_parameters():
            if name in rounded and parameter.dtype in HALF:
                segment = _Segment(int(parameter.storage_offset()), parameter.numel(), rounded[name])
                self._segments.setdefault(parameter.untyped_storage().data_ptr(), []).append(segment)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.is_view:
            return func(*args, **kwargs)
        if func in _SELECTING and not self._rounded(args[0]):
            result = func(*args, **kwargs)
            return result.float() if result.dtype in HALF else result
        written = {
            argument.name
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        }
        names = [argument.name for argument in func._schema.arguments]
        args = tuple(arg if name in written else self.full(arg) for name, arg in zip(names, args, strict=False))
        kwargs = {name: arg if name in written else self.full(arg) for name, arg in kwargs.items()}
        if kwargs.get("dtype") in HALF:
            kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)

    def full(self, value: Any) -> Any:
        """With every tensor in it of half precision in fp32."""
        return tree_map_only(Tensor, self._exact, value)

    def _rounded(self, table: Tensor) -> bool:
        return table.dtype in HALF and table.untyped_storage().data_ptr() in self._segments

    def _exact(self, held: Tensor) -> Tensor:
        """The stored values of a weight or of a view of one, strided alike; anything else as it is."""
        if held.dtype not in HALF:
            return held
        if not self._rounded(held):
            return held.float()
        whole = self._whole(held)
        return whole.as_strided(held.size(), held.stride(), held.storage_offset())

    def _whole(self, held: Tensor) -> Tensor:
        """All memory behind a weight, in fp32 and with the stored values in their places."""
        storage = held.untyped_storage()
        segments = self._segments[storage.data_ptr()]
        elements = storage.nbytes() // held.element_size()
        first = segments[0]
        if (first.offset, first.size) == (0, elements):
            return first.read().flatten().to(held.device, torch.float32)
        whole = held.as_strided((elements,), (1,), 0).float()
        for segment in segments:
            whole[segment.offset : segment.offset + segment.size] = segment.read().flatten()
        return whole


class _Convolutions(TorchFunctionMode):
    """Convolutions compare the dtypes of their arguments before they come to any dispatch mode."""

    def __init__(self, full: Callable[[Any], Any]):
        super().__init__()
        self._full = full

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            args, kwargs = self._full(args), self._full(kwargs)
        return func(*args, **(kwargs or {}))
