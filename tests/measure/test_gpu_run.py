"""A GPU's rows without a GPU: their order, A B A, the split, what is cut; graphs and compiler are stand-ins."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from gr00t_trt.backends.base import Availability, BuildContext, Built
from gr00t_trt.compile import capture
from gr00t_trt.measure import estimates, job, sweep, variants, work
from gr00t_trt.measure.job import Wanted
from gr00t_trt.measure.roofline import Trace
from gr00t_trt.measure.rows import BEST, FORMS, SETTINGS, WHOLE_CALLS, planned
from gr00t_trt.measure.workloads import Requests
from gr00t_trt.model.targets import Target
from gr00t_trt.plans.precisions import PRECISIONS
from gr00t_trt.plans.schema import BuildOptions
from gr00t_trt.policy.source import Source
from gr00t_trt.record.files import read_record
from gr00t_trt.record.result import Baseline, Result, Status, Workload
from gr00t_trt.record.schema import Record
from gr00t_trt.report import markdown
from gr00t_trt.report.terminal import render
from gr00t_trt.report.views import View, together

CALLS = 5
LEFT_OUT = ("2 denoising steps", "8 denoising steps", "1 view", "3 views", "batch 4", "batch 8",
            "keys and values repeated",
            "+ constant_folding", "+ token_pruning", "+ fused_projections", "+ prompt_cache")  # fmt: skip
"""Rows that differ from others by a number only."""


@dataclass
class Again:
    """A graph that is made by calling again, on the same memory."""

    call: Callable[[], Tensor]
    output: Tensor

    def replay(self) -> None:
        self.output.copy_(self.call())


class AgainCapturer:
    @contextmanager
    def scope(self) -> Iterator[None]:
        yield

    turn = scope

    def capture(self, call: Callable[[], Tensor]) -> Again:
        return Again(call, call().clone())


class Instant:
    """A compiler that hands out the eager module; knows what it was asked for."""

    name, capturable = "inductor", "any shape"
    asked: list[tuple[str, tuple[str, ...], str]]

    def __init__(self, mode: str, settings: tuple[str, ...] = ()):
        self.mode, self.settings = mode, settings

    def availability(self) -> Availability:
        return Availability(True, "", {}, ())

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        self.asked.append((self.mode, tuple(self.settings), target.name))
        return Built(target.module, True, 0.01)


ROWS = [replace(row, calls=min(row.calls, CALLS)) for row in planned("cuda", ()) if row.name not in LEFT_OUT]


KERNELS = tuple(name for name, form in FORMS.items() if form.backend == "triton")
LONG = ("searched products, TMA, cut along K",)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, list[Any], list[str]]:
    """The record, what was built, and the rows in the order in which they were begun."""
    folder, order, asked = tmp_path_factory.mktemp("measured"), [], []
    take = sweep.Sweep.take

    def noted(self: Any, row: Any) -> Result:
        order.append(row.name)
        return take(self, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Instant, "asked", asked, raising=False)
        for name in ("InductorBackend", "TunedInductor"):
            patch.setattr(variants, name, Instant)
        patch.setattr(capture, "capturer_for", lambda device: AgainCapturer())
        patch.setattr(job, "rows_for", lambda kind: ROWS)
        patch.setattr(sweep, "CALLS_OF_PERCENTILES", CALLS)
        patch.setattr(sweep, "REPLAYS", CALLS)
        patch.setattr(sweep, "HOST_CALLS", CALLS)
        # Counting takes seconds, and has tests of its own.
        patch.setattr(work, "_traced", lambda *_: Trace())
        patch.setattr(work, "_operators_per_step", lambda *_: 249)
        patch.setattr(sweep.Sweep, "take", noted)
        known = sweep.unknown_setting
        patch.setattr(
            sweep,
            "unknown_setting",
            lambda names: known([name.replace("triton.enable_pdl", "tritium.enable_pdl") for name in names]),
        )
        # A search of hours, in a budget of minutes.
        patch.setitem(estimates.BUILD_S_PER_LAYER["cpu"], estimates.SEARCH_MODE, 1e6)
        saved = iter([(b"first", None), (b"second", None)])
        patch.setattr(torch.compiler, "save_cache_artifacts", lambda: next(saved, None))
        source = Source("synthetic", "synthetic")
        wanted = Wanted(folder, 300, source, "cpu", cache=folder / "cache.bin")
        _, path = job.run(wanted, Console(file=io.StringIO()))
    assert (folder / "cache.bin").read_bytes().endswith(b"\nsecond")
    return read_record(path), asked, order


@pytest.fixture
def record(run) -> Record:
    return run[0]


def entry(record: Record, name: str, group: str | None = None) -> Result:
    (found,) = (row for row in record.measured if row.name == name and group in (None, row.group))
    return found


def test_rows_are_taken_in_their_order_and_what_is_too_long_is_left_out(run) -> None:
    record, _, order = run
    absent = {*KERNELS, *LONG, "programmatic dependent launch"}
    assert order == [row.name for row in sorted(ROWS, key=lambda row: row.priority) if row.name not in absent]
    assert all(entry(record, name).status is Status.NO_TIME for name in LONG)
    assert record.exit_reason == "done"
    failed = [(row.name, row.why) for row in record.measured if row.status is Status.FAILED]
    assert failed == []


def test_what_this_release_or_this_project_does_not_have_says_so(record: Record) -> None:
    whole = [name for name, form in FORMS.items() if form in WHOLE_CALLS]
    taken = [(name, "settings") for name in KERNELS] + [(name, "forms") for name in whole]
    assert {entry(record, *row).why for row in taken} == {"triton: its kernels need a CUDA GPU"}
    pdl = entry(record, "programmatic dependent launch")
    assert (pdl.status, pdl.latency_ms) == (Status.UNAVAILABLE, None)
    assert pdl.why == f"unsupported: torch {torch.__version__} has no torch.compile option tritium.enable_pdl"


def test_the_headline_has_the_hosts_part_and_the_graphs(record: Record) -> None:
    best = entry(record, "+ one CUDA graph")
    assert len(best.latency_ms.samples) == CALLS
    assert best.passed
    assert 0 < best.launch.host_us / 1e3 < 1.5 * best.latency_ms.max
    for samples in (best.launch.replay_ms, best.launch.event_ms):
        assert len(samples.samples) == CALLS
        assert 0 < samples.min < best.latency_ms.max
    assert entry(record, "get_action, numpy to numpy").launch.host_us > 0
    graphs = [row for row in record.measured if row.candidate.graph and row.status is Status.MEASURED]
    assert all(row.launch and row.launch.host_us for row in graphs)
    assert entry(record, "+ torch.compile").launch is None  # without a graph and without a GPU
    assert record.host_adds_us > 0


def test_eager_is_timed_in_turn_with_the_headline_alone_and_is_its_baseline(record: Record) -> None:
    eager, best = entry(record, "eager PyTorch"), entry(record, "+ one CUDA graph")
    turns = [row for row in record.measured if row.against and row.against.baseline is Baseline.ORIGINAL]
    assert turns == [best]
    assert best.against.latency_ms == eager.latency_ms
    assert best.against.ratio > 0
    (one,) = together([("record.json", record)])
    views = {view.result.name: view for view in one.views}
    alone = views["+ kv_cache"]
    assert alone.baseline == eager.latency_ms
    assert alone.ratio == pytest.approx(eager.latency_ms.p50 / alone.result.latency_ms.p50)
    assert views["2 views"].ratio is None  # other work


def test_the_split_adds_up(record: Record) -> None:
    row = entry(record, "every stage a graph of its own")
    assert [(part.stage, part.calls) for part in row.split] == [
        ("vision_model", 1), ("language_model", 1), ("vl_components", 1), ("state_encoder", 1), ("denoise_step", 4),
    ]  # fmt: skip
    assert all(len(part.latency_ms.samples) == CALLS for part in row.split)
    assert row.split_ms == pytest.approx(row.latency_ms.p50, rel=0.5)
    assert sum(row.stages_ms.values()) == pytest.approx(max(row.latency_ms.p50, row.split_ms))
    assert row.notes[0].startswith("the stages add up to ")


def test_a_setting_is_compared_a_b_a_on_its_stages(run) -> None:
    record, asked, _ = run
    row = entry(record, "tuned pointwise kernels")
    assert row.against.baseline is Baseline.FORM
    assert (len(row.latency_ms.samples), len(row.against.latency_ms.samples)) == (CALLS, 2 * CALLS)
    assert row.notes[0].startswith("A B A: ")
    assert row.notes[0].endswith((": kept", ": not kept"))
    assert row.passed
    setting = SETTINGS["tuned pointwise kernels"]
    assert [name for _, settings, name in asked if settings == setting.options] == list(setting.stages)
    assert row.candidate.settings == setting.options


def test_the_form_in_8_bits_is_calibrated_on_the_runs_own_requests(record: Record) -> None:
    fp8 = entry(record, "FP8")
    assert fp8.candidate.precision == "fp8"
    assert (fp8.status, fp8.passed, fp8.gate) == (Status.MEASURED, True, PRECISIONS["fp8"].action_gate)
    assert 0.999 < fp8.accuracy.cosine < entry(record, "+ one CUDA graph").accuracy.cosine
    assert fp8.notes[1].endswith("which take 55 % of their 16-bit bytes; calibrated on 2 requests of this run")


def test_each_form_is_built_once(run) -> None:
    """As it is, for a range of sizes, and in 8 bits, for which what has no large products is taken as it is."""
    _, asked, _ = run
    names = [name for mode, settings, name in asked if not settings]
    large = ["vision_model", "language_model", "vl_components", "denoise_step"]
    assert sorted(names) == sorted([*3 * large, *2 * ["state_encoder"]])


def test_a_record_of_it_can_be_read(record: Record) -> None:
    (one,) = together([("record.json", record)])
    out = Console(file=io.StringIO(), width=80)
    render(record, out)
    text = out.file.getvalue()
    for words in ("host µs", "back to back ms", "all of them", "between them", "the whole graph"):
        assert words in " ".join(text.split()), words
    written = markdown.section(one, "records/")
    assert "timed in turn with one row, '+ one CUDA graph'" in written
    assert "| every stage as a graph of its own, replayed back to back | calls in it | ms | of the whole |" in written
    assert "| settings of torch.compile, A B A | calls | without it p50 ms | p50 ms |" in written
    assert "FP8, the DiT on its own Triton kernels (triton: its kernels need a CUDA GPU)" in written
    assert View(one, entry(record, "eager PyTorch")).ratio is None


class Kernels(Instant):
    """Triton's backend, likewise."""

    name = "triton"

    def __init__(self, mode: str = "default"):
        super().__init__(mode, ("kernels",))


