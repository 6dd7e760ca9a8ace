"""The rows of both kinds of device: nothing twice, nothing impossible, the headline first."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gr00t_trt.measure.rows import ALL, PLAIN, Row, planned
from gr00t_trt.record.files import dumps, record_from
from gr00t_trt.record.result import Workload
from gr00t_trt.record.schema import Record

NAMES = ("vision_model", "language_model", "denoise_step")
KINDS = {
    "cpu": planned("cpu", NAMES),
    "cuda": planned("cuda", NAMES),
    "cuda with TensorRT": planned("cuda", NAMES, tensorrt=True),
}
both = pytest.mark.parametrize("rows", KINDS.values(), ids=list(KINDS))


def first(rows: list[Row], count: int) -> list[str]:
    return [row.name for row in sorted(rows, key=lambda row: row.priority)[:count]]


@both
def test_every_row_is_one_of_its_kind(rows: list[Row]) -> None:
    assert len({(row.group, row.name) for row in rows}) == len(rows)
    assert len({(row.candidate, row.workload, row.of, row.calls) for row in rows}) == len(rows)
    groups = list(dict.fromkeys(row.group for row in rows))
    assert [row.group for row in rows] == sorted((row.group for row in rows), key=groups.index)


@both
def test_the_waterfall_adds_one_optimization_at_a_time(rows: list[Row]) -> None:
    steps = [row for row in rows if row.group == "waterfall"]
    assert steps[0].candidate == PLAIN
    for count, row in enumerate(steps[1 : len(ALL) + 1], 1):
        assert row.candidate.optimizations == ALL[:count]
        assert row.name == f"+ {ALL[count - 1]}"
        assert row.candidate.backend == "eager"
    assert all(row.candidate.optimizations == ALL for row in steps[len(ALL) :])


def test_the_headline_comes_first() -> None:
    assert first(KINDS["cpu"], 3) == ["+ prompt_cache", "eager PyTorch", "denoising loop, restructured"]
    assert first(KINDS["cuda"], 4) == ["+ prompt_cache", "eager PyTorch", "+ torch.compile", "+ one CUDA graph"]


def test_a_cpu_is_asked_for_no_cuda_graph() -> None:
    for row in KINDS["cpu"]:
        assert not row.candidate.graph
        assert row.candidate.mode in (None, "default")


def test_a_gpu_gets_all_that_is_asked_for() -> None:
    rows = KINDS["cuda with TensorRT"]
    modes = {row.candidate.mode for row in rows}
    assert modes >= {"default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"}
    work = {row.workload for row in rows}
    assert {w.views for w in work} == {1, 2, 3}
    assert {w.batch for w in work} == {1, 8}
    assert {w.steps for w in work} == {1, 2, 4, 8}
    assert any(row.calls == 1000 for row in rows)
    assert any(row.of == "request" for row in rows)
    assert {row.of for row in rows if row.group == "submodules"} == set(NAMES)
    engines = [row for row in rows if row.candidate.backend == "torch_tensorrt"]
    assert {row.candidate.graph for row in engines} == {False, True}
    assert not [row for row in KINDS["cuda"] if row.candidate.backend == "torch_tensorrt"]


@both
def test_compiled_for_one_request_means_one_request(rows: list[Row]) -> None:
    for row in rows:
        if row.candidate.backend != "eager" and not row.candidate.dynamic:
            assert (row.workload.views, row.workload.batch) == (1, 1), row.name


@both
def test_settings_fit_a_record(rows: list[Row]) -> None:
    results = [row.result("bf16") for row in rows]
    record = Record(created_utc="now", results=results)
    assert record_from(json.loads(dumps(record)), "x").results == results
    for row, result in zip(rows, results, strict=True):
        assert (result.group, result.name, result.subject, result.workload) == (
            row.group, row.name, row.of, row.workload,
        )  # fmt: skip
        assert result.candidate == replace(row.candidate, precision="bf16")
    assert Workload() == Workload(views=1, batch=1, steps=4)
