"""Shape ranges: refused before the call, widened for tracing."""

import pytest
import torch

from gr00t_trt.errors import PlanError, ShapeError
from gr00t_trt.model.targets import DimRange, check_shapes, tracing_example

BATCH = DimRange("batch", 1, 1, 8)
LENGTH = DimRange("length", 32, 296, 1024)
FIXED = DimRange("batch", 1, 1, 1)


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 4, 3), (-1, 1, 1)])
def test_impossible_ranges_are_refused(sizes):
    with pytest.raises(PlanError, match=r"range of batch: .* is not a shape range"):
        DimRange("batch", *sizes)


def test_static_means_one_size():
    assert FIXED.static
    assert not BATCH.static


@pytest.mark.parametrize("size", [32, 296, 1024])
def test_sizes_inside_pass_bounds_included(size):
    check_shapes("dit_model", ["context"], [torch.zeros(1, size, 4)], [{0: BATCH, 1: LENGTH}])


@pytest.mark.parametrize("size", [31, 1025])
def test_a_size_outside_names_submodule_argument_axis_and_range(size):
    with pytest.raises(ShapeError) as caught:
        check_shapes("dit_model", ["context"], [torch.zeros(1, size, 4)], [{0: BATCH, 1: LENGTH}])
    assert str(caught.value).splitlines() == [
        f"dit_model: context has length {size} (axis 1 of (1, {size}, 4))",
        "  known: built for length 32 to 1024",
        "  widen `ranges: length` in the plan and rebuild, or send a smaller request",
    ]


def test_tracing_repeats_a_batch_of_one_and_keeps_real_values():
    recorded = torch.arange(3.0).reshape(1, 3)
    (example,) = tracing_example([recorded], [{0: BATCH}])
    assert example.tolist() == [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
    assert recorded.shape == (1, 3)


def test_tracing_keeps_static_axes_and_longer_ones():
    static, long = tracing_example([torch.zeros(1, 3), torch.zeros(4, 3)], [{0: FIXED}, {0: BATCH}])
    assert static.shape == (1, 3)
    assert long.shape == (4, 3)


def test_tracing_gives_contiguous_tensors():
    (example,) = tracing_example([torch.zeros(4, 3).t()], [{}])
    assert example.is_contiguous()
