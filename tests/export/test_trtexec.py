"""The shell commands that build engines: what they say of shapes and options, and that a shell reads them back."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from torch import nn

from gr00t_trt.backends.onnx.interface import interface
from gr00t_trt.export.trtexec import command
from gr00t_trt.model.targets import DimRange, Target
from gr00t_trt.plans.schema import BuildOptions

BATCH, LENGTH = DimRange("batch", 1, 2, 8), DimRange("length", 80, 296, 600)


def words(ranges: tuple, **options: object) -> list[str]:
    inputs = (torch.zeros(2, 296, 4).half(), torch.zeros(2, 296, dtype=torch.int64))
    target = Target("small", nn.Linear(4, 4).half(), inputs, ("hidden", "mask"), ranges)
    line = command(
        interface(target), BuildOptions(**options), onnx_dir=Path("my onnx"), engine_dir=Path("gr00t_engine")
    )
    return shlex.split(line)


def test_shapes_come_from_the_ranges_and_the_recorded_request() -> None:
    assert words(2 * ({0: BATCH, 1: LENGTH},)) == [
        "trtexec",
        "--onnx=my onnx/small_fp16.onnx",
        "--saveEngine=gr00t_engine/small_fp16.engine",
        "--stronglyTyped",
        "--minShapes=hidden:1x80x4,mask:1x80",
        "--optShapes=hidden:2x296x4,mask:2x296",
        "--maxShapes=hidden:8x600x4,mask:8x600",
        "--useCudaGraph",
        "--separateProfileRun",
        "--noDataTransfers",
    ]


def test_static_inputs_need_no_shapes() -> None:
    still = DimRange("length", 296, 296, 296)
    assert not [word for word in words(2 * ({1: still},)) if "Shapes" in word]
    assert "--minShapes=mask:1x296" in words(({}, {0: BATCH}))


def test_build_options_become_flags() -> None:
    given = words(2 * ({0: BATCH},), disable_tf32=True, optimization_level=5, use_fp32_acc=True)
    assert {"--noTF32", "--builderOptimizationLevel=5"} <= set(given)
    assert not [word for word in given if "fp16" in word and word.startswith("--fp16")]
