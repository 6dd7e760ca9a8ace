"""Rotation representations, converted through a 3 x 3 matrix; conventions are those of pytorch3d.

quaternion: (w, x, y, z), any length but zero; results have w >= 0. rotation_6d: the first two rows of the matrix.
axis_angle: rotation vector in radians. euler_angles_abc: r, p and y turn about X, Y and Z, and the matrix is
R_a R_b R_c in the given order, so `rpy` is Rx(r) Ry(p) Rz(y). Angles are in radians. Everything runs where its input
lives; functions of angles may differ between a GPU and the host in the last bits of their dtype.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import PlanError, unknown
from .metadata import ROTATIONS

WIDTHS = {"axis_angle": 3, "quaternion": 4, "rotation_6d": 6, "matrix": 9} | {
    name: 3 for name in ROTATIONS if name.startswith("euler")
}
"""Values per rotation; a matrix is flattened row by row."""

BOUNDS = {name: (1.0 if name in ("rotation_6d", "quaternion") else np.pi) for name in ROTATIONS if name != "matrix"}
"""Magnitude that bounds each representation, used instead of statistics when a converted rotation is normalised."""


def convert(values: Tensor, source: str, target: str) -> Tensor:
    """Convert rotations between representations.

    Args:
        values: [..., D], floating, D as in `WIDTHS` for `source`.
        source, target: Names in `ROTATIONS`. Equal names return `values` unchanged.
    Returns: [..., D'], same dtype.
    Raises: PlanError for an unknown name, another width, or two Euler orders that differ.
    """
    for name in (source, target):
        if name not in ROTATIONS:
            raise unknown(PlanError, "rotation", name, ROTATIONS)
    if source == target:
        return values
    if source.startswith("euler") and target.startswith("euler"):
        raise PlanError(f"{source} to {target}: Euler angles are not converted to another order")
    if values.shape[-1] != WIDTHS[source]:
        raise PlanError(f"{source}: width {values.shape[-1]}", known=f"{WIDTHS[source]} values")
    return from_matrix(to_matrix(values, source), target)


def to_matrix(values: Tensor, source: str) -> Tensor:
    """[..., D] in representation `source` to rotation matrices [..., 3, 3]."""
    if source == "matrix":
        return values.reshape(*values.shape[:-1], 3, 3)
    if source == "quaternion":
        return _from_quaternion(values)
    if source == "axis_angle":
        half = torch.linalg.vector_norm(values, dim=-1, keepdim=True) * 0.5
        # sinc stays exact where the angle vanishes: sin(a / 2) / a = sinc(a / 2 pi) / 2.
        return _from_quaternion(torch.cat([half.cos(), values * torch.sinc(half / np.pi) * 0.5], dim=-1))
    if source == "rotation_6d":
        first = torch.nn.functional.normalize(values[..., :3], dim=-1)
        second = values[..., 3:] - (first * values[..., 3:]).sum(-1, keepdim=True) * first
        second = torch.nn.functional.normalize(second, dim=-1)
        return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], dim=-2)
    matrices = [_about_axis("rpy".index(letter), values[..., i]) for i, letter in enumerate(source[-3:])]
    return _product(_product(matrices[0], matrices[1]), matrices[2])


def from_matrix(matrix: Tensor, target: str) -> Tensor:
    """Rotation matrices [..., 3, 3] to representation `target`, [..., D]."""
    if target == "matrix":
        return matrix.reshape(*matrix.shape[:-2], 9)
    if target == "rotation_6d":
        return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)
    if target.startswith("euler"):
        return _to_euler(matrix, target[-3:])
    quaternion = _to_quaternion(matrix)
    if target == "quaternion":
        return quaternion
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    half = torch.atan2(torch.linalg.vector_norm(imaginary, dim=-1, keepdim=True), real)
    return imaginary / (torch.sinc(half / np.pi) * 0.5)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[..., 3, 3] times [..., 3, 3], term by term: a matrix product might be computed in TF32 on a GPU."""
    terms = [a[..., :, i, None] * b[..., i, None, :] for i in range(3)]
    return terms[0] + terms[1] + terms[2]


def _about_axis(axis: int, angle: Tensor) -> Tensor:
    out = torch.eye(3, dtype=angle.dtype, device=angle.device).expand(*angle.shape, 3, 3).clone()
    j, k = (axis + 1) % 3, (axis + 2) % 3
    out[..., j, j] = out[..., k, k] = angle.cos()
    out[..., k, j] = angle.sin()
    out[..., j, k] = -angle.sin()
    return out


def _from_quaternion(quaternion: Tensor) -> Tensor:
    w, x, y, z = torch.unbind(quaternion, -1)
    scale = 2.0 / (quaternion * quaternion).sum(-1)
    rows = (
        (1 - scale * (y * y + z * z), scale * (x * y - z * w), scale * (x * z + y * w)),
        (scale * (x * y + z * w), 1 - scale * (x * x + z * z), scale * (y * z - x * w)),
        (scale * (x * z - y * w), scale * (y * z + x * w), 1 - scale * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _to_quaternion(matrix: Tensor) -> Tensor:
    """w >= 0. Of four equivalent formulas, each divides by twice a component; the largest one is the stable choice."""
    m = matrix
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    ww = 1 + trace
    xx, yy, zz = (1 - trace + 2 * m[..., i, i] for i in range(3))
    wx, wy, wz = (m[..., (i + 2) % 3, (i + 1) % 3] - m[..., (i + 1) % 3, (i + 2) % 3] for i in range(3))
    xy, xz, yz = (m[..., i, j] + m[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2)))
    candidates = torch.stack(
        [torch.stack(row, -1) for row in ((ww, wx, wy, wz), (wx, xx, xy, xz), (wy, xy, yy, yz), (wz, xz, yz, zz))], -2
    )
    best = torch.stack([ww, xx, yy, zz], -1).argmax(-1)
    chosen = candidates.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    quaternion = torch.nn.functional.normalize(chosen, dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def _to_euler(matrix: Tensor, order: str) -> Tensor:
    """Angles of R = R_a(x) R_b(y) R_c(z), the middle one in [-pi/2, pi/2]."""
    a, b, c = ("rpy".index(letter) for letter in order)
    # +1 where a, b, c are in cyclic order X Y Z, -1 otherwise: the sign of the off-diagonal sines.
    sign = 1.0 if (b - a) % 3 == 1 else -1.0
    first = torch.atan2(-sign * matrix[..., b, c], matrix[..., c, c])
    middle = torch.asin((sign * matrix[..., a, c]).clamp(-1.0, 1.0))
    last = torch.atan2(-sign * matrix[..., a, b], matrix[..., a, a])
    return torch.stack([first, middle, last], -1)
