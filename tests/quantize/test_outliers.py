"""Outliers at the released width, injected so that the function stays: what each format makes of them, who suffers."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from test_formats import decibels
from torch import Tensor
from towers import Language, Vision, inject, loudest, quantized

from gr00t_trt.plans.precisions import Gate
from gr00t_trt.quantize.ranking import decibels as of_share
from gr00t_trt.quantize.ranking import needed_db, noise_by_layer, worst, worst_besides


def tower(kind: type, depth: int, tokens: int, where: list[tuple[int, int]]) -> tuple[torch.nn.Module, dict, Tensor]:
    """A tower with outliers, what its layers saw of other data, and data to judge it by."""
    torch.manual_seed(0)
    made, width = kind(depth).eval(), 1152 if kind is Vision else 2048
    seen_data, x = [torch.randn(1, tokens, width) for _ in range(2)], torch.randn(1, tokens, width)
    with torch.no_grad():
        before = made(x)
        inject(made, where)
        assert decibels(made(x), before) > 120
    return made, loudest(made, seen_data), x


@torch.no_grad()
def hurt(made: torch.nn.Module, seen: dict, x: Tensor, form: str, **how: float) -> float:
    return decibels(quantized(made, seen, form, **how)(x), made(x))


def test_int8_needs_smoothing_and_fp8_does_not() -> None:
    made, seen, x = tower(Vision, 1, 64, [(0, 0), (0, 1)])
    assert hurt(made, seen, x, "int8") > 40
    assert hurt(made, seen, x, "int8", smoothing=0.0) < 30
    assert hurt(made, seen, x, "fp8") > 33
    assert hurt(made, seen, x, "nvfp4") > hurt(made, seen, x, "nvfp4", smoothing=0.0) + 2


@pytest.mark.full_size
@pytest.mark.parametrize(("kind", "depth", "tokens"), [(Vision, 4, 256), (Language, 3, 296)])
def test_so_it_is_at_the_length_of_a_request(kind: type, depth: int, tokens: int) -> None:
    made, seen, x = tower(kind, depth, tokens, [(n, half) for n in range(depth) for half in (0, 1)])
    assert hurt(made, seen, x, "int8") > 40
    assert hurt(made, seen, x, "int8", smoothing=0.0) < 22
    assert hurt(made, seen, x, "fp8") > 33


def test_the_ranking_finds_the_injected_layers_and_its_sum_is_the_whole_noise() -> None:
    made, seen, x = tower(Vision, 2, 64, [(0, 1), (1, 1)])
    unsmoothed = {"smoothing": 0.0}
    makers = {name: (lambda name=name: quantized(made, seen, "int8", [name], **unsmoothed)) for name in seen}
    noise = noise_by_layer(lambda one: [one(x)], made, makers)
    injected = {"layers.0.mlp.fc1", "layers.1.mlp.fc1"}
    assert set(sorted(noise, key=noise.__getitem__)[-2:]) == injected
    together = hurt(made, seen, x, "int8", **unsmoothed)
    assert of_share(sum(noise.values())) == pytest.approx(together, abs=0.5)
    assert set(worst(noise, "int8", Gate(0.995, sqnr_db=together + 8), "file")) == injected
    kept = [name for name in seen if name not in injected]
    with torch.no_grad():
        assert decibels(quantized(made, seen, "int8", kept, **unsmoothed)(x), made(x)) > together + 8


def test_no_more_layers_are_kept_than_a_gate_needs() -> None:
    noise = {"a": 1e-2, "b": 1e-3, "c": 1e-4}
    assert worst(noise, "fp8", Gate(0.9, sqnr_db=10.0), "file") == ()
    assert worst(noise, "fp8", Gate(0.9, sqnr_db=28.0), "file") == ("a",)
    assert worst(noise, "fp8", Gate(0.9, sqnr_db=38.0), "file") == ("a", "b")
    assert worst(noise, "fp8", Gate(0.9, sqnr_db=300.0), "file") == ("a", "b", "c")


def test_a_gate_of_a_cosine_is_one_of_decibels_too() -> None:
    assert needed_db(Gate(cosine=0.995, sqnr_db=18.0)) == pytest.approx(20.0)
    assert needed_db(Gate(cosine=0.5, sqnr_db=18.0)) == 18.0


def test_where_a_request_is_noisier_than_the_ranking_predicts_more_layers_are_kept() -> None:
    noise, gate = {"a": 1e-2, "b": 1e-3, "c": 1e-4}, Gate(0.9, sqnr_db=24.0)
    asked: list[set[str]] = []

    def measured(kept: Collection[str], times: float = 30.0) -> float:
        asked.append(set(kept))
        return times * sum(share for name, share in noise.items() if name not in kept)

    assert worst_besides(measured, noise, "fp8", gate) == {"a", "b"}
    assert asked == [set(), {"a", "b"}]
    assert worst_besides(lambda kept: measured(kept, 0.1), noise, "fp8", gate) == set()
    assert worst_besides(lambda kept: 1.0, noise, "fp8", gate) == {"a", "b", "c"}
