"""The compute capabilities, such as ``8.9``, that TensorRT-RTX builds engines for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..common.install import install_extra
from ..errors import BackendError, PlanError, unknown
from ..model.targets import Target
from ..plans.checks import COMPUTE_CAPABILITIES
from ..plans.precisions import PRECISIONS, PrecisionRow
from ..plans.schema import BuildOptions
from ..quantize.linear import formats_in
from .cpu_only import replaced

PORTABLE_TARGETS = "8.0, 8.6, 8.9, 12.0 and newer (not for Orin, Hopper or Thor)"
"""What TensorRT-RTX builds for on a machine without a GPU when it is asked for nothing else."""
OLDEST_PORTABLE = "8.0"


def set_compute_capabilities(tensorrt: Any, config: Any, names: Sequence[str]) -> None:
    """Tell a builder's configuration for which GPUs to build, such as ``("8.9", "12.0")``.

    Args:
        tensorrt: The module of TensorRT or TensorRT-RTX that the configuration belongs to.
    Raises: PlanError for one that it does not know, listing those it does; BackendError for one that it refuses.
    """
    members = resolve_compute_capabilities(tensorrt, names)
    config.num_compute_capabilities = len(members)
    for index, member in enumerate(members):
        if not config.set_compute_capability(member, index):
            raise BackendError(f"compute_capabilities: TensorRT-RTX refused {names[index]}")


def resolve_compute_capabilities(tensorrt: Any, names: Sequence[str]) -> list[Any]:
    """``("8.9", "12.0")`` -> the constants of a TensorRT-RTX module.

    Raises: PlanError for one that it does not know, listing those it does.
    """
    if not hasattr(tensorrt, "ComputeCapability"):
        raise PlanError("compute_capabilities: the installed TensorRT cannot build for other GPUs")
    members = tensorrt.ComputeCapability.__members__
    known = {f"{m[1]}.{m[2]}": members[name] for name in members if (m := re.fullmatch(r"SM(\d+)(\d)", name))}
    for name in names:
        if name not in known:
            raise unknown(PlanError, "compute_capabilities", name, known)
    return [known[name] for name in names]


def refuse_other_gpus(options: BuildOptions) -> None:
    """Raises: PlanError for options that ask TensorRT proper for engines of certain GPUs."""
    if options.compute_capabilities:
        raise PlanError(
            f"compute_capabilities: {list(options.compute_capabilities)} asked of TensorRT, which builds for the GPU "
            "that it runs on",
            fix=f"install TensorRT-RTX to build for other GPUs ({install_extra('rtx')}), or leave it empty",
        )


def check_this_gpu(capabilities: Sequence[str]) -> None:
    """Refuse an engine that is to run here and is asked for other GPUs only; an empty list asks for none.

    Raises: PlanError.
    """
    here = "{}.{}".format(*torch.cuda.get_device_capability())
    if capabilities and here not in capabilities:
        raise PlanError(
            f"compute_capabilities: {list(capabilities)} leaves out this GPU, {here}, where the engine is to run",
            fix=f"add {here}, or build for the others on a machine without a GPU",
        )


def refuse_older_gpu(target: Target) -> None:
    """Refuse to run quantised products on a GPU that cannot compute them; where there is none nothing is refused.

    Raises: BackendError.
    """
    if not torch.cuda.is_available():
        return
    here = "{}.{}".format(*torch.cuda.get_device_capability())
    for row in _rows(target):
        if not row.computes_on(here):
            raise BackendError(
                f"{target.name}: this GPU, of compute capability {here}, cannot multiply in {row.name}",
                known=f"{row.least_capability} and newer",
                fix="use int8 from 8.0 on, or bf16; --backend eager computes its accuracy anywhere",
            )


def for_formats(target: Target, options: BuildOptions, *, ahead_of_time: bool) -> BuildOptions:
    """The options with engines of quantised products kept to the GPUs that can compute them.

    TensorRT-RTX itself builds such an engine for its portable set without a word, and older GPUs of that set then fail
    to load it.

    Args:
        ahead_of_time: The engine is built here and runs elsewhere.
    Raises: PlanError for a GPU of the list, and BackendError for this one, whose products are of an older kind.
    """
    refuse_older_gpu(target)
    for row in _rows(target):
        for name in options.compute_capabilities:
            if not row.computes_on(name):
                what = f"compute_capabilities: {target.name} is in {row.name}, in which {name} cannot multiply"
                raise PlanError(what, known=f"{row.least_capability} and newer", fix=f"leave {name} out")
        narrower = ahead_of_time and not options.compute_capabilities and not row.computes_on(OLDEST_PORTABLE)
        if narrower and not torch.cuda.is_available():
            able = tuple(name for name in COMPUTE_CAPABILITIES if row.computes_on(name))
            options = replace(options, compute_capabilities=able)
    return options


def _rows(target: Target) -> list[PrecisionRow]:
    return [PRECISIONS[form] for form in formats_in(target.module)]


@contextmanager
def compute_capabilities(names: Sequence[str]) -> Iterator[None]:
    """Builds inside the scope are for these GPUs. Torch-TensorRT makes the builder's configuration out of reach."""
    if not names:
        yield
        return
    import tensorrt
    from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

    resolve_compute_capabilities(tensorrt, names)  # before anything is built
    populate = inspect.getattr_static(TRTInterpreter, "_populate_trt_builder_config")

    def with_targets(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = populate(self, *args, **kwargs)
        set_compute_capabilities(tensorrt, config, names)
        return config

    with replaced(TRTInterpreter, "_populate_trt_builder_config", with_targets):
        yield
