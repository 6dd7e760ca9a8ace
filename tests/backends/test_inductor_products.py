"""The rewriting of products: where it applies, and that what it writes is the same function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gr00t_trt.backends.inductor import products as inductor_products
from gr00t_trt.backends.inductor.products import GpuProducts, is_long, long_linear

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Mlp(nn.Module):
    """As in the model's towers, 64 wide and 256 inside, twice; the first time its inner values are also returned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.wide = nn.Linear(64, 256), nn.Linear(256, 64), nn.Linear(64, 128, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return self.wide(y) + F.gelu(self.wide(y))


def traced(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The graph of an Mlp as torch.compile hands it to its passes, and its calls after the pass."""
    monkeypatch.setattr(inductor_products, "_half_on_gpu", lambda node: on_gpu)
    seen: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
        GpuProducts()(module.graph)
        module.graph.lint()
        module.recompile()
        seen.append(module)
        return module

    torch.manual_seed(0)
    with torch.no_grad():
        torch.compile(Mlp(), backend=keep, fullgraph=True)(torch.randn(2, 5, 64))
    torch._dynamo.reset()
    return seen[0], [node for node in seen[0].graph.nodes if node.op == "call_function"]


def test_products_are_rewritten_where_they_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor_products, "linear_gelu", stand_in_gelu)
    monkeypatch.setattr(inductor_products, "long_linear", stand_in_long)
    _, calls = traced(True, monkeypatch)
    targets = [node.target for node in calls]
    assert targets.count(stand_in_gelu) == 1
    assert targets.count(stand_in_long) == 1
    assert targets.count(F.linear) == 2  # without a bias, and not long
    assert targets.count(F.gelu) == 1  # the exact one


def stand_in_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def stand_in_long(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def test_graphs_on_a_cpu_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    _, calls = traced(False, monkeypatch)
    assert [node.target for node in calls].count(F.linear) == 4


@pytest.mark.parametrize(
    ("width", "length", "cut"),
    [(1536, 6144, True), (1152, 4304, False), (2048, 8192, True), (2048, 2048, False), (6144, 1536, False)],
)
def test_which_products_are_cut(width: int, length: int, cut: bool) -> None:
    assert is_long(width, length) == cut


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_in_parts_is_the_product(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6144, 1536, bias=bias, device="cuda", dtype=dtype)
    x = torch.randn(1, 49, 6144, device="cuda", dtype=dtype)
    with torch.no_grad():
        exact = F.linear(x.double(), linear.weight.double(), None if linear.bias is None else linear.bias.double())
        cut, whole = long_linear(x, linear.weight, linear.bias), linear(x)
    assert cut.dtype == dtype
    assert cut.shape == whole.shape
    assert float((cut - exact).abs().max()) <= 1.1 * float((whole - exact).abs().max())


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 49, 64), (7, 64), (2, 3, 5, 64)])
def test_compiled_products_are_near_the_exact_ones(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = Mlp().to("cuda").requires_grad_(False)
    exact = module.double()(torch.randn(shape, device="cuda", dtype=torch.float64))
    torch.manual_seed(0)
    module = Mlp().to("cuda").requires_grad_(False).to(dtype)
    x = torch.randn(shape, device="cuda", dtype=torch.float64).to(dtype)
    whole = module(x)
    rewritten = torch.compile(module, options={"pre_grad_custom_pass": GpuProducts()}, fullgraph=True)(x)
    assert float((rewritten - exact).abs().max()) <= 2 * float((whole - exact).abs().max())
