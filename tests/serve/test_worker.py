"""One bad request never harms another, none is forgotten, and the end is orderly."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from puppet import CONFIG, LIMITS, Puppet, observation, wait_until

from gr00t_trt.errors import AccuracyError
from gr00t_trt.serve import worker
from gr00t_trt.serve.batching import Batcher
from gr00t_trt.serve.metrics import Metrics
from gr00t_trt.serve.refusal import Refusal
from gr00t_trt.serve.waiting import Answer, Request
from gr00t_trt.serve.worker import PolicyWorker


class Run:
    """A worker on a thread; `ask` returns the place where the answer will stand."""

    def __init__(self, **settings: Any):
        self.puppet, self.metrics = Puppet(), Metrics()
        self.reports: list[Exception] = []
        self.worker = PolicyWorker(
            self.puppet,
            self.metrics,
            tables=(self.puppet.stages,),
            batcher=Batcher(CONFIG, len),
            report=self.reports.append,
            **settings,
        )
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:
            self.failure = error

    def ask(self, value: float = 0.0, text: str = "go", client: str = "a") -> list[Answer]:
        answers: list[Answer] = []
        self.worker.submit(Request(client, observation(value, text), answers.append))
        return answers

    def __enter__(self) -> Run:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.puppet.go.set()
        self.worker.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


def answered(*all_answers: list[Answer]) -> list[Answer]:
    wait_until(lambda: all(all_answers))
    assert all(len(each) == 1 for each in all_answers)
    return [each[0] for each in all_answers]


def test_an_answer_says_where_its_time_went() -> None:
    with Run() as run:
        (answer,) = answered(run.ask(3.0))
    assert answer.action is not None
    assert (answer.action["action.arm"] == 3.0).all()
    assert list(answer.timings_ms) == ["queue", "think", "between stages", "total"]
    assert 0 <= answer.timings_ms["think"] <= answer.timings_ms["total"]
    assert run.metrics.snapshot()["timings_ms"]["think"]["count"] == 1


def test_an_answer_does_not_wait_for_the_metrics() -> None:
    with Run() as run:
        counted: list[dict[str, Any]] = []
        run.worker.submit(Request("a", observation(), lambda _: counted.append(run.metrics.snapshot()["timings_ms"])))
        wait_until(lambda: run.metrics.snapshot()["timings_ms"])
    assert counted == [{}]


def test_a_request_that_fails_is_answered_and_the_next_one_too() -> None:
    with Run() as run:
        failed, nan, good = answered(run.ask(text="fail"), run.ask(text="nan"), run.ask(5.0))
    assert isinstance(failed.error, ZeroDivisionError)
    assert run.reports == [failed.error]
    assert isinstance(nan.error, AccuracyError)
    assert "holds nan" in str(nan.error)
    assert good.action is not None
    assert (good.action["action.arm"] == 5.0).all()


def test_waiting_requests_share_a_pass_and_each_gets_its_own_answer() -> None:
    with Run(max_batch=4, batch_wait_s=0.2) as run:
        answers = answered(*(run.ask(float(i), client=str(i)) for i in range(4)))
        assert [call["state.arm"].shape for call in run.puppet.calls] == [(4, 1, 5)]
    for i, answer in enumerate(answers):
        assert answer.action is not None
        assert answer.action["action.arm"].shape == (16, 5)
        assert (answer.action["action.arm"] == i).all()


@pytest.mark.parametrize(
    ("buckets", "batches"), [(None, [1, 5, 2]), ([1, 2, 4, 8], [1, 4, 1, 2])], ids=["any", "buckets"]
)
def test_what_waits_when_the_device_is_free_is_taken_together(buckets: Any, batches: list[int]) -> None:
    with Run(max_batch=8, buckets=buckets) as run:
        run.puppet.go.clear()
        first = run.ask(0.0)
        wait_until(lambda: run.puppet.calls)
        gone: list[Answer] = []
        run.worker.submit(Request("gone", observation(), gone.append, gone=lambda: True))
        waiting = [run.ask(float(i), client=str(i)) for i in range(1, 6)]
        longer = [run.ask(float(i), "longer", client=str(i)) for i in range(6, 8)]
        run.puppet.go.set()
        answers = answered(first, *waiting, *longer)
    assert gone[0].error is not None
    assert [len(call["state.arm"]) if call["state.arm"].ndim == 3 else 1 for call in run.puppet.calls] == batches
    for value, answer in enumerate(answers):
        assert answer.action is not None
        assert (answer.action["action.arm"] == value).all()


def test_one_bad_request_of_a_shared_pass_harms_itself_alone() -> None:
    with Run(max_batch=3, batch_wait_s=0.2) as run:
        # Instructions of one length, so that they share a pass.
        first, bad, last = answered(run.ask(1.0, "good", "a"), run.ask(2.0, "fail", "b"), run.ask(3.0, "fine", "c"))
    assert isinstance(bad.error, ZeroDivisionError)
    for value, answer in ((1.0, first), (3.0, last)):
        assert answer.action is not None
        assert (answer.action["action.arm"] == value).all()


def test_what_cannot_be_in_time_is_not_begun() -> None:
    def ask(run: Run, timeout_s: float) -> list[Answer]:
        answers: list[Answer] = []
        run.worker.submit(Request("a", observation(), answers.append, timeout_s=timeout_s))
        return answers

    with Run() as run:
        answered(run.ask())
        assert len(run.worker._passes) == 1  # what it took is known
        now = time.monotonic()
        passes = [(now, 60.0)] * 7
        run.worker._passes = deque(passes)
        (tried,) = answered(ask(run, 30.0))  # seven are too few to know
        run.worker._passes = deque([*passes, (now, 60.0)])
        before = len(run.puppet.calls)
        (hopeless,) = answered(ask(run, 30.0))
        assert len(run.puppet.calls) == before
        (possible,) = answered(ask(run, 90.0))
        run.worker._passes = deque([*passes, (now - 11, 60.0)])  # one of them is too old
        (forgotten,) = answered(ask(run, 30.0))
    assert tried.error is possible.error is forgotten.error is None
    assert "takes 60.000 s at least, longer than the 30 s that its client waits" in str(hopeless.error)


def test_requests_beyond_the_queue_and_beyond_their_time_are_refused() -> None:
    with Run(max_queue=1, request_timeout_s=0.1) as run:
        run.puppet.go.clear()
        running = run.ask()
        wait_until(lambda: run.puppet.calls)
        late, too_many = run.ask(), run.ask()
        (refused,) = answered(too_many)
        assert isinstance(refused.error, Refusal)
        assert "1 requests wait already" in str(refused.error)
        time.sleep(0.15)
        run.puppet.go.set()
        done, expired = answered(running, late)
    assert done.error is None
    assert "longer than the 0.1 s allowed" in str(expired.error)


def test_at_the_end_the_running_request_is_finished_and_the_waiting_ones_are_told() -> None:
    with Run() as run:
        run.puppet.go.clear()
        running = run.ask(7.0)
        wait_until(lambda: run.puppet.calls)
        waiting = [run.ask(client=str(i)) for i in range(3)]
        run.worker.stop()
        run.puppet.go.set()
        done, *refused = answered(running, *waiting)
        run.thread.join(5)
        (late,) = answered(run.ask())
    assert done.action is not None
    assert all("shutting down" in str(answer.error) for answer in [*refused, late])


def test_nothing_is_computed_for_a_client_that_has_given_up_or_gone() -> None:
    with Run() as run:
        run.puppet.go.clear()
        running = run.ask()
        wait_until(lambda: run.puppet.calls)
        refused: list[Answer] = []
        run.worker.submit(Request("b", observation(), refused.append, timeout_s=0.01))
        run.worker.submit(Request("c", observation(), refused.append, gone=lambda: True))
        time.sleep(0.02)
        run.puppet.go.set()
        answered(running)
        wait_until(lambda: len(refused) == 2)
    assert "longer than the 0.01 s that its client waits" in str(refused[0].error)
    assert "its client has gone" in str(refused[1].error)
    assert len(run.puppet.calls) == 1


def test_those_who_have_gone_make_room_in_the_queue() -> None:
    with Run(max_queue=2) as run:
        run.puppet.go.clear()
        running = run.ask()
        wait_until(lambda: run.puppet.calls)
        gone: list[Answer] = []
        for _ in range(2):
            run.worker.submit(Request("b", observation(), gone.append, gone=lambda: True))
        waiting = run.ask(client="c")
        wait_until(lambda: len(gone) == 2)
        run.puppet.go.set()
        answered(running, waiting)


def test_a_seed_or_noise_reaches_the_policy_and_is_answered_alone() -> None:
    noise = np.random.default_rng(0).normal(size=(1, 16, 3)).astype(np.float32)
    with Run(max_batch=4, batch_wait_s=0.2, limits=LIMITS) as run:
        seeds: list[Answer] = []
        for seed in (1, 2, 1):
            run.worker.submit(Request("a", observation(), seeds.append, seed=seed))
        run.worker.submit(Request("a", observation(), seeds.append, noise=noise))
        wait_until(lambda: len(seeds) == 4)
        assert all(call["state.arm"].shape == (1, 5) for call in run.puppet.calls)
    first, second, again, given = (answer.action["action.noise"] for answer in seeds if answer.action is not None)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(given, noise)
    assert (first != second).all()
    expected = torch.randn((1, 16, 3), generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(first, expected.numpy())


def test_at_the_end_those_that_wait_are_told_at_once_and_the_running_one_when_it_takes_too_long() -> None:
    with Run() as run:
        run.puppet.go.clear()
        running = run.ask()
        wait_until(lambda: run.puppet.calls)
        assert 0 < run.worker.running_s < 10
        waiting = [run.ask(client=str(i)) for i in range(3)]
        run.worker.refuse_waiting()
        assert all("shutting down" in str(answer.error) for (answer,) in waiting)
        assert not running
        run.worker.refuse_running()
        assert "shutting down" in str(running[0].error)
        run.puppet.go.set()
        run.thread.join(5)
        assert len(running) == 1
        assert run.worker.running_s == 0


@pytest.mark.parametrize("max_batch", [1, 3])
def test_a_gpu_that_is_spoilt_ends_the_worker_with_every_request_answered(max_batch: int, monkeypatch) -> None:
    def drain(device: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(worker, "drain", drain)
    with Run(max_batch=max_batch, batch_wait_s=0.2) as run:
        answers = answered(run.ask(text="fail", client="a"), run.ask(text="fine", client="b"), run.ask(client="c"))
        run.thread.join(5)
    assert "illegal memory access" in str(run.failure)
    assert isinstance(answers[0].error, ZeroDivisionError)
    assert "shutting down" in str(answers[2].error)


def test_metrics_are_a_page_that_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.gauge("queue_length", "Requests that wait.", lambda: 2)
    for ms in np.linspace(1, 100, 100):
        metrics.timings({"total": float(ms)})
    metrics.request("get_action", "ok")
    page = metrics.prometheus({'od"d\n': "eager\\fp32"})
    lines = page.splitlines()
    assert page.endswith("\n")
    assert 'gr00t_requests_total{endpoint="get_action",result="ok"} 1' in lines
    assert "gr00t_queue_length 2" in lines
    assert 'gr00t_served_by_info{submodule="od\\"d\\n",backend="eager\\\\fp32"} 1' in lines
    # A bucket counts everything up to its bound, and the last one everything.
    assert 'gr00t_stage_seconds_bucket{stage="total",le="0.01"} 10' in lines
    assert 'gr00t_stage_seconds_bucket{stage="total",le="+Inf"} 100' in lines
    assert metrics.snapshot()["timings_ms"]["total"] == {"count": 100, "p50": 50.5, "p99": pytest.approx(99.01)}
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    assert all(line.startswith(("# ", "gr00t_")) for line in lines)


def test_the_page_is_what_prometheus_own_parser_reads() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    metrics = Metrics()
    metrics.gauge("queue_length", "Requests that wait.", lambda: 2)
    for ms in (1.0, 10.0, 100.0):
        metrics.timings({"total": ms})
    metrics.request("get_action", "ok")
    odd = 'od"d\n\\'
    families = {one.name: one for one in parser.text_string_to_metric_families(metrics.prometheus({odd: "eager fp32"}))}
    assert {one.type for one in families.values()} == {"counter", "histogram", "gauge"}
    assert all(one.documentation for one in families.values())
    stage = families["gr00t_stage_seconds"]
    assert stage.type == "histogram"
    read = {(sample.name, sample.labels.get("le")): sample.value for sample in stage.samples}
    assert read["gr00t_stage_seconds_count", None] == read["gr00t_stage_seconds_bucket", "+Inf"] == 3
    assert read["gr00t_stage_seconds_sum", None] == pytest.approx(0.111)
    (served,) = families["gr00t_served_by_info"].samples
    assert (served.labels, served.value) == ({"submodule": odd, "backend": "eager fp32"}, 1)
    assert families["gr00t_queue_length"].samples[0].value == 2
