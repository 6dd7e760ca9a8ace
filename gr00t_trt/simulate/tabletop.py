"""`gr00t_trt/TableTop-v0`: a GR1-like robot at a table, a pear and a plate; kinematic, rendered, the same everywhere.

Keys, widths and units are those of RoboCasa's GR1 environments with arms, hands and waist. Joints follow their
targets at a bounded speed; there are no forces: a hand that closes round the pear holds it, and one that opens drops
it straight down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ..common.interface import Observation
from .kinematics import REST_ARM, SIDES, arm_points, grasp_point, limits
from .render import Camera, Colour, Ground, Limb, draw

ENV_ID = "gr00t_trt/TableTop-v0"
VIEW = "video.ego_view_bg_crop_pad_res256_freq20"
INSTRUCTION_KEY = "annotation.human.coarse_action"
INSTRUCTION = "pick the pear from the table and place it on the plate"

STEP_HZ = 20
"""Low-level steps per second."""
JOINT_STEP, FINGER_STEP = 0.12, 0.30
"""Radians that a joint of arm or waist, and one of a hand, moves in a step at most."""
CLOSED, OPEN = 0.6, 0.4
"""Mean angle of the four fingers from which a hand holds, and up to which it lets go."""
GRASP_REACH = 0.045
"""Metres from the grasp point to the pear's middle within which closing fingers get hold of it."""
PEAR_RADIUS, PLATE_RADIUS = 0.032, 0.095
UP = np.array([0.0, 0.0, 1.0])
TABLE = (0.08, 0.62, 0.55)
"""Near edge, far edge, half the width."""

GREY: Colour = (226, 228, 232)
DARK: Colour = (58, 60, 68)
PEAR: Colour = (206, 214, 48)
STALK: Colour = (96, 70, 40)
PLATE: Colour = (66, 110, 190)
RIM: Colour = (150, 180, 228)


def ego_camera() -> Camera:
    """The robot's eyes: 256 × 256 pixels, looking down at the table."""
    return Camera((-0.04, 0.0, 0.66), (0.27, 0.0, 0.0), width=256, height=256, field_of_view=72.0)


