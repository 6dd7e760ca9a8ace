"""Draws are functions of where they are used, and follow the original's distributions."""

from __future__ import annotations

import pytest
import torch

from gr00t_trt.finetune.draws import flow_time, generator, noise


def test_a_draw_is_a_function_of_its_arguments():
    before = torch.get_rng_state()
    for arguments in (
        (1, "noise", 5),
        (2, "noise", 5),
        (1, "crop", 5),
        (1, "noise", 6),
        (1, "noise", 5, 0),
        (1, "noise"),
    ):
        one, two = (torch.rand(4, generator=generator(*arguments)) for _ in range(2))
        assert torch.equal(one, two)
        if arguments != (1, "noise", 5):
            assert not torch.equal(one, torch.rand(4, generator=generator(1, "noise", 5)))
    assert torch.equal(before, torch.get_rng_state())
    # What a run draws must be what its continuation draws, on another machine too.
    assert torch.rand(2, generator=generator(42, "noise", 0)).tolist() == pytest.approx(
        [0.98883730, 0.28885937], abs=1e-7
    )


def test_noise_is_standard_normal_and_independent():
    found = torch.stack([noise(42, position, (16, 32)) for position in range(500)])
    assert found.dtype == torch.float32
    assert found.mean().item() == pytest.approx(0, abs=0.01)
    assert found.std().item() == pytest.approx(1, abs=0.01)
    correlation = torch.corrcoef(found.flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.3


def test_times_follow_the_original():
    found = torch.tensor([flow_time(42, position) for position in range(8000)], dtype=torch.float64)
    # Of a million draws of the original: mean 0.399, standard deviation 0.262, 0.15 % negative.
    assert found.mean().item() == pytest.approx(0.399, abs=0.01)
    assert found.std().item() == pytest.approx(0.262, abs=0.006)
    assert 0.0004 < (found < 0).double().mean() < 0.003
    assert found.min() >= -0.00101
    # s^1.5 is uniform where s is from Beta(1.5, 1).
    uniform = (0.999 * (1 - found)) ** 1.5
    quantiles = torch.quantile(uniform, torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
    torch.testing.assert_close(quantiles, torch.linspace(0.1, 0.9, 9, dtype=torch.float64), atol=0.02, rtol=0)


def test_the_largest_time_stays_below_one_in_float32(monkeypatch):
    largest = torch.tensor(1 - 2**-24)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: largest)
    time = torch.tensor(flow_time(0, 0), dtype=torch.float32)
    assert time < 1
    assert int(time * 1000) == 999
