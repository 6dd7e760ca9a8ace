"""Adjustments of colours against the standard library, Pillow and torchvision."""

from __future__ import annotations

import colorsys
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from gr00t_trt.data import colors
from gr00t_trt.data.colors import Jitter, adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation

REFERENCE = os.environ.get("GR00T_TRT_LEROBOT_PYTHON")
WRITE = """
import sys, torch
from torchvision.transforms.v2 import functional
images, wanted = torch.load(sys.argv[1])
torch.save([getattr(functional, f"adjust_{name}")(images, factor) for name, factor in wanted], sys.argv[2])
"""
WANTED = [
    *(("brightness", f) for f in (0.0, 0.7, 1.3)),
    *(("contrast", f) for f in (0.0, 0.6, 1.4)),
    *(("saturation", f) for f in (0.0, 0.5, 1.5)),
    *(("hue", f) for f in (-0.5, -0.08, 0.08, 0.3)),
]


@pytest.fixture
def images() -> torch.Tensor:
    """Random ones, a grey one, one of few levels and one of strong red."""
    out = torch.rand(4, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    out[1] = out[1, :1]
    out[2] = (out[2] * 4).round() / 4
    out[3, 0] = 1
    return out


@pytest.mark.parametrize("adjust", [adjust_brightness, adjust_contrast, adjust_saturation])
def test_a_factor_of_one_changes_nothing(adjust, images):
    assert torch.equal(adjust(images, 1.0), images)


def test_no_turn_and_a_whole_turn_keep_the_colours(images):
    torch.testing.assert_close(adjust_hue(images, 0.0), images, atol=1e-6, rtol=0)
    torch.testing.assert_close(adjust_hue(adjust_hue(images, 0.5), 0.5), images, atol=2e-6, rtol=0)


@pytest.mark.parametrize("turn", [-0.5, -0.08, 0.08, 0.3])
def test_hue_as_the_standard_library_turns_it(turn, images):
    found = adjust_hue(images, turn).movedim(1, -1).reshape(-1, 3)
    pixels = images.movedim(1, -1).reshape(-1, 3).tolist()
    for ours, pixel in zip(found[::7].tolist(), pixels[::7], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        assert ours == pytest.approx(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=2e-6)


@pytest.mark.parametrize(
    ("adjust", "name", "factor"),
    [
        (adjust_brightness, "Brightness", 0.7),
        (adjust_brightness, "Brightness", 1.3),
        (adjust_contrast, "Contrast", 0.6),
        (adjust_contrast, "Contrast", 1.4),
        (adjust_saturation, "Color", 0.5),
        (adjust_saturation, "Color", 1.5),
    ],
)
def test_as_pillow_enhances_bytes(adjust, name, factor, images):
    pillow, enhance = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageEnhance")
    levels = (images[0] * 255).round().to(torch.uint8)
    picture = pillow.fromarray(levels.movedim(0, -1).numpy())
    theirs = np.asarray(getattr(enhance, name)(picture).enhance(factor)).astype(int)
    ours = (adjust(levels / 255, factor) * 255).movedim(0, -1).numpy()
    # It rounds the grey to a whole level first.
    assert np.abs(ours - theirs).max() <= 1.6


@pytest.mark.skipif(REFERENCE is None, reason="GR00T_TRT_LEROBOT_PYTHON names no Python that has torchvision")
def test_as_torchvision_adjusts_them(images, tmp_path: Path):
    torch.save((images, WANTED), tmp_path / "in.pt")
    call = [str(REFERENCE), "-c", WRITE, str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run(call, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, timeout=120)
    if "No module named 'torchvision'" in done.stderr:
        pytest.skip(f"{REFERENCE} has no torchvision")
    assert done.returncode == 0, done.stderr[-2000:]
    for (name, factor), theirs in zip(WANTED, torch.load(tmp_path / "out.pt"), strict=True):
        ours = getattr(colors, f"adjust_{name}")(images, factor)
        torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=0, msg=f"{name} {factor}")


def test_each_image_has_its_own_contrast(images):
    together = adjust_contrast(images, 0.5)
    assert torch.equal(together[1], adjust_contrast(images[1], 0.5))
    assert together.mean((1, 2, 3)).tolist() != pytest.approx([together.mean().item()] * 4, abs=1e-3)


def test_factors_lie_in_their_ranges_and_come_in_every_order(images, monkeypatch):
    seen: list[tuple[str, float]] = []
    names = ("brightness", "contrast", "saturation", "hue")
    noting = [lambda image, factor, name=name: seen.append((name, factor)) or image for name in names]
    monkeypatch.setattr(colors, "ADJUSTMENTS", tuple(noting))
    jitter = Jitter.of(0.3, 0.4, 0.5, 0.08)
    for seed in range(300):
        jitter.drawn(torch.Generator().manual_seed(seed))(images)
    found = {name: [factor for other, factor in seen if other == name] for name in names}
    for name, low, high in zip(names, (0.7, 0.6, 0.5, -0.08), (1.3, 1.4, 1.5, 0.08), strict=True):
        assert low <= min(found[name]) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(found[name]) <= high
        assert len(found[name]) == 300
    orders = {tuple(name for name, _ in seen[first : first + 4]) for first in range(0, len(seen), 4)}
    assert len(orders) == 24


def test_a_range_of_nothing_leaves_the_image_alone(images):
    assert Jitter.of(0.0, (1.0, 1.0), 0, 0.0).drawn(torch.Generator())(images) is images


def test_the_number_of_threads_changes_no_bit():
    images = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(1))
    adjust = Jitter.of(0.3, 0.4, 0.5, 0.08).drawn(torch.Generator().manual_seed(2))
    one = adjust(images)
    torch.set_num_threads(3)
    try:
        assert torch.equal(adjust(images), one)
    finally:
        torch.set_num_threads(1)
