"""A model loaded in half precision gives, inside `as_stored`, what the same checkpoint gives in fp32, to the bit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gr00t_trt.model import Gr00tN1d5, load_model
from gr00t_trt.model.n1_5.architecture import N1_5
from gr00t_trt.model.stored import as_stored

HALF = (torch.float16, torch.bfloat16)
NOISE = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(3))


def written(checkpoint, dtype: torch.dtype) -> Path:
    checkpoint.tensors = {key: value.to(dtype) for key, value in checkpoint.tensors.items()}
    return checkpoint.write()


def actions(model: Gr00tN1d5, request: dict[str, Tensor]) -> Tensor:
    return model.get_action(request, noise=NOISE)["action_pred"]


@pytest.mark.parametrize("held", HALF)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_stored_weights_count_and_not_the_rounded_ones(
    checkpoint, make_request, stored: torch.dtype, held: torch.dtype
) -> None:
    folder, request = written(checkpoint, stored), make_request(1)
    whole, half = load_model(folder), load_model(folder, dtype=held)
    expected = actions(whole, request)
    assert not torch.equal(actions(half, request), expected)
    with as_stored(half):
        assert torch.equal(actions(half, request), expected)
    assert {parameter.dtype for parameter in half.parameters()} == {held}
    fast = [N1_5.restructured(model, tuple(N1_5.optimizations)) for model in (whole, half)]
    wanted, _ = fast[0].record(request, NOISE)
    with as_stored(half):
        found, _ = fast[1].record(request, NOISE)
    for name, calls in wanted.items():
        for one, other in zip(calls, found[name], strict=True):
            assert other.output.dtype == torch.float32
            assert torch.equal(one.output, other.output), name


def test_every_part_may_be_loaded_in_a_dtype_of_its_own(checkpoint, make_request) -> None:
    folder, request = written(checkpoint, torch.float32), make_request(1)

    def cast(model: nn.Module) -> None:
        assert isinstance(model, Gr00tN1d5)
        assert all(parameter.is_meta for parameter in model.parameters())
        model.cast_stage("dit_model", torch.bfloat16)

    mixed, whole = load_model(folder, dtype=cast), load_model(folder)
    assert mixed.stage_dtypes["dit_model"] == torch.bfloat16
    assert mixed.stage_dtypes["vision_model"] == torch.float32
    assert torch.equal(mixed.action_head.model.proj_out_1.weight, whole.action_head.model.proj_out_1.weight.bfloat16())
    with as_stored(mixed):
        assert torch.equal(actions(mixed, request), actions(whole, request))


def test_a_synthetic_model_knows_the_values_that_it_rounds(shared_tiny: Gr00tN1d5, make_request) -> None:
    half = load_model("synthetic", dtype=torch.bfloat16)
    with as_stored(half):
        assert torch.equal(actions(half, make_request(1)), actions(shared_tiny, make_request(1)))


def test_no_more_than_one_weight_is_in_fp32_at_a_time(checkpoint, make_request) -> None:
    half = load_model(written(checkpoint, torch.bfloat16), dtype=torch.bfloat16)
    table = half.backbone.eagle_model.language_model.model.embed_tokens.weight.numel()
    seen: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            given = args[0] if args and isinstance(args[0], Tensor) else None
            if given is not None and given.dtype in HALF and isinstance(result, Tensor) and result.dtype not in HALF:
                seen.append(math.prod(result.shape))
            return result

    with Sizes(), as_stored(half):
        actions(half, make_request(1))
    assert seen
    assert max(seen) < table  # of an embedding, only the rows that are looked up
