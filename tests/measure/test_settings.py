"""Options of torch.compile: read from text, refused where this release has none of that name, set while it compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.config as config
from torch import nn

from gr00t_trt.backends.base import BuildContext
from gr00t_trt.backends.inductor import products
from gr00t_trt.errors import PlanError
from gr00t_trt.measure.settings import TunedInductor, unknown_setting
from gr00t_trt.model.targets import Target
from gr00t_trt.plans.schema import BuildOptions


@pytest.mark.parametrize(
    "option",
    ["triton.enable_pdl", "combo_kernels=false", "triton.multi_kernel=1", "max_autotune_gemm_backends=ATEN,TRITON",
     "products.long_linear=false"],
)  # fmt: skip
def test_options_of_every_type_are_known(option: str) -> None:
    assert unknown_setting([option]) is None


@pytest.mark.parametrize(
    "option",
    ["tritium.enable_pdl", "triton.enable_pdq", "triton.multi_kernel", "triton.multi_kernel=many", "combo_kernels=",
     "combo_kernels=maybe", "max_autotune_gemm_backends", "products.long_linear", "products.short_linear=false"],
)  # fmt: skip
def test_what_cannot_be_set_is_told(option: str) -> None:
    told = f"unsupported: torch {torch.__version__} has no torch.compile option {option}"
    assert unknown_setting(["combo_kernels", option]) == told
    with pytest.raises(PlanError, match=r"has no torch\.compile option"):
        TunedInductor("default", [option])


def test_they_are_set_while_it_compiles_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def compiled(self: Any, module: nn.Module, *, on_gpu: bool) -> Callable[..., Any]:
        seen.update(multi=config.triton.multi_kernel, combo=config.combo_kernels, without=self._without)
        return module

    monkeypatch.setattr(TunedInductor, "compiled", compiled)
    target = Target("state_encoder", nn.Linear(2, 2), (torch.zeros(1, 2),), ("state",), ({},))
    options = ["triton.multi_kernel=1", "combo_kernels", "products.long_linear=false"]
    built = TunedInductor("default", options).build(target, BuildOptions(), BuildContext(None, lambda _: None))
    assert seen == {"multi": 1, "combo": True, "without": ["long_linear"]}
    assert (config.triton.multi_kernel, config.combo_kernels) == (0, False)
    assert dict(built.settings).items() >= {"triton.multi_kernel": 1, "combo_kernels": True}.items()


def test_a_rewriting_that_is_left_out_is_another_cache_entry() -> None:
    every, fewer = products.GpuProducts(), products.GpuProducts(["grouped_attention"])
    assert every.uuid() != fewer.uuid()
