"""Pictures without a graphics library: a pinhole camera, round limbs and a table, drawn with numpy.

Shapes are signed distances in pixels, so that edges are smooth without sampling a pixel twice; what lies behind is
drawn first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]
LIGHT = (-0.35, -0.55, 0.76)
"""Towards the light, in the camera's frame: from the upper left, in front of what is seen."""


class Camera:
    """A pinhole camera.

    Args:
        eye: [3], where it is, in metres.
        target: [3], the point that it looks at; up in the picture is z.
        width, height: Of the picture in pixels.
        field_of_view: Horizontal, in degrees.
    """

    def __init__(self, eye: Sequence[float], target: Sequence[float], *, width: int, height: int, field_of_view: float):
        self.eye = np.asarray(eye, np.float64)
        self.width, self.height = width, height
        forward = np.asarray(target, np.float64) - self.eye
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        self.axes = np.stack([right, np.cross(forward, right), forward])
        self.focal = width / 2 / np.tan(np.radians(field_of_view) / 2)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points [N, 3] -> pixels [N, 2] (x to the right, y down) and depths [N] in metres, at least a centimetre."""
        seen = (np.asarray(points) - self.eye) @ self.axes.T
        depth = np.maximum(seen[:, 2], 0.01)
        return seen[:, :2] / depth[:, None] * self.focal + [self.width / 2, self.height / 2], depth

    def unproject(self, pixels: np.ndarray, height: float) -> np.ndarray:
        """Where the rays through pixels [..., 2] meet the plane z = `height`: [..., 2], NaN where they do not."""
        offset = (np.asarray(pixels) - [self.width / 2, self.height / 2]) / self.focal
        ray = np.concatenate([offset, np.ones((*offset.shape[:-1], 1))], axis=-1) @ self.axes
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (height - self.eye[2]) / ray[..., 2]
        distance = np.where(distance > 0, distance, np.nan)
        return self.eye[:2] + distance[..., None] * ray[..., :2]


@dataclass(frozen=True)
class Limb:
    """A rounded rod between two points, or a ball where they are one; radii in metres."""

    start: np.ndarray
    end: np.ndarray
    radii: tuple[float, float]
    colour: Colour


def draw(image: np.ndarray, camera: Camera, limbs: Sequence[Limb]) -> None:
    """Draw limbs into a float32 picture [H, W, 3] of 0 to 255, in place, the farthest first."""
    for limb in sorted(limbs, key=lambda own: -float(np.linalg.norm((own.start + own.end) / 2 - camera.eye))):
        _draw_limb(image, camera, limb)


def _draw_limb(image: np.ndarray, camera: Camera, limb: Limb) -> None:
    (a, b), depth = camera.project(np.stack([limb.start, limb.end]))
    first, last = camera.focal * np.asarray(limb.radii) / depth
    margin = max(first, last) + 2
    low = np.floor(np.minimum(a, b) - margin).astype(int).clip(0, [camera.width, camera.height])
    high = np.ceil(np.maximum(a, b) + margin).astype(int).clip(0, [camera.width, camera.height])
    if (high <= low).any():
        return
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]].astype(np.float32) + np.float32(0.5)
    ax, ay, bx, by = (float(value) for value in (*a, *b))  # plain numbers keep the arrays in float32
    length = (bx - ax) ** 2 + (by - ay) ** 2
    place = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length if length > 1e-6 else np.zeros_like(x)
    place = place.clip(0, 1)
    dx, dy = x - (ax + place * (bx - ax)), y - (ay + place * (by - ay))
    radius = float(first) + place * float(last - first)
    away = np.hypot(dx, dy)
    cover = (radius - away + 0.5).clip(0, 1)[..., None]
    nx, ny = dx / radius, dy / radius
    nz = np.sqrt((1 - nx * nx - ny * ny).clip(0, 1))
    light = 0.42 + 0.62 * (nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2]).clip(0, 1)
    shade = light[..., None] * np.asarray(limb.colour, np.float32)
    region = image[low[1] : high[1], low[0] : high[0]]
    region += cover * (shade - region)


class Ground:
    """The table top as every pixel sees it, computed once for a camera that stands still.

    Args:
        camera: Its camera.
        size: Near edge, far edge and half the width of the table, in metres.
    """

    def __init__(self, camera: Camera, size: tuple[float, float, float]):
        self._camera = camera
        y, x = np.mgrid[0 : camera.height, 0 : camera.width] + 0.5
        pixels = np.stack([x, y], axis=-1)
        places = camera.unproject(pixels, 0.0)
        step = camera.unproject(pixels + np.array([0.0, 1.0]), 0.0) - places
        self.places = places.astype(np.float32)
        """Float32 [H, W, 2], metres on the table's plane; NaN above the horizon."""
        self.pixel = np.linalg.norm(step, axis=-1).astype(np.float32)
        """Float32 [H, W], metres from one pixel to the one below it."""
        self.empty = self._paint(y / camera.height, size)
        """Float32 [H, W, 3], the picture of the table with nothing on it."""

    def _paint(self, down: np.ndarray, size: tuple[float, float, float]) -> np.ndarray:
        near, far, half = size
        image = np.empty((*down.shape, 3), np.float32)
        image[:] = np.array([186, 196, 204]) + (down[..., None] - 0.5) * np.array([26, 22, 18])
        x, y = self.places[..., 0], self.places[..., 1]
        grain = 5 * np.sin(95 * y + 3 * np.sin(9 * x)) + 3 * np.sin(240 * y + 5 * np.sin(4 * x))
        wood = np.array([181, 141, 100]) + np.nan_to_num(grain)[..., None] * np.array([1.0, 0.9, 0.7])
        inside = np.minimum.reduce([x - near, far - x, half - np.abs(y)])
        image += self._cover(-inside, self.pixel) * (wood - image)
        return image

    def disc(self, image: np.ndarray, centre: np.ndarray, radius: float, colour: Colour) -> None:
        """Draw a flat disc on the table, in place; centre [2] and radius in metres."""
        part = self._window(centre, radius * 1.1)
        away = self._away(part, centre) - radius
        image[part] += self._cover(away, self.pixel[part]) * (np.asarray(colour, np.float32) - image[part])

    def shadow(self, image: np.ndarray, centre: np.ndarray, radius: float, strength: float) -> None:
        """Darken the table round a point, softly, in place."""
        part = self._window(centre, radius * 2.5)  # exp(-6.25) is less than a level
        away = self._away(part, centre) / radius
        image[part] *= 1 - strength * np.exp(-(np.nan_to_num(away, nan=np.inf) ** 2))[..., None]

    def _window(self, centre: np.ndarray, radius: float) -> tuple[slice, slice]:
        """Rows and columns of the picture that a disc on the table can reach."""
        turns = np.arange(12) * (np.pi / 6)
        rim = centre + 1.05 * radius * np.stack([np.cos(turns), np.sin(turns)], axis=-1)
        pixels, _ = self._camera.project(np.column_stack([rim, np.zeros(len(rim))]))
        sides = [self._camera.width, self._camera.height]
        low = np.floor(pixels.min(axis=0)).clip(0, sides).astype(int)
        high = np.ceil(pixels.max(axis=0)).clip(0, sides).astype(int)
        return slice(low[1], high[1]), slice(low[0], high[0])

    def _away(self, part: tuple[slice, slice], centre: np.ndarray) -> np.ndarray:
        offset = self.places[part] - np.asarray(centre, np.float32)
        return np.sqrt(offset[..., 0] ** 2 + offset[..., 1] ** 2)

    def _cover(self, away: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        return np.nan_to_num((0.5 - away / pixel).clip(0, 1)).astype(np.float32)[..., None]
