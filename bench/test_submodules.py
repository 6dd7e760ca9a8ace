"""Each submodule on its recorded inputs, by backend. `make bench` runs it; pytest-benchmark keeps and compares runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gr00t_trt.plans.backends import get_backend
from gr00t_trt.plans.schema import SUBMODULES
from gr00t_trt.plans.submodules import resolve_submodule


@pytest.mark.parametrize("backend", ["eager", "inductor", "torch_tensorrt"])
@pytest.mark.parametrize("name", SUBMODULES)
def test_submodule(benchmark, subject, name: str, backend: str) -> None:
    found = get_backend(backend).availability()
    if not found.installed:
        pytest.skip(found.reason)
    if backend == "torch_tensorrt" and not torch.cuda.is_available():
        pytest.skip("TensorRT engines need a GPU to run")
    resolved = replace(resolve_submodule(subject.harness.plan, name), backend=backend)
    part = subject.harness.build(name, resolved, ())
    assert not part.failures
    benchmark.group = name
    benchmark.extra_info.update(backend=backend, precision=resolved.precision, build_s=part.built.build_s)
    with torch.no_grad():
        benchmark(subject.timed(part.call))
