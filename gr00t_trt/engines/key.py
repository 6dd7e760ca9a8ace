"""The cache key of an engine: everything that it depends on, known before anything is exported.

Two targets with equal keys would be built into engines that do the same. Where that cannot be told, because a module
holds something that has no plain description, there is no key and the engine is built.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BackendError
from ..model.targets import ArgumentRange, Target
from ..model.weight_writer import tensor_bytes
from .manifest import this_platform
from .serialized_engine import dtype_name

Key = Mapping[str, Any]
"""What an engine depends on, in values that JSON has a form for."""

SCHEMA = 1

_PACKAGE = Path(__file__).resolve().parents[1]
_SOURCES = ("model", "engines", "quantize", "backends")
"""What of this package decides the graph of a submodule and what a compiler is told about it."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def engine_key(
    target: Target, *, route: str, settings: Mapping[str, object], gpu: str, versions: Mapping[str, str]
) -> Key:
    """The key of the engine that a route would build of a target; plain values, equal after a trip through JSON.

    Args:
        route: Name of the backend.
        settings: Everything that the compiler is told, without paths, in values that JSON has a form for.
        gpu: See `target_gpu`.
        versions: Of torch, the compiler and its library.
    Raises: BackendError naming the part of the module that keeps its engine from being recognised.
    """
    key = {
        "schema": SCHEMA,
        "route": route,
        "submodule": target.name,
        "weights_sha256": weights_hash(target.module),
        "module_sha256": module_hash(target.module),
        "source_sha256": source_hash(),
        "arguments": [
            _argument(*each) for each in zip(target.argument_names, target.inputs, target.ranges, strict=True)
        ],
        "settings": dict(settings),
        "gpu": gpu,
        "versions": dict(versions),
        "platform": this_platform(),
    }
    return dict(json.loads(json.dumps(key)))


def digest(key: Key) -> str:
    """SHA-256 of a key, independent of the order of its entries."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def stem_of(key: Key) -> str:
    """What the files of an engine of this key are called, without their endings."""
    return f"{key.get('submodule')}-{digest(key)[:32]}"


def target_gpu(compute_capabilities: Sequence[str], device: torch.device) -> str:
    """What an engine is built for: this GPU by name, the plan's compute capabilities, or ``portable``."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)} ({major}.{minor})"
    return ", ".join(compute_capabilities) or "portable"


@functools.lru_cache(maxsize=1)
def source_hash() -> str:
    """SHA-256 over what the files of this package do that an engine depends on; comments and docstrings do nothing."""
    files = sorted(file for name in _SOURCES for file in (_PACKAGE / name).rglob("*.py"))
    names = (file.relative_to(_PACKAGE).as_posix() for file in files)
    text = "".join(f"{name} {code_hash(file.read_text('utf-8'))}\n" for name, file in zip(names, files, strict=True))
    return hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=256)  # the submodules share their files, and parsing one takes milliseconds
def code_hash(source: str) -> str:
    """SHA-256 of Python source without its comments, docstrings and layout. Raises: SyntaxError for other text."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)] or [ast.Pass()]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over a module's state: name, dtype, shape and bytes of each entry, in the state's order."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def module_hash(module: nn.Module) -> str:
    """SHA-256 over a module's structure: classes and their source, plain attributes, and what its state leaves out.

    Weights are not part of it, see `weights_hash`; buffers that are not saved, and tensors or modules in plain
    attributes, are.
    Raises: BackendError for a hook, or an attribute of a kind that has no plain description.
    """
    found = _Description()
    structure = found.module(module, type(module).__name__, ())
    text = json.dumps([structure, sorted(found.sources.items())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class _Description:
    """Plain values that say all that a module's forward may depend on; `sources`: module name -> hash of its file."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}

    def module(self, module: nn.Module, at: str, above: tuple[int, ...]) -> Any:
        if id(module) in above:
            return {"above": above.index(id(module))}
        above = (*above, id(module))
        for hook in _HOOKS:
            if getattr(module, hook):
                raise _no_key(at, "a forward hook")
        own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
        unsaved = {name: module._buffers[name] for name in sorted(module._non_persistent_buffers_set)}
        return {
            "class": self.type(type(module), at),
            "training": module.training,
            "attributes": {name: self.value(value, f"{at}.{name}", above) for name, value in sorted(own.items())},
            "unsaved": {name: self.value(value, f"{at}.{name}", above) for name, value in unsaved.items()},
            "parts": [
                [name, self.module(child, f"{at}.{name}", above)]
                for name, child in module._modules.items()
                if child is not None
            ],
        }

    def value(self, value: Any, at: str, above: tuple[int, ...]) -> Any:
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, (float, complex, bytes, torch.dtype, torch.device, torch.Size)):
            return repr(value)
        if isinstance(value, enum.Enum):
            return [self.type(type(value), at), value.name]
        if isinstance(value, torch.Tensor):
            return [str(value.dtype), list(value.shape), hashlib.sha256(tensor_bytes(value)).hexdigest()]
        if isinstance(value, nn.Module):
            return [self.module(value, at, above), weights_hash(value)]
        if isinstance(value, (list, tuple)):
            return [type(value).__name__, *(self.value(item, f"{at}[{i}]", above) for i, item in enumerate(value))]
        if isinstance(value, (set, frozenset)):
            return sorted(json.dumps(self.value(item, at, above)) for item in value)
        if isinstance(value, Mapping):
            return [[self.value(k, at, above), self.value(v, f"{at}[{k!r}]", above)] for k, v in value.items()]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return [self.type(type(value), at), self.value(fields, at, above)]
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return ["partial", *(self.value(part, at, above) for part in parts)]
        if isinstance(value, type):
            return self.type(value, at)
        if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
            return self.function(value, at)
        raise _no_key(at, f"a {type(value).__name__}")

    def function(self, function: types.FunctionType | types.BuiltinFunctionType, at: str) -> str:
        # A closure's result depends on more than its source, and what is bound to an object on that object.
        bound = getattr(function, "__self__", None)
        if getattr(function, "__closure__", None) or not isinstance(bound, (types.NoneType, types.ModuleType, type)):
            raise _no_key(at, f"the function {function.__qualname__}, which holds values of its own")
        self._source(function.__module__, at)
        return f"{function.__module__}.{function.__qualname__}"

    def type(self, cls: type, at: str) -> str:
        for base in cls.__mro__:
            self._source(base.__module__, at)
        return f"{cls.__module__}.{cls.__qualname__}"

    def _source(self, name: str | None, at: str) -> None:
        # What Python and PyTorch bring is told apart by their versions.
        if name is None or name in self.sources or name.split(".")[0] in ("torch", *sys.stdlib_module_names):
            return
        try:
            source = inspect.getsource(sys.modules[name])
        except (OSError, TypeError, KeyError):
            raise _no_key(at, f"code of {name}, whose source is not at hand,") from None
        self.sources[name] = code_hash(source)


def _no_key(at: str, what: str) -> BackendError:
    return BackendError(f"{at}: {what} has no description by which an engine could be recognised")


def _argument(name: str, tensor: torch.Tensor, ranges: ArgumentRange) -> Mapping[str, object]:
    return {
        "name": name,
        "dtype": dtype_name(tensor.dtype),
        "shape": list(tensor.shape),
        "ranges": {str(axis): [dim.name, dim.minimum, dim.optimum, dim.maximum] for axis, dim in ranges.items()},
    }
