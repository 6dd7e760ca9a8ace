"""An ONNX file -> the bytes of an engine, with TensorRT 10 or newer or with TensorRT-RTX. Nothing is run here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...engines.manifest import Binding
from ...engines.serialized_engine import SerializedEngine, dtype_name, input_bindings
from ...errors import BackendError, PlanError
from ...plans.schema import BuildOptions
from ..compute_capabilities import refuse_other_gpus, set_compute_capabilities
from ..onnx.export import OnnxFile
from ..torch_tensorrt.settings import TENSORRT, TENSORRT_RTX


@dataclass(frozen=True)
class TensorRT:
    """An installed TensorRT.

    Attributes:
        module: `tensorrt` or `tensorrt_rtx`.
        flavour: ``tensorrt`` or ``tensorrt_rtx``.
        log: The logger that its objects are made with; `errors` holds what it was told, oldest first. TensorRT does
            not keep it alive: whoever holds an engine holds this.
    """

    module: Any
    flavour: str
    log: Any

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    def reason(self) -> str:
        """TensorRT's own first words on a failure; the log is empty afterwards."""
        first = self.log.errors[0] if self.log.errors else "no reason given"
        self.log.errors.clear()
        return first


def load_tensorrt(*, verbose: bool = False) -> TensorRT:
    """The TensorRT of this machine: on a GPU TensorRT proper where both are installed, without one TensorRT-RTX.

    Args:
        verbose: Print all that it logs on stderr.
    Raises: ImportError when neither can be imported.
    """
    names = (TENSORRT, TENSORRT_RTX) if torch.cuda.is_available() else (TENSORRT_RTX, TENSORRT)
    failure: ImportError | None = None
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError as e:
            failure = failure or e
            continue
        # Torch-TensorRT binds the name `tensorrt` to either flavour.
        flavour = TENSORRT_RTX if module.__name__ == TENSORRT_RTX else TENSORRT
        return TensorRT(module, flavour, _make_log(module, verbose))
    raise failure or ImportError("no TensorRT")


def _make_log(tensorrt: Any, verbose: bool) -> Any:
    class Log(tensorrt.ILogger):
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= tensorrt.ILogger.Severity.ERROR:
                self.errors.append(message)
            if verbose:
                print(f"[TensorRT] {message}", file=sys.stderr)

    return Log()


def build_engine(trt: TensorRT, file: OnnxFile, options: BuildOptions) -> SerializedEngine:
    """Build the engine of an ONNX file; without a GPU too, with TensorRT-RTX.

    Bindings come in the order of the file's inputs. The network is strongly typed: its dtypes are the file's, and
    `use_fp32_acc` is in the file as casts.
    Raises: PlanError for an option that this TensorRT cannot honour; BackendError when the file is not understood or
        no engine comes out, with TensorRT's own words.
    """
    tensorrt = trt.module
    refuse_options(trt, options)
    trt.log.errors.clear()
    builder = tensorrt.Builder(trt.log)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, trt.log)
    # From the path: weights in a file of their own are looked for beside it.
    if not parser.parse_from_file(str(file.path)):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise BackendError(f"TensorRT's parser refused {file.path.name}: {'; '.join(reasons) or 'no reason given'}")
    seen = file.interface.target
    bindings = input_bindings(seen)
    inputs = [bindings[network.get_input(i).name] for i in range(network.num_inputs)]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for each in inputs:
        profile.set_shape(each.name, each.minimum, each.optimum, each.maximum)
    config.add_optimization_profile(profile)
    _configure(trt, config, options)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"TensorRT built no engine: {trt.reason()}")
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return SerializedEngine(
        plan=bytes(plan),
        inputs=tuple(inputs),
        outputs=tuple(_output(tensorrt, each) for each in outputs),
        arguments=tuple(seen.argument_names.index(each.name) for each in inputs),
        layers=network.num_layers,
    )


def refuse_options(trt: TensorRT, options: BuildOptions) -> None:
    """Raises: PlanError for options that this TensorRT cannot honour: weak typing, and GPUs it cannot build for."""
    if not options.use_explicit_typing:
        raise PlanError(
            "use_explicit_typing: false is impossible with the tensorrt backend, whose networks are strongly typed",
            fix="drop the setting: the plan's precision casts the submodule instead",
        )
    if trt.flavour == TENSORRT:
        refuse_other_gpus(options)


def _configure(trt: TensorRT, config: Any, options: BuildOptions) -> None:
    tensorrt = trt.module
    if options.disable_tf32:
        config.clear_flag(tensorrt.BuilderFlag.TF32)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    # Layer names and types in full, so that an inspector can tell what became of the network.
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    if options.compute_capabilities:
        set_compute_capabilities(tensorrt, config, options.compute_capabilities)
    elif trt.flavour == TENSORRT_RTX and torch.cuda.is_available():
        # Left alone, it builds for a portable set that has no Hopper, Orin or Thor in it.
        config.num_compute_capabilities = 1
        config.set_compute_capability(tensorrt.ComputeCapability.CURRENT, 0)


def torch_dtype(tensorrt: Any, kind: Any) -> torch.dtype | None:
    """PyTorch's name of a TensorRT dtype; None for one that no submodule's input or output has."""
    names = {
        "FLOAT": torch.float32,
        "HALF": torch.float16,
        "BF16": torch.bfloat16,
        "INT64": torch.int64,
        "INT32": torch.int32,
        "BOOL": torch.bool,
    }
    return next((dtype for name, dtype in names.items() if kind == getattr(tensorrt.DataType, name, None)), None)


def _output(tensorrt: Any, tensor: Any) -> Binding:
    shape = tuple(tensor.shape)
    dtype = torch_dtype(tensorrt, tensor.dtype)
    return Binding(tensor.name, dtype_name(dtype) if dtype else str(tensor.dtype), shape, shape, shape)


def describe_engine(tensorrt: Any, engine: Any) -> tuple[tuple[Binding, ...], tuple[Binding, ...]]:
    """Inputs and outputs of a deserialised engine, in its first profile's shapes; -1 marks an output's dynamic axis."""
    inputs, outputs = [], []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name)
        dtype = torch_dtype(tensorrt, kind)
        label = dtype_name(dtype) if dtype else str(kind).rpartition(".")[2].lower()
        if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT:
            shapes: Sequence[Any] = engine.get_tensor_profile_shape(name, 0)
            inputs.append(Binding(name, label, *(tuple(shape) for shape in shapes)))
        else:
            shape = tuple(engine.get_tensor_shape(name))
            outputs.append(Binding(name, label, shape, shape, shape))
    return tuple(inputs), tuple(outputs)
