"""A row's name beside the others of its run, and alone."""

from __future__ import annotations

import pytest
from gr00t_trt.record.records import measurement_entry
from gr00t_trt.report.names import GROUPS, alone, form, in_its_group, is_between

from gr00t_trt.measure.rows import Row, planned
from gr00t_trt.plans.schema import OPTIMIZATIONS

NAMES = tuple(OPTIMIZATIONS)

BEST = "all optimizations, torch.compile, one CUDA graph"


def entries(device: str) -> list[dict]:
    def entry(row: Row) -> dict:
        return measurement_entry(row.group, row.name, settings=row.settings())

    return [entry(row) for row in planned(device, ("vision_model",), tensorrt=True)]


def test_every_group_that_is_planned_has_a_heading() -> None:
    assert {row["group"] for device in ("cuda", "cpu") for row in entries(device)} <= set(GROUPS)


def test_a_step_stands_on_those_before_it() -> None:
    rows = [row for row in entries("cuda") if row["group"] == "waterfall"]
    assert [alone(row) for row in rows] == [
        "eager PyTorch",
        *(f"{n} of {len(NAMES)} optimizations" for n in range(1, len(NAMES))),
        "all optimizations",
        "all optimizations, torch.compile",
        BEST,
    ]
    assert [in_its_group(row) for row in rows] == [
        "eager PyTorch",
        *(f"+ {name}" for name in NAMES[:-1]),
        f"+ {NAMES[-1]} (all optimizations)",
        "+ torch.compile",
        "+ one CUDA graph",
    ]
    assert [is_between(row) for row in rows] == [False, *[True] * (len(NAMES) - 1), False, False, False]


@pytest.mark.parametrize(
    ("device", "name", "wanted"),
    [
        ("cuda", "1,000 calls", f"1,000 calls ({BEST})"),
        ("cuda", "get_action, numpy to numpy", f"get_action, numpy to numpy ({BEST})"),
        ("cpu", "1,000 calls", "1,000 calls (all optimizations)"),
        ("cuda", "restructured, Torch-TensorRT", "restructured, Torch-TensorRT"),
        ("cuda", "2 views", "2 views"),
    ],
)
def test_what_names_no_form_is_read_with_it(device: str, name: str, wanted: str) -> None:
    (row,) = (row for row in entries(device) if row["name"] == name)
    assert alone(row) == wanted
    assert in_its_group(row) == name
    assert not is_between(row)


def test_a_record_that_does_not_say_keeps_its_names() -> None:
    row = measurement_entry("waterfall", f"+ {NAMES[-1]}")
    assert (alone(row), in_its_group(row), form(row), is_between(row)) == (row["name"], row["name"], None, False)
