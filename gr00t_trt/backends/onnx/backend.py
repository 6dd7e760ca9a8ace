"""ONNX Runtime: a submodule exported to ONNX and run by whichever providers are installed.

Inputs and outputs stay where PyTorch has them, on the CPU as on a GPU: ONNX Runtime reads and writes the tensors'
own memory. On a GPU it works on PyTorch's stream and nobody waits. The GPU path was written from the documentation
and has not run yet.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.install import install_extra
from ...engines.serialized_engine import input_bindings, shapes
from ...errors import BackendError
from ...model.targets import Target
from ...plans.schema import BuildOptions
from ...quantize.linear import formats_in
from ..base import Availability, BuildContext, Built, Capturable
from ..compute_capabilities import refuse_older_gpu
from ..guarded import GuardedModule, blamed, check_form
from . import export as onnx_export
from .export import OnnxFile
from .interface import floating_dtype
from .widened import widen

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
_BFLOAT16 = 16
_ELEMENTS: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: _BFLOAT16,  # onnx.TensorProto.BFLOAT16: NumPy has no such type
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.bool: np.bool_,
}
_TORCH = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(int64)": torch.int64,
}
WIDENED = "ONNX Runtime has no bf16 on the CPU: between the quantised products it computes in fp32."
_WARNING, _ERROR = 2, 3  # ONNX Runtime's log levels


class OnnxRuntimeBackend:
    """Export, session, check: the submodule as any ONNX user would run it."""

    name = "onnxruntime"
    # Its CUDA provider allocates from an arena of its own while it runs.
    capturable: Capturable = "none"

    def availability(self) -> Availability:
        return self.availability_on("cuda" if torch.cuda.is_available() else "cpu")

    def availability_on(self, device_type: str) -> Availability:
        """As `availability`, for models on a device of this type: on the CPU any ONNX Runtime will do."""
        versions = {"torch": str(torch.__version__)}
        for name in (*_DISTRIBUTIONS, "onnx", "onnxscript"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name.replace("-", "_")] = importlib.metadata.version(name)
        if importlib.util.find_spec("onnxruntime") is None:
            return Availability(False, f"onnxruntime is not installed: {install_extra('onnx')}", versions)
        if reason := onnx_export.missing():
            return Availability(False, reason, versions)
        import onnxruntime

        if device_type != "cuda":
            return Availability(True, "", versions, ("ONNX Runtime runs on the CPU, as the model does.",))
        if CUDA not in onnxruntime.get_available_providers():
            reason = "this ONNX Runtime has no CUDA provider: pip install onnxruntime-gpu in place of onnxruntime"
            return Availability(False, reason, versions)
        return Availability(True, "", versions)

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        """Export the submodule, open a session on it and run it once at the recorded size.

        Args:
            context: Its `engine_dir` is where the ONNX file stays; None removes it once the session has read it.
        Raises: BackendError naming the submodule and the phase, or what ONNX Runtime has no kernels for.
        """
        available = self.availability_on(target.inputs[0].device.type)
        if not available.installed:
            raise BackendError(f"{target.name}: {available.reason}", fix="or choose --backend eager")
        refuse_older_gpu(target)
        if reason := cannot_run(target):
            raise BackendError(f"{target.name}: {reason}", fix="use fp16 or fp32, or another backend, for it")
        start = time.perf_counter()
        phases: dict[str, float] = {}
        with onnx_export.folder_for(context.engine_dir) as folder:
            file = onnx_export.export(target, folder, options, context.progress)
            phases["export"] = time.perf_counter() - start
            context.progress("opening an ONNX Runtime session")
            before = time.perf_counter()
            call = open_session(target, file, options)
            phases["session"] = time.perf_counter() - before
        before = time.perf_counter()
        check_form(target, call)
        phases["warm"] = time.perf_counter() - before
        kept = f"ONNX file: {file.path}" if context.engine_dir else "The ONNX file was not kept: no --engine_dir."
        return Built(
            call=GuardedModule(target, call),
            runs=True,
            build_s=time.perf_counter() - start,
            phases_s=phases,
            settings={"opset": onnx_export.OPSET, "providers": call.session.get_providers()},
            layers_before=file.nodes,
            notes=(*call.notes, kept),
        )


def cannot_run(target: Target) -> str:
    """Why ONNX Runtime cannot run a target where its inputs are, or an empty string."""
    if _bf16_on_cpu(target) and not formats_in(target.module):
        return "ONNX Runtime has no bf16 matrix product for the CPU"
    return ""


def _bf16_on_cpu(target: Target) -> bool:
    return floating_dtype(target) == torch.bfloat16 and target.inputs[0].device.type == "cpu"


def open_session(target: Target, file: OnnxFile, options: BuildOptions) -> OnnxCall:
    """A session on an exported file, on the device of the target's inputs. Raises: BackendError."""
    import onnxruntime

    device = target.inputs[0].device
    if device.type == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds the CUDA libraries that PyTorch brought
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _WARNING if options.debug else _ERROR
    settings.intra_op_num_threads = torch.get_num_threads()
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    wanted, notes = providers(file, options, device, stream)
    left_out: list[str] = []
    if "fp8" in formats_in(target.module):
        # It takes e4m3 for 8-bit integers where the products are in fp32, and then refuses its own graph.
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
        # It would make fp32 weights of them, four times as large, for as long as the session lives.
        left_out = ["ConstantFolding"]
    with blamed(target, "opening the ONNX Runtime session"), _runnable(target, file) as (path, told):
        session = onnxruntime.InferenceSession(str(path), settings, providers=wanted, disabled_optimizers=left_out)
    missing = [name for name, _ in wanted if name not in session.get_providers()]
    notes += [*told, *(f"{name} is listed by ONNX Runtime and could not be loaded." for name in missing)]
    if CUDA in missing:
        raise BackendError(
            f"{target.name}: ONNX Runtime's CUDA provider could not be loaded, and would run on the CPU in silence",
            fix="install the CUDA and cuDNN releases that this onnxruntime-gpu was built for",
        )
    return OnnxCall(target, file, session, stream, tuple(notes))


