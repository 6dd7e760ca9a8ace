"""CUDA graphs of a plan: what is captured at the start, what the record says, and why not."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fake_graphs import FakeCapturer, NotCapturable
from rich.console import Console

import gr00t_trt
from gr00t_trt.common.progress import Steps
from gr00t_trt.compile import capture as module
from gr00t_trt.compile.capture import capture_requests, capturer_for, with_length
from gr00t_trt.data import example_observation
from gr00t_trt.deploy.deploy import Deployment, deploy
from gr00t_trt.errors import PlanError
from gr00t_trt.model.n1_5.fast import FastGr00tN1d5, graphs, restructure
from gr00t_trt.model.n1_5.inputs import IDS, MASK
from gr00t_trt.plans.backends import BACKENDS, get_backend
from gr00t_trt.plans.conflicts import plan_warnings
from gr00t_trt.plans.load import merge, plan_from_mapping
from gr00t_trt.plans.resolve import Machine, resolve
from gr00t_trt.plans.schema import SUBMODULES, Plan
from gr00t_trt.plans.submodules import graph_tolerance
from gr00t_trt.policy.policy import Gr00tPolicy
from gr00t_trt.policy.source import Source
from gr00t_trt.record.schema import Replay
from gr00t_trt.run.job import Job, run
from gr00t_trt.run.program import overrides, parse

ONCE = {"timer": "python_timer", "iterations": 1, "warmup": 0}
NOISE = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0))


def plan(**settings: Any) -> Plan:
    base = {"backend": "eager", "precision": "fp32", "denoising_steps": 1, "cuda_graph": "startup", "benchmark": ONCE}
    return plan_from_mapping({**base, **settings}, "test")


@pytest.fixture(scope="module")
def policy() -> Gr00tPolicy:
    return gr00t_trt.load_policy("synthetic", denoising_steps=1)


@pytest.fixture(scope="module")
def inputs(policy: Gr00tPolicy) -> dict[str, torch.Tensor]:
    return policy.preprocess(example_observation(policy.modality_config, policy.metadata))[0]


@pytest.fixture
def model(policy: Gr00tPolicy) -> FastGr00tN1d5:
    return restructure(policy.model)


@pytest.fixture
def capturer(monkeypatch: pytest.MonkeyPatch) -> FakeCapturer:
    """What captures in place of CUDA, on the CPU as well."""
    made = FakeCapturer()
    monkeypatch.setattr(module, "capturer_for", lambda device: made)
    monkeypatch.setattr(graphs, "WARM_CALLS", 1)
    return made


def capture(
    model: FastGr00tN1d5, inputs: dict[str, torch.Tensor], wanted: Plan, capturer: FakeCapturer | None, **backends: str
) -> tuple[Replay | None, list[str]]:
    notes: list[str] = []
    served = {**dict.fromkeys(SUBMODULES, "eager"), **backends}
    found = capture_requests(model, wanted, inputs, NOISE, backends=served, capturer=capturer, note=notes.append)
    return found, notes


def test_further_lengths_are_captured_at_the_start(model, inputs, capturer: FakeCapturer) -> None:
    length = inputs[IDS].shape[1]
    wanted = plan(cuda_graph_lengths=[length - 3, length, length + 5])
    found, notes = capture(model, inputs, wanted, capturer)
    assert notes == []
    assert found is not None
    assert found == Replay(3, found.input_bytes, max_rel_error=0.0)
    assert found.input_bytes > 3 * 4 * 3 * 224 * 224
    for other in (length - 3, length, length + 5, length + 1):
        request = with_length(inputs, other, model.config)
        request = {**request, IDS: torch.where(request[IDS] < 1018, request[IDS].roll(1) % 1018, request[IDS])}
        captured = model.get_action(request, noise=NOISE)["action_pred"]
        torch.testing.assert_close(captured, model.run(model.prepare(request), NOISE), atol=0, rtol=0)
    assert (capturer.captured, capturer.replays) == (3, 2 * 3 + 3)


def test_lengths_that_the_images_do_not_fit_into(model, inputs) -> None:
    images = int((inputs[IDS] == model.config.image_token_index).sum())
    shortest = with_length(inputs, images + 1, model.config)
    assert shortest[IDS].shape == shortest[MASK].shape == (1, images + 1)
    model.prepare(shortest)  # the images still have their places
    with pytest.raises(PlanError, match=f"{images} tokens are too few[\\s\\S]*at least {images + 1}"):
        with_length(inputs, images, model.config)


def test_padded_prompts_change_their_length_without_losing_an_image(model, inputs) -> None:
    ids = torch.cat((inputs[IDS], inputs[IDS].roll(3, dims=1)))
    both = {IDS: ids, MASK: torch.ones_like(ids)}
    count = (ids == model.config.image_token_index).sum(dim=1)
    for length in (ids.shape[1] - 4, ids.shape[1] + 2):
        changed = with_length(both, length, model.config)[IDS]
        assert changed.shape == (2, length)
        assert torch.equal((changed == model.config.image_token_index).sum(dim=1), count)


def test_without_a_gpu_it_says_so_and_nothing_changes(model, inputs) -> None:
    assert capturer_for(torch.device("cpu")) is None
    found, notes = capture(model, inputs, plan(), None)
    assert (found, model.graphs) == (None, None)
    assert notes == ["no graph was captured, so requests run kernel by kernel: the model is not on a GPU"]


def test_backends_that_cannot_be_captured_are_named(model, inputs, capturer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {row.backend.capturable for row in BACKENDS.values()} <= {"any shape", "one shape", "none"}
    monkeypatch.setattr(type(get_backend("inductor")), "capturable", "none")
    found, notes = capture(model, inputs, plan(), capturer, dit_model="inductor", vision_model="inductor")
    assert (found, model.graphs, capturer.captured) == (None, None, 0)
    assert "the backend of vision_model (inductor), dit_model (inductor) cannot be captured" in notes[0]


def test_engines_are_captured_at_one_shape(model, inputs, capturer: FakeCapturer) -> None:
    wanted = plan(cuda_graph="on_demand", cuda_graph_lengths=[290])
    found, (note,) = capture(model, inputs, wanted, capturer, dit_model="torch_tensorrt")
    assert found is not None
    assert found.graphs == 1
    assert "requests of one shape only" in note
    assert "because of dit_model (torch_tensorrt)" in note


def test_what_cannot_be_captured_is_told_and_runs_uncaptured(model, inputs, capturer: FakeCapturer) -> None:
    capturer.fails = NotCapturable("it waits")
    found, notes = capture(model, inputs, plan(), capturer)
    assert (found, model.graphs) == (None, None)
    assert notes == ["no graph was captured, so requests run kernel by kernel: NotCapturable: it waits"]


def test_a_graph_is_held_to_what_the_least_exact_precision_allows() -> None:
    assert graph_tolerance(plan()) == 1e-5
    assert graph_tolerance(plan(precision="fp16")) == 2e-3
    assert graph_tolerance(plan(precision="fp16", submodules={"dit_model": {"precision": "bf16"}})) == 2e-2


def _deployed(**settings: Any) -> Deployment:
    quiet = Steps(Console(file=io.StringIO()), None)
    return deploy(gr00t_trt.load_policy("synthetic"), resolve(plan(**settings), Machine("cpu")), quiet)


def test_a_deployed_policy_answers_by_replay(capturer: FakeCapturer, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at_first: list[object] = []
    answer = graphs.RequestGraphs.__call__
    monkeypatch.setattr(
        graphs.RequestGraphs, "__call__", lambda self, *given: (looked_at_first.append(given), answer(self, *given))[1]
    )
    done, plain = _deployed(), gr00t_trt.load_policy("synthetic", denoising_steps=1)
    assert done.record.cuda_graph.graphs == 1
    assert capturer.captured == 1
    before = capturer.replays
    words = ("pick the pear from the counter and place it in the plate", "pick the apple")
    for seed, instruction in enumerate((words[0], words[1], words[0])):
        observation = example_observation(plain.modality_config, plain.metadata, instruction=instruction)
        start = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(seed))
        expected = plain.get_action(observation, noise=start)
        for key, value in done.policy.get_action(observation, noise=start).items():
            np.testing.assert_allclose(value, expected[key], atol=1e-4)
    assert (capturer.captured, capturer.replays) == (1, before + 2)
    # The instruction of the start was launched at once, whatever came between.
    assert len(looked_at_first) == 1


def test_a_start_says_which_prompt_lengths_are_replayed(capturer: FakeCapturer) -> None:
    def told(**settings: Any) -> list[str]:
        skipped = _deployed(**settings).record.skipped
        return [note.why.split(" tokens")[0] for note in skipped if "are replayed" in note.why]

    assert told() == ["prompts of 294"]
    assert told(cuda_graph_lengths=[290, 294, 300]) == ["prompts of 290, 294, 300"]
    assert told(cuda_graph="on_demand") == told(cuda_graph="none") == []


def test_a_run_says_why_there_is_no_graph() -> None:
    resolved = resolve(plan(), Machine("cpu"), "state_encoder")
    record = run(Job(Source("synthetic", "synthetic")), resolved, Console(file=io.StringIO()))
    assert record.cuda_graph is None
    assert [note.why for note in record.skipped if note.what == "cuda_graph"] == [
        "no graph was captured, so requests run kernel by kernel: the model is not on a GPU"
    ]


def test_the_flag_is_the_plans_key() -> None:
    args, _ = parse(["--cuda-graph", "on_demand"])
    assert merge(Plan(), overrides(args)) == replace(Plan(), cuda_graph="on_demand")
    assert plan_warnings(plan_from_mapping({"cuda_graph_lengths": [300, 294, 300]}, "x")) == [
        "cuda_graph_lengths has no effect: cuda_graph is none"
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cuda_graph": "always"}, "cuda_graph: unknown value 'always'"),
        ({"cuda_graph": False}, "cuda_graph: false is not a name"),
        ({"optimizations": "none"}, "cuda_graph: a graph is given the image positions that prompt_cache"),
        ({"joint_backbone": True}, "cuda_graph: a graph is given the image positions"),
        ({"cuda_graph_lengths": 294}, "cuda_graph_lengths: 294 is not a list"),
        ({"cuda_graph_lengths": [294, 0]}, "cuda_graph_lengths[1]: 0 is out of range"),
        ({"cuda_graph_lengths": [900], "ranges": {"length": [32, 600]}}, "900 tokens lie outside ranges.length"),
    ],
)
def test_plans_that_cannot_work(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan(**settings)
    assert words in str(caught.value)
