"""Agreement: the numbers, the odd cases, and the words of a failed gate."""

import json
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gr00t_trt.errors import ShapeError
from gr00t_trt.measure import accuracy
from gr00t_trt.measure.accuracy import check, compare, compare_each
from gr00t_trt.plans.precisions import Gate
from gr00t_trt.record.files import dumps


def pair(seed=0, shape=(3, 50), noise=1e-2):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(shape, generator=generator)
    return reference + noise * torch.randn(shape, generator=generator), reference


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_numbers_against_numpy(monkeypatch, chunk):
    monkeypatch.setattr(accuracy, "CHUNK", chunk)
    a, b = pair()
    x, y = a.numpy().astype(np.float64).ravel(), b.numpy().astype(np.float64).ravel()
    got = compare(a, b)
    assert got.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-12)
    assert got.max_abs == pytest.approx(np.abs(x - y).max())
    assert got.mean_abs == pytest.approx(np.abs(x - y).mean())
    assert got.max_rel == pytest.approx(np.abs(x - y).max() / np.abs(y).max())
    assert got.sqnr_db == pytest.approx(10 * math.log10((y @ y) / ((x - y) @ (x - y))))
    assert (got.elements, got.exact, got.shapes) == (150, False, {"": (3, 50)})


def test_equal_tensors_are_exact():
    _, b = pair()
    got = compare(b.clone(), b)
    assert (got.exact, got.cosine, got.max_abs, got.sqnr_db) == (True, pytest.approx(1.0), 0.0, None)
    written = json.loads(dumps(got))
    assert written["sqnr_db"] is None
    assert written["exact"] is True
    assert check(got, Gate(cosine=0.999, max_abs=0.0, sqnr_db=100.0)) == []


def test_inputs_are_left_alone():
    a, b = pair()
    a, b = a.double(), b.double()
    kept = a.clone(), b.clone()
    compare(a, b)
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_may_differ(dtype):
    _, b = pair()
    assert compare(b.to(dtype), b).cosine > 0.9999


def test_layouts_arrays_numbers_and_whole_numbers():
    _, b = pair()
    assert compare(b.t().contiguous().t(), b).exact
    assert compare(b.numpy(), b).exact
    assert compare(1.5, np.float64(1.5)).exact
    assert compare(torch.arange(4), torch.arange(4)).exact
    assert compare(torch.nn.Parameter(b), b).exact


def test_zero_vectors():
    zero, one = torch.zeros(4), torch.ones(4)
    assert compare(zero, zero).cosine == 1.0
    assert compare(zero, one).cosine == 0.0
    got = compare(one, zero)
    assert (got.cosine, got.max_rel, got.sqnr_db) == (0.0, None, None)
    assert check(got, Gate(sqnr_db=10.0)) == ["the reference is all zero and the candidate is not"]


def test_empty_outputs_prove_nothing():
    got = compare(torch.zeros(0, 4), torch.zeros(0, 4))
    assert (got.elements, got.cosine, got.max_abs, got.exact) == (0, None, None, False)
    assert check(got, Gate()) == ["the output is empty: nothing was compared"]
    assert check(compare({}, {}), Gate()) == ["the output is empty: nothing was compared"]


def test_nan_and_inf_are_counted_and_always_fail():
    a, b = pair(noise=0.0)
    a = a.clone()
    a[0, 0], a[0, 1], a[1, 1] = math.nan, math.inf, -math.inf
    got = compare(a, b)
    assert (got.nan, got.inf, got.reference_nan, got.reference_inf, got.exact) == (1, 2, 0, 0, False)
    assert got.cosine == pytest.approx(1.0)
    assert check(got, Gate()) == ["1 of 150 values are NaN", "2 of 150 values are infinite"]


def test_all_nan_has_no_distance():
    got = compare(torch.full((3,), math.nan), torch.ones(3))
    assert (got.cosine, got.max_abs, got.sqnr_db) == (None, None, None)
    assert check(got, Gate(cosine=0.9)) == ["3 of 3 values are NaN"]


def test_a_broken_reference_proves_nothing():
    got = compare(torch.ones(2), torch.tensor([1.0, math.nan]))
    assert check(got, Gate()) == ["1 of 2 values of the reference are not finite: nothing to compare with"]


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), r"output: candidate \(2, 3\), reference \(3, 2\)"),
        ({"x": 1.0}, {"y": 1.0}, "output: only one of candidate and reference has x, y"),
        ((1.0,), (1.0, 2.0), "output: 1 entries in the candidate, 2 in the reference"),
        ({"x": 1.0}, 1.0, "output: a dict in the candidate, a float in the reference"),
        ({"x": (torch.zeros(2),)}, {"x": (torch.zeros(3),)}, r"x\[0\]: candidate \(2,\), reference \(3,\)"),
    ],
)
def test_other_shapes_and_structures_are_refused(a, b, words):
    with pytest.raises(ShapeError, match=words):
        compare(a, b)


def test_a_large_healthy_tensor_cannot_hide_a_small_broken_one():
    big = torch.ones(1000)
    got = compare({"big": big, "small": -torch.ones(1)}, {"big": big, "small": torch.ones(1)})
    assert (got.cosine, got.max_abs, got.exact) == (-1.0, 2.0, False)
    assert got.mean_abs == pytest.approx(2.0 / 1001)
    assert set(got.shapes) == {"big", "small"}


def test_each_key_apart():
    parts = compare_each(
        {"action.arm": torch.ones(2), "x": [torch.zeros(1)]}, {"action.arm": torch.ones(2), "x": [1.0 * torch.ones(1)]}
    )
    assert list(parts) == ["action.arm", "x[0]"]
    assert parts["action.arm"].exact
    assert not parts["x[0]"].exact


def test_failures_in_plain_words():
    a, b = pair(noise=0.1)
    got = compare(a, b)
    gate = Gate(cosine=0.999, max_abs=0.01, sqnr_db=40.0)
    assert check(got, gate) == [
        f"cosine {got.cosine:.4f} is below the gate 0.999",
        f"max_abs {got.max_abs:.3g} is above the gate 0.01",
        f"SQNR {got.sqnr_db:.1f} dB is below the gate 40 dB",
    ]
    assert check(got, Gate()) == []


def test_a_near_miss_does_not_read_like_a_pass():
    assert accuracy._floor(0.99899999, 0.999) == "0.99899999"


def test_a_wrong_scale_passes_cosine_and_fails_sqnr():
    _, b = pair()
    got = compare(2 * b, b)
    assert got.cosine == pytest.approx(1.0)
    assert check(got, Gate(cosine=0.999, sqnr_db=20.0)) == ["SQNR 0.0 dB is below the gate 20 dB"]


class LargestFloat64(TorchDispatchMode):
    """Notes the largest float64 tensor that any operator makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            self.elements = max(self.elements, out.numel())
        return out


def test_float64_copies_stay_small_on_a_large_output():
    b = torch.ones(8, 512, 1024)
    with LargestFloat64() as seen:
        compare(b, b)
    assert seen.elements == accuracy.CHUNK < b.numel()
