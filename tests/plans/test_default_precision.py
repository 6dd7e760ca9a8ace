"""Without a precision of the user's, what computes on a CPU does so in fp32; everything else stays as it was."""

from __future__ import annotations

from typing import Any

import pytest

from gr00t_trt.plans.backends import Availability
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.resolve import Machine, Resolved, cpu_is_fast_in, resolve
from gr00t_trt.plans.schema import Plan

ENGINES = ("torch_tensorrt", "tensorrt")


def resolved(
    settings: dict[str, Any],
    *,
    device: str = "cpu",
    engines: bool = False,
    native: tuple[str, ...] = ("fp32",),
    **options: Any,
) -> Resolved:
    def availability(backend: str) -> Availability:
        missing = backend in ENGINES and not engines
        return Availability(not missing, "it is not installed" if missing else "")

    plan = plan_from_mapping(settings, "test") if settings else Plan()
    return resolve(plan, Machine(device, availability, native.__contains__), **options)


def about(found: Resolved, what: str) -> list[str]:
    return [text for key, text in found.notes if key == what]


@pytest.mark.parametrize("backend", ["eager", "inductor", "onnxruntime"])
def test_what_computes_on_the_cpu_does_so_in_fp32_and_says_it_once(backend: str) -> None:
    found = resolved({"backend": backend}, precision_chosen=False)
    assert found.plan.precision == "fp32"
    assert {found[name].precision for name in found.names} == {"fp32"}
    assert about(found, "precision") == [
        "fp32 on this CPU: fp16 is no faster here and less exact; --precision chooses another"
    ]


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
        "no faster than fp32 on this CPU, and less exact; fast here: fp32"
    ]
    assert not about(resolved({"backend": "eager", "precision": "fp32"}), "precision fp32")


def test_a_programs_own_default_gives_way_too_unless_the_cpu_is_fast_in_it() -> None:
    for native, precision in ((("fp32",), "fp32"), (("fp32", "bf16"), "bf16")):
        found = resolved({"backend": "eager", "precision": "bf16"}, native=native, precision_chosen=False)
        assert found.plan.precision == precision


def test_a_submodules_own_precision_stays() -> None:
    found = resolved(
        {"backend": "eager", "submodules": {"dit_model": {"precision": "bf16"}}}, native=("fp32", "bf16"),
        precision_chosen=False,
    )  # fmt: skip
    assert (found["dit_model"].precision, found["vision_model"].precision) == ("bf16", "fp32")
    assert about(found, "precision") == [
        "fp32 on this CPU: fp16 is no faster here and less exact; --precision chooses another; bf16 may be faster"
    ]


def test_a_cpu_with_matrix_units_is_not_called_slow() -> None:
    found = resolved({"backend": "eager", "precision": "bf16"}, native=("fp32", "bf16"))
    assert not any(key.startswith("precision") for key, _ in found.notes)


def test_the_processor_is_asked_for_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for answer in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda answer=answer: answer, raising=False)
        assert cpu_is_fast_in("bf16") is answer
    assert cpu_is_fast_in("fp32")
    monkeypatch.delattr(torch.cpu, "_is_amx_fp16_supported", raising=False)
    assert not cpu_is_fast_in("fp16")
