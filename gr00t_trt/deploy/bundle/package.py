"""A submodule compiled ahead of time: torch.compile's compiler writes a package that runs without any compiler.

A package holds machine code and no weights: it computes with the very tensors of the model, which stay where they are.
Only where the compiler folds weights into new constants, as it does for quantised layers, does it hold them itself.
torch.compile specialises on sizes of 1 with a graph of their own; here a second package does.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...backends.base import Availability, BuildContext, Built, Capturable
from ...backends.compute_capabilities import refuse_older_gpu
from ...backends.guarded import GuardedModule, build_failed, check_form
from ...backends.inductor.backend import InductorBackend
from ...errors import BackendError, RecordError
from ...model.targets import ArgumentRange, DimRange, Target, dynamic_shapes, tracing_example
from ...plans.schema import BuildOptions
from .manifest import AGAIN

ALIGNMENT = 16
"""Bytes at which kernels expect their inputs to begin."""

ANY, ONE = "any", "one"
"""The package of every size; and of the recorded request's where that has sizes of 1, which are fixed in it."""

_SAID = {ONE: "sizes of 1", ANY: "all sizes"}
_WEIGHTS, _INSIDE = "weights", "inside"


class PackageBackend:
    """Stands in for the inductor backend: the same kernels, compiled ahead of time into files.

    Args:
        folder: Where the packages are written, `package_path` says under which names.
    """

    name = "inductor"
    capturable: Capturable = "any shape"

    def __init__(self, folder: Path):
        self._folder = folder

    def availability(self) -> Availability:
        return InductorBackend().availability()

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        """Compile, load what was written, and run it once. Raises: BackendError, as `InductorBackend.build`."""
        available = self.availability()
        if not available.installed:
            raise BackendError(f"{target.name}: {available.reason}", fix="or choose --backend eager")
        refuse_older_gpu(target)
        start, phases = time.perf_counter(), {}
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            for form, own in forms(target).items():
                context.progress(f"compiling a package for {_SAID[form]}")
                begun = time.perf_counter()
                _write_package(own, package_path(self._folder, target.name, form))
                phases[form] = time.perf_counter() - begun
            call = load_packages(target, self._folder)
        except Exception as error:
            raise build_failed(target, "compiling into a package", error) from error
        check_form(target, call)
        settings = {"backend": "inductor", "forms": list(phases)}
        return Built(call, True, time.perf_counter() - start, phases_s=phases, settings=settings)


def package_path(folder: Path, name: str, form: str) -> Path:
    return folder / f"{name}.{form}.pt2"


def forms(target: Target) -> dict[str, Target]:
    """The packages of a target by name, the most special first."""
    sizes = _sizes(target.inputs, target.ranges)
    alone = {name for name, (size, dim) in sizes.items() if size == 1 and not dim.static}
    if not alone:
        return {ANY: target}

    def fixed(dim: DimRange) -> DimRange:
        return DimRange(dim.name, 1, 1, 1) if dim.name in alone else dim

    ranges = tuple({axis: fixed(dim) for axis, dim in own.items()} for own in target.ranges)
    return {ONE: replace(target, ranges=ranges), ANY: target}


def _sizes(inputs: Sequence[Tensor], ranges: Sequence[ArgumentRange]) -> dict[str, tuple[int, DimRange]]:
    """Dimension -> its size in these inputs, and its range."""
    pairs = zip(inputs, ranges, strict=True)
    return {dim.name: (tensor.shape[axis], dim) for tensor, own in pairs for axis, dim in own.items()}


def _write_package(target: Target, path: Path) -> None:
    """Compile a target; again, with all constants in the package, where the compiler has folded weights into some."""
    _compile(target, path, inside=False)
    if _unknown(_opened(path, target), _tensors(target.module)):
        _compile(target, path, inside=True)


@torch.no_grad()
def _compile(target: Target, path: Path, *, inside: bool) -> None:
    example = tracing_example([x.detach() for x in target.inputs], target.ranges)
    shapes = dynamic_shapes(target.name, target.ranges)
    configs: dict[str, Any] = {
        "aot_inductor.package_constants_in_so": inside,
        "aot_inductor.metadata": {_WEIGHTS: _INSIDE if inside else "the model's"},
    }
    if example[0].device.type == "cuda":
        from .exported_products import ExportedProducts

        configs["pre_grad_custom_pass"] = ExportedProducts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own deprecations
        program = torch.export.export(target.module, example, dynamic_shapes=shapes, strict=False)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)


def load_packages(target: Target, folder: Path) -> GuardedModule:
    """What was compiled of a target, computing with the weights of its module.

    Args:
        target: Of its inputs only dtypes, shapes and device count; its module is the stage in PyTorch.
    Raises: BackendError where a package cannot be loaded, or wants a weight that the module does not have.
    """
    found = {form: _load(target, package_path(folder, target.name, form)) for form in forms(target)}
    return GuardedModule(target, found[ANY] if ONE not in found else _BySize(target, found[ONE], found[ANY]))


class _BySize:
    """Hands a call to the package of its size."""

    def __init__(self, target: Target, one: _Package, any_size: _Package):
        self._one, self._any = one, any_size
        ranges = forms(target)[ONE].ranges
        dims = [(i, axis, dim) for i, own in enumerate(ranges) for axis, dim in own.items()]
        self._fixed = [(i, axis) for i, axis, dim in dims if dim.static and dim != target.ranges[i][axis]]

    def __call__(self, *args: Tensor) -> Tensor:
        alone = all(args[i].shape[axis] == 1 for i, axis in self._fixed)
        return (self._one if alone else self._any)(*args)


class _Package:
    """Runs one package. Not for several threads.

    Args:
        loader: PyTorch's, which has been given `weights`.
        weights: What it reads, kept alive here: it knows their addresses only.
    """

    def __init__(self, loader: Any, weights: Mapping[str, Tensor]):
        self._loader, self._weights = loader, weights

    def __call__(self, *args: Tensor) -> Tensor:
        (result,) = self._loader.boxed_run([_readable(x) for x in args])
        return result


def _readable(tensor: Tensor) -> Tensor:
    """The tensor as kernels expect it: they do not look at strides, and read many bytes at once."""
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _load(target: Target, path: Path) -> _Package:
    loader = _opened(path, target)
    if loader.get_metadata().get(_WEIGHTS) == _INSIDE:
        return _Package(loader, {})
    known = _tensors(target.module)
    if unknown := _unknown(loader, known):
        raise RecordError(f"{path}: the package wants {unknown[0]}, which the model does not have", fix=AGAIN)
    weights = {name: known[name] for name in loader.get_constant_fqns()}
    # All of them, and the model's own tensors instead of copies.
    loader.load_constants(weights, False, True, True, False)
    return _Package(loader, weights)


def _opened(path: Path, target: Target) -> Any:
    """PyTorch's loader of a package, asked directly: its Python function imports the whole compiler.

    Raises: RecordError.
    """
    device = target.inputs[0].device
    index = -1 if device.index is None else device.index
    try:
        # Single-threaded: the other way asks the GPU for events, which a CUDA graph cannot be captured through.
        return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, index)
    except Exception as error:  # a zip file, a library and the loader's own checks: each fails in its own way
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RecordError(f"{path}: the package cannot be loaded: {why}", fix=AGAIN) from error


def _unknown(loader: Any, known: Mapping[str, Tensor]) -> list[str]:
    return [name for name in loader.get_constant_fqns() if name not in known]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers of a module, one that has several names under each of them."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {name: t.detach() for name, t in (*parameters, *module.named_buffers(remove_duplicate=False))}
