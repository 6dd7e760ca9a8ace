"""The rows of both kinds of device: nothing twice, nothing impossible, the headline first."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from gr00t_trt.measure.estimates import Estimates, expected
from gr00t_trt.measure.program import BUDGET_S
from gr00t_trt.measure.rows import ALL, BEST, FORMS, PLAIN, SETTINGS, Row, planned, setting_of
from gr00t_trt.measure.settings import unknown_setting
from gr00t_trt.record.files import dumps, record_from
from gr00t_trt.record.result import Status, Workload
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
    there = [row for row in rows if row.absent is None]
    assert len({(row.candidate, row.workload, row.of, row.calls) for row in there}) == len(there)
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
    assert first(KINDS["cuda"], 4) == [
        "+ one CUDA graph",
        "every stage a graph of its own",
        "get_action, numpy to numpy",
        "eager PyTorch",
    ]


def test_a_lent_gpu_is_asked_what_costs_most_last() -> None:
    order = [row.group for row in sorted(KINDS["cuda"], key=lambda row: row.priority)]
    assert list(dict.fromkeys(order)) == [
        "waterfall", "split", "request", "steps", "forms", "settings", "views", "batch",
    ]  # fmt: skip
    assert order[-len(ALL) - 1 :] == ["waterfall"] * (len(ALL) + 1)


@pytest.mark.parametrize("kind", ["cuda", "cuda with TensorRT"])
def test_on_a_gpu_eager_pytorch_is_timed_in_turn_with_one_row(kind: str) -> None:
    rows = KINDS[kind]
    (eager,) = (row for row in rows if row.candidate == PLAIN)
    assert (eager.beside, eager.calls) == (BEST, 20)
    assert all(row.alone for row in rows)
    assert {row.beside for row in rows if row.of == "replay"} == {BEST}


def test_all_rows_of_a_gpu_fit_into_its_budget() -> None:
    budget = expected(KINDS["cuda"])
    assert budget[-1].at_s + budget[-1].build_s + budget[-1].row_s < BUDGET_S < 570
    assert max(one.row_s for one in budget) <= 12
    assert [one.row.priority for one in budget] == list(range(len(budget)))
    for before, one in pairwise(budget):
        assert one.at_s == pytest.approx(before.at_s + before.build_s + before.row_s)
    built = [one.row.name for one in budget if one.build_s]
    *early, vision, chains = FORMS
    assert built == ["+ one CUDA graph", *early, "1 view", vision, chains, *SETTINGS]


def test_a_graph_gets_all_its_calls_once_it_is_known_how_fast_it_is() -> None:
    row = next(row for row in KINDS["cuda"] if row.name == "+ one CUDA graph")
    known = Estimates("cuda", {"vision_model": 27, "denoise_step": 16}, original_s=0.055)
    assert known.rounds(row, 500.0)[0] < 200
    known.learn(row, 0.0072)
    assert known.rounds(row, 500.0) == (1000, 5)
    larger = replace(row, workload=Workload(batch=8), candidate=replace(row.candidate, dynamic=True))
    assert known.round_s(larger) == pytest.approx(0.0072 * 3.1)
    assert known.build_s(row.candidate) == pytest.approx(0.6 * 43)
    assert known.build_s(row.candidate, {replace(row.candidate, graph=False)}) == 0.0
    known.learn_build(25.8, 51.6)
    assert known.build_s(row.candidate) == pytest.approx(1.2 * 43)
    known.learn_build(51.6, 0.1)  # all of it came from a cache
    assert known.build_s(row.candidate) == pytest.approx(0.25 * 0.6 * 43)


def test_new_forms_are_compared_and_the_whole_calls_of_some_timed_a_thousand_times() -> None:
    forms = [row for row in KINDS["cuda"] if row.group == "forms"]
    assert [(row.candidate.backend, row.candidate.precision) for row in forms] == [
        ("triton", None), ("triton", None), ("triton", "fp8"),
    ]  # fmt: skip
    assert all(row.calls == 1000 for row in forms)
    compared = {row.name: row.candidate for row in KINDS["cuda"] if row.of == "replay"}
    assert compared.items() >= FORMS.items()


def test_a_form_is_built_upon_the_one_before_it() -> None:
    known = Estimates("cuda", {"vision_model": 27, "language_model": 12, "vl_components": 4, "denoise_step": 16}, 0.055)
    bare = {name: replace(form, graph=False) for name, form in FORMS.items()}
    made = {replace(BEST, graph=False)}
    took = {}
    for name, form in bare.items():
        if form.stages:
            took[name] = known.build_s(form, made)
        made.add(form)
    assert took == {
        "the DiT on its own Triton kernels": 32.0,
        "DiT and ViT attention kernels": pytest.approx(16.2),
        "DiT, ViT and LLM attention kernels": pytest.approx(7.2),
        "DiT and all attention kernels": pytest.approx(2.4),
        "FP8, the DiT on its own Triton kernels": 32.0,
        "FP8, DiT and all attention kernels": pytest.approx(16.2 + 7.2 + 2.4),
        "all attention kernels, ViT in a chain": 14.0,
        "ViT and LLM in a chain": 16.0,
    }


def test_a_row_has_the_runs_precision_or_its_own() -> None:
    made = {row.result("bf16").candidate.precision for row in KINDS["cuda"]}
    assert made == {"bf16", "fp8"}


def test_a_row_that_has_nothing_to_measure_says_so() -> None:
    absent = replace(KINDS["cuda"][0], absent="not built yet").result("bf16")
    assert (absent.status, absent.why) == (Status.UNAVAILABLE, "not built yet")


def test_a_setting_is_tried_on_a_stage_that_it_is_about() -> None:
    found = [setting_of(row.candidate) for row in KINDS["cuda"] if row.candidate.settings]
    assert sorted(found, key=str) == sorted(SETTINGS.values(), key=str)
    assert all(unknown_setting(setting.options) is None for setting in SETTINGS.values())
    assert setting_of(BEST) is None


def test_a_cpu_is_asked_for_no_cuda_graph() -> None:
    for row in KINDS["cpu"]:
        assert not row.candidate.graph
        assert row.candidate.mode in (None, "default")


def test_a_gpu_gets_all_that_is_asked_for() -> None:
    rows = KINDS["cuda with TensorRT"]
    modes = {row.candidate.mode for row in rows}
    assert modes == {None, "default"}
    work = {row.workload for row in rows}
    assert {w.views for w in work} == {1, 2, 3}
    assert {w.batch for w in work} == {1, 2, 4, 8}
    assert {w.steps for w in work} == {1, 2, 4, 8}
    assert any(row.calls == 1000 for row in rows)
    assert any(row.of == "request" for row in rows)
    assert any(row.of == "split" for row in rows)
    settings = {name.partition("=")[0] for row in rows for name in row.candidate.settings}
    assert settings >= {"triton.enable_pdl", "coordinate_descent_tuning", "max_autotune_gemm", "combo_kernels"}
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
        subject = "replay" if row.of == "split" else row.of
        assert (result.group, result.name, result.subject, result.workload) == (
            row.group, row.name, subject, row.workload,
        )  # fmt: skip
        assert result.candidate == replace(row.candidate, precision=row.candidate.precision or "bf16")
    assert Workload() == Workload(views=1, batch=1, steps=4)