def test_a_stage_gets_its_kernels_once_and_the_others_stay_as_they_are(
    make_harness: Any, requests_: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, tuple[str, ...], str]] = []
    monkeypatch.setattr(Instant, "asked", asked, raising=False)
    monkeypatch.setattr(variants, "InductorBackend", Instant)
    real = variants.get_backend
    monkeypatch.setattr(variants, "get_backend", lambda name: Kernels() if name == "triton" else real(name))
    made = variants.Variants(make_harness(requests_, "fp32", [Workload()]))
    forms = [replace(form, graph=False) for form in FORMS.values() if form.precision is None]
    compiled, parts = made.get(replace(BEST, graph=False)).parts, []
    for number, form in enumerate(forms):
        parts.append(made.get(form).parts)
        made.keep_only({replace(one, graph=True) for one in forms[number + 1 :]})
    stages = ["denoise_step", "vision_model", "language_model", "vl_components"]
    assert [(mode, name) for mode, settings, name in asked if settings] == [
        *(("default", name) for name in stages), ("chain", "vision_model"), ("chain", "language_model"),
    ]  # fmt: skip
    assert sorted(name for _, settings, name in asked if not settings) == sorted([*stages, "state_encoder"])
    later = ["vision_model", "language_model", "vl_components", "vision_model", "language_model"]
    for before, after, changed in zip(parts, parts[1:], later, strict=False):
        assert {name for name in after if after[name] is not before[name]} == {changed}
    assert {name for name in parts[0] if parts[0][name] is not compiled[name]} == {"denoise_step"}
