"""The trtexec commands that build the engines of exported ONNX files, as NVIDIA's build script would."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..backends.onnx.interface import Interface
from ..engines.serialized_engine import input_bindings, shapes
from ..plans.schema import BuildOptions


def command(form: Interface, options: BuildOptions, *, onnx_dir: Path, engine_dir: Path) -> str:
    """One shell command: the ONNX file of a target below `onnx_dir` in, its engine in `engine_dir` out.

    The network is strongly typed, so that no precision flag is needed: the file's dtypes, and the casts that
    `use_fp32_acc` puts into it, are the engine's. The recorded request is the optimum of the shapes.
    """
    files = f"--onnx={onnx_dir / form.onnx_file}", f"--saveEngine={engine_dir / form.engine_file}"
    parts = ["trtexec", *files, "--stronglyTyped"]
    # trtexec wants shapes for networks with a dynamic axis only, and then for each input that has one.
    dynamic = [each for each in input_bindings(form.target).values() if each.minimum != each.maximum]
    if dynamic:
        parts.append(f"--minShapes={shapes(dynamic, 'minimum')}")
        parts.append(f"--optShapes={shapes(dynamic, 'optimum')}")
        parts.append(f"--maxShapes={shapes(dynamic, 'maximum')}")
    if options.disable_tf32:
        parts.append("--noTF32")
    if options.optimization_level is not None:
        parts.append(f"--builderOptimizationLevel={options.optimization_level}")
    return shlex.join([*parts, "--useCudaGraph", "--separateProfileRun", "--noDataTransfers"])
