"""Which products are fast on this CPU: measured and checked by value, never by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from gr00t_trt.common import products
from gr00t_trt.common.products import Speed, own_products, prefer_onednn, speed

ZEN5 = Speed({"float32": 4.4, "bfloat16": 0.9, "float16": 26.0}, 2.0)
XEON = Speed({"float32": 2.2, "bfloat16": 3.1, "float16": 2.0}, 2.1)
NEARLY = Speed({"float32": 2.09, "bfloat16": 2.88, "float16": 1.86}, 1.83)
"""A Xeon whose next start may find the two libraries the other way round."""
AMX = Speed({"float32": 2.2, "bfloat16": 0.2, "float16": 0.2}, None)


@pytest.fixture
def setting() -> Iterator[Any]:
    """PyTorch's setting for fp32 products, which a test may change."""
    torch.set_float32_matmul_precision("highest")
    yield torch.get_float32_matmul_precision
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("found", "onednn", "fast"),
    [
        (ZEN5, True, ["float32", "bfloat16"]),
        (XEON, False, ["float32"]),
        (NEARLY, False, ["float32"]),
        (AMX, False, ["float32", "bfloat16", "float16"]),
    ],
)
def test_a_format_is_fast_where_it_is_clearly_faster_than_fp32(found: Speed, onednn: bool, fast: list[str]) -> None:
    assert found.onednn is onednn
    assert [name for name in found.ms if found.fast_in(name)] == fast


def test_every_format_is_measured_once_and_the_threads_stay() -> None:
    threads = torch.get_num_threads()
    found = speed()
    assert speed() is found
    assert torch.get_num_threads() == threads
    assert set(found.ms) == {"float32", "bfloat16", "float16"}
    assert all(0 < ms < 1e3 for ms in found.ms.values())


def test_arithmetic_that_is_not_fp32_shows_in_a_products_value() -> None:
    x, weight = products._spread(49, 1536), products._spread(128, 1536)
    assert products._is_fp32(linear, x, weight)
    assert not products._is_fp32(lambda a, b: linear(a.bfloat16(), b.bfloat16()).float(), x, weight)

    def tf32(value: torch.Tensor) -> torch.Tensor:
        return (value.view(torch.int32) & ~0x1FFF).view(torch.float32)

    assert not products._is_fp32(lambda a, b: linear(tf32(a), tf32(b)), x, weight)


def test_onednn_is_not_measured_where_it_would_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_by_onednn", lambda a, b: linear(a.bfloat16(), b.bfloat16()).float())
    assert products.measured(49, 1536, 1536).onednn_ms is None


@pytest.mark.parametrize(
    ("found", "expected"), [(ZEN5, "medium"), (XEON, "highest"), (NEARLY, "highest"), (AMX, "highest")]
)
def test_products_go_to_onednn_only_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, setting: Any, found: Speed, expected: str
) -> None:
    monkeypatch.setattr(products, "speed", lambda: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert prefer_onednn() is (expected == "medium")
    assert setting() == expected
    with own_products():
        assert setting() == "highest"
    assert setting() == expected


def test_a_setting_of_the_users_own_and_a_gpu_in_the_process_keep_products_as_they_are(
    monkeypatch: pytest.MonkeyPatch, setting: Any
) -> None:
    monkeypatch.setattr(products, "speed", lambda: ZEN5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not prefer_onednn()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_float32_matmul_precision("high")
    assert not prefer_onednn()
    assert setting() == "high"
