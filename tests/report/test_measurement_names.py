"""A row's name beside the others of its run, and alone."""

from __future__ import annotations

import pytest

from gr00t_trt.measure.rows import planned
from gr00t_trt.plans.schema import OPTIMIZATIONS
from gr00t_trt.record.result import Result
from gr00t_trt.record.schema import Record
from gr00t_trt.report.views import GROUPS, View, together

NAMES = tuple(OPTIMIZATIONS)

BEST = "all optimizations, torch.compile, one CUDA graph"


def views(*results: Result) -> list[View]:
    (one,) = together([("record.json", Record(results=list(results)))])
    return one.views


def rows(device: str) -> list[View]:
    return views(*(row.result("bf16") for row in planned(device, ("vision_model",), tensorrt=True)))


def test_every_group_that_is_planned_has_a_heading() -> None:
    assert {row.result.group for device in ("cuda", "cpu") for row in rows(device)} <= set(GROUPS)


def test_a_step_stands_on_those_before_it() -> None:
    steps = [row for row in rows("cuda") if row.result.group == "waterfall"]
    assert [row.label for row in steps] == [
        "eager PyTorch",
        *(f"{n} of {len(NAMES)} optimizations" for n in range(1, len(NAMES))),
        "all optimizations",
        "all optimizations, torch.compile",
        BEST,
    ]
    assert [row.step for row in steps] == [
        "eager PyTorch",
        *(f"+ {name}" for name in NAMES[:-1]),
        f"+ {NAMES[-1]} (all optimizations)",
        "+ torch.compile",
        "+ one CUDA graph",
    ]
    assert [row.between for row in steps] == [False, *[True] * (len(NAMES) - 1), False, False, False]


@pytest.mark.parametrize(
    ("device", "name", "wanted"),
    [
        ("cuda", "get_action, numpy to numpy", f"get_action, numpy to numpy ({BEST})"),
        ("cpu", "1,000 calls", "1,000 calls (all optimizations)"),
        ("cuda", "Torch-TensorRT, one CUDA graph", "Torch-TensorRT, one CUDA graph"),
        ("cuda", "2 views", "2 views"),
    ],
)
def test_what_names_no_form_is_read_with_it(device: str, name: str, wanted: str) -> None:
    (row,) = (row for row in rows(device) if row.result.name == name)
    assert row.label == wanted
    assert row.step == name
    assert not row.between


def test_a_record_that_does_not_say_keeps_its_names() -> None:
    name = f"+ {NAMES[-1]}"
    (row,) = views(Result("waterfall", name, "model"))
    assert (row.label, row.step, row.form, row.between) == (name, name, None, False)
