"""Freed memory that the C library still holds goes back to the system."""

from __future__ import annotations

import sys

import psutil
import pytest
import torch

from gr00t_trt.common.allocator import return_freed


def test_what_lies_between_small_survivors_is_given_back() -> None:
    if sys.platform != "linux" or sys.implementation.name != "cpython":
        pytest.skip("about glibc")
    blocks = [torch.ones(16_000) for _ in range(3_000)]  # 64 kB each: below what glibc maps by itself
    survivors = blocks[::50]
    del blocks
    before = psutil.Process().memory_info().rss
    return_freed()
    assert before - psutil.Process().memory_info().rss > 100e6
    assert len(survivors) == 60
