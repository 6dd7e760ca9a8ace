"""Nothing that makes Torch-TensorRT work without a GPU outlives its scope."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from small_submodules import needs_no_gpu, needs_torch_tensorrt

from gr00t_trt.backends.cpu_only import cpu_only, replaced
from gr00t_trt.backends.trt_log import compiler_log

pytestmark = [needs_torch_tensorrt, needs_no_gpu]


def patched_things():
    import tensorrt
    import torch_tensorrt

    names = ("get_device_capability", "current_device", "get_device_properties", "mem_get_info", "is_available")
    return [
        *(getattr(torch.cuda, name) for name in names),
        os.path.isfile,
        getattr(torch._C, "_CudaDeviceProperties", None),
        torch_tensorrt.Device.to,
        tensorrt.Runtime,
        warnings.showwarning,
    ]


@pytest.fixture(scope="module", autouse=True)
def _imported():
    with compiler_log(debug=False), cpu_only():
        pass


def same(before, after):
    return all(a is b for a, b in zip(before, after, strict=True))


def test_everything_is_put_back():
    before = patched_things()
    with cpu_only():
        assert torch.cuda.current_device() == 0
        assert not torch.cuda.is_available()
        assert not same(before, patched_things())
    assert same(before, patched_things())


def test_everything_is_put_back_after_an_exception():
    before = patched_things()
    with pytest.raises(KeyboardInterrupt), cpu_only():
        raise KeyboardInterrupt
    assert same(before, patched_things())


def test_scopes_nest():
    before = patched_things()
    with cpu_only() as outer:
        inside = patched_things()
        with cpu_only() as inner:
            assert inner is outer
            assert same(inside, patched_things())
        assert same(inside, patched_things())
    assert same(before, patched_things())


def test_a_second_thread_waits():
    order = []

    def other():
        with cpu_only():
            order.append("other")

    with cpu_only():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(timeout=0.2)
        order.append("first")
    thread.join(timeout=5)
    assert order == ["first", "other"]


def test_the_first_scope_imports_and_leaves_nothing_behind():
    code = """
import logging, os, sys, warnings, torch
def state():
    cuda = hasattr(torch._C, "_CudaDeviceProperties")
    return os.path.isfile, cuda, warnings.showwarning, logging.getLogger().handlers[:]
before = state()
from gr00t_trt.backends.cpu_only import cpu_only
from gr00t_trt.backends.trt_log import compiler_log
assert "torch_tensorrt" not in sys.modules
with compiler_log(debug=False), cpu_only() as module:
    assert module.__name__ == "torch_tensorrt"
assert before == state(), (before, state())
assert not torch.cuda.is_available()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    # A CUDA build of torch loads Torch-TensorRT's C++ library, which says this past Python.
    said = [line for line in out.stderr.splitlines() if "Unable to read CUDA capable devices" not in line]
    assert said == []


def test_replaced_removes_what_was_absent():
    class Owner:
        present = 1

    with replaced(Owner, "present", 2), replaced(Owner, "absent", 3):
        assert (Owner.present, Owner.absent) == (2, 3)
    assert Owner.present == 1
    assert not hasattr(Owner, "absent")


class TestLog:
    def test_is_quiet_and_restored(self, capsys):
        root, compiler = logging.getLogger(), logging.getLogger("torch_tensorrt")
        before = (root.level, root.handlers[:], compiler.level, compiler.handlers[:], compiler.propagate)
        filters = warnings.filters[:]
        with compiler_log(debug=False) as log:
            warnings.warn("noise", stacklevel=1)
            logging.getLogger("torch_tensorrt.dynamo").warning("noise")
            logging.getLogger("torch_tensorrt [TensorRT Conversion Context]").error("IBuilder: Error Code 1: why\nmore")
            logging.getLogger("torch_tensorrt.dynamo").error("wrapped")
            logging.debug("noise")
        assert (root.level, root.handlers, compiler.level, compiler.handlers, compiler.propagate) == before
        assert warnings.filters == filters
        assert capsys.readouterr() == ("", "")
        assert log.first_error() == "IBuilder: Error Code 1: why"

    def test_speaks_when_debugging(self, caplog):
        with compiler_log(debug=True), caplog.at_level(logging.INFO, "torch_tensorrt"):
            logging.getLogger("torch_tensorrt.dynamo").info("partitioning")
        assert "partitioning" in caplog.text
