"""Two seven-joint arms on a waist, in the joint order of Fourier's GR1: where the hands are, and how to get there.

Frame: x forward, y to the robot's left, z up; metres, radians; the table's top is z = 0. With all joints at zero the
arms hang down. A negative shoulder pitch raises an arm to the front, a negative elbow bends it, as on the robot.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SIDES = {"left": 1.0, "right": -1.0}
"""Arm -> the side of its shoulder along y."""

WAIST = np.array([-0.10, 0.0, -0.10])
SHOULDER = np.array([0.05, 0.20, 0.48])
"""From the waist to the left shoulder; the right one is mirrored."""
UPPER_ARM, FOREARM, PALM = 0.28, 0.26, 0.10

_AXES = "yxzyzxy"
"""Shoulder pitch, roll, yaw, elbow pitch, wrist yaw, roll, pitch; the first three turn the upper arm, and so on."""

REST_ARM = np.array([0.0, 0.0, 0.0, -2.07, 0.0, 0.0, 0.0])
ARM_LOW = {
    "left": np.array([-2.6, -0.3, -1.6, -2.6, -1.6, -1.3, -1.3]),
    "right": np.array([-2.6, -1.6, -1.6, -2.6, -1.6, -1.3, -1.3]),
}
ARM_HIGH = {
    "left": np.array([1.0, 1.6, 1.6, 0.0, 1.6, 1.3, 1.3]),
    "right": np.array([1.0, 0.3, 1.6, 0.0, 1.6, 1.3, 1.3]),
}


def _turn(axis: str, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    if axis == "x":
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    if axis == "y":
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def arm_points(side: str, arm: np.ndarray, waist: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shoulder, elbow, wrist and grasp point of one arm, and how its hand is turned.

    Args:
        side: ``left`` or ``right``.
        arm: [7], joint angles.
        waist: [3], yaw, pitch and roll of the torso.
    Returns: [4, 3] and the hand's rotation [3, 3], whose third column points from the fingers back to the wrist.
    """
    turned = _turn("z", waist[0]) @ _turn("y", waist[1]) @ _turn("x", waist[2])
    point = WAIST + turned @ (SHOULDER * [1.0, SIDES[side], 1.0])
    points = [point]
    for joints, length in ((range(3), UPPER_ARM), (range(3, 5), FOREARM), (range(5, 7), PALM)):
        for joint in joints:
            turned = turned @ _turn(_AXES[joint], float(arm[joint]))
        point = point - length * turned[:, 2]
        points.append(point)
    return np.stack(points), turned


def grasp_point(side: str, arm: np.ndarray, waist: np.ndarray) -> np.ndarray:
    """Where one hand can hold something, [3]."""
    return arm_points(side, arm, waist)[0][-1]


def reach(side: str, target: np.ndarray, arm: np.ndarray, waist: np.ndarray) -> np.ndarray:
    """Joint angles [7] that bring a hand's grasp point to `target` [3], or as near as the arm gets.

    Damped least squares from the present angles, within the joints' limits.
    """
    angles = np.clip(arm, ARM_LOW[side], ARM_HIGH[side]).astype(np.float64)
    step = 1e-4
    for _ in range(60):
        here = grasp_point(side, angles, waist)
        gap = target - here
        if np.linalg.norm(gap) < 1e-3:
            break
        nudged = angles + step * np.eye(len(angles))
        jacobian = np.stack([grasp_point(side, each, waist) - here for each in nudged], axis=1) / step
        change = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-3 * np.eye(3), gap)
        angles = np.clip(angles + np.clip(change, -0.3, 0.3), ARM_LOW[side], ARM_HIGH[side])
    return angles


def limits() -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Part of state and action -> lowest and highest angles, in the parts and widths of the GR1 data configs."""
    hand = np.zeros(6), np.array([1.5, 1.5, 1.5, 1.5, 0.8, 1.75])
    return {
        "left_arm": (ARM_LOW["left"], ARM_HIGH["left"]),
        "right_arm": (ARM_LOW["right"], ARM_HIGH["right"]),
        "left_hand": hand,
        "right_hand": hand,
        "waist": (np.array([-0.8, -0.2, -0.3]), np.array([0.8, 0.6, 0.3])),
    }
