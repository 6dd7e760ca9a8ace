from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gr00t_trt.data.metadata import ROTATIONS
from gr00t_trt.data.rotations import WIDTHS, convert, from_matrix, to_matrix
from gr00t_trt.errors import PlanError

angles = st.floats(-3.1, 3.1)


@pytest.mark.parametrize(
    ("target", "golden"),
    [
        ("rotation_6d", (0.808307, -0.44158, -0.389418, 0.35702, 0.893559, -0.272192)),
        ("axis_angle", (0.190028, -0.461425, 0.42969)),
        ("quaternion", (0.946281, 0.093307, -0.226566, 0.210984)),
    ],
)
def test_known_conversions(target, golden):
    euler = torch.tensor([0.3, -0.4, 0.5], dtype=torch.float64)
    torch.testing.assert_close(
        convert(euler, "euler_angles_rpy", target), torch.tensor(golden, dtype=torch.float64), atol=1e-6, rtol=0
    )


@settings(max_examples=50, deadline=None)
@given(rotation=st.sampled_from(ROTATIONS), vector=st.tuples(angles, angles, angles))
def test_round_trip_through_any_representation(rotation, vector):
    matrix = to_matrix(torch.tensor(vector, dtype=torch.float64), "axis_angle")
    there = from_matrix(matrix, rotation)
    assert there.shape == (WIDTHS[rotation],)
    torch.testing.assert_close(to_matrix(there, rotation), matrix, atol=1e-7, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4).filter(lambda q: sum(v * v for v in q) > 1e-3))
def test_quaternions_of_any_length_come_back_with_unit_length_and_nonnegative_real_part(values):
    quaternion = torch.tensor(values, dtype=torch.float64)
    back = from_matrix(to_matrix(quaternion, "quaternion"), "quaternion")
    unit = quaternion / quaternion.norm()
    assert back[0] >= 0
    assert min((back - unit).abs().max(), (back + unit).abs().max()) < 1e-7


def test_no_rotation_and_half_turns_are_finite():
    for vector in ([0.0, 0.0, 0.0], [math.pi, 0.0, 0.0], [0.0, -math.pi, 0.0], [0.0, 0.0, math.pi]):
        matrix = to_matrix(torch.tensor(vector, dtype=torch.float64), "axis_angle")
        for rotation in ROTATIONS:
            torch.testing.assert_close(to_matrix(from_matrix(matrix, rotation), rotation), matrix, atol=1e-9, rtol=0)


def test_rotation_6d_is_orthonormalised():
    matrix = to_matrix(torch.tensor([[2.0, 0.0, 0.0, 1.0, 3.0, 0.0]]), "rotation_6d")
    torch.testing.assert_close(matrix[0], torch.eye(3))


def test_dtype_and_leading_axes_stay():
    out = convert(torch.zeros(2, 5, 3, dtype=torch.float32), "euler_angles_rpy", "rotation_6d")
    assert out.shape == (2, 5, 6)
    assert out.dtype == torch.float32


def test_equal_types_are_not_touched():
    value = torch.tensor([2.0, 0.0, 0.0, 0.0])
    assert convert(value, "quaternion", "quaternion") is value


def test_errors():
    value = torch.zeros(3)
    with pytest.raises(PlanError, match="another order"):
        convert(value, "euler_angles_rpy", "euler_angles_ypr")
    with pytest.raises(PlanError, match=r"unknown value 'quaternoin'[\s\S]*did you mean quaternion"):
        convert(value, "quaternoin", "axis_angle")
    with pytest.raises(PlanError, match="quaternion: width 3"):
        convert(value, "quaternion", "axis_angle")
