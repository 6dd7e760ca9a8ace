"""Whole requests as real CUDA graphs: right on new inputs, never stale, harmless to what else the GPU does."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
from torch import Tensor

from gr00t_trt.backends.base import BuildContext
from gr00t_trt.backends.inductor.backend import InductorBackend
from gr00t_trt.compile.build import dimension_ranges, set_precision
from gr00t_trt.measure.kernels import timeline
from gr00t_trt.measure.workloads import Request
from gr00t_trt.model import Gr00tN1d5
from gr00t_trt.model.n1_5.fast import CudaCapturer, FastGr00tN1d5, RequestGraphs, restructure
from gr00t_trt.plans.precisions import PRECISIONS
from gr00t_trt.plans.schema import BuildOptions, Plan, Ranges
from gr00t_trt.plans.submodules import graph_tolerance, select
from gr00t_trt.record.result import Workload

pytestmark = pytest.mark.usefixtures("exact")
TOLERANCE = 1e-4
REPLAYED = PRECISIONS["fp32"].graph_tolerance


@pytest.fixture
def model(tiny: Gr00tN1d5, gpu: torch.device) -> FastGr00tN1d5:
    made = restructure(tiny)
    made.graphs = RequestGraphs(made, CudaCapturer(gpu), tolerance=REPLAYED, on_demand=True)
    return made


def difference(model: FastGr00tN1d5, on_cpu: Gr00tN1d5, inputs: dict[str, Tensor], start: Tensor) -> float:
    actions = model.get_action(inputs, noise=start)["action_pred"]
    expected = on_cpu.get_action(inputs, noise=start)["action_pred"]
    return float((actions.cpu() - expected).abs().max())


def launches(model: FastGr00tN1d5, inputs: dict[str, Tensor], start: Tensor) -> int:
    found = timeline(lambda: model.get_action(inputs, noise=start))
    assert found is not None
    return found.launches


def test_replays_follow_their_inputs(model, on_cpu, make_request, noise) -> None:
    for batch in (1, 2):
        for seed in range(3):
            assert difference(model, on_cpu, make_request(batch, seed=seed), noise(batch, seed)) < TOLERANCE
    assert len(model.graphs) == 2


def test_one_graph_at_a_time_is_captured_again_after_the_pools_last_one_has_gone(
    tiny, on_cpu, make_request, noise, gpu
) -> None:
    model = restructure(tiny)
    model.graphs = RequestGraphs(model, CudaCapturer(gpu), tolerance=REPLAYED, on_demand=True, limit=1)
    for _ in range(2):
        for batch in (1, 2):
            for seed in range(2):
                assert difference(model, on_cpu, make_request(batch, seed=seed), noise(batch, seed)) < TOLERANCE
            assert len(model.graphs) == 1


def test_a_stage_that_waits_for_the_host_is_told_and_runs_uncaptured(model, on_cpu, make_request, noise) -> None:
    eager = model.eager_stage("denoise_loop")
    model.stages["denoise_loop"] = lambda *args: eager(*args) if float(args[0].sum()) < 1e9 else args[0]
    with pytest.warns(RuntimeWarning, match="no CUDA graph of this request"):
        assert difference(model, on_cpu, make_request(), noise()) < TOLERANCE
    assert len(model.graphs) == 0
    model.reset_stages()
    for seed in range(2):
        assert difference(model, on_cpu, make_request(seed=seed), noise(seed=seed)) < TOLERANCE
    assert len(model.graphs) == 1


def test_what_a_replay_returned_is_the_callers(model, make_request, noise) -> None:
    first = model.get_action(make_request(seed=0), noise=noise(seed=0))["action_pred"]
    kept = first.clone()
    model.get_action(make_request(seed=1), noise=noise(seed=1))
    torch.cuda.synchronize()
    assert torch.equal(first, kept)


def test_a_padded_batch_is_captured_with_its_mask(model, on_cpu, make_request, noise) -> None:
    for padding in (7, 3):
        inputs = make_request(2, padding=padding)
        assert difference(model, on_cpu, inputs, noise(2)) < TOLERANCE
    assert len(model.graphs) == 1


def test_a_weight_written_in_place_is_not_answered_with_the_old_one(model, on_cpu, make_request, noise) -> None:
    inputs, start = make_request(), noise()
    model.get_action(inputs, noise=start)
    changed = copy.deepcopy(on_cpu)
    with torch.no_grad():
        for each in (model, changed):
            each.action_head.future_tokens.weight.mul_(2)
            each.action_head.model.proj_out_2.weight.mul_(0.5)
    assert difference(model, changed, inputs, start) < TOLERANCE
    assert len(model.graphs) == 1


def test_another_thread_may_use_the_gpu_meanwhile(model, on_cpu, make_request, noise, gpu) -> None:
    stop, rounds, wrong = threading.Event(), [0], []

    def work() -> None:
        stream = torch.cuda.Stream(gpu)
        with torch.cuda.stream(stream):
            x = torch.ones(512, 512, device=gpu)
            while not stop.is_set():
                y = (x @ x)[0, 0]
                if float(y) != 512.0:
                    wrong.append(float(y))
                rounds[0] += 1

    other = threading.Thread(target=work)
    other.start()
    try:
        for batch in (1, 2, 3):
            for seed in range(4):
                assert difference(model, on_cpu, make_request(batch, seed=seed), noise(batch, seed)) < TOLERANCE
    finally:
        stop.set()
        other.join()
    assert rounds[0] > 10
    assert not wrong
    assert len(model.graphs) == 3


def test_requests_of_several_threads_keep_to_themselves(model, on_cpu, make_request, noise, gpu) -> None:
    found: dict[int, float] = {}

    def ask(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream(gpu)):
            found[seed] = difference(model, on_cpu, make_request(seed=seed), noise(seed=seed))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert max(found.values()) < TOLERANCE


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_stages_are_captured(tiny, make_request, noise, gpu, precision: str) -> None:
    plan = Plan(
        backend="inductor",
        precision=precision,
        loop="denoise_step",
        ranges=Ranges(batch=(1, 1), views=(1, 1), length=(276, 276)),
    )
    model = restructure(tiny)
    model.loop = plan.loop
    inputs, start = make_request(), noise().to(gpu)
    recording = model.record(inputs, start)[0]
    dims = dimension_ranges(tiny.config, plan.ranges, Request(Workload(), {}, inputs, start, batched=False))
    set_precision(model, plan)
    for name in select("all", plan):
        built = InductorBackend().build(
            model.target(name, recording, dims), BuildOptions(), BuildContext(None, lambda _: None)
        )
        model.stages[name] = built.call
    uncaptured = {seed: model.get_action(make_request(seed=seed), noise=noise(seed=seed)) for seed in range(3)}
    count = launches(model, inputs, start)
    model.graphs = RequestGraphs(model, CudaCapturer(gpu), tolerance=graph_tolerance(plan))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.graphs.capture(model.prepare(inputs), start) is None
        for seed, expected in uncaptured.items():
            actions = model.get_action(make_request(seed=seed), noise=noise(seed=seed))["action_pred"]
            assert float((actions - expected["action_pred"]).abs().max()) <= (2e-2 if precision == "bf16" else 1e-5)
    assert launches(model, inputs, start) > count / 2  # the profiler looks into graphs