@contextmanager
def _runnable(target: Target, file: OnnxFile) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """What a session reads: the file, or for the scope its fp32 twin; and what a user should know of it."""
    if not _bf16_on_cpu(target):
        yield file.path, ()
        return
    with onnx_export.folder_for(None) as folder:
        yield widen(file, folder).path, (WIDENED,)


def providers(
    file: OnnxFile, options: BuildOptions, device: torch.device, stream: Any
) -> tuple[list[tuple[str, dict[str, str]]], list[str]]:
    """The providers to ask for, best first, with their options; and what a user should know of the choice."""
    import onnxruntime

    present = onnxruntime.get_available_providers()
    if device.type != "cuda":
        return [(CPU, {})], []
    own = {"device_id": str(device.index or 0), "user_compute_stream": str(stream.cuda_stream)}
    out = [(CUDA, {**own, "use_tf32": "0" if options.disable_tf32 else "1"}), (CPU, {})]
    dtype = floating_dtype(file.interface.target)
    if TENSORRT not in present:
        return out, []
    if dtype == torch.bfloat16 or options.use_fp32_acc:
        # It types the network weakly: it may drop the casts that keep the sums in fp32, and knows no bf16.
        return out, [f"{TENSORRT} was left out: it would not keep the precision that was asked for."]
    bindings = input_bindings(file.interface.target).values()
    tensorrt = {
        **own,
        "trt_fp16_enable": str(dtype == torch.float16),
        "trt_profile_min_shapes": shapes(bindings, "minimum"),
        "trt_profile_opt_shapes": shapes(bindings, "optimum"),
        "trt_profile_max_shapes": shapes(bindings, "maximum"),
    }
    if options.optimization_level is not None:
        tensorrt["trt_builder_optimization_level"] = str(options.optimization_level)
    return [(TENSORRT, tensorrt), *out], []


class OnnxCall:
    """Runs a session on the memory of PyTorch's tensors; same arguments and result as the eager module.

    Not for several threads at once: the tensors of one call are bound until it is over.

    Attributes:
        session: The `onnxruntime.InferenceSession`.
        notes: What a user should know of the providers.
    """

    def __init__(self, target: Target, file: OnnxFile, session: Any, stream: Any, notes: tuple[str, ...]):
        import onnxruntime

        device = target.inputs[0].device
        self.session, self.notes = session, notes
        self._form, self._device, self._stream = file.interface, device, stream
        self._binding = session.io_binding()
        self._used = {value.name for value in session.get_inputs()}
        (output,) = session.get_outputs()
        self._output = output.name
        self._dims = [dim if isinstance(dim, int) else str(dim) for dim in output.shape]
        self._dtype = _TORCH[output.type]
        self._wide = _bf16_on_cpu(target)
        known = {dim.name for ranges in file.interface.target.ranges for dim in ranges.values()}
        strange = [dim for dim in self._dims if isinstance(dim, str) and dim not in known]
        if strange:
            raise BackendError(f"{target.name}: the exported output has sizes {strange} that no input tells")
        self._run_options = onnxruntime.RunOptions()
        if device.type == "cuda":
            # The result is used on the same stream: nobody has to wait for it here.
            self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def __call__(self, *args: torch.Tensor) -> torch.Tensor:
        device, index = self._device.type, self._device.index or 0
        binding, sizes, held = self._binding, {}, []
        names, ranges = self._form.target.argument_names, self._form.target.ranges
        for name, tensor, axes in zip(names, self._form.arguments(args), ranges, strict=True):
            sizes.update({dim.name: tensor.shape[axis] for axis, dim in axes.items()})
            if name in self._used:
                tensor = tensor.detach().contiguous()
                if self._wide and tensor.dtype == torch.bfloat16:
                    tensor = tensor.float()
                held.append(tensor)  # what was copied to be contiguous must outlive the run
                element = _ELEMENTS[tensor.dtype]
                binding.bind_input(name, device, index, element, list(tensor.shape), tensor.data_ptr())
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in self._dims]
        result = torch.empty(shape, dtype=self._dtype, device=self._device)
        binding.bind_output(self._output, device, index, _ELEMENTS[self._dtype], shape, result.data_ptr())
        with self._on_the_sessions_stream():
            self.session.run_with_iobinding(binding, self._run_options)
        return result.to(torch.bfloat16) if self._wide else result

    @contextmanager
    def _on_the_sessions_stream(self) -> Iterator[None]:
        # A session belongs to the stream that it was opened on; on another one, the two wait for each other's
        # work on the GPU and the host for neither.
        current = torch.cuda.current_stream(self._device) if self._stream is not None else None
        if current is None or current == self._stream:
            yield
            return
        self._stream.wait_stream(current)
        yield
        current.wait_stream(self._stream)
