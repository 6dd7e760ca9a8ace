"""What every backend owes its caller."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from small_submodules import cosine, make_target, needs_torch_tensorrt, tensors

from gr00t_trt.backends.base import BuildContext, Built
from gr00t_trt.errors import BackendError, PlanError, ShapeError
from gr00t_trt.model.targets import Target
from gr00t_trt.plans.backends import BACKENDS, get_backend
from gr00t_trt.plans.schema import BuildOptions

COMPILERS = ["inductor", pytest.param("torch_tensorrt", marks=needs_torch_tensorrt), "onnxruntime", "tensorrt"]


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest) -> tuple[str, Target, Built]:
    backend = get_backend(request.param)
    available = backend.availability()
    if not available.installed:
        pytest.skip(available.reason)
    target = make_target("attention")
    said: list[str] = []
    result = backend.build(target, BuildOptions(use_fp32_acc=True), BuildContext(None, said.append))
    assert said or request.param == "eager"
    return request.param, target, result


@pytest.mark.parametrize("built", ["eager", *COMPILERS], indirect=True)
class TestContract:
    @pytest.mark.parametrize(("batch", "length"), [(1, 20), (1, 8), (2, 40), (4, 13)])
    def test_same_result_as_eager_anywhere_in_the_range(self, built, batch, length):
        _, target, result = built
        args = tensors("attention", batch, length)
        with torch.inference_mode():
            expected, actual = target.module(*args), result.call(*args)
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        assert cosine(actual, expected) > 0.99999

    def test_the_mask_matters(self, built):
        _, _, result = built
        hidden, keep = tensors("attention", 2, 20)
        with torch.inference_mode():
            masked, open_ = result.call(hidden, keep), result.call(hidden, torch.ones_like(keep))
        assert not torch.equal(masked, open_)

    def test_arguments_by_name(self, built):
        _, _, result = built
        hidden, keep = tensors("attention", 1, 20)
        with torch.inference_mode():
            assert torch.equal(result.call(hidden, keep=keep), result.call(hidden, keep))

    def test_times_are_told(self, built):
        name, _, result = built
        assert (result.build_s == 0) == (name == "eager")
        assert sum(result.phases_s.values()) <= result.build_s


@pytest.mark.parametrize("built", COMPILERS, indirect=True)
class TestGuard:
    @pytest.mark.parametrize(("batch", "length"), [(5, 20), (1, 7), (1, 41)])
    def test_outside_the_range(self, built, batch, length):
        _, _, result = built
        with pytest.raises(ShapeError, match=r"attention: hidden has (batch|length).*\n.*built for"):
            result.call(*tensors("attention", batch, length))

    def test_another_dtype(self, built):
        _, _, result = built
        with pytest.raises(ShapeError, match=r"hidden has dtype torch.float32\n.*float16"):
            result.call(*tensors("attention", 1, 20, torch.float32))

    def test_another_static_size(self, built):
        _, _, result = built
        hidden, keep = tensors("attention", 1, 20)
        with pytest.raises(ShapeError, match=r"hidden has shape \(1, 20, 30\)\n.*\[\*, \*, 32\]"):
            result.call(hidden[..., :30], keep)

    def test_sizes_that_disagree(self, built):
        _, _, result = built
        with pytest.raises(ShapeError, match="length is 20 in hidden and 13 in keep"):
            result.call(tensors("attention", 1, 20)[0], tensors("attention", 1, 13)[1])

    def test_missing_and_unknown_arguments(self, built):
        _, _, result = built
        hidden, keep = tensors("attention", 1, 20)
        with pytest.raises(ShapeError, match="called with 1 tensors"):
            result.call(hidden)
        with pytest.raises(ShapeError, match="by name"):
            result.call(hidden, mask=keep)

    def test_no_call_in_the_range_compiles_again(self, built):
        name, _, result = built
        before = result.call.compiled.gm if name == "torch_tensorrt" else None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for batch, length in ((1, 20), (3, 9), (1, 40), (4, 8)):
                result.call(*tensors("attention", batch, length))
                with torch.inference_mode():
                    result.call(*(x.clone() for x in tensors("attention", batch, length)))
        if name == "torch_tensorrt":
            assert result.call.compiled.gm is before


@pytest.mark.parametrize("built", ["inductor"], indirect=True)
def test_inductor_announces_a_compilation_in_the_middle_of_a_run(built):
    _, _, result = built
    hidden, _ = tensors("attention", 1, 20)
    _, keep = tensors("attention", 3, 20)  # broadcasts, and only the guard, passed by here, would refuse it
    with pytest.warns(RuntimeWarning, match=r"attention: torch.compile compiled again for float16\[1, 20, 32\], bool"):
        result.call.compiled(hidden, keep)


def test_names():
    assert all(get_backend(name).name == row.name == name for name, row in BACKENDS.items())
    known = "eager, inductor, triton, onnxruntime, torch_tensorrt, tensorrt"
    with pytest.raises(PlanError, match=rf"unknown value 'tensorrt_torch'\n.*{known}"):
        get_backend("tensorrt_torch")


def test_importing_the_package_imports_no_compiler():
    names = ("torch_tensorrt", "tensorrt", "tensorrt_rtx", "onnx", "onnxruntime", "onnxscript")
    code = f"import sys, gr00t_trt.backends; print([m for m in {names} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


def test_inductor_without_a_compiler(monkeypatch):
    import torch._inductor.config as config

    from gr00t_trt.backends.inductor.backend import InductorBackend

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # monkeypatch would leave the setting deleted: PyTorch's configuration is put back by its own means only.
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        available = InductorBackend().availability()
        assert not available.installed
        assert "g++" in available.reason
        with pytest.raises(BackendError, match=r"attention: .*C\+\+ compiler"):
            InductorBackend().build(make_target("attention"), BuildOptions(), BuildContext(None, print))
