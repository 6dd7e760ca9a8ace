"""Each submodule on its recorded inputs, by backend. `make bench` runs it; pytest-benchmark keeps and compares runs."""

from __future__ import annotations

import pytest
import torch

from gr00t_trt.backends import get_backend
from gr00t_trt.compile.submodules import target
from gr00t_trt.plans.schema import SUBMODULES, BuildOptions


@pytest.mark.parametrize("backend", ["eager", "inductor", "torch_tensorrt"])
@pytest.mark.parametrize("name", SUBMODULES)
def test_submodule(benchmark, subject, name: str, backend: str) -> None:
    chosen = get_backend(backend)
    found = chosen.availability()
    if not found.installed:
        pytest.skip(found.reason)
    if backend == "torch_tensorrt" and not torch.cuda.is_available():
        pytest.skip("TensorRT engines need a GPU to run")
    made = target(subject.policy.model, name, subject.recording, subject.dims)
    built = chosen.build(made, BuildOptions(), engine_dir=None, progress=lambda _: None)
    benchmark.group = name
    benchmark.extra_info.update(backend=backend, dtype=str(made.inputs[0].dtype), build_s=built.build_s)
    with torch.no_grad():
        benchmark(subject.timed(lambda: built.call(*made.inputs)))
