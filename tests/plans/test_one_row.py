"""A backend is one class and one row, a precision one row: whatever offers, ranks, draws or describes them has it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gr00t_trt.backends.base import BuildContext, Built
from gr00t_trt.evaluate import program as evaluate
from gr00t_trt.measure import program as measure
from gr00t_trt.model.targets import Target
from gr00t_trt.plans.backends import BACKENDS, Availability, BackendRow
from gr00t_trt.plans.load import load_plan, plan_from_mapping, plan_to_mapping
from gr00t_trt.plans.precisions import PRECISIONS, Gate, PrecisionRow
from gr00t_trt.plans.schema import OPTIMIZATIONS, BuildOptions
from gr00t_trt.record.files import read_record
from gr00t_trt.record.result import Candidate, Result, Status
from gr00t_trt.record.samples import Samples
from gr00t_trt.record.schema import Record
from gr00t_trt.report import markdown
from gr00t_trt.report.page import page
from gr00t_trt.report.terminal import render
from gr00t_trt.report.views import together
from gr00t_trt.run import program as run
from gr00t_trt.serve import flags as serve

QUICK = ["--model_path", "synthetic", "--dataset_path", "synthetic", "--benchmark", "python_timer",
         "--num_iterations", "2", "--warmup_iterations", "0", "--fn_name", "action_decoder"]  # fmt: skip
SHADE = "a1b2c3"


class Dummy:
    """Makes nothing faster."""

    name = "dummy"
    capturable = "any shape"

    def availability(self) -> Availability:
        return Availability(True, versions={"dummy": "7"}, caveats=("it makes nothing faster",))

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        context.progress("looking busy")
        return Built(target.module, runs=True, build_s=0.125, notes=("made of nothing",))


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A backend that is simpler than all others, and so wins every tie; and a precision that is more exact."""
    monkeypatch.chdir(tmp_path)
    source = f"{__name__}:Dummy"
    row = BackendRow("dummy", "The Dummy", source, f"#{SHADE}", moving_parts=-1, distributions=("pytest",))
    monkeypatch.setitem(BACKENDS, "dummy", row)
    gates = Gate(cosine=0.99998, sqnr_db=44.0), Gate(cosine=0.9998, sqnr_db=35.0)
    monkeypatch.setitem(PRECISIONS, "fp64", PrecisionRow("fp64", "float64", 4, *gates, 1e-9, spellings=("double",)))


@pytest.mark.parametrize("program", [run, serve, evaluate, measure], ids=lambda program: program.__name__)
def test_the_flags_offer_them(program: Any) -> None:
    text = program.parser().format_help()
    assert "fp64" in text
    if program is not measure:  # which chooses backends itself
        assert "dummy" in text


def test_a_plan_can_have_them() -> None:
    plan = plan_from_mapping({"backend": "Dummy", "submodules": {"dit_model": {"precision": "DOUBLE"}}}, "plan.yaml")
    assert (plan.backend, plan.submodules["dit_model"].precision) == ("dummy", "fp64")
    assert plan_from_mapping(plan_to_mapping(plan), "again") == plan
    served = serve.plan_of(serve.parse(["--server", "--backend", "dummy", "--precision", "fp64"]))
    assert (served.backend, served.precision) == ("dummy", "fp64")


def _run(*flags: str) -> Record:
    assert run.main([*QUICK, "--precision", "fp64", *flags, "--record", "r.json"]) == 0
    return read_record("r.json")


def test_a_plan_is_carried_out_with_them() -> None:
    record = _run("--backend", "dummy")
    (part,) = record.submodules
    assert (part.candidate.backend, part.candidate.precision, part.passed) == ("dummy", "fp64", True)
    assert part.gate == PRECISIONS["fp64"].gate
    assert part.notes == ("made of nothing",)
    assert next(iter(part.build.arguments.values())).dtype == "float64"
    assert record.request.gate == PRECISIONS["fp64"].action_gate
    assert record.environment.distributions["pytest"] == pytest.__version__
    assert ("dummy", "it makes nothing faster") in [(note.what, note.why) for note in record.skipped]


def test_they_are_compared_and_shown() -> None:
    record = _run("--compare", "dummy")
    tried = {(r.subject, r.candidate.backend, r.candidate.precision): r for r in record.of("comparison")}
    for subject in ("action_decoder", "request"):
        assert tried[subject, "dummy", "fp64"].status is Status.MEASURED
        assert tried[subject, "dummy", "fp64"].passed
    terminal, text, html = _written(record)
    assert ["submodule", "eager", "dummy"] in [line.split() for line in terminal.splitlines()]
    assert "fp64" in terminal
    assert "| dummy: p50 ms |" in text
    assert ", fp64, " in text
    assert f".c-{SHADE} {{ --shade: #{SHADE}; }}" in html
    assert f'class="row c-{SHADE}"' in html
    assert "dummy fp64" in html


def test_they_are_chosen_and_kept_as_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in reversed(tuple(BACKENDS)):  # compilers would take minutes; undone backwards, the order comes back
        if name not in ("eager", "dummy"):
            monkeypatch.delitem(BACKENDS, name)
    record = _run("--backend", "auto", "--write_plan", "chosen.yaml")
    assert [r.candidate.backend for r in record.of("comparison") if r.subject == "action_decoder"] == ["eager", "dummy"]
    assert [r.candidate.backend for r in record.submodules] == ["dummy"]
    chosen = load_plan("chosen.yaml")
    assert (chosen.submodules["action_decoder"].backend, chosen.precision) == ("dummy", "fp64")
    header = [line.split() for line in Path("chosen.yaml").read_text().splitlines() if line.startswith("#")]
    assert ["#", "eager", "dummy", "original", "chosen"] in header
    assert [line[-1] for line in header if line[1:2] == ["action_decoder"]] == ["dummy"]
    terminal, _, _ = _written(record)
    assert any({"action_decoder", "dummy", "fp64"} <= set(line.split()) for line in terminal.splitlines())


def test_a_row_of_a_measuring_run_is_called_by_its_title() -> None:
    made = Candidate("dummy", "fp64", tuple(OPTIMIZATIONS))
    latency = Samples((2.0, 2.1, 2.2))
    own = Result("waterfall", "+ dummy", "model", made, status=Status.MEASURED, latency_ms=latency)
    first = replace(own, name="eager PyTorch", candidate=Candidate(precision="fp64"))
    record = Record(created_utc="2026-01-01T00:00:00Z", plan={"precision": "fp64"}, results=[first, own])
    terminal, text, html = _written(record)
    assert "+ dummy" in terminal
    assert "+ dummy" in text
    assert "The Dummy" in html


def _written(record: Record) -> tuple[str, str, str]:
    """The record in a terminal, as Markdown, and as a page."""
    terminal = Console(file=io.StringIO(), width=160)
    render(record, terminal)
    loaded = together([("r.json", record)])
    return terminal.file.getvalue(), markdown.section(loaded[0], ""), page(loaded, "with a dummy")