class TableTop(gymnasium.Env[Observation, dict[str, np.ndarray]]):
    """Place the pear on the plate, with either hand.

    Observation: `VIEW` uint8 [256, 256, 3]; ``state.left_arm``, ``state.right_arm`` float64 [7], ``state.left_hand``,
    ``state.right_hand`` [6], ``state.waist`` [3], in radians; the instruction as text. Action: the same parts as
    targets in radians, clipped to the joints' limits. Reward 1 and the end of the episode when the pear rests on the
    plate; ``info["success"]`` says so. Time is not limited here.

    Args:
        enable_render: Make `render` work, as RoboCasa's environments are told; same as ``render_mode="rgb_array"``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": STEP_HZ}  # noqa: RUF012

    def __init__(self, enable_render: bool = False, render_mode: str | None = None):
        self.render_mode = "rgb_array" if enable_render else render_mode
        self._limits = limits()
        self.action_space: Any = spaces.Dict(
            {f"action.{part}": spaces.Box(low, high, dtype=np.float64) for part, (low, high) in self._limits.items()}
        )
        self.observation_space: Any = spaces.Dict(
            {
                VIEW: spaces.Box(0, 255, (256, 256, 3), np.uint8),
                **{f"state.{part}": spaces.Box(*own, dtype=np.float64) for part, own in self._limits.items()},
                INSTRUCTION_KEY: spaces.Text(200, charset=frozenset("abcdefghijklmnopqrstuvwxyz ")),
            }
        )
        self._camera = ego_camera()
        self._ground = Ground(self._camera, TABLE)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Observation, dict[str, Any]]:
        """Arms at rest; pear and plate somewhere within reach of one hand, chosen by the seed."""
        super().reset(seed=seed)
        self.joints = {part: np.zeros(len(low)) for part, (low, _) in self._limits.items()}
        for side in SIDES:
            self.joints[f"{side}_arm"] = REST_ARM.copy()
        side = self.np_random.choice([-1.0, 1.0])
        self.pear = np.array([self.np_random.uniform(0.22, 0.34), side * self.np_random.uniform(0.08, 0.17), 0.0])
        self.pear[2] = PEAR_RADIUS
        self.plate = np.array([self.np_random.uniform(0.24, 0.36), -side * self.np_random.uniform(0.03, 0.09)])
        self.held_by: str | None = None
        return self._observe(), {"success": False}

    def step(self, action: Mapping[str, np.ndarray]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move every joint towards its target and let the hands take and drop.

        Raises: ValueError for a part that is missing, misshapen or not finite.
        """
        for part, (low, high) in self._limits.items():
            target = np.asarray(action.get(f"action.{part}", []), np.float64)
            if target.shape != low.shape or not np.isfinite(target).all():
                raise ValueError(f"action.{part}: {target} is no target for {len(low)} joints")
            most = FINGER_STEP if part.endswith("hand") else JOINT_STEP
            self.joints[part] += np.clip(np.clip(target, low, high) - self.joints[part], -most, most)
        self._move_pear()
        success = self.held_by is None and bool(np.linalg.norm(self.pear[:2] - self.plate) < PLATE_RADIUS - 0.01)
        return self._observe(), float(success), success, False, {"success": success}

    def render(self) -> np.ndarray | None:
        """What the robot sees, uint8 [256, 256, 3]; None unless the environment was made for it."""
        return self._seen.copy() if self.render_mode == "rgb_array" else None

    def _move_pear(self) -> None:
        for side in SIDES:
            grip = self.joints[f"{side}_hand"][:4].mean()
            hand = grasp_point(side, self.joints[f"{side}_arm"], self.joints["waist"])
            if self.held_by == side:
                if grip <= OPEN:
                    self.held_by = None
                height = PEAR_RADIUS if self.held_by is None else max(hand[2], PEAR_RADIUS)
                self.pear = np.array([hand[0], hand[1], height])
            elif self.held_by is None and grip >= CLOSED and np.linalg.norm(hand - self.pear) < GRASP_REACH:
                self.held_by = side

    def _observe(self) -> Observation:
        self._seen = self._picture()
        states = {f"state.{part}": value.copy() for part, value in self.joints.items()}
        return {VIEW: self._seen.copy(), **states, INSTRUCTION_KEY: INSTRUCTION}

    def _picture(self) -> np.ndarray:
        image = self._ground.empty.copy()
        self._ground.shadow(image, self.plate, PLATE_RADIUS * 1.15, 0.25)
        for radius, colour in ((1.0, RIM), (0.86, PLATE), (0.80, (78, 124, 204))):
            self._ground.disc(image, self.plate, PLATE_RADIUS * radius, colour)
        lift = self.pear[2] - PEAR_RADIUS
        self._ground.shadow(image, self.pear[:2], 0.045 + 0.1 * lift, 0.45 / (1 + 12 * lift))
        top = self.pear + UP * 0.034
        tip = top + UP * 0.028
        limbs = [Limb(self.pear, top, (PEAR_RADIUS, 0.019), PEAR), Limb(top + UP * 0.012, tip, (0.004, 0.003), STALK)]
        for side in SIDES:
            points, turned = arm_points(side, self.joints[f"{side}_arm"], self.joints["waist"])
            for place in points[2:]:
                up = max(float(place[2]), 0.0)
                self._ground.shadow(image, place[:2], 0.05 + 0.15 * up, 0.25 / (1 + 6 * up))
            limbs += _arm_limbs(points) + _hand_limbs(side, points[3], turned, self.joints[f"{side}_hand"])
        draw(image, self._camera, limbs)
        return image.round().clip(0, 255).astype(np.uint8)


def _arm_limbs(points: np.ndarray) -> list[Limb]:
    shoulder, elbow, wrist, _ = points
    return [
        Limb(shoulder, elbow, (0.062, 0.050), GREY),
        Limb(elbow, elbow, (0.056, 0.056), DARK),
        Limb(elbow + 0.16 * (wrist - elbow), wrist, (0.048, 0.036), GREY),
        Limb(wrist, wrist, (0.037, 0.037), DARK),
    ]


def _hand_limbs(side: str, grasp: np.ndarray, turned: np.ndarray, fingers: np.ndarray) -> list[Limb]:
    """A palm and five fingers of two bones; each curls by its joint towards the palm's inside."""
    inside, across, back = -turned[:, 1] * SIDES[side], turned[:, 0], turned[:, 2]
    knuckles = grasp + 0.035 * back - 0.022 * inside
    limbs = [Limb(grasp + 0.085 * back - 0.02 * inside, knuckles, (0.030, 0.032), DARK)]
    for number, curl in enumerate(fingers[:4]):
        root = knuckles + (number - 1.5) * 0.019 * across
        middle = root + 0.040 * (np.sin(curl * 0.8) * inside - np.cos(curl * 0.8) * back)
        tip = middle + 0.034 * (np.sin(curl * 1.5) * inside - np.cos(curl * 1.5) * back)
        limbs += [Limb(root, middle, (0.0105, 0.0095), GREY), Limb(middle, tip, (0.0095, 0.008), GREY)]
    spread = 1.0 - 0.5 * fingers[4] / 0.8
    thumb = grasp + 0.06 * back + 0.034 * across
    end = thumb + 0.045 * (inside * (1.3 - 0.5 * spread) - back * 0.8) + 0.01 * spread * across
    return [*limbs, Limb(thumb, end, (0.012, 0.009), GREY)]


if ENV_ID not in gymnasium.registry:
    gymnasium.register(ENV_ID, entry_point=f"{__name__}:TableTop")
