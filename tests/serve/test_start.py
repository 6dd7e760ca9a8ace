"""What a server sets up around a deployed policy."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest

import gr00t_trt
from gr00t_trt.plans.schema import Plan, Ranges
from gr00t_trt.serve.request_log import LOGGER
from gr00t_trt.serve.start import _limits, _log_to_stderr, _prompt_length, _timed_tables, collected_early


def test_stages_that_a_graph_has_swallowed_are_not_timed() -> None:
    plain = gr00t_trt.load_policy("synthetic")
    assert _timed_tables([plain]) == (plain.stages, plain.model.stages)
    stages, steps = {"dit_model": print}, {"preprocess": print}
    policy = SimpleNamespace(stages=steps, model=SimpleNamespace(stages=stages, graphs=None))
    assert _timed_tables([policy]) == (steps, stages)
    policy.model.graphs = print  # wrapping a stage now would throw its graph away
    assert _timed_tables([policy]) == (steps,)


@pytest.mark.parametrize("bracketed", [False, True])
@pytest.mark.parametrize("data_config", ["fourier_gr1_arms_waist", "so100_dualcam"])
def test_the_length_of_a_prompt_is_known_without_its_images(bracketed: bool, data_config: str) -> None:
    policy = gr00t_trt.load_policy("synthetic", data_config=data_config, bracketed_instruction=bracketed)
    views = len(policy.modality_config["video"].modality_keys)
    for text in (
        "push",
        "put the red cup on the plate, and close the drawer",
        "\u30d4\u30c3\u30af \U0001f350 it's",
        " ",
    ):
        observation = {k: [text] if "annotation" in k else v for k, v in policy.example().items()}
        inputs, _ = policy.preprocess(observation)
        assert _prompt_length(policy, views)(text) == inputs["eagle_input_ids"].shape[1]


def test_limits_are_the_plans_ranges_and_otherwise_what_engines_are_built_for() -> None:
    policy = gr00t_trt.load_policy("synthetic")
    limits = _limits(policy, Plan())
    assert (limits.max_samples, limits.max_tokens) == (8, 3 * policy.prompter.tokens_per_image + 256)
    assert limits.noise_shape == (16, 32)
    limits = _limits(policy, replace(Plan(), ranges=Ranges(batch=(1, 2), length=(32, 300))))
    assert (limits.max_samples, limits.max_tokens) == (2, 300)


def test_a_host_process_keeps_its_own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOGGER, "handlers", [logging.NullHandler()])
    _log_to_stderr()
    assert len(LOGGER.handlers) == 1


def test_what_only_refers_to_itself_goes_soon_while_a_server_runs() -> None:
    """Not only what is young: an error or a connection has often outlived two of Python's looks by then."""

    class Kept:
        pass

    def left_alone() -> weakref.ref[Kept]:
        one = Kept()
        for _ in range(2):
            gc.collect(1)  # it is old now
        one.itself = one  # type: ignore[attr-defined]
        return weakref.ref(one)

    with collected_early():
        gone = left_alone()
        kept = [[] for _ in range(200_000)]
        assert gone() is None
    assert len(kept) == 200_000
