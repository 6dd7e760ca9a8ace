"""Without a precision of the user's, what computes on a CPU does so in the fastest; everything else stays as it was."""

from __future__ import annotations

from typing import Any

import pytest

from gr00t_trt.common.products import Speed
from gr00t_trt.plans.backends import Availability
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.resolve import Machine, Resolved, resolve
from gr00t_trt.plans.schema import Plan

ENGINES = ("torch_tensorrt", "tensorrt")
SLOW_HALVES = Speed({"float32": 2.2, "bfloat16": 3.1, "float16": 2.0}, 2.1)
"""A Xeon with AVX512-BF16 and AVX512-FP16 whose matrix units are off."""
FAST_BF16 = Speed({"float32": 4.4, "bfloat16": 0.9, "float16": 26.0}, 2.0)
"""A Zen 5, whose fp32 MKL does not know."""
MEASURED = "one product of the model on one thread, in ms: fp32 2.2, bf16 3.1, fp16 2, fp32 by oneDNN 2.1"


def resolved(
    settings: dict[str, Any],
    *,
    device: str = "cpu",
    engines: bool = False,
    speed: Speed = SLOW_HALVES,
    **options: Any,
) -> Resolved:
    def availability(backend: str) -> Availability:
        missing = backend in ENGINES and not engines
        return Availability(not missing, "it is not installed" if missing else "")

    plan = plan_from_mapping(settings, "test") if settings else Plan()
    return resolve(plan, Machine(device, availability, lambda: speed), **options)


def about(found: Resolved, what: str) -> list[str]:
    return [text for key, text in found.notes if key == what]


@pytest.mark.parametrize("backend", ["eager", "inductor", "onnxruntime"])
def test_what_computes_on_the_cpu_does_so_in_fp32_and_says_it_once(backend: str) -> None:
    found = resolved({"backend": backend}, precision_chosen=False)
    assert found.plan.precision == "fp32"
    assert {found[name].precision for name in found.names} == {"fp32"}
    assert about(found, "precision") == [
        "fp32 on this CPU: fp16 is not clearly faster here and less exact; --precision chooses another; " + MEASURED
    ]


def test_the_fastest_is_the_default_where_one_is_clearly_faster() -> None:
    found = resolved({"backend": "eager"}, speed=FAST_BF16, precision_chosen=False)
    assert found.plan.precision == "bf16"
    assert about(found, "precision")[0].startswith("bf16 on this CPU, where it is faster than fp16; ")


def test_the_default_backend_that_gives_way_to_eager_does_too() -> None:
    found = resolved({}, chosen=False, precision_chosen=False)
    assert (found.plan.backend, found.plan.precision) == ("eager", "fp32")


def test_engines_built_on_a_cpu_are_for_a_gpu_and_stay_fp16() -> None:
    assert resolved({}, engines=True, precision_chosen=False).plan.precision == "fp16"
    mixed = {"backend": "eager", "submodules": {"dit_model": {"backend": "torch_tensorrt"}}}
    assert resolved(mixed, engines=True, precision_chosen=False).plan.precision == "fp16"
    for compare, precision in ((("eager", "inductor"), "fp32"), (("eager", "torch_tensorrt"), "fp16")):
        assert resolved({}, engines=True, precision_chosen=False, compare=compare).plan.precision == precision
    compared = resolved({}, precision_chosen=False, compare=("eager", "torch_tensorrt"))  # which is not installed
    assert compared.plan.precision == "fp32"


def test_auto_chooses_among_what_runs_here() -> None:
    assert resolved({"backend": "auto"}, engines=True, precision_chosen=False).plan.precision == "fp32"


@pytest.mark.parametrize("settings", [{}, {"backend": "eager"}])
def test_on_a_gpu_nothing_changes(settings: dict[str, Any]) -> None:
    found = resolved(settings, device="cuda:0", engines=True, precision_chosen=False)
    assert found.plan.precision == "fp16"
    assert not any(key.startswith("precision") for key, _ in found.notes)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_chosen_precision_stays_and_a_slow_one_is_told_once(precision: str) -> None:
    found = resolved({"backend": "eager", "precision": precision})
    assert {found[name].precision for name in found.names} == {precision}
    assert about(found, f"precision {precision}") == [
        "not clearly faster than fp32 on this CPU, and less exact; fast here: fp32; " + MEASURED
    ]
    assert not about(resolved({"backend": "eager", "precision": "fp32"}), "precision fp32")


@pytest.mark.parametrize(("speed", "precision"), [(SLOW_HALVES, "fp32"), (FAST_BF16, "bf16")])
def test_a_programs_own_default_gives_way_too_unless_the_cpu_is_fast_in_it(speed: Speed, precision: str) -> None:
    found = resolved({"backend": "eager", "precision": "bf16"}, speed=speed, precision_chosen=False)
    assert found.plan.precision == precision
    assert bool(about(found, "precision")) == (precision == "fp32")


def test_a_submodules_own_precision_stays() -> None:
    own = {"backend": "eager", "submodules": {"dit_model": {"precision": "bf16"}}}
    found = resolved(own, precision_chosen=False)
    assert (found["dit_model"].precision, found["vision_model"].precision) == ("bf16", "fp32")


def test_a_fast_half_is_not_called_slow_and_another_is() -> None:
    def told(precision: str) -> list[str]:
        found = resolved({"backend": "eager", "precision": precision}, speed=FAST_BF16)
        return [text for key, text in found.notes if key.startswith("precision")]

    assert told("bf16") == []
    assert "fast here: fp32, bf16; " in told("fp16")[0]


def test_a_chosen_fp32_measures_nothing() -> None:
    def never() -> Speed:
        raise AssertionError("measured")

    plan = plan_from_mapping({"backend": "eager", "precision": "fp32"}, "test")
    assert resolve(plan, Machine("cpu", cpu_speed=never)).plan.precision == "fp32"
