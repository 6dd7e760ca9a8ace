"""TensorRT by way of ONNX: export, parse, build. TensorRT proper and TensorRT-RTX.

On a GPU the engine runs. Without one TensorRT-RTX builds the same engine ahead of time, which is written and not run;
what is called then is the exported graph in ONNX Runtime, so that its numbers can be checked.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

from ...common.install import install, install_extra
from ...model.targets import Target
from ...plans.schema import BuildOptions
from ..base import Availability, BuildContext, Built, Capturable
from ..compute_capabilities import for_formats
from ..engine_job import require
from ..guarded import first_line
from ..onnx import export as onnx_export
from ..torch_tensorrt.settings import TENSORRT_RTX
from . import network as trt_network
from .job import OnnxJob

_INSTALL = f"{install('tensorrt')} on a machine with a GPU, or {install_extra('rtx')} for TensorRT-RTX on any"


class TensorRTBackend:
    """NVIDIA's published route: one engine per submodule, from an ONNX file."""

    name = "tensorrt"
    # Changing an execution context's shapes leaves graphs captured from it undefined.
    capturable: Capturable = "one shape"

    def availability(self) -> Availability:
        versions = {"torch": str(torch.__version__)}
        if reason := onnx_export.missing():
            return Availability(False, reason, versions)
        for name in ("onnx", "onnxscript"):
            versions[name] = importlib.metadata.version(name)
        try:
            trt = trt_network.load_tensorrt()
        except ImportError as e:
            return Availability(False, f"TensorRT cannot be imported ({first_line(e)}): {_INSTALL}", versions)
        versions[trt.flavour] = trt.version
        if torch.cuda.is_available():
            return Availability(True, "", versions)
        if trt.flavour != TENSORRT_RTX:
            return Availability(False, f"TensorRT builds engines on a GPU only: {_INSTALL}", versions)
        caveat = "No CUDA device: engines are built and not run."
        if importlib.util.find_spec("onnxruntime") is None:
            caveat += " Nor is onnxruntime installed, so the exported graphs are not checked."
        return Availability(True, "", versions, (caveat,))

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        """Build one submodule, or take its engine from `options.trt_engine_path` or the cache.

        Raises: BackendError naming the submodule and the phase; PlanError for an option that this TensorRT cannot
            honour; RecordError, before anything is built, when its `engine_dir` cannot be written.
        """
        available = self.availability()
        cuda = require(available, target, options, context.engine_dir)
        trt = trt_network.load_tensorrt(verbose=options.debug)
        options = for_formats(target, options, ahead_of_time=trt.flavour == TENSORRT_RTX)
        trt_network.refuse_options(trt, options)
        return OnnxJob(
            trt=trt, target=target, options=options, cuda=cuda, versions=available.versions, **vars(context)
        ).run()
